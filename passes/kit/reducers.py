"""Streaming, mergeable folds over activations. Peak memory never grows with the number of samples.

``fold`` takes one batch of one tensor, ``merge`` joins two partial results. Counts, minima, maxima, histograms and
means of extremes merge bit-identically in any order.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Self

import numpy as np

from passes.kit.fold import Array
from passes.kit.fold import Reducer as Reducer
from passes.kit.summaries import SampleRows
from passes.kit.sums import ChannelMeanAbs, Gram

CHUNK = 1 << 16
"""Values that are counted in one go: what is made of them on the way stays in the processor's cache."""

_EXACT_BITS = 149
"""The smallest float32 is 2**-149."""

_EXACT_BYTES = 48
"""Room for the sum of 2**106 float32 numbers in units of 2**-149."""


@dataclass
class MinMax(Reducer):
    """Smallest and largest finite value, number of values, and number of non-finite ones."""

    kind: ClassVar[str] = "min-max"

    def __post_init__(self) -> None:
        self.arrays = {
            "low": np.array(np.inf),
            "high": np.array(-np.inf),
            "count": np.array(0, np.int64),
            "broken": np.array(0, np.int64),
        }

    def fold(self, batch: Array) -> None:
        self._take(batch)

    def _take(self, batch: Array) -> tuple[Array, float, float]:
        """Count ``batch`` in; its finite values with the least and the greatest of them."""
        good, low, high = _finite(batch)
        self.arrays["count"] = self.arrays["count"] + batch.size
        self.arrays["broken"] = self.arrays["broken"] + (batch.size - good.size)
        self.arrays["low"] = np.minimum(self.arrays["low"], low)
        self.arrays["high"] = np.maximum(self.arrays["high"], high)
        return good, low, high

    def merge(self, other: Self) -> None:
        for key in ("count", "broken"):
            self.arrays[key] = self.arrays[key] + other.arrays[key]
        self.arrays["low"] = np.minimum(self.arrays["low"], other.arrays["low"])
        self.arrays["high"] = np.maximum(self.arrays["high"], other.arrays["high"])

    @property
    def low(self) -> float:
        return float(self.arrays["low"])

    @property
    def high(self) -> float:
        return float(self.arrays["high"])


@dataclass
class Histogram(Reducer):
    """Counts over a grid of ``bins`` equal cells from ``low`` to ``high``; what is outside lands in an end cell."""

    low: float
    high: float
    bins: int = 2048
    kind: ClassVar[str] = "histogram"

    def __post_init__(self) -> None:
        self.arrays = {"counts": np.zeros(self.bins, np.int64)}

    def fold(self, batch: Array) -> None:
        flat = _finite(batch)[0].reshape(-1)
        counts = np.zeros(self.bins, np.int64)
        for start in range(0, flat.size, CHUNK):
            piece = np.clip(flat[start : start + CHUNK].astype(np.float64), self.low, self.high)
            counts += np.histogram(piece, bins=self.bins, range=(self.low, self.high))[0]
        self.arrays["counts"] = self.arrays["counts"] + counts

    def merge(self, other: Self) -> None:
        self.arrays["counts"] = self.arrays["counts"] + other.arrays["counts"]


CELLS = 4096
"""Cells of a :class:`Distribution` on either side of zero: between 2,048 and 4,096 of them lie below the largest."""

LEAST_REACH = -96
"""Values below 2**-96 all lie in the middle cell of a :class:`Distribution`: no grid is that fine."""


