"""Golden pairs as the receiver reads and compares them: npz files that hold no pickles."""

from __future__ import annotations

import json
import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from optimizer.package.receiver.words import CANNOT, GOLDEN, Refusal

TYPES_MEMBER = "types.json"
"""npz member naming the arrays whose element type numpy cannot spell (bfloat16, float8, int4)."""
MOST_BYTES = 2**30
"""What one file of a golden pair may unpack to: someone else wrote it."""

_BROKEN = (
    zipfile.BadZipFile, EOFError, KeyError, TypeError, AttributeError, NotImplementedError, RecursionError, zlib.error,
    SyntaxError, tokenize.TokenError, MemoryError, OverflowError,
)  # fmt: skip


@dataclass(frozen=True)
class GoldenPair:
    """One feed (input name -> array) and what the model gave (output name -> array, or list or dict of arrays)."""

    feeds: Mapping[str, Any]
    outputs: Mapping[str, Any]


@dataclass(frozen=True)
class Tolerance:
    """How far an output may be off: ``of_largest`` for floats, as a share of the largest absolute expected value;
    ``may_differ`` for everything else, as the share of elements that may be different."""

    of_largest: float
    may_differ: float


def read_pair(root: Path, index: int) -> GoldenPair:
    """Golden pair ``index`` of the artifact in ``root``. Raises ``OSError`` and ``ValueError``."""
    names = (f"{GOLDEN}/{index:04d}_{kind}.npz" for kind in ("input", "output"))
    feeds, outputs = (read_npz(root / name) for name in names)
    return GoldenPair(feeds, outputs)


def difference(expected: Any, got: Any, tolerance: Tolerance) -> str:
    """Why ``got`` is not ``expected``, as text; empty when it is within tolerance. NaN equals NaN."""
    theirs, ours = list(leaves(expected)), list(leaves(got))
    if [path for path, _ in theirs] != [path for path, _ in ours]:
        return "it is built differently (other keys or another length)"
    for (path, a), (_, b) in zip(theirs, ours, strict=True):
        if why := _array_difference(a, b, tolerance):
            return f"at {path}: {why}" if path else why
    return ""


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every array inside a sequence or map output, with its path; an array is its own only leaf."""
    if isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from leaves(value[key], f"{path}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from leaves(item, f"{path}[{i}]")
    else:
        yield path, np.asarray(value)


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether it is a floating-point type, complex ones and those of other packages included."""
    return dtype.kind in "fc" or "float" in dtype.name


def _array_difference(expected: Any, got: Any, tolerance: Tolerance) -> str:
    if expected.shape != got.shape:
        return f"shape {list(got.shape)} instead of {list(expected.shape)}"
    if not expected.size:
        return ""
    if is_float(expected.dtype) and is_float(got.dtype):
        return _float_difference(expected, got, tolerance.of_largest)
    a, b = (x.astype(str) if x.dtype.kind in "OSU" else x for x in (expected, got))
    share = float(np.mean(a != b))
    if share > tolerance.may_differ:
        return f"{share:.2%} of the elements differ, allowed are {tolerance.may_differ:.2%}"
    return ""


def _float_difference(expected: Any, got: Any, of_largest: float) -> str:
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


def read_npz(source: Path | IO[bytes]) -> dict[str, Any]:
    """Named values from an npz without pickles. Raises ``ValueError`` when it is damaged or holds any."""
    try:
        with zipfile.ZipFile(source) as archive:
            members = archive.namelist()
            if sum(item.file_size for item in archive.infolist()) > MOST_BYTES:
                raise ValueError(f"it would unpack to more than {MOST_BYTES:,} bytes")
            types = json.loads(archive.read(TYPES_MEMBER)) if TYPES_MEMBER in members else {}
            return dict(_member(archive, m, types) for m in members if m != TYPES_MEMBER)
    except _BROKEN as error:
        raise ValueError(f"not a readable npz file: {error}") from error


def _member(archive: zipfile.ZipFile, member: str, types: Mapping[str, str]) -> tuple[str, Any]:
    name, dot, ending = member.rpartition(".")
    if dot and ending == "json":
        return name, _unspell(json.loads(archive.read(member)))
    layout = np.lib.format
    with archive.open(member) as stream:
        read = layout.read_array_header_1_0 if layout.read_magic(stream) == (1, 0) else layout.read_array_header_2_0
        shape, _, dtype = read(stream)
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > archive.getinfo(member).file_size:
        raise ValueError(f"'{member}' holds less than its shape {shape} says")
    with archive.open(member) as stream:
        array = layout.read_array(stream, allow_pickle=False)
    if name in types:
        return name, array.view(_exotic(types[name]))
    return name, array.astype(object) if array.dtype.kind == "U" else array


def _exotic(name: str) -> np.dtype[Any]:
    try:
        return np.dtype(name)
    except TypeError:
        try:
            import ml_dtypes
        except ImportError:
            message = f"the golden pairs hold {name}, which numpy does not know"
            raise Refusal(message, CANNOT, hint="pip install ml_dtypes", code="missing-package") from None
        found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return found


def _unspell(tree: Any) -> Any:
    if "map" in tree:
        return {_unspell(k): _unspell(v) for k, v in tree["map"]}
    if "list" in tree:
        return [_unspell(v) for v in tree["list"]]
    kind = object if tree["dtype"] == "str" else _exotic(tree["dtype"])
    array = np.array(tree["items"], dtype=kind).reshape(tree["shape"])
    return array.item() if tree["plain"] else array
