"""Latency side by side: each model in a process of its own, blocks of runs in alternating order, several restarts.

A single timing of one model says little on a busy machine. Here every model of a comparison is loaded in its own
worker; the workers take turns in short blocks, forwards and backwards (ABBA), so that slow drifts of the machine hit
all alike; everything is repeated over process restarts, because memory layout alone can shift a median by percents.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.measure.stats import median_interval, ratio_interval, tail
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

    ``blocks`` is how many blocks of a restart this time is cut into, ``least`` how many there are at any rate.
    """

    restarts: int
    seconds: float
    blocks: int = MIN_BLOCKS
    least: int = MIN_BLOCKS

    @property
    def block_ms(self) -> float:
        """Length of one block of runs."""
        return float(np.clip(self.seconds / self.restarts / self.blocks * 1e3, SHORTEST_BLOCK_MS, BLOCK_MS))

    @property
    def warm_up_ms(self) -> float:
        """How long a freshly loaded model runs untimed."""
        return min(WARM_UP_MS, self.seconds / self.restarts / 2 * 1e3)


DEFAULT_SECONDS = 3.0


def quick(seconds: float = DEFAULT_SECONDS) -> Effort:
    """Enough to choose between recipes: a third of the seconds that a thorough look takes."""
    return Effort(restarts=3, seconds=seconds / 3)


def thorough(seconds: float = DEFAULT_SECONDS) -> Effort:
    """Enough to make a claim."""
    return Effort(restarts=5, seconds=seconds)


@dataclass(frozen=True)
class Timing:
    """Raw samples of one model: ``blocks[r][b]`` holds the milliseconds of the runs of block b after restart r."""

    blocks: tuple[tuple[Array, ...], ...]
    clock: str
    load_ms: float
    first_ms: float
    memory_bytes: int

    def medians(self) -> list[list[float]]:
        """Block medians, [restarts][blocks]."""
        return [[float(np.median(block)) for block in restart] for restart in self.blocks]

    def latency(self) -> Latency:
        """Median with its interval, and tails where there are enough runs."""
        runs = np.concatenate([block for restart in self.blocks for block in restart])
        middle = median_interval(self.medians())
        return Latency(middle.value, middle.low, middle.high, self.clock, len(runs), tail(runs, 0.9), tail(runs, 0.99))


@dataclass(frozen=True)
class Visit:
    """What one process restart found of one model: its blocks, and what loading it took."""

    blocks: tuple[Array, ...]
    load_ms: float
    first_ms: float
    memory_bytes: int

    def medians(self) -> list[float]:
        """Block medians, milliseconds."""
        return [float(np.median(block)) for block in self.blocks]


def compare(paths: Sequence[Path], feeds: Sequence[dict[str, Array]], site: Site, effort: Effort) -> list[Timing]:
    """Time several models side by side, each on its feed. Raises a Fault when one of them cannot run."""
    found = list(islice(visits(paths, feeds, site, effort), effort.restarts))
    return [timing_of([restart[i] for restart in found], site.clock) for i in range(len(paths))]


def timing_of(found: Sequence[Visit], clock: str) -> Timing:
    """The restarts of one model as one timing; load time and memory are those of the last."""
    last = found[-1]
    return Timing(tuple(v.blocks for v in found), clock, last.load_ms, last.first_ms, last.memory_bytes)


def visits(
    paths: Sequence[Path], feeds: Sequence[dict[str, Array]], site: Site, effort: Effort
) -> Iterator[list[Visit]]:
    """Restart after restart without end, one visit of each model in every one.

    Who is loaded first and who runs first change from restart to restart, so that neither is anyone's advantage. On
    the CPU clock all of them share one core, the idlest of the moment: on cores of their own one of them would have a
    busier neighbour for the whole restart, which shifts a ratio by tens of percents.
    """
    for restart in count():
        forwards = restart % 2 == 0
        core = hardware.idlest_core() if site.clock == "cpu" else None
        with ExitStack() as stack:
            workers = [stack.enter_context(sessions.worker()) for _ in paths]
            order = range(len(paths)) if restart % 4 < 2 else reversed(range(len(paths)))
            begun = {
                i: sessions.begin_timing(workers[i], paths[i], feeds[i], site, effort.warm_up_ms, core) for i in order
            }
            about = [begun[i] for i in range(len(paths))]
            taken = _take_turns(workers, about, site.clock, effort, forwards=forwards)
        yield [
            Visit(tuple(blocks), facts["load_ms"], facts["first_ms"], facts["memory_bytes"])
            for blocks, facts in zip(taken, about, strict=True)
        ]


def speedup(baseline: Timing, candidate: Timing, seed: int) -> Interval:
    """Baseline over candidate: above 1 the candidate is faster. Blocks taken in the same turn are paired."""
    return ratio_interval(baseline.medians(), candidate.medians(), seed)


def _take_turns(
    workers: Sequence[Worker], about: Sequence[dict[str, Any]], clock: str, effort: Effort, *, forwards: bool
) -> list[list[Array]]:
    """Blocks of each worker, in alternating order, until each has had its seconds and its least number of blocks."""
    runs = [int(np.clip(effort.block_ms / max(1e-3, facts["pace_ms"]), 1, MAX_RUNS_PER_BLOCK)) for facts in about]
    taken: list[list[Array]] = [[] for _ in workers]
    deadline = time.monotonic() + effort.seconds / effort.restarts * len(workers)
    order = list(range(len(workers)))
    while len(taken[0]) < effort.least or time.monotonic() < deadline:
        for i in order if forwards else reversed(order):
            taken[i].append(sessions.ask(workers[i], JOBS + "time_block", runs=runs[i], clock=clock))
        forwards = not forwards
    return taken