@dataclass
class Distribution(MinMax):
    """A histogram that needs no range beforehand, with the exact extremes and counts of :class:`MinMax`.

    The cells lie evenly around zero, ``CELLS`` on either side, and reach to ``2**reach``, the least power of two above
    every magnitude seen (``reach`` >= -96). When a larger value comes, each 2**d neighbouring cells become one. Widths
    are powers of two, so cells nest exactly and the counts depend on the values alone, not on their order or on how
    they were shared out: one look at the data does the work of two, and parts merge bit-identically.

    State: ``counts`` int64 [2 * CELLS - 1]; cell ``CELLS - 1 + k`` counts the values x with trunc(x / width) == k and
    width = 2**reach / CELLS, so the middle cell is open to both sides of zero; ``reach`` int64; and that of MinMax.
    """

    kind: ClassVar[str] = "distribution"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.arrays = {
            **self.arrays,
            "counts": np.zeros(2 * CELLS - 1, np.int64),
            "reach": np.array(LEAST_REACH, np.int64),
        }

    def fold(self, batch: Array) -> None:
        flat, low, high = self._take(batch)
        if not flat.size:
            return
        largest = max(-low, high)
        self._widen(max(int(np.frexp(largest)[1]), LEAST_REACH) if largest else LEAST_REACH)
        counts = _cells(flat.reshape(-1), float(np.ldexp(float(CELLS), -self.reach)))
        self.arrays["counts"] = self.arrays["counts"] + counts

    def merge(self, other: Self) -> None:
        super().merge(other)
        self._widen(other.reach)
        theirs = _coarser(other.arrays["counts"], self.reach - other.reach)
        self.arrays["counts"] = self.arrays["counts"] + theirs

    def _widen(self, reach: int) -> None:
        if reach > self.reach:
            self.arrays["counts"] = _coarser(self.arrays["counts"], reach - self.reach)
            self.arrays["reach"] = np.array(reach, np.int64)

    @property
    def reach(self) -> int:
        """The grid reaches to 2**reach on either side of zero."""
        return int(self.arrays["reach"])

    def seen(self) -> tuple[Array, Array]:
        """Edges (float64 [n + 1], ascending, from the smallest to the largest value seen) and counts (int64 [n]).

        Nothing was seen: edges [0] and no counts.
        """
        counts = self.arrays["counts"]
        if not counts.any():
            return np.zeros(1), counts[:0]
        steps = np.concatenate([np.arange(-CELLS, 0), np.arange(1, CELLS + 1)])
        filled = np.flatnonzero(counts)
        first, last = int(filled[0]), int(filled[-1])
        edges = steps[first : last + 2] * np.ldexp(1.0 / CELLS, self.reach)
        return np.clip(edges, self.arrays["low"], self.arrays["high"]), counts[first : last + 1]


@dataclass
class SampleExtremes(MinMax):
    """The mean over samples of the smallest and of the largest value in each, exact whatever the order.

    Each extreme is a float32, so their sum is an integer multiple of 2**-149 and is kept as that integer (signed,
    little-endian bytes): no rounding, so parts merge bit-identically. Samples with values that are not finite count
    in ``broken`` only. Larger types are rounded to float32.
    """

    kind: ClassVar[str] = "sample-extremes"
    per_sample: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        zero = np.zeros(_EXACT_BYTES, np.uint8)
        self.arrays = {
            **self.arrays,
            "samples": np.array(0, np.int64),
            "lows": zero,
            "highs": zero.copy(),
        }

    def fold(self, batch: Array) -> None:
        good, low, high = self._take(batch)
        if good.size and good.size == batch.size:
            self._add(1, _exact(low), _exact(high))

    def merge(self, other: Self) -> None:
        super().merge(other)
        self._add(int(other.arrays["samples"]), other._sum("lows"), other._sum("highs"))

    def _add(self, samples: int, lows: int, highs: int) -> None:
        self.arrays["samples"] = self.arrays["samples"] + samples
        for key, more in (("lows", lows), ("highs", highs)):
            total = (self._sum(key) + more).to_bytes(_EXACT_BYTES, "little", signed=True)
            self.arrays[key] = np.frombuffer(total, np.uint8)

    def _sum(self, key: str) -> int:
        return int.from_bytes(self.arrays[key].tobytes(), "little", signed=True)

    def means(self) -> tuple[float, float]:
        """The mean of the smallest values and that of the largest. Raises ``ValueError`` when nothing was seen."""
        samples = int(self.arrays["samples"])
        if not samples:
            raise ValueError("no sample was seen")
        return (
            float(Fraction(self._sum("lows"), samples << _EXACT_BITS)),
            float(Fraction(self._sum("highs"), samples << _EXACT_BITS)),
        )


@dataclass
class Outside(MinMax):
    """How many values lie below ``floor`` and above ``ceiling``, with the counts and extremes of :class:`MinMax`."""

    floor: float
    ceiling: float
    kind: ClassVar[str] = "outside"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.arrays = {
            **self.arrays,
            "below": np.array(0, np.int64),
            "above": np.array(0, np.int64),
        }

    def fold(self, batch: Array) -> None:
        good, low, high = self._take(batch)
        if low < self.floor:
            self.arrays["below"] = self.arrays["below"] + np.count_nonzero(good < self.floor)
        if high > self.ceiling:
            self.arrays["above"] = self.arrays["above"] + np.count_nonzero(good > self.ceiling)

    def merge(self, other: Self) -> None:
        super().merge(other)
        for key in ("below", "above"):
            self.arrays[key] = self.arrays[key] + other.arrays[key]


@dataclass
class ChannelMaxAbs(Reducer):
    """Largest absolute value along each index of ``axis``."""

    axis: int = 1
    kind: ClassVar[str] = "channel-max-abs"

    def __post_init__(self) -> None:
        self.arrays = {}

    def fold(self, batch: Array) -> None:
        others = tuple(i for i in range(batch.ndim) if i != self.axis % batch.ndim)
        found = np.abs(batch).max(axis=others).astype(np.float64)
        self.arrays["high"] = np.maximum(self.arrays["high"], found) if "high" in self.arrays else found

    def merge(self, other: Self) -> None:
        if "high" in other.arrays:
            mine = self.arrays.get("high")
            self.arrays["high"] = other.arrays["high"] if mine is None else np.maximum(mine, other.arrays["high"])


