"""Whether two models compute the same: outputs compared in a tolerance that comes from the runtime's own noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from passes.kit.contract import Exactness

Array = np.ndarray[Any, Any]
Outputs = Sequence[Mapping[str, Any]]

NOISE_FACTOR = 10.0
NOISE_FLOOR = 1e-6
"""DESIGN: a NUMERIC pass stays within ten times the runtime's own noise, at least 1e-6 of the largest output."""

HALF_FLOOR = 2e-3
"""The floor for float16 and bfloat16 outputs: about two of their rounding steps."""


@dataclass(frozen=True)
class Difference:
    """The worst difference of one output, beside what was allowed (both absolute, in the output's unit)."""

    output: str
    worst: float
    allowed: float
    what: str = ""

    @property
    def ok(self) -> bool:
        return not self.what and self.worst <= self.allowed

    def __str__(self) -> str:
        if self.what:
            return f"output '{self.output}' {self.what}"
        return f"output '{self.output}' differs by {self.worst:.3g} where {self.allowed:.3g} is allowed"


def noise(off: Outputs, on: Outputs) -> dict[str, float]:
    """Largest absolute difference per output between two runs of the same model (optimizer off and on)."""
    found: dict[str, float] = {}
    for a, b in zip(off, on, strict=True):
        for name in a:
            found[name] = max(found.get(name, 0.0), _gap(a[name], b[name]))
    return found


def compare(before: Outputs, after: Outputs, exactness: Exactness, noises: Mapping[str, float]) -> list[Difference]:
    """The differences of every output, worst feed each.

    EXACT and every integer, boolean or text output must be equal (NaN equals NaN). NUMERIC is bounded by the
    runtime's noise. LOSSY must have the same shape and stay finite where the original is.
    """
    worst: dict[str, Difference] = {}
    for a, b in zip(before, after, strict=True):
        for name in a:
            found = _difference(name, a[name], b.get(name), exactness, noises.get(name, 0.0))
            known = worst.get(name)
            if known is None or (known.ok and (not found.ok or _excess(found) > _excess(known))):
                worst[name] = found
    return list(worst.values())


def _excess(difference: Difference) -> float:
    return difference.worst - difference.allowed


def _difference(name: str, a: Any, b: Any, exactness: Exactness, noise: float) -> Difference:
    if b is None:
        return Difference(name, np.inf, 0.0, "is missing")
    if not isinstance(a, np.ndarray) or a.dtype == object:
        same = exactness is Exactness.LOSSY or _plain_equal(a, b)
        return Difference(name, 0.0 if same else np.inf, 0.0, "" if same else "is not equal")
    b = np.asarray(b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return Difference(name, np.inf, 0.0, f"is {b.dtype}{list(b.shape)} instead of {a.dtype}{list(a.shape)}")
    if a.dtype.kind in "iub?":
        return _exact(name, a, b) if exactness is not Exactness.LOSSY else Difference(name, 0.0, 0.0)
    x, y = a.astype(np.float64), b.astype(np.float64)
    if exactness is Exactness.LOSSY:
        broken = int((np.isfinite(x) & ~np.isfinite(y)).sum())
        return Difference(name, 0.0, 0.0, f"has {broken} values that are not finite any more" if broken else "")
    if exactness is Exactness.EXACT:
        return _exact(name, a, b)
    if not np.array_equal(np.isnan(x), np.isnan(y)):
        return Difference(name, np.inf, 0.0, "has NaN in other places")
    finite = np.isfinite(x)
    scale = float(np.abs(x[finite]).max()) if finite.any() else 0.0
    floor = HALF_FLOOR if a.dtype.itemsize < 4 else NOISE_FLOOR
    return Difference(name, _gap(a, b), max(NOISE_FACTOR * noise, floor * scale))


def _exact(name: str, a: Array, b: Array) -> Difference:
    same = np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    return Difference(name, 0.0 if same else _gap(a, b), 0.0, "" if same else "is not bit-equal")


def _gap(a: Any, b: Any) -> float:
    if not isinstance(a, np.ndarray) or a.dtype.kind in "OSU" or not np.asarray(b).size:
        return 0.0
    b = np.asarray(b)
    if a.shape != b.shape:
        return float("inf")
    with np.errstate(invalid="ignore"):
        gap = np.abs(a.astype(np.float64) - b.astype(np.float64))
    same = (a == b) | (np.isnan(gap) & np.isnan(a.astype(np.float64)))
    gap = np.where(same, 0.0, gap)
    return float(np.nan_to_num(gap, nan=np.inf).max())


def _plain_equal(a: Any, b: Any) -> bool:
    """Sequences, maps and text, with rounding room in their numbers."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_plain_equal(a[k], b[k]) for k in a)
    if isinstance(a, np.ndarray) and a.dtype == object:
        return [str(v) for v in a.reshape(-1)] == [str(v) for v in np.asarray(b).reshape(-1)]
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(_plain_equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, (float, np.ndarray)):
        return bool(np.allclose(a, b, rtol=1e-5, atol=1e-6, equal_nan=True))
    return bool(a == b)
