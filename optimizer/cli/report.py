"""``lathe report``: the report of an artifact, made again from its evidence."""

from __future__ import annotations

from pathlib import Path

import click

from optimizer.cli.boundary import emit
from optimizer.cli.common import OUTPUT, api, option, verb


@verb("report", short_help="Make the report of an artifact again.")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@option(
    "-o",
    "--output",
    section=OUTPUT,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where it goes, .html or .md; default: NAME.html in this folder.",
)
@option("--overwrite", section=OUTPUT, is_flag=True, help="Replace a file that is there.")
def command(folder: Path, output: Path | None, overwrite: bool, as_json: bool) -> None:
    """Make the report of the artifact DIR from its evidence.json, with the plots that this installation can draw.

    The artifact itself stays as it is, for its checksums cover the report that it came with. The path of the report
    goes to stdout; with --json the record does.
    """
    if as_json:
        from optimizer.report.json_ import dump

        emit(dump(api().evidence(folder)))
        return
    emit(str(api().report(folder, output, overwrite=overwrite)))
