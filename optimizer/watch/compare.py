"""Have two sets of samples the same distribution? Rank tests on one statistic at a time; pure functions.

All hold for any distribution, because under "nothing changed" every assignment of the samples to the two sets is as
likely as another. Where a sketch stands for the samples, its rank error is taken off the difference first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from optimizer.watch.sketches import Seen

Array = np.ndarray[Any, Any]

RANKS_FROM = 20
"""Samples on either side from which the rank sum is taken for normal."""

EXACT_UP_TO = 40_000
"""Product of both numbers of samples up to which every assignment is counted."""

FOUND = 0.95
"""How often a shift of the size that is named would be found."""


@dataclass(frozen=True)
class Tested:
    """One test of one statistic: its p-value, and the medians (means of shares) before and now."""

    statistic: str
    test: str
    p: float
    before: float
    now: float


def compare(before: Seen, now: Seen) -> list[Tested]:
    """Every test of every statistic, and one of the classes where there are any. The layouts must be the same."""
    found: list[Tested] = []
    error = before.error + now.error
    for place, name in enumerate(before.layout.names()):
        a, b = before.column(place), now.column(place)
        shown = [_middle(*column, float(seen.means[place])) for column, seen in ((a, before), (b, now))]
        found += [Tested(name, test, p, *shown) for test, p in column_tests(a, b, error)]
    if before.classes and now.classes:
        p, worst = class_test(before.classes, now.classes)
        shares = [100.0 * c.get(worst, 0) / sum(c.values()) for c in (before.classes, now.classes)]
        found.append(Tested(f"class {worst} (%)", "classes", p, *shares))
    return found


def column_tests(before: tuple[Array, Array], now: tuple[Array, Array], error: float) -> list[tuple[str, float]]:
    """p-values by test: the largest distance between the distributions, and the rank sum, which sees shifts.

    Where one value is held by more than half of all samples, ranks say little: then it is tested how many samples have
    another value. Without any variation there is nothing to test.
    """
    values, weight_a, weight_b = pooled(before, now)
    m, n = int(weight_a.sum()), int(weight_b.sum())
    if len(values) < 2 or not m or not n:
        return []
    found = [("distribution", kolmogorov_smirnov(weight_a, weight_b, error))]
    both = weight_a + weight_b
    usual = int(both.argmax())
    if 2 * both[usual] > m + n:
        found.append(("departures", departures(weight_a, weight_b, usual, error)))
    elif min(m, n) >= RANKS_FROM:
        found.append(("ranks", rank_sum(weight_a, weight_b, error)))
    return found


def pooled(before: tuple[Array, Array], now: tuple[Array, Array]) -> tuple[Array, Array, Array]:
    """All values ascending, and the weight that each has on either side."""
    values = np.unique(np.concatenate([before[0], now[0]]))
    weights = [np.bincount(np.searchsorted(values, v), w, len(values)) for v, w in (before, now)]
    return values, weights[0], weights[1]


def kolmogorov_smirnov(before: Array, now: Array, error: float = 0.0) -> float:
    """Two-sided p-value of the largest difference of the distribution functions; conservative where values tie.

    Exact for few samples; for more the null distribution is that of the one-sample statistic at m n / (m + n) samples
    (Hodges 1958).
    """
    from scipy.stats import ks_2samp, kstwo

    m, n = before.sum(), now.sum()
    if not error and m * n <= EXACT_UP_TO:
        ranks = np.arange(len(before))
        a, b = (np.repeat(ranks, np.rint(side).astype(np.int64)) for side in (before, now))
        return float(ks_2samp(a, b, method="exact").pvalue)
    gap = float(np.abs(np.cumsum(before) / m - np.cumsum(now) / n).max()) - error
    return float(kstwo.sf(max(gap, 0.0), max(1, round(m * n / (m + n))))) if gap > 0 else 1.0


def rank_sum(before: Array, now: Array, error: float = 0.0) -> float:
    """Two-sided p-value of Mann and Whitney's U, corrected for ties and continuity."""
    from scipy.stats import norm

    m, n = before.sum(), now.sum()
    below = np.cumsum(before) - before
    u = float((now * (below + before / 2)).sum())
    ties = before + now
    total = m + n
    variance = m * n / 12.0 * (total + 1 - (ties**3 - ties).sum() / (total * (total - 1)))
    gap = abs(u - m * n / 2) - 0.5 - error * m * n
    return float(2 * norm.sf(gap / np.sqrt(variance))) if gap > 0 and variance > 0 else 1.0


def departures(before: Array, now: Array, usual: int, error: float = 0.0) -> float:
    """Two-sided exact p-value (Fisher) of how many samples do not have the usual value."""
    m, n = round(before.sum()), round(now.sum())
    others = [round(side.sum() - side[usual]) for side in (before, now)]
    return _hypergeometric(others[0], others[1], m, n, error)


def class_test(before: Mapping[int, int], now: Mapping[int, int]) -> tuple[float, int]:
    """(p-value that any class became more or less frequent, the class that changed most): Fisher's test of each class,
    multiplied by their number."""
    m, n = sum(before.values()), sum(now.values())
    names = sorted({*before, *now})
    found = {c: _hypergeometric(before.get(c, 0), now.get(c, 0), m, n) for c in names}
    worst = min(found, key=lambda c: found[c])
    return min(1.0, found[worst] * len(names)), worst


def _hypergeometric(a: int, b: int, m: int, n: int, error: float = 0.0) -> float:
    """Twice the smaller tail of ``b`` of ``n`` where ``a + b`` of ``m + n`` are marked."""
    from scipy.stats import hypergeom

    expected, slack = (a + b) * n / (m + n), error * n
    if b > expected:
        tail = hypergeom.sf(max(b - slack, expected) - 1, m + n, a + b, n)
    else:
        tail = hypergeom.cdf(min(b + slack, expected), m + n, a + b, n)
    return min(1.0, 2 * float(tail))


def holm(values: Sequence[float]) -> list[float]:
    """p-values adjusted for being that many (Holm 1979): the least one that is below alpha is wrong at most alpha of
    the time, whatever hangs together with what."""
    order = np.argsort(values)
    adjusted, largest = np.ones(len(values)), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, values[place] * (len(values) - rank)))
        adjusted[place] = largest
    return [float(p) for p in adjusted]


def detectable(m: int, n: int, alpha: float) -> float:
    """The shift of a statistic, in its standard deviations, that is found 95 % of the time at ``alpha``.

    For the rank sum and normal values: (z(alpha/2) + z(0.95)) sqrt(1/m + 1/n) sqrt(pi/3).
    """
    return _reach(alpha) * float(np.sqrt(1 / m + 1 / n)) if m and n else float("inf")


def samples_for(shift: float, m: int, alpha: float) -> int | None:
    """How many new samples let a ``shift`` be found against ``m`` old ones; ``None`` when no number does."""
    left = (shift / _reach(alpha)) ** 2 - (1 / m if m else float("inf"))
    return int(np.ceil(1 / left)) if left > 0 else None


def _reach(alpha: float) -> float:
    from scipy.stats import norm

    return float((norm.isf(alpha / 2) + norm.ppf(FOUND)) * np.sqrt(np.pi / 3))


def _middle(values: Array, weights: Array, mean: float) -> float:
    """The median; where that is also an extreme, as of shares that are mostly 0, the mean says more."""
    if not len(values):
        return 0.0
    place = int(np.searchsorted(np.cumsum(weights), weights.sum() / 2))
    middle = float(values[min(place, len(values) - 1)])
    return mean if middle in (float(values[0]), float(values[-1])) else middle
