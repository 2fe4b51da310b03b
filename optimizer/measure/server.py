"""The highest rate at which a server keeps its latency bound: a bracketed search whose runs may be wrong now and then.

Pure: it is given a function that makes a run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

FIRST_STEP, NEXT_STEP = 1.5, 1.1
"""How far the first look beside the start lies: when nothing is known yet, and when earlier restarts found a rate."""

TOLERANCE = 1.03
"""The bracket is closed when its ends are no further apart."""

LEAST_LOAD = 0.05
"""Share of the capacity under which no start is guessed."""


@dataclass(frozen=True)
class Bracket:
    """``low`` held and ``high`` did not, queries a second; ``runs`` were made."""

    low: float
    high: float
    runs: int


def gap_ms(one_ms: float, bound_ms: float, q: float) -> float:
    """A first guess of the time between queries that keeps the ``q`` quantile of the latency at ``bound_ms``.

    In heavy traffic the wait of a queue with random arrivals and a steady server is about exponential with mean
    one_ms / (2 (1 - load)) (Kingman 1962), so its quantile is that mean times -ln(1 - q).
    """
    room = max(bound_ms - one_ms, one_ms * 1e-3)
    load = 1 - one_ms * -math.log(1 - q) / (2 * room)
    return one_ms / max(load, LEAST_LOAD)


def probes(restarts: int) -> int:
    """About how many runs the searches of so many restarts take."""
    first = 2 + _halvings(FIRST_STEP)
    return first + (restarts - 1) * (2 + _halvings(NEXT_STEP))


def _halvings(step: float) -> int:
    return max(0, math.ceil(math.log2(math.log(step) / math.log(TOLERANCE))))


def highest(
    holds: Callable[[float], bool],
    start: float,
    *,
    step: float = FIRST_STEP,
    lowest: float = 0.0,
    tolerance: float = TOLERANCE,
) -> Bracket | None:
    """The bracket around the highest rate that holds: first it is widened from ``start``, by larger and larger steps,
    until one end holds and the other does not, then halved on a logarithmic scale. ``None`` when nothing above
    ``lowest`` holds.

    A run that holds by luck sends the search up, one that fails by bad luck sends it down: the answer is one draw, and
    several of them, each with arrivals of its own, give its interval.
    """
    runs = 1
    good = holds(start)
    low, high = (start, math.inf) if good else (0.0, start)
    while math.isinf(high) or not low:
        rate = low * step if good else high / step
        if rate < lowest:
            return None
        runs += 1
        if holds(rate):
            low = rate
        else:
            high = rate
        step *= step
    while high / low > tolerance:
        middle = math.sqrt(low * high)
        runs += 1
        low, high = (middle, high) if holds(middle) else (low, middle)
    return Bracket(low, high, runs)
