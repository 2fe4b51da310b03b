"""``lathe passes``: the catalogue."""

from __future__ import annotations

import click

from optimizer.cli.boundary import emit
from optimizer.cli.common import show, verb
from optimizer.faults import usage


@verb("passes", short_help="List the passes.")
@click.argument("name", required=False)
def command(name: str | None, as_json: bool) -> None:
    """List every pass with what it promises, or show the page of pass NAME with its options.

    Promises: exact gives the same bits, numeric the same algebra with other rounding, lossy spends quality and is
    kept only where measurement says that it pays.
    """
    from optimizer.report import pages
    from optimizer.report.json_ import dump
    from passes import catalogue
    from passes.kit.recipe import RecipeError

    if name is None:
        found = pages.gather(catalogue.names(), catalogue.find)
        if as_json:
            emit(dump({"schema": "lathe.passes/1", "passes": found}))
        else:
            show(pages.listing(found))
        return
    try:
        page = pages.page_of(catalogue.find(name))
    except RecipeError as error:
        raise usage(str(error), code="unknown-pass") from error
    if as_json:
        emit(dump({"schema": "lathe.pass/1", "pass": page}))
    else:
        show(pages.full(page))
