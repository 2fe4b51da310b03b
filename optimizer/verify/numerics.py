"""Whether two models compute the same: outputs compared in a tolerance that comes from the runtime's own noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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


QUANTIZATION_STEPS = 1.0
"""What other rounding before a quantizer may do to what comes after it: one step to either side."""


@dataclass(frozen=True)
class Difference:
    """The worst difference of one output, beside what was allowed (both absolute, in the output's unit).

    ``step`` is the quantization step of the output, where it has one; ``probe`` names the feed.
    """

    output: str
    worst: float
    allowed: float
    what: str = ""
    step: float = 0.0
    probe: str = ""

    @property
    def ok(self) -> bool:
        return not self.what and self.worst <= self.allowed

    def __str__(self) -> str:
        where = f" on the input '{self.probe}'" if self.probe else ""
        if self.what:
            return f"output '{self.output}' {self.what}{where}"
        if self.step:
            steps, most = self.worst / self.step, self.allowed / self.step
            return f"output '{self.output}' differs by {steps:.3g} steps where {most:.3g} are allowed{where}"
        return f"output '{self.output}' differs by {self.worst:.3g} where {self.allowed:.3g} is allowed{where}"


@dataclass(frozen=True)
class Slack:
    """By how much the outputs of one feed move by themselves.

    ``noise``: largest absolute difference per output between runs that should agree (the runtime's optimizer off and
    on; for adversarial feeds also inputs that differ in their last bits). ``loose``: the elements that are not
    comparable, because those runs do not agree on their integer, or on whether they are finite. ``steps``: the
    quantization step of the outputs that have one.
    """

    noise: Mapping[str, float] = field(default_factory=dict)
    loose: Mapping[str, Array] = field(default_factory=dict)
    steps: Mapping[str, float] = field(default_factory=dict)


def slack(runs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], steps: Mapping[str, float]) -> Slack:
    """The slack that pairs of runs on one feed show."""
    noise: dict[str, float] = {}
    loose: dict[str, Array] = {}
    for one, other in runs:
        for name, a in one.items():
            b = other.get(name)
            if not (isinstance(b, np.ndarray) and _comparable(a, b)):
                continue
            apart = _apart(a, b)
            loose[name] = loose[name] | apart if name in loose and loose[name].shape == apart.shape else apart
            noise[name] = max(noise.get(name, 0.0), _gap(np.where(apart, 0, a), np.where(apart, 0, b)))
    return Slack(noise, {k: v for k, v in loose.items() if v.any()}, steps)


def _comparable(a: Any, b: Any) -> bool:
    arrays = isinstance(a, np.ndarray) and isinstance(b, np.ndarray)
    return arrays and a.shape == b.shape and a.dtype.kind not in "OSU"


def _apart(a: Array, b: Array) -> Array:
    """Elements that are not the same kind of number: other integers, or finite here and not there."""
    if a.dtype.kind in "iub?":
        return np.asarray(a != b)
    x, y = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(x) & np.isfinite(y)
    return np.asarray(~finite & ~((x == y) | (np.isnan(x) & np.isnan(y))))


def compare(
    before: Outputs,
    after: Outputs,
    exactness: Exactness,
    slacks: Sequence[Slack] = (),
    probes: Sequence[str] = (),
) -> list[Difference]:
    """The differences of every output, worst feed each.

    EXACT and every integer, boolean or text output must be equal (NaN equals NaN). NUMERIC is bounded by the slack of
    its feed, and after a quantizer by one of its steps. LOSSY must have the same shape and stay finite where the
    original is. ``slacks`` and ``probes`` (names) go with the feeds.
    """
    worst: dict[str, Difference] = {}
    for i, (a, b) in enumerate(zip(before, after, strict=True)):
        mine = slacks[i] if slacks else Slack()
        for name in a:
            if name in b:
                found = _difference(name, a[name], b[name], exactness, mine)
            else:
                found = Difference(name, np.inf, 0.0, "is missing")
            found = replace(found, probe=probes[i]) if probes else found
            known = worst.get(name)
            if known is None or (known.ok and (not found.ok or _excess(found) > _excess(known))):
                worst[name] = found
    return list(worst.values())


def _excess(difference: Difference) -> float:
    return difference.worst - difference.allowed


def _difference(name: str, a: Any, b: Any, exactness: Exactness, slack: Slack) -> Difference:
    if not isinstance(a, np.ndarray) or a.dtype == object:
        same = exactness is Exactness.LOSSY or _plain_equal(a, b)
        return Difference(name, 0.0 if same else np.inf, 0.0, "" if same else "is not equal")
    b = np.asarray(b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return Difference(name, np.inf, 0.0, f"is {b.dtype}{list(b.shape)} instead of {a.dtype}{list(a.shape)}")
    if exactness is Exactness.LOSSY:
        return _stays_finite(name, a, b)
    if exactness is Exactness.EXACT:
        return _exact(name, a, b)
    loose = slack.loose.get(name)
    if loose is not None and loose.shape == a.shape:
        b = np.where(loose, a, b)
    step = slack.steps.get(name, 0.0)
    if a.dtype.kind in "iub?":
        if not step:
            return _exact(name, a, b)
        return Difference(name, _gap(a, b), QUANTIZATION_STEPS * step, step=step)
    x, y = a.astype(np.float64), b.astype(np.float64)
    if not np.array_equal(np.isnan(x), np.isnan(y)):
        return Difference(name, np.inf, 0.0, "has NaN in other places")
    finite = np.isfinite(x)
    scale = float(np.abs(x[finite]).max()) if finite.any() else 0.0
    floor = HALF_FLOOR if a.dtype.itemsize < 4 else NOISE_FLOOR
    numeric = max(NOISE_FACTOR * slack.noise.get(name, 0.0), floor * scale)
    stepped = QUANTIZATION_STEPS * step * (1 + NOISE_FLOOR)
    return Difference(name, _gap(a, b), max(numeric, stepped), step=step if stepped > numeric else 0.0)


def _stays_finite(name: str, a: Array, b: Array) -> Difference:
    if a.dtype.kind in "iub?":
        return Difference(name, 0.0, 0.0)
    broken = int((np.isfinite(a.astype(np.float64)) & ~np.isfinite(b.astype(np.float64))).sum())
    return Difference(name, 0.0, 0.0, f"has {broken} values that are not finite any more" if broken else "")


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
    """Sequences, maps, text and empty optionals, with rounding room in their numbers."""
    if a is None or b is None:
        return a is b
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_plain_equal(a[k], b[k]) for k in a)
    if isinstance(a, np.ndarray) and a.dtype == object:
        return [str(v) for v in a.reshape(-1)] == [str(v) for v in np.asarray(b).reshape(-1)]
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(_plain_equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, (float, np.ndarray)):
        return bool(np.allclose(a, b, rtol=1e-5, atol=1e-6, equal_nan=True))
    return bool(a == b)
