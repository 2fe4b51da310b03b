"""``lathe passes``: the catalogue."""

from __future__ import annotations

import click

from optimizer.cli.boundary import emit
from optimizer.cli.common import api, show, verb


@verb("passes", short_help="List the passes.")
@click.argument("name", required=False)
def command(name: str | None, as_json: bool) -> None:
    """List every pass with what it promises, or show the page of pass NAME with its options.

    Promises: exact gives the same bits, numeric the same algebra with other rounding, lossy spends quality and is
    kept only where measurement says that it pays.
    """
    found = api().passes_list((name,) if name else ())
    if as_json:
        from optimizer.report.json_ import dump

        emit(dump({"schema": "lathe.passes/1", "passes": found}))
        return
    from optimizer.report import pages

    show(pages.full(found[0]) if name else pages.listing(found))
