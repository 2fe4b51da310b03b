"""Observers: from what was seen of a tensor to the range that its grid shall cover. Pure functions over reducers.

Every observer reads the same :class:`~passes.kit.reducers.Distribution` (the moving average its own reducer), so one
look at the data serves them all. Zero always belongs to a range, because the grid must hold it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from passes.kit.reducers import Distribution, MinMax, SampleExtremes

Array = np.ndarray[Any, Any]

OBSERVERS = ("minmax", "moving-average", "percentile", "entropy", "mse", "auto")

CLIP_WEIGHT = 4.0
"""``auto`` counts the squared error of a clipped value this many times: large activations carry the signal."""

WORTH_CLIPPING = 0.9
"""``auto`` leaves the whole range only for one with at most this share of its error."""

SHARES = np.concatenate([np.linspace(1.0, 0.5, 26), np.geomspace(0.48, 0.02, 24)])
"""Ends that ``mse`` and ``entropy`` try, as shares of the largest value seen."""

LEAST_MASS = 0.99
"""``entropy`` never clips more than one value in a hundred: beyond that a divergence says nothing about the tensor."""


@dataclass(frozen=True)
class Range:
    """What was seen of one tensor. ``trouble`` says why it cannot be quantized (empty when it can).

    ``observer`` names the observer that chose the ends.
    """

    low: float
    high: float
    trouble: str = ""
    observer: str = "minmax"


@dataclass(frozen=True)
class Observer:
    """How to choose a range: a name of :data:`OBSERVERS`, the percentage that ``percentile`` keeps on either side, how
    many integers the grid has, and whether it is ``symmetric`` about zero."""

    name: str = "minmax"
    percentile: float = 99.999
    levels: int = 256
    symmetric: bool = False

    def reducer(self) -> MinMax:
        """An empty reducer that sees what this observer needs."""
        kinds: Mapping[str, type[MinMax]] = {"minmax": MinMax, "moving-average": SampleExtremes}
        return kinds.get(self.name, Distribution)()

    def choose(self, seen: MinMax) -> Range:
        """The range of a tensor from a filled :meth:`reducer`."""
        if broken := int(seen.arrays["broken"]):
            return Range(0.0, 0.0, f"{broken} of its values are not finite")
        if int(seen.arrays["count"]) == 0:
            return Range(0.0, 0.0, "no values of it were seen in the calibration data")
        if isinstance(seen, SampleExtremes):
            return Range(*seen.means(), observer=self.name)
        if not isinstance(seen, Distribution) or seen.low == seen.high:
            return Range(seen.low, seen.high)
        return self._clipped(seen)

    def _clipped(self, seen: Distribution) -> Range:
        clip: Mapping[str, Callable[[Distribution], tuple[float, float]]] = {
            "percentile": lambda d: clip_tails(d, self.percentile),
            "entropy": lambda d: least_divergence(d, self.levels, self.symmetric),
            "mse": lambda d: least_error(d, self.levels, self.symmetric),
        }
        if self.name != "auto":
            return Range(*clip[self.name](seen), observer=self.name)
        found = {name: Range(*choose(seen), observer=name) for name, choose in clip.items()}
        whole = Range(seen.low, seen.high)
        errors = {name: self._loss(seen, choice) for name, choice in found.items()}
        best = min(errors, key=errors.__getitem__)
        return found[best] if errors[best] <= WORTH_CLIPPING * self._loss(seen, whole) else whole

    def _loss(self, seen: Distribution, choice: Range) -> float:
        return squared_error(Cells.of(seen), choice.low, choice.high, self.levels, self.symmetric, CLIP_WEIGHT)


# -- what was seen -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Cells:
    """The filled cells of a distribution: middles (float64 [n], ascending) and counts (float64 [n]).

    The middle of the cell that holds zero is zero: what lies there is mostly what a ReLU cut off.
    """

    middles: Array
    counts: Array

    @classmethod
    def of(cls, seen: Distribution) -> Cells:
        """The cells of a distribution that has seen something; empty ones are left out."""
        edges, counts = seen.seen()
        filled = counts > 0
        middles = np.where((edges[:-1] <= 0) & (edges[1:] >= 0), 0.0, (edges[:-1] + edges[1:]) / 2)
        return cls(middles[filled], counts[filled].astype(np.float64))

    def without_zero(self) -> Cells:
        """The other cells."""
        kept = self.middles != 0.0
        return Cells(self.middles[kept], self.counts[kept])


def clip_tails(seen: Distribution, percentile: float) -> tuple[float, float]:
    """The range that leaves out ``100 - percentile`` percent of the values at either end, to the width of one cell.

    ``percentile`` in (50, 100]: that share of the values lies at or below the high end, and the same share at or above
    the low end.
    """
    edges, counts = seen.seen()
    total = int(counts.sum())
    spare = int(np.floor(total * (1.0 - percentile / 100.0) + 1e-9))
    below = np.cumsum(counts)
    first = int(np.searchsorted(below, spare, side="right"))
    last = int(np.searchsorted(below, total - spare, side="left"))
    return float(edges[first]), float(edges[max(first, last) + 1])


# -- squared error -----------------------------------------------------------------------------------------------------
def squared_error(
    cells: Cells, low: float, high: float, levels: int, symmetric: bool = False, clip_weight: float = 1.0
) -> float:
    """Sum over all values of the squared distance to the grid that covers [low, high], in the tensor's unit squared.

    Values are taken to lie in the middle of their cells; what a grid clips counts ``clip_weight`` times.
    """
    low, high = _whole_range(low, high, symmetric)
    step = (high - low) / (levels - 1 - symmetric)
    if step == 0.0:
        return float((cells.counts * cells.middles**2).sum())
    first, last = np.rint(low / step), np.rint(low / step) + levels - 1 - symmetric
    nearest = np.rint(cells.middles / step)
    integers = np.clip(nearest, first, last)
    squares = cells.counts * (integers * step - cells.middles) ** 2
    return float(squares.sum() + (clip_weight - 1.0) * squares[nearest != integers].sum())


def least_error(seen: Distribution, levels: int, symmetric: bool = False) -> tuple[float, float]:
    """The range whose grid has the least squared error, found end by end on a fixed list of shares of the extremes.

    Shin et al. 2016 (arXiv 1512.01322) and Banner et al. 2019 (arXiv 1810.05723) choose clipping so; here the error
    is taken from the histogram itself instead of from a fitted distribution.
    """
    cells = Cells.of(seen)

    def best(candidates: list[tuple[float, float]]) -> tuple[float, float]:
        return min(candidates, key=lambda ends: squared_error(cells, ends[0], ends[1], levels, symmetric))

    if symmetric:
        return best(_shrunk_together(seen))
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    for _ in range(2):
        high = best([(low, float(s) * max(seen.high, 0.0)) for s in SHARES])[1] if seen.high > 0.0 else high
        low = best([(float(s) * min(seen.low, 0.0), high) for s in SHARES])[0] if seen.low < 0.0 else low
    return low, high


# -- entropy -----------------------------------------------------------------------------------------------------------
def least_divergence(seen: Distribution, levels: int, symmetric: bool = False) -> tuple[float, float]:
    """The range [-t, t], cut to what was seen, that keeps most of the distribution's information.

    For every threshold t the reference distribution is the clipped tensor's, with all clipped values in the end cells,
    and the candidate is the unclipped part spread evenly within each integer's cell over what is not empty; the t
    with the least Kullback-Leibler divergence wins (Migacz 2017, "8-bit Inference with TensorRT", GTC). The cell of
    zero is left out, as there: every grid holds zero. Unlike there, cells are told apart by sign, so that the grid of
    an unsigned or lopsided tensor is judged as it will be.
    """
    cells = Cells.of(seen).without_zero()
    total = cells.counts.sum()
    if not total:
        return seen.low, seen.high

    def mass(ends: tuple[float, float]) -> float:
        inside = (cells.middles >= ends[0]) & (cells.middles <= ends[1])
        return float(cells.counts[inside].sum() / total)

    candidates = [ends for ends in _shrunk_together(seen) if mass(ends) >= LEAST_MASS]
    return min(candidates, key=lambda ends: _divergence(cells, ends[0], ends[1], levels, symmetric))


def _divergence(cells: Cells, low: float, high: float, levels: int, symmetric: bool) -> float:
    first, last = np.searchsorted(cells.middles, low, "left"), np.searchsorted(cells.middles, high, "right")
    inside, middles = cells.counts[first:last], cells.middles[first:last]
    reference = inside.copy()
    reference[0] += cells.counts[:first].sum()
    reference[-1] += cells.counts[last:].sum()
    low, high = _whole_range(low, high, symmetric)
    step = (high - low) / (levels - 1 - symmetric)
    level = np.rint(middles / step).astype(np.int64)
    level -= level[0]
    spread = np.bincount(level, weights=inside) / np.maximum(np.bincount(level), 1)
    candidate = spread[level]
    return float(np.sum(reference / reference.sum() * np.log(reference / candidate * inside.sum() / reference.sum())))


def _shrunk_together(seen: Distribution) -> list[tuple[float, float]]:
    largest = max(-seen.low, seen.high)
    return [
        (max(-float(share) * largest, min(seen.low, 0.0)), min(float(share) * largest, max(seen.high, 0.0)))
        for share in SHARES
    ]


def _whole_range(low: float, high: float, symmetric: bool) -> tuple[float, float]:
    """[low, high] as a grid covers it: with zero in it, and as wide on both sides where it is symmetric."""
    low, high = min(low, 0.0), max(high, 0.0)
    return (-max(-low, high), max(-low, high)) if symmetric else (low, high)
