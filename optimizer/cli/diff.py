"""``lathe diff``: how two artifacts or models differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from optimizer.cli.boundary import emit
from optimizer.cli.common import OUTPUT, api, option, show, source_options, source_request, verb
from optimizer.plan import Settings, default_cache_dir


@verb("diff", short_help="Show how two artifacts or models differ.")
@click.argument("left", metavar="LEFT")
@click.argument("right", metavar="RIGHT")
@source_options
@option(
    "--cache-dir",
    section=OUTPUT,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Cache folder; default: LATHE_CACHE_DIR, else the user's.",
)
def command(left: str, right: str, cache_dir: Path | None, as_json: bool, **given: Any) -> None:
    """Show how RIGHT differs from LEFT: recipe, what they were made from and for, inputs and outputs, operators,
    weights, and what was measured.

    Each is an artifact's folder or any MODEL. Exit code 0 whether or not they differ.
    """
    source = source_request(left, given)
    found = api().diff(left, right, settings=Settings(source, cache_dir=cache_dir or default_cache_dir()))
    if as_json:
        from optimizer.report.json_ import dump

        emit(dump(found, "lathe.diff/1"))
    else:
        from optimizer.report.tables import difference

        show(difference(found))
