"""Golden pairs: inputs with the outputs that the shipped model gave for them, in npz files that hold no pickles."""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from optimizer.data.npz import header

Array = np.ndarray[Any, Any]

TYPES_MEMBER = "types.json"
"""npz member naming the arrays whose element type numpy cannot spell (bfloat16, float8, int4)."""

MOST_BYTES = 2**30
"""What one file of a golden pair may unpack to: someone else wrote it."""

_BROKEN = (
    zipfile.BadZipFile, EOFError, KeyError, TypeError, AttributeError, NotImplementedError, RecursionError, zlib.error,
)  # fmt: skip
_EPOCH = (1980, 1, 1, 0, 0, 0)

# Largest difference as a share of the largest expected value. The runtime's own noise between its optimizer off and
# on is about 8e-6 for a float32 CNN; another CPU sums in another order, so ten times that is allowed.
_OF_LARGEST = {"float64": 1e-6, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
_OF_LARGEST_TINY_FLOATS = 0.2
_OF_LARGEST_LOSSY = 2e-2
_MAY_DIFFER_LOSSY = 0.01


@dataclass(frozen=True)
class GoldenPair:
    """One feed (input name -> array) and what the model gave (output name -> array, or list or dict of arrays)."""

    feeds: Mapping[str, Array]
    outputs: Mapping[str, Any]


@dataclass(frozen=True)
class Tolerance:
    """How far an output may be off: ``of_largest`` for floats, as a share of the largest absolute expected value;
    ``may_differ`` for everything else, as the share of elements that may be different."""

    of_largest: float
    may_differ: float


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


def difference(expected: Any, got: Any, tolerance: Tolerance) -> str:
    """Why ``got`` is not ``expected``, as text; empty when it is within tolerance. NaN equals NaN."""
    theirs, ours = list(leaves(expected)), list(leaves(got))
    if [path for path, _ in theirs] != [path for path, _ in ours]:
        return "it is built differently (other keys or another length)"
    for (path, a), (_, b) in zip(theirs, ours, strict=True):
        if why := _array_difference(a, b, tolerance):
            return f"at {path}: {why}" if path else why
    return ""


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Array]]:
    """Every array inside a sequence or map output, with its path; an array is its own only leaf."""
    if isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from leaves(value[key], f"{path}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from leaves(item, f"{path}[{i}]")
    else:
        yield path, np.asarray(value)


def _float_tolerance(dtype: np.dtype[Any]) -> float:
    if _is_float(dtype):
        return _OF_LARGEST.get(dtype.name, _OF_LARGEST_TINY_FLOATS)
    return 0.0


def _is_float(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "fc" or "float" in dtype.name


def _array_difference(expected: Array, got: Array, tolerance: Tolerance) -> str:
    if expected.shape != got.shape:
        return f"shape {list(got.shape)} instead of {list(expected.shape)}"
    if not expected.size:
        return ""
    if _is_float(expected.dtype) and _is_float(got.dtype):
        return _float_difference(expected, got, tolerance.of_largest)
    share = float(np.mean(_text(expected) != _text(got)))
    if share > tolerance.may_differ:
        return f"{share:.2%} of the elements differ, allowed are {tolerance.may_differ:.2%}"
    return ""


def _text(array: Array) -> Array:
    return array.astype(str) if array.dtype.kind in "OSU" else array


def _float_difference(expected: Array, got: Array, of_largest: float) -> str:
    wide = np.complex128 if expected.dtype.kind == "c" else np.float64
    a, b = expected.astype(wide), got.astype(wide)
    finite = np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(b[finite]).all():
        return "infinite or not-a-number values stand in other places"
    if not finite.any():
        return ""
    largest = float(np.abs(a[finite]).max())
    worst = float(np.abs(a[finite] - b[finite]).max())
    if worst > of_largest * largest:
        share = f"{worst / largest:.2g}" if largest else "inf"
        return f"off by {worst:.3g} ({share} of the largest value, allowed is {of_largest:.2g})"
    return ""


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
                with archive.open(_member(f"{name}.npy"), "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, _storable(np.asarray(value)), allow_pickle=False)


def read(stream: IO[bytes]) -> dict[str, Any]:
    """What :func:`write` wrote. Raises ``ValueError`` when the file is damaged or holds pickles."""
    try:
        with zipfile.ZipFile(stream) as archive:
            members = archive.namelist()
            if sum(item.file_size for item in archive.infolist()) > MOST_BYTES:
                raise ValueError(f"it would unpack to more than {MOST_BYTES:,} bytes")
            types = json.loads(archive.read(TYPES_MEMBER)) if TYPES_MEMBER in members else {}
            return dict(_get(archive, m, types) for m in members if m != TYPES_MEMBER)
    except _BROKEN as error:
        raise ValueError(f"not a readable npz file: {error}") from error


def _get(archive: zipfile.ZipFile, member: str, types: Mapping[str, str]) -> tuple[str, Any]:
    name, dot, ending = member.rpartition(".")
    if dot and ending == "json":
        return name, _unspell(json.loads(archive.read(member)))
    with archive.open(member) as stream:
        shape, _, dtype = header(stream)
        if math.prod(shape) * dtype.itemsize > archive.getinfo(member).file_size:
            raise ValueError(f"'{member}' holds less than its shape {shape} says")
    with archive.open(member) as stream:
        array: Array = np.lib.format.read_array(stream, allow_pickle=False)
    if name in types:
        return name, array.view(_exotic(types[name]))
    return name, array.astype(object) if array.dtype.kind == "U" else array


def _put(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
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


def _exotic(name: str) -> np.dtype[Any]:
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes

        found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return found


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


def _unspell(tree: Any) -> Any:
    if "map" in tree:
        return {_unspell(k): _unspell(v) for k, v in tree["map"]}
    if "list" in tree:
        return [_unspell(v) for v in tree["list"]]
    kind = object if tree["dtype"] == "str" else _exotic(tree["dtype"])
    array = np.array(tree["items"], dtype=kind).reshape(tree["shape"])
    return array.item() if tree["plain"] else array
