"""Ranges of activations, from reducers over the calibration data. Memory does not grow with the number of samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from passes.kit.context import Context
from passes.kit.model import Model
from passes.kit.reducers import Histogram, MinMax


@dataclass(frozen=True)
class Range:
    """What was seen of one tensor. ``trouble`` says why it cannot be quantized (empty when it can)."""

    low: float
    high: float
    trouble: str = ""


def observe(model: Model, context: Context, names: Sequence[str], percentile: float | None) -> dict[str, Range]:
    """The range of each named value of ``model``: all of it, or (second look) the share that ``percentile`` keeps.

    ``percentile`` in (50, 100]: that share of the values lies at or below the high end, and the same share at or above
    the low end. Raises :class:`passes.kit.context.NoData` when there is nothing to look at.
    """
    if not names:
        return {}
    found = {name: _whole(seen) for name, seen in _minmax(model, context, names).items()}
    if percentile is None or percentile >= 100.0:
        return found
    usable = {n: r for n, r in found.items() if not r.trouble and r.high > r.low}
    grids: dict[str, Histogram] = {n: Histogram(r.low, r.high) for n, r in usable.items()}
    counted = context.stats(model, grids) if grids else {}
    for name, reducer in counted.items():
        assert isinstance(reducer, Histogram)
        found[name] = clip_tails(reducer, percentile)
    return found


def clip_tails(histogram: Histogram, percentile: float) -> Range:
    """The range that leaves out ``100 - percentile`` percent of the values at either end, to the width of one cell."""
    counts = histogram.arrays["counts"]
    edges = np.linspace(histogram.low, histogram.high, histogram.bins + 1)
    total, tail = int(counts.sum()), 1.0 - percentile / 100.0
    share = np.cumsum(counts) / max(total, 1)
    first = int(np.searchsorted(share, tail, side="right"))
    last = int(np.searchsorted(share, 1.0 - tail, side="left"))
    first, last = min(first, histogram.bins - 1), min(last, histogram.bins - 1)
    return Range(float(edges[first]), float(edges[max(first, last) + 1]))


def _minmax(model: Model, context: Context, names: Sequence[str]) -> dict[str, MinMax]:
    seen = context.stats(model, {name: MinMax() for name in names})
    return {name: reducer for name, reducer in seen.items() if isinstance(reducer, MinMax)}


def _whole(seen: MinMax) -> Range:
    if int(seen.arrays["broken"]):
        return Range(0.0, 0.0, f"{int(seen.arrays['broken'])} of its values are not finite")
    if int(seen.arrays["count"]) == 0:
        return Range(0.0, 0.0, "no values of it were seen in the calibration data")
    return Range(seen.low, seen.high)
