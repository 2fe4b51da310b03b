"""``--to zip``: one archive with the artifact as it is, a runner in Python and one in C++."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import ClassVar

from optimizer.package.formats.base import Artifact

TEMPLATES = Path(__file__).parent / "templates"
_EPOCH = (1980, 1, 1, 0, 0, 0)

# Element types of ONNX as C++ spells them, for the runner's buffers.
_CPP = {
    "FLOAT": "float", "DOUBLE": "double", "INT8": "int8_t", "UINT8": "uint8_t", "INT16": "int16_t",
    "UINT16": "uint16_t", "INT32": "int32_t", "UINT32": "uint32_t", "INT64": "int64_t", "UINT64": "uint64_t",
}  # fmt: skip


class Zip:
    """An archive ``NAME.zip`` whose bytes depend on the artifact and on zlib alone."""

    name: ClassVar[str] = "zip"
    summary: ClassVar[str] = "an archive with the artifact, a minimal runner in Python and one in C++"
    needs: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = ""

    def write(self, artifact: Artifact, folder: Path) -> tuple[str, ...]:
        top, notes = artifact.name, []
        with zipfile.ZipFile(folder / f"{top}.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
            for path in sorted(p for p in artifact.folder.rglob("*") if p.is_file()):
                _put(archive, f"{top}/artifact/{path.relative_to(artifact.folder).as_posix()}", path)
            _put(archive, f"{top}/run.py", TEMPLATES / "run.py.in")
            if why := _unspeakable(artifact):
                notes.append(f"without run.cpp: {why}")
            else:
                archive.writestr(_info(f"{top}/run.cpp"), runner(artifact), zipfile.ZIP_DEFLATED)
        return tuple(notes)


def runner(artifact: Artifact) -> str:
    """The C++ runner of this model, with buffers for the first golden inputs."""
    lines = []
    for port in artifact.ports("inputs"):
        shape = artifact.pairs[0].feeds[port["name"]].shape
        kind = _CPP[port["type"]]
        lines.append(f'    add_input<{kind}>("{_quoted(port["name"])}", {{{", ".join(map(str, shape))}}});')
    names = ", ".join(f'"{_quoted(port["name"])}"' for port in artifact.ports("outputs"))
    text = (TEMPLATES / "run.cpp.in").read_text("utf-8")
    return text.replace("    // INPUTS", "\n".join(lines)).replace("/* OUTPUTS */", names)


def _unspeakable(artifact: Artifact) -> str:
    """Why there is no C++ runner, as text."""
    if not artifact.pairs:
        return "there are no golden pairs to take shapes from"
    odd = [p for kind in ("inputs", "outputs") for p in artifact.ports(kind) if p["type"] not in _CPP]
    return f"'{odd[0]['name']}' is {odd[0]['type']}, for which C++ has no plain type" if odd else ""


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _put(archive: zipfile.ZipFile, name: str, path: Path) -> None:
    info = _info(name)
    info.file_size = path.stat().st_size  # said before: without it the header depends on the release of Python
    with path.open("rb") as source, archive.open(info, "w") as member:
        shutil.copyfileobj(source, member, 1 << 20)


def _info(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, _EPOCH)
    info.create_system = 3  # the same bytes on every system
    info.external_attr = 0o644 << 16
    info.compress_type = zipfile.ZIP_DEFLATED
    return info
