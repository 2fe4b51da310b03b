"""Messages between processes: JSON for structure, raw bytes for arrays. Nothing is ever unpickled.

This file imports only the standard library and numpy, because workers that run user code load it by path.
"""

from __future__ import annotations

import json
import struct
from typing import Any, BinaryIO

import numpy as np

_HEAD = struct.Struct("<QI")


class Closed(EOFError):
    """The other side went away."""


def send(stream: BinaryIO, message: Any) -> None:
    """Write one message: plain data, numpy arrays, bytes, and dicts with any plain keys."""
    blobs: list[Any] = []
    head = json.dumps(_pack(message, blobs)).encode()
    stream.write(_HEAD.pack(len(head), len(blobs)))
    stream.write(head)
    for blob in blobs:
        stream.write(struct.pack("<Q", memoryview(blob).nbytes))
        stream.write(blob)
    stream.flush()


def receive(stream: BinaryIO) -> Any:
    """Read one message. Raises :class:`Closed` at the end of the stream."""
    size, count = _HEAD.unpack(_exactly(stream, _HEAD.size))
    head = json.loads(_exactly(stream, size))
    blobs = [_exactly(stream, struct.unpack("<Q", _exactly(stream, 8))[0]) for _ in range(count)]
    return _unpack(head, blobs)


def _exactly(stream: BinaryIO, size: int) -> bytearray:
    data = bytearray(size)
    view, done = memoryview(data), 0
    while done < size:
        got = stream.readinto(view[done:])  # type: ignore[attr-defined]
        if not got:
            raise Closed("the other process closed the connection")
        done += got
    return data


def _pack(thing: Any, blobs: list[Any]) -> Any:
    if isinstance(thing, np.ndarray):
        return _pack_array(thing, blobs)
    if isinstance(thing, (bytes, bytearray, memoryview)):
        blobs.append(thing)
        return {"$": "bytes", "at": len(blobs) - 1}
    if isinstance(thing, np.generic):
        return _pack(thing.item(), blobs)
    if isinstance(thing, dict):
        if all(isinstance(k, str) and k != "$" for k in thing):
            return {k: _pack(v, blobs) for k, v in thing.items()}
        return {"$": "dict", "items": [[_pack(k, blobs), _pack(v, blobs)] for k, v in thing.items()]}
    if isinstance(thing, (list, tuple)):
        return [_pack(v, blobs) for v in thing]
    if thing is None or isinstance(thing, (str, int, float, bool)):
        return thing
    raise TypeError(f"a {type(thing).__name__} cannot be sent to another process")


def _pack_array(array: np.ndarray[Any, Any], blobs: list[Any]) -> dict[str, Any]:
    if array.dtype.kind in "OSU":
        return {"$": "text", "shape": list(array.shape), "items": [str(v) for v in array.reshape(-1)]}
    flat = np.ascontiguousarray(array).reshape(-1)
    blobs.append(flat.view(np.uint8).data if flat.size else b"")
    return {"$": "array", "at": len(blobs) - 1, "dtype": _dtype_name(array.dtype), "shape": list(array.shape)}


def _dtype_name(dtype: np.dtype[Any]) -> str:
    # The types of ml_dtypes (bfloat16, float8, int4) are registered, not built in: numpy cannot read their type strings
    # back, but their names are unique.
    return dtype.name if dtype.isbuiltin == 2 else dtype.str


def _unpack(thing: Any, blobs: list[bytearray]) -> Any:
    if isinstance(thing, list):
        return [_unpack(v, blobs) for v in thing]
    if not isinstance(thing, dict):
        return thing
    kind = thing.get("$")
    if kind is None:
        return {k: _unpack(v, blobs) for k, v in thing.items()}
    if kind == "bytes":
        return bytes(blobs[thing["at"]])
    if kind == "text":
        return np.array(thing["items"], dtype=object).reshape(thing["shape"])
    if kind == "array":
        return np.frombuffer(blobs[thing["at"]], dtype=_dtype(thing["dtype"])).reshape(thing["shape"])
    return {_unpack(k, blobs): _unpack(v, blobs) for k, v in thing["items"]}


def _dtype(name: str) -> np.dtype[Any]:
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes

        found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return found