@dataclass
class ChannelMoments(Reducer):
    """Extremes, sum and sum of squares of each index of ``axis``, exact whatever the order.

    The sums of one sample (index of axis 0) are float64; they are added up as fixed-point integers of two limbs, whole
    units and units of 2**-40, so that parts merge bit-identically and no sum depends on the batch. State: ``count``
    int64; ``low`` and ``high`` float64 [channels]; ``sum`` and ``square`` int64 [2, channels].
    """

    axis: int = 1
    kind: ClassVar[str] = "channel-moments"

    def __post_init__(self) -> None:
        self.arrays = {}

    def fold(self, batch: Array) -> None:
        alone = batch.ndim < 2 or self.axis % batch.ndim == 0
        for sample in [batch] if alone else batch:
            self._take(np.moveaxis(sample, self.axis if alone or self.axis < 0 else self.axis - 1, 0))

    def _take(self, sample: Array) -> None:
        """One sample, channels first."""
        wide = np.ascontiguousarray(sample.reshape(sample.shape[0], -1), np.float64)
        if not wide.size:
            return
        self._join(
            {
                "count": np.array(wide.shape[1], np.int64),
                "low": wide.min(axis=1),
                "high": wide.max(axis=1),
                "sum": _limbs(wide.sum(axis=1)),
                "square": _limbs(np.square(wide).sum(axis=1)),
            }
        )

    def merge(self, other: Self) -> None:
        if other.arrays:
            self._join(other.arrays)

    def _join(self, more: dict[str, Array]) -> None:
        if not self.arrays:
            self.arrays = {key: value.copy() for key, value in more.items()}
            return
        joins = {"low": np.minimum, "high": np.maximum}
        self.arrays = {key: joins.get(key, np.add)(value, more[key]) for key, value in self.arrays.items()}

    def mean(self) -> Array:
        """Mean of each channel, float64 [channels]; NaN where values are not finite, or too large to be added up."""
        return self._mean("sum", 1)

    def mean_square(self) -> Array:
        """Mean square of each channel, float64 [channels]; NaN where it cannot be told."""
        return self._mean("square", 2)

    def _mean(self, key: str, power: int) -> Array:
        count = int(self.arrays["count"])
        with np.errstate(all="ignore"):
            most = np.maximum(np.abs(self.arrays["low"]), np.abs(self.arrays["high"])) ** power * count
        return np.asarray(np.where(most < _LARGEST_SUM, _whole(self.arrays[key]) / count, np.nan))


@dataclass
class PatchGram(Reducer):
    """Gram matrix of what a layer multiplies its weights with, a one at the end of each row (so the means are in it).

    ``kernel`` (with ``strides``, ``dilations``, ``pads`` as [begin..., end...] and ``groups``) cuts the patches of a
    convolution over [N, C, ...] with one or two spatial axes; without it the rows are the last axis. At most ``most``
    rows of each sample, evenly spaced, are taken. Values are rounded to multiples of 2**``unit`` and limited to 2**11
    of them, so every sum is an exact integer in float64: parts merge bit-identically, and neither the batch nor the
    linear algebra library shows. State: ``gram`` float64 [groups, K + 1, K + 1] of those integers.
    """

    unit: int
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    groups: int = 1
    most: int = 64
    kind: ClassVar[str] = "patch-gram"

    def __post_init__(self) -> None:
        self.arrays = {}

    def fold(self, batch: Array) -> None:
        alone = batch.ndim < 3 and not self.kernel
        for sample in [batch] if alone else batch:
            rows = self._patches(sample) if self.kernel else self._few(sample.reshape(-1, sample.shape[-1]))[None]
            steps = np.clip(np.rint(np.ldexp(rows.astype(np.float64), -self.unit)), -(2**11), 2**11)
            whole = np.concatenate([steps, np.ones((*steps.shape[:2], 1))], axis=2)
            found = whole.transpose(0, 2, 1) @ whole
            self.arrays["gram"] = self.arrays["gram"] + found if "gram" in self.arrays else found

    def merge(self, other: Self) -> None:
        if "gram" in other.arrays:
            mine = self.arrays.get("gram")
            self.arrays["gram"] = other.arrays["gram"] if mine is None else mine + other.arrays["gram"]

    def moments(self) -> tuple[Array, Array]:
        """Mean products [groups, K, K] and means [groups, K] of the rows, float64. Raises KeyError when none came."""
        gram = self.arrays["gram"]
        rows = gram[0, -1, -1]
        return np.ldexp(gram[:, :-1, :-1] / rows, 2 * self.unit), np.ldexp(gram[:, :-1, -1] / rows, self.unit)

    def _few(self, rows: Array) -> Array:
        return rows[np.linspace(0, len(rows) - 1, min(self.most, len(rows))).astype(np.int64)]

    def _patches(self, image: Array) -> Array:
        """Patches of one image [C, ...] as [groups, rows, C / groups * prod(kernel)]."""
        spatial = len(self.kernel)
        edges = [(0, 0), *((self.pads[i], self.pads[i + spatial]) for i in range(spatial))]
        padded = np.pad(image, edges)
        spans = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]
        windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=tuple(range(1, spatial + 1)))
        every: Any = tuple(slice(None, None, step) for step in (1, *self.strides, *self.dilations))
        windows = windows[every]
        shape = windows.shape[1 : spatial + 1]
        count = int(np.prod(shape))
        chosen = np.unravel_index(np.linspace(0, count - 1, min(self.most, count)).astype(np.int64), shape)
        rows = windows[(slice(None), *chosen)]  # [C, rows, kernel...]
        split = rows.reshape(self.groups, -1, rows.shape[1], int(np.prod(self.kernel)))
        return np.asarray(split.transpose(0, 2, 1, 3).reshape(self.groups, rows.shape[1], -1))


