"""Golden pairs: inputs with the outputs that the shipped model gave for them, in npz files that hold no pickles.

Reading and comparing them is the receiver's (:mod:`optimizer.package.receiver.pairs`); here they are written.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from typing import IO, Any

import numpy as np

from optimizer.package.receiver.pairs import (
    MOST_BYTES,
    TYPES_MEMBER,
    GoldenPair,
    Tolerance,
    difference,
    is_float,
    leaves,
)
from optimizer.package.receiver.pairs import read_npz as read

__all__ = [
    "MOST_BYTES", "TYPES_MEMBER", "GoldenPair", "Tolerance", "difference", "leaves", "pairs", "read", "tolerances",
    "write",
]  # fmt: skip

Array = np.ndarray[Any, Any]

_EPOCH = (1980, 1, 1, 0, 0, 0)

# Largest difference as a share of the largest expected value. The runtime's own noise between its optimizer off and
# on is about 8e-6 for a float32 CNN; another CPU sums in another order, so ten times that is allowed.
_OF_LARGEST = {"float64": 1e-6, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
_OF_LARGEST_TINY_FLOATS = 0.2
_OF_LARGEST_LOSSY = 2e-2
_MAY_DIFFER_LOSSY = 0.01


def pairs(feeds: Sequence[Mapping[str, Array]], outputs: Sequence[Mapping[str, Any]]) -> tuple[GoldenPair, ...]:
    """Join feeds with their outputs, in order. Raises ``ValueError`` when there are not equally many."""
    return tuple(GoldenPair(dict(f), dict(o)) for f, o in zip(feeds, outputs, strict=True))


def tolerances(golden: Sequence[GoldenPair], *, lossy: bool) -> dict[str, Tolerance]:
    """The tolerance of each output, from its element type; wider where integers are rounded inside the model.

    A quantized model is bit-equal on the same kind of CPU; elsewhere a value may be rounded to the next step.
    """
    if not golden:
        return {}
    found = {}
    for name, value in golden[0].outputs.items():
        of_largest = max((_float_tolerance(leaf.dtype) for _, leaf in leaves(value)), default=0.0)
        lowest = _OF_LARGEST_LOSSY if lossy and of_largest else 0.0
        found[name] = Tolerance(max(of_largest, lowest), _MAY_DIFFER_LOSSY if lossy else 0.0)
    return found


def _float_tolerance(dtype: np.dtype[Any]) -> float:
    if is_float(dtype):
        return _OF_LARGEST.get(dtype.name, _OF_LARGEST_TINY_FLOATS)
    return 0.0


# -- npz without pickles ---------------------------------------------------------------------------------------------
def write(stream: IO[bytes], values: Mapping[str, Any]) -> None:
    """Write named values as an npz whose bytes depend on the values alone (no dates, no compression).

    Arrays are ``NAME.npy`` members that ``numpy.load`` reads; sequences and maps are ``NAME.json`` members.
    """
    types = {n: v.dtype.name for n, v in values.items() if isinstance(v, np.ndarray) and v.dtype.isbuiltin == 2}
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        if types:
            _put(archive, TYPES_MEMBER, json.dumps(types, sort_keys=True).encode())
        for name in sorted(values):
            value = values[name]
            if isinstance(value, (list, tuple, Mapping)):
                _put(archive, f"{name}.json", json.dumps(_spell(value), sort_keys=True).encode())
            else:
                member = io.BytesIO()
                np.lib.format.write_array(member, _storable(np.asarray(value)), allow_pickle=False)
                _put(archive, f"{name}.npy", member.getbuffer())


def _put(archive: zipfile.ZipFile, name: str, data: bytes | memoryview) -> None:
    """Members whose size is known from the start: for others releases of Python 3.11 write different headers."""
    archive.writestr(_member(name), data)


def _member(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, _EPOCH)
    info.create_system = 3  # the same bytes on every system
    info.external_attr = 0o600 << 16
    return info


def _storable(array: Array) -> Array:
    if array.dtype.kind == "O":
        return array.astype(str)
    if array.dtype.isbuiltin == 2:  # registered by ml_dtypes: numpy would store them without a name
        return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")
    return array


def _spell(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {"map": [[_spell(k), _spell(v)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"list": [_spell(v) for v in value]}
    array = np.asarray(value)
    kind = "str" if array.dtype.kind in "OSU" else array.dtype.name
    flat = array.astype(str) if kind == "str" else array
    if array.dtype.kind not in "OSUbiu":
        flat = array.astype(np.float64)  # exact for every float type up to float64
    return {"dtype": kind, "shape": list(array.shape), "items": flat.reshape(-1).tolist(), "plain": value is not array}
