"""Restarts of a busy machine, made up: drift, bursts, and a memory layout that favours one side.

The sizes are those of a 2 ms model on two cores with more work than cores: a restart's log ratio spreads by 0.016.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from optimizer.measure.duel import restart_ratio

BLOCKS = 16
LAYOUT = 0.01
"""Spread of what a restart alone does to the ratio."""

WILD = 0.03
"""Share of restarts in which one side has bad luck from beginning to end."""


def restarts(slower: float, seed: int, budget: float = 12.0) -> Iterator[tuple[float, float]]:
    """(log ratio, seconds so far) of restarts whose true ratio is ``slower``, until the budget is used up."""
    rng, seconds = np.random.default_rng(seed), 0.0
    while seconds < budget:
        seconds += float(rng.uniform(0.4, 0.8))
        drift = np.repeat(np.cumsum(rng.normal(scale=0.02, size=BLOCKS)), 2).reshape(BLOCKS, 2)
        own = rng.normal(scale=0.025, size=(BLOCKS, 2))
        bursts = (rng.random((BLOCKS, 2)) < 0.1) * rng.exponential(0.2, (BLOCKS, 2))
        times = np.exp(drift + own + bursts)
        layout = rng.normal(scale=LAYOUT) + (rng.random() < WILD) * rng.choice([-1, 1]) * rng.uniform(0.05, 0.3)
        yield restart_ratio(times[:, 0], times[:, 1] * slower * np.exp(layout)), seconds
