"""``lathe inspect``: what a model is made of."""

from __future__ import annotations

from typing import Any

import click

from optimizer.cli.boundary import emit
from optimizer.cli.common import api, option, show, source_options, source_request, verb

WHAT = "What to show"


@verb("inspect", short_help="Show what a model is made of.")
@click.argument("model")
@option(
    "--size",
    "sizes",
    section=WHAT,
    metavar="DIM=N",
    multiple=True,
    help="Size of an open dimension, to count work with; default 1. Repeatable.",
)
@option(
    "--passes/--no-passes",
    section=WHAT,
    default=True,
    show_default=True,
    help="Whether to try what each lossless pass would do.",
)
@source_options
def command(model: str, sizes: tuple[str, ...], passes: bool, as_json: bool, **given: Any) -> None:
    """Show inputs, outputs, operators, weights and work of MODEL, and what each pass would do to it."""
    from optimizer.plan import Settings

    source = source_request(model, given)
    found = api().inspect(model, passes=passes, sizes=dict(map(_size, sizes)), settings=Settings(source))
    if as_json:
        from optimizer.report.json_ import dump

        emit(dump(found, "lathe.inspection/1"))
    else:
        from optimizer.report.tables import inspection

        show(inspection(found))


def _size(text: str) -> tuple[str, int]:
    name, equals, number = text.rpartition("=")
    if not equals or not name or not number.isdigit() or int(number) < 1:
        raise click.UsageError(f"--size '{text}' is not NAME=NUMBER, as in batch=8", click.get_current_context())
    return name, int(number)
