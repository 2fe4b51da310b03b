"""The bootstrap: scores of resamples, all at once, and quantiles that hold for few samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Statistic = Callable[[Array], Array]
"""Weights [b, n] -> values [b]."""

MOST_DRAWS = 4000
FEWEST_DRAWS = 1000
DRAWN_IN_ALL = 12_000_000
"""Draws times samples: keeps the time under about a second for up to 12,000 samples."""

CHUNK = 1_000_000
"""Weights that are held at once."""

JACKKNIFE_GROUPS = 200

SHY = 15
"""Samples by which levels are drawn in: see :meth:`Resampled.level`."""


@dataclass(frozen=True)
class Resampled:
    """What resampling found: the plain value, the sorted draws, BCa's acceleration, and the number of samples."""

    value: float
    draws: Array
    acceleration: float
    n: int

    @property
    def constant(self) -> bool:
        """No resample differs from another by more than rounding."""
        spread = float(self.draws[-1] - self.draws[0]) if len(self.draws) else 0.0
        return spread <= 1e-12 * max(1.0, abs(self.value))

    def level(self, alpha: float) -> float:
        """The level of a bound that is to be wrong at most ``alpha`` of the time: alpha n / (n + 15).

        BCa's error falls with 1 / n, and it is on the wrong side when samples are skewed, because a small sample
        seldom shows its own tail. The 15 is measured: with it the bound of an exponential mean is wrong 5.7 %, 5.2 %
        and 4.9 % of the time at 20, 50 and 100 samples (6,000 draws each), where BCa alone is 8.3 %, 6.6 % and 5.6 %.
        """
        return alpha * self.n / (self.n + SHY)

    def p_at_most(self, bound: float) -> float:
        """One-sided p-value of a value that is at most ``bound`` in truth: the share of draws that are, by the
        same measure as :meth:`level`."""
        share = (1 + int((self.draws <= bound).sum())) / (1 + len(self.draws))
        return min(1.0, share * (self.n + SHY) / self.n)

    def quantiles(self, levels: Sequence[float]) -> list[float]:
        """BCa endpoints (Efron 1987), with levels expanded for n samples (Hesterberg 2015: t instead of z)."""
        from scipy import special

        below = (np.sum(self.draws < self.value) + np.sum(self.draws == self.value) / 2) / len(self.draws)
        edge = 0.5 / len(self.draws)
        bias = float(special.ndtri(min(max(below, edge), 1 - edge)))
        found: list[float] = []
        for level in levels:
            z = float(special.stdtrit(self.n - 1, level)) * math.sqrt(self.n / (self.n - 1))
            shifted = bias + z
            pull = 1 - self.acceleration * shifted
            moved = bias + shifted / pull if pull > 0.1 else bias + shifted
            found.append(float(np.quantile(self.draws, float(special.ndtr(moved)))))
        return found


def resample(statistic: Statistic, value: float, n: int, seed: int) -> Resampled:
    """Scores of bootstrap resamples of ``n`` samples. Resamples without a score (one class only) are left out."""
    rng = np.random.default_rng(seed)
    wanted = int(min(MOST_DRAWS, max(FEWEST_DRAWS, DRAWN_IN_ALL // n)))
    step = max(1, CHUNK // n)
    parts = [statistic(_weights(rng, min(step, wanted - start), n)) for start in range(0, wanted, step)]
    draws = np.concatenate(parts)
    return Resampled(value, np.sort(draws[np.isfinite(draws)]), _acceleration(statistic, n), n)


def _weights(rng: np.random.Generator, draws: int, n: int) -> Array:
    """How often each of ``n`` samples is drawn in ``n`` draws with replacement: float64 [draws, n]."""
    picks = rng.integers(0, n, (draws, n)) + np.arange(draws)[:, None] * n
    return np.bincount(picks.reshape(-1), minlength=draws * n).reshape(draws, n).astype(np.float64)


def _acceleration(statistic: Statistic, n: int) -> float:
    """Skewness of the influence of samples, from a jackknife that leaves out one of at most 200 groups at a time."""
    groups = min(n, JACKKNIFE_GROUPS)
    if groups < 3:
        return 0.0
    member = np.arange(n) % groups
    step = max(1, CHUNK // n)
    parts = [
        statistic((member[None] != np.arange(s, min(s + step, groups))[:, None]).astype(np.float64))
        for s in range(0, groups, step)
    ]
    without = np.concatenate(parts)
    without = without[np.isfinite(without)]
    pulls = without.mean() - without if len(without) else np.zeros(1)
    spread = float((pulls**2).sum())
    if spread <= 0:
        return 0.0
    # Groups of n / g samples average the skewness away by sqrt(n / g) already, as the sum over n samples does.
    return float((pulls**3).sum()) / (6.0 * math.sqrt(spread) ** 3)
