"""Latency side by side: each model in a process of its own, blocks of runs in alternating order, several restarts.

A single timing of one model says little on a busy machine. Here every model of a comparison is loaded in its own
worker; the workers take turns in short blocks, forwards and backwards (ABBA), so that slow drifts of the machine hit
all alike; everything is repeated over process restarts, because memory layout alone can shift a median by percents.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.measure.stats import median_interval, ratio_interval, tail, tail_interval
from optimizer.records import Interval, Latency
from optimizer.runtime import hardware, sessions
from optimizer.runtime.sessions import JOBS, Site
from optimizer.workers.pool import Worker

Array = np.ndarray[Any, Any]

BLOCK_MS = 20.0
SHORTEST_BLOCK_MS = 2.0
WARM_UP_MS = 150.0
MIN_BLOCKS = 6
MAX_RUNS_PER_BLOCK = 200


@dataclass(frozen=True)
class Effort:
    """How long to look: process restarts, and seconds of timed runs for each model over all restarts.

    ``blocks`` is how many blocks of a restart this time is cut into, ``least`` how many there are at any rate. With
    ``enough`` no more restarts are made once every ratio to the first model is known that well (0.01: to 1 %), which is
    looked at after :data:`LOOKS` restarts, or once twice the seconds have passed. ``patience`` is how many times longer
    than planned a model may take to warm up.
    """

    restarts: int
    seconds: float
    blocks: int = MIN_BLOCKS
    least: int = MIN_BLOCKS
    enough: float | None = None
    patience: float = 1.0

    @property
    def block_ms(self) -> float:
        """Length of one block of runs."""
        return float(np.clip(self.seconds / self.restarts / self.blocks * 1e3, SHORTEST_BLOCK_MS, BLOCK_MS))

    @property
    def warm_up_ms(self) -> float:
        """How long a freshly loaded model runs untimed."""
        return min(WARM_UP_MS, self.seconds / self.restarts / 2 * 1e3)


DEFAULT_SECONDS = 3.0

LOOKS = (5, 7)
"""Restarts after which it is asked whether the ratios are known well enough. Few looks: an interval that may stop the
measurement whenever it happens to be narrow is narrower than it should be."""

LEAST_RESTARTS = 3


def quick(seconds: float = DEFAULT_SECONDS) -> Effort:
    """Enough to choose between recipes: a third of the seconds that a thorough look takes."""
    return Effort(restarts=3, seconds=seconds / 3)


def thorough(seconds: float = DEFAULT_SECONDS) -> Effort:
    """Enough to make a claim."""
    return Effort(restarts=5, seconds=seconds)


def benchmark(seconds: float = DEFAULT_SECONDS, enough: float | None = None) -> Effort:
    """For tables: more and shorter restarts than :func:`thorough`, as many of them as it takes."""
    return Effort(restarts=10, seconds=seconds, enough=enough, patience=4.0)


@dataclass(frozen=True)
class Timing:
    """Raw samples of one model: ``blocks[r][b]`` holds the milliseconds of the runs of block b after restart r.

    ``memories`` holds the peak memory of every restart, ``others`` the mean milliseconds of a run of every block by the
    other clock.
    """

    blocks: tuple[tuple[Array, ...], ...]
    clock: str
    load_ms: float
    first_ms: float
    memory_bytes: int
    memories: tuple[int, ...] = ()
    others: tuple[float, ...] = ()

    def medians(self) -> list[list[float]]:
        """Block medians, [restarts][blocks]."""
        return [[float(np.median(block)) for block in restart] for restart in self.blocks]

    def latency(self, *, tails: bool = False) -> Latency:
        """Median with its interval, and tails where there are enough runs: with ``tails`` those have intervals too,
        which takes a fifth of a second."""
        runs = np.concatenate([block for restart in self.blocks for block in restart])
        middle = median_interval(self.medians())
        return Latency(
            middle.value,
            middle.low,
            middle.high,
            self.clock,
            len(runs),
            tail(runs, 0.9),
            tail(runs, 0.99),
            p90_interval=tail_interval(self.blocks, 0.9) if tails else None,
            p99_interval=tail_interval(self.blocks, 0.99) if tails else None,
            other_ms=float(np.median(self.others)) if self.others else None,
        )

    @property
    def memory(self) -> Interval:
        """Median peak memory over restarts, with the smallest and the largest."""
        found = self.memories or (self.memory_bytes,)
        return Interval(float(np.median(found)), float(min(found)), float(max(found)))


@dataclass(frozen=True)
class Visit:
    """What one process restart found of one model: its blocks, and what loading it took."""

    blocks: tuple[Array, ...]
    load_ms: float
    first_ms: float
    memory_bytes: int
    others: tuple[float, ...] = ()

    def medians(self) -> list[float]:
        """Block medians, milliseconds."""
        return [float(np.median(block)) for block in self.blocks]


def compare(
    paths: Sequence[Path], feeds: Sequence[dict[str, Array]], site: Site | Sequence[Site], effort: Effort
) -> list[Timing]:
    """Time several models side by side, each on its feed, all at one site or each at its own.

    Raises a Fault when one of them cannot run.
    """
    clock, found = clock_of(site), list[list[Visit]]()
    start = time.monotonic()
    for visit in islice(visits(paths, feeds, site, effort), effort.restarts):
        found.append(visit)
        if effort.enough is not None and _is_enough(found, effort, time.monotonic() - start):
            break
    return [timing_of([restart[i] for restart in found], clock) for i in range(len(paths))]


def _is_enough(found: Sequence[Sequence[Visit]], effort: Effort, seconds: float) -> bool:
    count, wanted = len(found), math.log1p(effort.enough or 0.0)
    if count >= LEAST_RESTARTS and seconds >= 2 * effort.seconds * len(found[0]):
        return True
    if count not in LOOKS:
        return False
    first, *others = ([restart[i].medians() for restart in found] for i in range(len(found[0])))
    ratios = [ratio_interval(first, other) for other in others]
    return bool(ratios) and all(math.log(r.high / r.low) / 2 <= wanted if r.low > 0 else False for r in ratios)


def clock_of(site: Site | Sequence[Site]) -> str:
    """The clock that all sites of a comparison are timed by: CPU time only where it is right for every one of them."""
    clocks = {s.clock for s in ([site] if isinstance(site, Site) else site)}
    return "cpu" if clocks == {"cpu"} else "wall"


def timing_of(found: Sequence[Visit], clock: str) -> Timing:
    """The restarts of one model as one timing; times to load and memory are medians."""
    memories = tuple(v.memory_bytes for v in found)
    load, first, memory = (
        float(np.median(values)) for values in ([v.load_ms for v in found], [v.first_ms for v in found], memories)
    )
    others = tuple(ms for v in found for ms in v.others)
    return Timing(tuple(v.blocks for v in found), clock, load, first, int(memory), memories, others)


def visits(
    paths: Sequence[Path], feeds: Sequence[dict[str, Array]], site: Site | Sequence[Site], effort: Effort
) -> Iterator[list[Visit]]:
    """Restart after restart without end, one visit of each model in every one.

    Who is loaded first and who runs first change from restart to restart, so that neither is anyone's advantage. On
    the CPU clock all of them share one core, the idlest of the moment: on cores of their own one of them would have a
    busier neighbour for the whole restart, which shifts a ratio by tens of percents.
    """
    clock = clock_of(site)
    sites = [site] * len(paths) if isinstance(site, Site) else list(site)
    for restart in count():
        forwards = restart % 2 == 0
        core = hardware.idlest_core() if clock == "cpu" else None
        with ExitStack() as stack:
            workers = [stack.enter_context(sessions.worker()) for _ in paths]
            order = range(len(paths)) if restart % 4 < 2 else reversed(range(len(paths)))
            begun = {
                i: sessions.begin_timing(
                    workers[i], paths[i], feeds[i], sites[i], effort.warm_up_ms, core, effort.patience
                )
                for i in order
            }
            about = [begun[i] for i in range(len(paths))]
            taken = _take_turns(workers, about, clock, effort, forwards=forwards)
        yield [
            Visit(
                tuple(b["taken"] for b in blocks),
                facts["load_ms"],
                facts["first_ms"],
                facts["memory_bytes"],
                tuple(b["other"] for b in blocks),
            )
            for blocks, facts in zip(taken, about, strict=True)
        ]


def speedup(baseline: Timing, candidate: Timing, seed: int) -> Interval:
    """Baseline over candidate: above 1 the candidate is faster. Blocks taken in the same turn are paired."""
    return ratio_interval(baseline.medians(), candidate.medians(), seed)


def _take_turns(
    workers: Sequence[Worker], about: Sequence[dict[str, Any]], clock: str, effort: Effort, *, forwards: bool
) -> list[list[dict[str, Any]]]:
    """Blocks of each worker, in alternating order, until each has had its seconds and its least number of blocks."""
    runs = [int(np.clip(effort.block_ms / max(1e-3, facts["pace_ms"]), 1, MAX_RUNS_PER_BLOCK)) for facts in about]
    taken: list[list[dict[str, Any]]] = [[] for _ in workers]
    deadline = time.monotonic() + effort.seconds / effort.restarts * len(workers)
    order = list(range(len(workers)))
    while len(taken[0]) < effort.least or time.monotonic() < deadline:
        for i in order if forwards else reversed(order):
            taken[i].append(sessions.ask(workers[i], JOBS + "time_block", runs=runs[i], clock=clock))
        forwards = not forwards
    return taken
