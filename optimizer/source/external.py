"""External data stays inside the model's folder: every tensor that points outside its file is checked.

onnxruntime follows hard links, and a crafted model may name ``/etc/passwd`` as its weights; what a tensor may point
to is therefore decided here, before any library reads it.
"""

from __future__ import annotations

import math
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import onnx
import onnx_ir as ir
from google.protobuf.message import Message  # type: ignore[import-untyped]

from optimizer.faults import Fault, bad_input

UNSAFE = "unsafe-model"
BROKEN = "broken-model"


@dataclass(frozen=True)
class Stretch:
    """Bytes of a file that a tensor occupies."""

    path: str
    offset: int
    length: int


def tensors_in(message: Message) -> Iterator[onnx.TensorProto]:
    """Every tensor anywhere in a protobuf message: initializers, attributes, sparse tensors, nested graphs,
    functions and training information. Found by structure, so that no place can be forgotten."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        many = value if hasattr(value, "__len__") else (value,)
        for child in many:
            if isinstance(child, onnx.TensorProto):
                yield child
            elif isinstance(child, Message):
                yield from tensors_in(child)


def is_external(tensor: onnx.TensorProto) -> bool:
    """Whether the tensor's data stands, or claims to stand, in another file."""
    return tensor.data_location == onnx.TensorProto.EXTERNAL or len(tensor.external_data) > 0


def confine(proto: onnx.ModelProto, folder: Path) -> tuple[Stretch, ...]:
    """Check all external data of ``proto`` against ``folder`` and return the bytes it refers to, each stretch once.

    Raises :class:`Fault` ``unsafe-model`` for a location that is absolute, climbs out, passes through a link or is
    not a plain file, ``broken-model`` for one that is missing or too short.
    """
    found = {_stretch(tensor, folder): None for tensor in tensors_in(proto) if is_external(tensor)}
    return tuple(found)


def _stretch(tensor: onnx.TensorProto, folder: Path) -> Stretch:
    name = tensor.name or "(unnamed)"
    entries = {entry.key: entry.value for entry in tensor.external_data}
    path = _inside(entries.get("location", ""), folder, name)
    needed = byte_size(tensor)
    offset = _number(entries.get("offset", "0"), "offset", name)
    length = _number(entries.get("length", str(needed)), "length", name)
    size = path.stat().st_size
    if length != needed:
        raise bad_input(f"tensor '{name}' needs {needed:,} bytes but its external data has {length:,}", code=BROKEN)
    if offset + length > size:
        message = f"tensor '{name}' reaches to byte {offset + length:,} of '{path.name}', which has {size:,}"
        raise bad_input(message, code=BROKEN, hint="The data file is truncated or belongs to another model")
    return Stretch(str(path), offset, length)


def _number(text: str, what: str, name: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise bad_input(f"tensor '{name}' has '{text[:40]}' as {what} of its external data", code=UNSAFE)
    return int(text)


def _inside(location: str, folder: Path, name: str) -> Path:
    def refused(why: str, hint: str = "") -> Fault:
        return bad_input(f"tensor '{name}' takes its data from '{location[:120]}', {why}", code=UNSAFE, hint=hint)

    if not location or "\0" in location:
        raise refused("which names no file")
    if PureWindowsPath(location).anchor:  # drives, shares and, because "/" is an anchor there too, absolute paths
        raise refused("which is an absolute path", "External data must lie in the model's own folder")
    parts = location.replace("\\", "/").split("/")
    if ".." in parts:
        raise refused("which leads out of the model's folder", "External data must lie in the model's own folder")
    return _walk(folder, [part for part in parts if part not in ("", ".")], refused)


def _walk(folder: Path, parts: list[str], refused: Any) -> Path:
    path = folder
    for part in parts:
        path = path / part
        try:
            status = path.lstat()
        except OSError:
            hint = "Copy the data file beside the model; git lfs pull fetches files that git only points to"
            fault: Fault = refused("which does not exist", hint)
            fault.code = BROKEN
            raise fault from None
        if stat.S_ISLNK(status.st_mode):
            raise refused("which passes through a symbolic link", "Copy the file itself (cp -L) beside the model")
    if not parts or not stat.S_ISREG(status.st_mode):
        raise refused("which is not a plain file")
    if status.st_nlink > 1:
        hint = "A hard link may reach any file on the disk; copy the file (cp --reflink=auto) to have one of its own"
        raise refused("which has several hard links", hint)
    return path


def byte_size(tensor: onnx.TensorProto) -> int:
    """Bytes that the data of ``tensor`` occupies by its dtype and shape (sub-byte types are packed).

    Raises :class:`Fault` ``broken-model`` for an unknown dtype or a negative dimension.
    """
    try:
        bits: int = round(ir.DataType(tensor.data_type).itemsize * 8)
    except (ValueError, TypeError):
        raise bad_input(f"tensor '{tensor.name}' has the unknown data type {tensor.data_type}", code=BROKEN) from None
    if any(dim < 0 for dim in tensor.dims):
        raise bad_input(f"tensor '{tensor.name}' has the shape {list(tensor.dims)}", code=BROKEN)
    count: int = math.prod(tensor.dims)
    return math.ceil(count * bits / 8)
