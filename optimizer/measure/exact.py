"""Exact bounds for 0/1 outcomes: one proportion, and the difference of two paired ones."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

NUISANCE_POINTS = 9
"""Shares of discordant samples at which the tail is looked at, from the smallest possible to the largest credible."""

STEPS = 26
"""Halvings of the search: the bound is right to 2^-26 of its range, and never on the short side."""

REACH = 8.5
"""Standard deviations of the number of discordant samples that are summed; what is left out is under 1e-15."""


def proportion(right: int, n: int, alpha: float) -> tuple[float, float]:
    """Clopper-Pearson interval of a share, two-sided at 1 - alpha."""
    from scipy import special

    low = float(special.betaincinv(right, n - right + 1, alpha / 2)) if right else 0.0
    high = float(special.betaincinv(right + 1, n - right, 1 - alpha / 2)) if right < n else 1.0
    return low, high


def drop_upper(lost: int, won: int, n: int, alpha: float) -> float:
    """One-sided upper bound, at 1 - alpha, of P(lost) - P(won) from paired counts among ``n`` samples.

    Inverts the unconditional test on D = lost - won: a drop is believable while sup over the nuisance (the share of
    discordant samples) of P(D <= observed) exceeds alpha - gamma, the nuisance running over a one-sided 1 - gamma
    Clopper-Pearson set, gamma = alpha / 10 (Berger & Boos 1994). Only the upper end of that set matters for an upper
    bound: more discordance means more spread. Exact but for rounding: no normal approximation at any n.
    """
    from scipy import special

    seen, observed, gamma = lost + won, lost - won, alpha / 10
    most = float(special.betaincinv(seen + 1, n - seen, 1 - gamma)) if seen < n else 1.0
    low, high = max(observed / n, -most), most
    for _ in range(STEPS):
        middle = (low + high) / 2
        if _believable(middle, observed, n, most, alpha - gamma):
            low = middle
        else:
            high = middle
    return high


def _believable(drop: float, observed: int, n: int, most: float, level: float) -> bool:
    shares = np.linspace(most, max(abs(drop), most * 1e-9), NUISANCE_POINTS)
    return any(_tail(drop, float(share), observed, n) > level for share in shares)


def _tail(drop: float, share: float, observed: int, n: int) -> float:
    """P(lost - won <= observed) when lost + won ~ Binomial(n, share) and, given that, lost is binomial too.

    lost - won <= d given m discordant samples means lost <= floor((m + d) / 2).
    """
    from scipy import special

    middle, spread = n * share, math.sqrt(n * share * (1 - share))
    first, last = max(0, math.floor(middle - REACH * spread - REACH)), min(n, math.ceil(middle + REACH * spread + 40))
    m = np.arange(first, last + 1)
    toward = min(1.0, max(0.0, (1 + drop / share) / 2))
    most_lost = np.floor((m + observed) / 2)
    below = np.where(most_lost < 0, 0.0, special.bdtr(np.clip(most_lost, 0, m), m, toward))
    return float(np.sum(_binomial(m, n, share) * np.where(most_lost >= m, 1.0, below)))


def _binomial(m: Array, n: int, share: float) -> Array:
    from scipy import special

    ways = special.gammaln(n + 1) - special.gammaln(m + 1) - special.gammaln(n - m + 1)
    return np.asarray(np.exp(ways + special.xlogy(m, share) + special.xlog1py(n - m, -share)))
