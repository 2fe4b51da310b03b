"""Exact bounds: one proportion, the difference of two paired ones, and the middle of values that spread evenly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

NUISANCE_POINTS = 9
"""Shares of discordant samples at which the tail is looked at, from the smallest possible to the largest credible."""

GRID_POINTS = 25
STEPS = 20
"""Halvings of one grid interval: the bound is right to 2^-24 of its range, and never on the short side."""

REACH = 8.5
"""Standard deviations of the number of discordant samples that are summed; what is left out is under 1e-15."""


def proportion(right: int, n: int, alpha: float) -> tuple[float, float]:
    """Clopper-Pearson interval of a share, two-sided at 1 - alpha."""
    from scipy import special

    low = float(special.betaincinv(right, n - right + 1, alpha / 2)) if right else 0.0
    high = float(special.betaincinv(right + 1, n - right, 1 - alpha / 2)) if right < n else 1.0
    return low, high


@cache
def drop_upper(lost: int, won: int, n: int, alpha: float) -> float:
    """One-sided upper bound, at 1 - alpha, of P(lost) - P(won) from paired counts among ``n`` samples.

    A drop is believable while the sup over the nuisance (the share of discordant samples) of P(T <= observed) exceeds
    alpha - gamma; the nuisance runs over a one-sided 1 - gamma Clopper-Pearson set, gamma = alpha / 10 (Berger & Boos
    1994). T is lost - won less its mean, over its standard deviation as estimated from the number of discordant
    samples. The bound is exact for any statistic: studentizing only makes it shorter, because the tail then hardly
    depends on the nuisance (with the bare difference the largest credible nuisance would widen every interval).
    Exact but for rounding: no normal approximation at any n.
    """
    from scipy import special

    seen, gamma = lost + won, alpha / 10
    most = float(special.betaincinv(seen + 1, n - seen, 1 - gamma)) if seen < n else 1.0
    test = _Test(lost, won, n, most, alpha - gamma)
    # The set of believable drops could have gaps, so the search starts from above: the last grid point inside it.
    grid = np.linspace(max((lost - won) / n, -most), most, GRID_POINTS)
    inside = next((k for k in range(len(grid) - 1, 0, -1) if test.believes(float(grid[k]))), 0)
    if inside == len(grid) - 1:
        return most
    low, high = float(grid[inside]), float(grid[inside + 1])
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if test.believes(middle) else (low, middle)
    return high


@dataclass(frozen=True)
class _Test:
    """What was observed, the largest credible share of discordant samples, and the level of the test."""

    lost: int
    won: int
    n: int
    most: float
    level: float

    def believes(self, drop: float) -> bool:
        shares = np.linspace(self.most, max(abs(drop), self.most * 1e-9), NUISANCE_POINTS)
        return any(self._tail(drop, float(share)) > self.level for share in shares)

    def _tail(self, drop: float, share: float) -> float:
        """P(T <= observed) when lost + won ~ Binomial(n, share) and, given that, lost is binomial too.

        T <= t given m discordant samples means lost <= (m + n drop + t deviation(m)) / 2.
        """
        from scipy import special

        n, spread = self.n, math.sqrt(self.n * share * (1 - share))
        first = max(0, math.floor(n * share - REACH * spread - REACH))
        last = min(n, math.ceil(n * share + REACH * spread + 40))
        m = np.arange(first, last + 1)
        t = (self.lost - self.won - n * drop) / self._deviation(np.array([self.lost + self.won]), drop)[0]
        most_lost = np.floor((m + n * drop + t * self._deviation(m, drop)) / 2 + 1e-9)
        toward = min(1.0, max(0.0, (1 + drop / share) / 2))
        below = np.where(most_lost < 0, 0.0, special.bdtr(np.clip(most_lost, 0, m), m, toward))
        return float(np.sum(_binomial(m, n, share) * np.where(most_lost >= m, 1.0, below)))

    def _deviation(self, m: Array, drop: float) -> Array:
        """Standard deviation of lost - won as m discordant samples suggest it; under ``drop`` there are n |drop|."""
        variance = np.maximum(np.maximum(m, self.n * abs(drop)), 1.0) - self.n * drop**2
        return np.sqrt(np.maximum(variance, 1e-9))


def _binomial(m: Array, n: int, share: float) -> Array:
    from scipy import special

    ways = special.gammaln(n + 1) - special.gammaln(m + 1) - special.gammaln(n - m + 1)
    return np.asarray(np.exp(ways + special.xlogy(m, share) + special.xlog1py(n - m, -share)))


def mcnemar(lost: int, won: int) -> tuple[float, float]:
    """McNemar's exact test of paired 0/1 outcomes: p-values (of any difference, of a loss).

    Under no difference each discordant sample falls on either side like a coin: lost ~ Binomial(lost + won, 1/2).
    """
    from scipy import special

    seen = lost + won
    if not seen:
        return 1.0, 1.0
    worse, better = (float(special.bdtrc(k - 1, seen, 0.5)) if k else 1.0 for k in (lost, won))
    return min(1.0, 2 * min(worse, better)), worse


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for how many there are (Holm 1979), in their order: one at or below alpha is shown at alpha,
    whatever the others are and however they depend on each other."""
    count, highest = len(p_values), 0.0
    corrected = [0.0] * count
    for rank, i in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (count - rank) * p_values[i]))
        corrected[i] = highest
    return corrected


# -- the middle of symmetric values ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Middle:
    """Hodges-Lehmann estimate of the centre of a symmetric distribution, with a bound on each side."""

    value: float
    low: float
    high: float


def middle(values: Sequence[float] | Array, alpha: float) -> Middle:
    """The centre of ``values`` with one-sided bounds, each exact at 1 - alpha for any symmetric distribution.

    The signed-rank test turned around (Hodges & Lehmann 1963): the estimate is the median of the n (n + 1) / 2 means of
    two values, the bounds are the means that lie as far from either end as the test's critical value. A wild value
    moves neither by much. With too few values for this alpha the bounds are infinite.

    Raises ``ValueError`` when there are no values or one is not finite.
    """
    found = np.asarray(values, np.float64)
    if not found.size or not np.isfinite(found).all():
        raise ValueError("the middle needs values, all of them finite")
    first, second = np.triu_indices(len(found))
    means = np.sort((found[first] + found[second]) / 2)
    outside = _signed_rank_critical(len(found), alpha)
    if outside < 0:
        return Middle(float(np.median(means)), -math.inf, math.inf)
    return Middle(float(np.median(means)), float(means[outside]), float(means[len(means) - 1 - outside]))


@cache
def _signed_rank_critical(n: int, alpha: float) -> int:
    """The largest k for which P(W <= k) <= alpha, W being the sum of the ranks with a positive sign; -1 for none."""
    ways = np.ones(1)
    for rank in range(1, n + 1):
        ways = np.concatenate([ways, np.zeros(rank)]) + np.concatenate([np.zeros(rank), ways])
        ways /= 2.0
    return int(np.searchsorted(np.cumsum(ways), alpha, side="right")) - 1
