"""Is one model slower than another by more than is allowed? Restart after restart, until that is clear or time is up.

The rule is pure and knows no clock of its own: it is given what restarts measured, and how much of the time has passed.
docs/adr/0017-gate-timing.md says why it looks like this.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.measure.exact import middle
from optimizer.measure.latency import Effort, Visit, timing_of, visits
from optimizer.records import Interval, Latency, Ruling
from optimizer.runtime.sessions import Site

Array = np.ndarray[Any, Any]

PASS_ALPHA = 0.05
"""How often a model that is slower by exactly the margin may pass."""

FAIL_ALPHA = 0.01
"""How often a model that is slower by exactly the margin may fail: a gate that cries wolf is switched off."""

LOOKS = (0.4, 0.6, 0.8, 1.0)
"""Shares of the time at which it is asked whether the ratio is clear. Each look gets an equal share of both alphas, and
what earlier looks could not spend: see :class:`Purse`."""

EFFORT = Effort(restarts=1, seconds=0.1, blocks=16, least=4)
"""One restart: short, because restarts differ by more than blocks do, so many short ones say more than a few long."""

WIDEST_NEED = 240.0
"""Minutes beyond which more time is not worth naming."""


@dataclass(frozen=True)
class Reading:
    """Time of the candidate over time of the baseline. ``low`` and ``high`` are the one-sided bounds of the last look,
    each at its share of the alpha; ``value`` is the Hodges-Lehmann estimate over ``restarts``."""

    ruling: Ruling
    value: float
    low: float
    high: float
    restarts: int
    seconds: float
    more_minutes: float | None = None

    @property
    def interval(self) -> Interval:
        """The estimate with its bounds, as records hold it."""
        return Interval(self.value, self.low, self.high)


def restart_ratio(baseline: Sequence[float] | Array, candidate: Sequence[float] | Array) -> float:
    """What one restart says: the median log ratio, candidate over baseline, of blocks measured side by side."""
    return float(np.median(np.log(np.asarray(candidate, np.float64) / np.asarray(baseline, np.float64))))


@dataclass
class Purse:
    """How much of an alpha a look may spend. ``held`` is what is there by now.

    A signed-rank test of n restarts cannot reject below 2^-n. A look whose level is smaller than that cannot be wrong,
    has spent nothing, and leaves its share to the next: all of them together are wrong at most ``alpha`` of the time,
    because when a look has enough restarts does not depend on what they found.
    """

    alpha: float
    held: float = 0.0

    def take(self, restarts: int, looks: int = 1) -> float:
        """The level of a look over so many restarts, with the shares of as many looks as fell together."""
        self.held += self.alpha * looks / len(LOOKS)
        level = self.held
        if 2.0**-restarts <= level:
            self.held = 0.0
        return level


def look(
    ratios: Sequence[float],
    allowed: float,
    seconds: float,
    passes: float = PASS_ALPHA / len(LOOKS),
    fails: float = FAIL_ALPHA / len(LOOKS),
) -> Reading:
    """What ``ratios`` (one log ratio a restart, gathered in ``seconds``) say about the largest ratio ``allowed``.

    Pass when the upper bound does not exceed it, fail when the lower bound does, else undecided, with the minutes that
    would probably decide: bounds close in with the square root of the number of restarts. ``passes`` and ``fails`` are
    the levels of the two bounds.
    """
    limit = math.log(allowed)
    passing, failing = middle(ratios, passes), middle(ratios, fails)
    ruling = Ruling.UNDECIDED
    if passing.high <= limit:
        ruling = Ruling.PASS
    elif failing.low > limit:
        ruling = Ruling.FAIL
    value, low, high = (math.exp(v) for v in (passing.value, failing.low, passing.high))
    more = None if ruling is not Ruling.UNDECIDED else _more_minutes(ratios, limit, seconds)
    return Reading(ruling, value, low, high, len(ratios), seconds, more)


def _more_minutes(ratios: Sequence[float], limit: float, seconds: float) -> float | None:
    """By the normal approximation, from the spread of the restarts; ``None`` when no realistic time decides."""
    count, centre = len(ratios), float(np.median(ratios))
    spread = 1.4826 * float(np.median(np.abs(np.asarray(ratios) - centre)))
    gap = abs(limit - centre)
    if gap == 0:
        return None
    reach = 2.3 if centre <= limit else 2.9  # standard errors to the bound, about, at a share of the alphas
    wanted = max(float(LEAST_RESTARTS), (reach * spread / gap) ** 2 * 1.2)
    minutes = max(wanted - count, 1.0) * seconds / count / 60
    return minutes if minutes <= WIDEST_NEED else None


LEAST_RESTARTS = 7
"""Fewer cannot fail anything, not even at the whole of :data:`FAIL_ALPHA`."""


@dataclass
class Looks:
    """When to look: as soon as a share of the time of :data:`LOOKS` has passed, once for each."""

    budget: float
    _left: list[float] = field(default_factory=lambda: list(LOOKS))

    def due(self, seconds: float) -> int:
        """How many looks are due now, taking them."""
        passed = [s for s in self._left if seconds >= s * self.budget]
        self._left = self._left[len(passed) :]
        return len(passed)

    @property
    def over(self) -> bool:
        """Whether the last look has been taken."""
        return not self._left


def decide(restarts: Iterator[tuple[float, float]], allowed: float, budget: float) -> Reading:
    """Take restarts, each (log ratio, seconds since the start), and look when it is time to; stop once it is clear.

    Pure in its input: a simulation gives restarts of its own making. There is a reading after at least one restart.
    """
    looks, ratios, seconds = Looks(budget), list[float](), 0.0
    passes, fails = Purse(PASS_ALPHA), Purse(FAIL_ALPHA)
    reading: Reading | None = None
    for ratio, seconds in restarts:
        ratios.append(ratio)
        if fallen := looks.due(seconds):
            levels = (purse.take(len(ratios), fallen) for purse in (passes, fails))
            reading = look(ratios, allowed, seconds, *levels)
            if reading.ruling is not Ruling.UNDECIDED or looks.over:
                break
    return reading if reading is not None else look(ratios, allowed, seconds)


@dataclass(frozen=True)
class Duel:
    """What came out: the reading (``None`` without a baseline), latencies and peak memory of both."""

    reading: Reading | None
    candidate: Latency
    baseline: Latency | None
    memory_bytes: int
    baseline_memory_bytes: int | None


def fight(
    candidate: Path,
    baseline: Path | None,
    feed: dict[str, Array],
    site: Site,
    budget: float,
    allowed: float | None,
    tell: Callable[[float, float], None] = lambda done, total: None,
) -> Duel:
    """Time the candidate beside the baseline, or alone, for at most ``budget`` seconds (and a restart at least).

    ``allowed`` is the largest ratio; without one the whole time is used. Raises a Fault when a model cannot run.
    """
    paths = [candidate] if baseline is None else [candidate, baseline]
    kept: list[list[Visit]] = []

    def measured() -> Iterator[tuple[float, float]]:
        start = time.monotonic()
        for visit in visits(paths, [feed] * len(paths), site, EFFORT):
            kept.append(visit)
            seconds = time.monotonic() - start
            tell(min(seconds, budget), budget)
            yield restart_ratio(visit[-1].medians(), visit[0].medians()), seconds
            if seconds >= budget:
                return

    reading: Reading | None = None
    if baseline is not None and allowed is not None:
        reading = decide(measured(), allowed, budget)
    else:
        seen = list(measured())
        if baseline is not None:
            reading = look([r for r, _ in seen], 1.0, seen[-1][1])
    timings = [timing_of([visit[i] for visit in kept], site.clock) for i in range(len(paths))]
    memory = [int(np.median([visit[i].memory_bytes for visit in kept])) for i in range(len(paths))]
    rest = (timings[1].latency(), memory[1]) if baseline is not None else (None, None)
    return Duel(reading, timings[0].latency(), rest[0], memory[0], rest[1])