_KINDS: tuple[type[Reducer], ...] = (
    MinMax,
    Histogram,
    Distribution,
    SampleExtremes,
    Outside,
    ChannelMaxAbs,
    ChannelMoments,
    PatchGram,
    Gram,
    ChannelMeanAbs,
    SampleRows,
)
REDUCERS: dict[str, type[Reducer]] = {r.kind: r for r in _KINDS}


def build(spec: dict[str, Any]) -> Reducer:
    """An empty reducer from its :meth:`Reducer.spec`."""
    parameters = {k: v for k, v in spec.items() if k != "kind"}
    return REDUCERS[spec["kind"]](**parameters)


_LARGEST_SUM = 2.0**62
"""Sums beyond do not fit into the limbs."""


def _limbs(sums: Array) -> Array:
    """Whole units and units of 2**-40 of ``sums``, int64 [2, channels]."""
    with np.errstate(all="ignore"):
        whole = np.clip(np.rint(sums), -_LARGEST_SUM, _LARGEST_SUM)
        parts = np.clip(np.rint(np.ldexp(sums - whole, 40)), -_LARGEST_SUM, _LARGEST_SUM)
    return np.asarray(np.nan_to_num(np.stack([whole, parts]), nan=0.0).astype(np.int64))


def _whole(limbs: Array) -> Array:
    return np.asarray(limbs[0] + np.ldexp(limbs[1].astype(np.float64), -40))


def _finite(batch: Array) -> tuple[Array, float, float]:
    """The finite values of ``batch`` (itself, where all are) with the least and the greatest (inf, -inf: none)."""
    if not batch.size:
        return batch, np.inf, -np.inf
    low, high = float(batch.min()) + 0.0, float(batch.max()) + 0.0  # NaN wins both; no zero has a sign
    if np.isfinite(low) and np.isfinite(high):
        return batch, low, high
    good = batch[np.isfinite(batch)]
    return (good, float(good.min()) + 0.0, float(good.max()) + 0.0) if good.size else (good, np.inf, -np.inf)


def _exact(value: float) -> int:
    """``value``, rounded to float32, in units of 2**-149."""
    largest = float(np.finfo(np.float32).max)
    top, bottom = float(np.float32(min(max(value, -largest), largest))).as_integer_ratio()
    return (top << _EXACT_BITS) // bottom


def _cells(flat: Array, scale: float) -> Array:
    """Counts of trunc(x * scale), int64 [2 * CELLS - 1]. ``scale`` is a power of two, so the product is exact."""
    kind = np.float32 if flat.dtype in (np.float16, np.float32) else np.float64
    counts = np.zeros(2 * CELLS - 1, np.int64)
    room = min(CHUNK, flat.size)
    scaled, cell, factor = np.empty(room, kind), np.empty(room, np.int32), kind(scale)
    for start in range(0, flat.size, CHUNK):
        piece = flat[start : start + CHUNK]
        real, index = scaled[: piece.size], cell[: piece.size]
        np.multiply(piece, factor, out=real, dtype=kind)
        np.copyto(index, real, casting="unsafe")  # truncates
        index += CELLS - 1
        counts += np.bincount(index, minlength=2 * CELLS - 1)
    return counts


def _coarser(counts: Array, steps: int) -> Array:
    """``counts`` of a :class:`Distribution` with cells 2**``steps`` times as wide."""
    if not steps:
        return counts
    old = np.arange(1 - CELLS, CELLS)
    new = np.sign(old) * (np.abs(old) >> min(steps, 62))
    found = np.zeros_like(counts)
    np.add.at(found, new + CELLS - 1, counts)
    return found
