"""What inferences cost: money from a price per hour, energy from a counter or from watts that somebody names."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.measure.latency import WARM_UP_MS
from optimizer.measure.stats import CONFIDENCE, student
from optimizer.records import Energy, Interval, Latency
from optimizer.runtime import sessions
from optimizer.runtime.energy import Meter, used
from optimizer.runtime.sessions import JOBS, Site

Array = np.ndarray[Any, Any]

MILLION = 1_000_000
BLOCKS = 6
BLOCK_SECONDS = 0.4
"""Counters tick every millisecond or, on GPUs, every tenth of a second: a block must be much longer."""


def per_million(price_per_hour: float, latency: Latency, batch: int) -> Interval:
    """What a million inferences cost, in the currency of the price, when they run one batch after the other.

    price / 3600 s * latency / batch * 1e6; the ends are those of the latency.
    """
    return _scaled(latency, price_per_hour / 3600 / 1e3 / batch * MILLION)


def estimated(watts: float, latency: Latency, batch: int) -> Energy:
    """Joules of one inference if the machine draws so many watts while it runs."""
    return Energy(_scaled(latency, watts / 1e3 / batch), f"an estimate from {watts:g} W", False)


def _scaled(latency: Latency, factor: float) -> Interval:
    return Interval(latency.p50 * factor, latency.low * factor, latency.high * factor)


def counted(path: Path, feed: dict[str, Array], batch: int, site: Site, meter: Meter) -> Energy:
    """Joules of one inference by a counter, over blocks of runs with nothing in between.

    The interval is Student's t over the blocks. Raises as :func:`optimizer.runtime.sessions.ask` does.
    """
    spans, found = meter.spans(), []
    with sessions.worker() as worker:
        pace = sessions.begin_timing(worker, path, feed, site, WARM_UP_MS)["pace_ms"]
        runs = max(1, math.ceil(BLOCK_SECONDS * 1e3 / max(pace, 1e-3)))
        for _ in range(BLOCKS):
            before = meter.read()
            sessions.ask(worker, JOBS + "time_block", runs=runs, clock="wall")
            found.append(used(before, meter.read(), spans) / (runs + 1) / batch)  # one run goes before the timed ones
    return Energy(mean_of(np.array(found)), meter.says, True)


def mean_of(values: Array) -> Interval:
    """The mean of a few values with Student's 95 % interval."""
    value, n = float(values.mean()), len(values)
    if n < 2:
        return Interval(value, 0.0, math.inf)
    reach = student(0.5 + CONFIDENCE / 2, n - 1) * float(values.std(ddof=1)) / math.sqrt(n)
    return Interval(value, max(0.0, value - reach), value + reach)
