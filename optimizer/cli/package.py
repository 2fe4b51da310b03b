"""``lathe package``: an artifact in the form that its consumer loads."""

from __future__ import annotations

from pathlib import Path

import click

from optimizer.cli.boundary import emit
from optimizer.cli.common import OUTPUT, Word, api, option, verb

FORMATS = ("mlflow", "triton", "openvino", "huggingface", "oci", "ort", "zip")


@verb("package", short_help="Hand an artifact over in another form.")
@click.argument("artifact", metavar="DIR", type=click.Path(path_type=Path))
@option("--to", section="What to write", type=Word("format", FORMATS), required=True, help="The form.")
@option(
    "-o",
    "--output",
    section=OUTPUT,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="New folder for it; default: ./NAME.FORMAT.",
)
def command(artifact: Path, to: str, output: Path | None, as_json: bool) -> None:
    """Write the artifact in DIR for a consumer: mlflow, triton (a model repository), openvino (its own format),
    huggingface (a folder for Optimum and the Hub), oci (an image layout, for KServe), ort (onnxruntime's own format)
    or zip (the artifact with minimal runners).

    The artifact is checked first; what another program converted is compared on the golden pairs.
    """
    name = artifact.resolve().name.removesuffix(".lathe")
    found = api().package(artifact, to, output or Path.cwd() / f"{name}.{to}")
    if as_json:
        from optimizer.report.json_ import dump

        emit(dump(found, "lathe.package/1"))
        return
    for note in found.notes:
        click.echo(f"note: {note}", err=True)
    emit(found.folder)
