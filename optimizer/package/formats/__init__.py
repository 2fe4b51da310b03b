"""Hand-off formats, each a file of its own behind one interface: an artifact in, what its consumer loads out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from optimizer.faults import Fault, usage
from optimizer.package.artifact import appearing, check_parent
from optimizer.package.formats.base import Format, open_artifact, require
from optimizer.package.formats.huggingface import HuggingFace
from optimizer.package.formats.mlflow import MLflow
from optimizer.package.formats.oci import Oci
from optimizer.package.formats.openvino import OpenVino
from optimizer.package.formats.ort import Ort
from optimizer.package.formats.triton import Triton
from optimizer.package.formats.zip import Zip
from passes.kit.options import closest

FORMATS: Mapping[str, Format] = {
    form.name: form for form in (MLflow(), Triton(), OpenVino(), HuggingFace(), Oci(), Ort(), Zip())
}


@dataclass(frozen=True)
class Packaged:
    """What was written: the folder, its files by POSIX path, and what people should know."""

    format: str
    folder: str
    files: tuple[str, ...]
    notes: tuple[str, ...] = ()


def package(artifact: Path, to: str, output: Path) -> Packaged:
    """Write ``artifact`` to the new folder ``output`` in the form ``to``: whole or not at all.

    Raises :class:`~optimizer.faults.Fault`: usage for an unknown form or an output that exists, bad input for an
    artifact that is not as it was shipped or has no such form, environment when a package is missing.
    """
    if to not in FORMATS:
        raise usage(f"no format '{to}'{closest(to, FORMATS)}", hint=f"Known: {', '.join(FORMATS)}.")
    form = FORMATS[to]
    require(form)
    if output.exists() or output.is_symlink():
        hint = "Choose another --output, or remove it yourself."
        raise usage("the output exists already", where=str(output), hint=hint, code="output-exists")
    check_parent(output)
    opened = open_artifact(artifact)
    try:
        with appearing(output) as folder:
            notes = form.write(opened, folder)
    except Fault as fault:
        fault.where = fault.where or str(artifact)
        raise
    files = sorted(p.relative_to(output).as_posix() for p in output.rglob("*") if p.is_file())
    return Packaged(to, str(output), tuple(files), notes)
