"""Tails of latencies: how many queries a percentile takes, and how sure it is. Pure functions.

Sources: MLPerf Inference rules, "early stopping" (a one-sided binomial test of the share of late queries at 99 %
confidence); Hahn & Meeker 1991, ch. 5 (distribution-free intervals of quantiles from order statistics).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from optimizer.records import Interval

Array = np.ndarray[Any, Any]

CONFIDENCE = 0.99
"""MLPerf's: a run that shows fewer late queries than 1 - q says so wrongly in one of a hundred cases."""


def most_late(queries: int, q: float, confidence: float = CONFIDENCE) -> int:
    """How many of ``queries`` may be late so that a share of at least ``q`` in time is still shown; -1 for none at all.

    The largest t for which P(Binomial(queries, 1 - q) <= t) <= 1 - confidence.
    """
    from scipy import special

    if queries < 1:
        return -1
    reach = math.ceil(queries * (1 - q))
    chances = special.bdtr(np.arange(reach + 1), queries, 1 - q)
    return int(np.searchsorted(chances, 1 - confidence, side="right")) - 1


def least_queries(q: float, late: int = 0, confidence: float = CONFIDENCE) -> int:
    """The fewest queries with which ``late`` late ones still show a share of at least ``q`` in time.

    459 for a 99th percentile without a late one and 662 with one, 64 for a 90th with one.
    """
    low, high = 0, 1
    while most_late(high, q, confidence) < late:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if most_late(middle, q, confidence) < late else (low, middle)
    return high


def quantile_interval(values: Sequence[float] | Array, q: float, alpha: float = 0.05) -> Interval:
    """The ``q`` quantile of one run with its two-sided interval at 1 - alpha, for independent values of any
    distribution. A bound that the values do not reach is infinite. Raises ``ValueError`` without values."""
    from scipy import special

    found = np.sort(np.asarray(values, np.float64))
    n = len(found)
    if not n:
        raise ValueError("a quantile needs values")
    below = special.bdtr(np.arange(n), n, q)
    low = int(np.searchsorted(below, alpha / 2, side="right")) - 1
    high = int(np.searchsorted(below, 1 - alpha / 2, side="left"))
    value = float(np.quantile(found, q))
    lowest = float(found[low]) if low >= 0 else -math.inf
    highest = float(found[high]) if high < n else math.inf
    return Interval(value, min(lowest, value), max(highest, value))
