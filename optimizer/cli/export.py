"""``lathe export``: PyTorch to ONNX, with parity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from optimizer.cli.boundary import emit
from optimizer.cli.common import OUTPUT, api, option, show, source_options, source_request, verb
from optimizer.plan import DataRequest, Settings


@verb("export", short_help="Turn a PyTorch model into ONNX.")
@click.argument("model")
@option(
    "-o",
    "--output",
    section=OUTPUT,
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="The ONNX file to write.",
)
@option("--overwrite", section=OUTPUT, is_flag=True, help="Replace a file that is there.")
@option("--data", section=OUTPUT, metavar="SOURCE", help="Samples to take example inputs and parity inputs from.")
@option("--target", section=OUTPUT, metavar="NAME|FILE", help="Deployment site, which decides the opset.")
@option(
    "--runtime",
    section=OUTPUT,
    metavar="ONNXRUNTIME==X.Y",
    help="Oldest onnxruntime that must be able to load the result.",
)
@source_options
def command(
    model: str,
    output: Path,
    overwrite: bool,
    data: str | None,
    target: str | None,
    runtime: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Export MODEL to ONNX in inference mode and measure that both give the same outputs.

    What was found goes to stderr, the path of the file to stdout.
    """
    source = source_request(model, given)
    settings = Settings(source, data=DataRequest(data), target=target, runtime=runtime)
    report = api().export(source, output, overwrite=overwrite, settings=settings)
    if as_json:
        from optimizer.report.json_ import dump

        emit(dump(report, "lathe.export/1"))
        return
    from optimizer.report.tables import export

    show(export(report), to_stderr=True)
    emit(str(report.path))
