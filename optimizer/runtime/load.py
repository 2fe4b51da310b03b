"""Load on a model, in a worker: queries come by the rule of a scenario, and how long each takes is measured here.

The scenarios are MLPerf Inference's (Reddi et al. 2020, section III): a query is one sample in SingleStream, N in
MultiStream, one at a random time in Server, everything at once in Offline. This is the light driver;
:mod:`optimizer.runtime.loadgen` puts MLPerf's own in its place. The clock is always the wall's: waiting is part of what
is measured. Arguments and results are plain data.
"""

from __future__ import annotations

import gc
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from optimizer.runtime.engines import Program, engine_for

Array = np.ndarray[Any, Any]
Feeds = dict[str, Any]

WARM_UP_RUNS = 3


@dataclass
class System:
    """The system under test: a loaded model, samples in memory, and how many of them may run together."""

    program: Program
    feeds: list[Feeds]
    joined: frozenset[str]
    batch: int

    def run(self, chosen: Sequence[int]) -> None:
        """Run these samples, at most ``batch`` of them together."""
        for start in range(0, len(chosen), self.batch):
            self.program.run(self._feed(chosen[start : start + self.batch]))

    def _feed(self, chosen: Sequence[int]) -> Feeds:
        first = self.feeds[chosen[0]]
        if len(chosen) == 1:
            return first
        return {
            name: np.concatenate([self.feeds[i][name] for i in chosen]) if name in self.joined else array
            for name, array in first.items()
        }


_OPEN: list[System] = []


def system() -> System:
    """The system that :func:`begin` opened in this process."""
    return _OPEN[-1]


def begin(
    path: str, feeds: list[Feeds], joined: list[str], batch: int, provider: str, threads: int, warm_up_ms: float
) -> dict[str, float]:
    """Load a model and warm it up on single samples and on whole batches.

    ``feeds`` hold one sample each, ``joined`` are the inputs that are put together along axis 0 (none: samples run one
    by one). Returns milliseconds of a run with one sample and with ``batch`` of them, medians of the warm-up.
    """
    opened = System(engine_for(provider).open(path, threads), feeds, frozenset(joined), batch if joined else 1)
    _OPEN[:] = [opened]
    one = _pace(opened, 1, warm_up_ms / 2)
    whole = _pace(opened, opened.batch, warm_up_ms / 2) if opened.batch > 1 else one
    gc.collect()
    gc.disable()
    return {"one_ms": one, "batch_ms": whole}


def _pace(opened: System, together: int, budget_ms: float) -> float:
    taken: list[float] = []
    chosen = [i % len(opened.feeds) for i in range(together)]
    while len(taken) < WARM_UP_RUNS or (sum(taken) < budget_ms and len(taken) < 2000):
        start = time.perf_counter()
        opened.run(chosen)
        taken.append((time.perf_counter() - start) * 1e3)
    return float(np.median(taken[len(taken) // 2 :]))


def stream(samples: int, seconds: float, least: int, seed: int) -> Array:
    """SingleStream (``samples`` = 1) and MultiStream: the next query of ``samples`` comes when the last is answered.

    Milliseconds of each query, float64: as many as fit into ``seconds``, at least ``least``.
    """
    opened, rng = system(), np.random.default_rng(seed)
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < least or time.perf_counter() < end:
        chosen = rng.integers(0, len(opened.feeds), samples).tolist()
        start = time.perf_counter_ns()
        opened.run(chosen)
        taken.append((time.perf_counter_ns() - start) / 1e6)
    return np.array(taken)


def offline(samples: int, seed: int) -> float:
    """Offline: one query of ``samples``, answered in whatever order suits. Seconds until the last is answered."""
    opened = system()
    chosen = np.random.default_rng(seed).integers(0, len(opened.feeds), samples).tolist()
    start = time.perf_counter()
    opened.run(chosen)
    return time.perf_counter() - start


def server(rate: float, queries: int, seed: list[int], bound_ms: float, most_late: int) -> Array:
    """Server: ``queries`` of one sample come at ``rate`` a second on average, as a Poisson process.

    Milliseconds from the moment a query was due to its answer, float64. One thread lets them come and one answers, what
    waits together up to the batch: a single one that sleeps in between would be woken late on a busy machine.
    It ends early when more than ``most_late`` queries took longer than ``bound_ms``: such a run has failed.
    """
    opened, rng = system(), np.random.default_rng(seed)
    due = np.cumsum(rng.exponential(1.0 / rate, queries))
    chosen = rng.integers(0, len(opened.feeds), queries).tolist()
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    taken, done, late = np.empty(queries), 0, 0
    start = time.perf_counter()
    issuing = threading.Thread(target=_issue, args=(waiting, (start + due).tolist()), daemon=True)
    issuing.start()
    while done < queries and late <= most_late:
        last = waiting.get() + 1
        while last - done < opened.batch and not waiting.empty():
            last = waiting.get() + 1
        opened.run(chosen[done:last])
        taken[done:last] = (time.perf_counter() - start - due[done:last]) * 1e3
        late += int((taken[done:last] > bound_ms).sum())
        done = last
    _STOPPED.set()
    issuing.join()
    _STOPPED.clear()
    return taken[:done]


_STOPPED = threading.Event()
"""Tells the thread that issues queries that nobody waits for more."""


def _issue(waiting: queue.SimpleQueue[int], due: list[float]) -> None:
    for number, moment in enumerate(due):
        left = moment - time.perf_counter()
        if left > 0:
            time.sleep(left)
        if _STOPPED.is_set():
            return
        waiting.put(number)


def carry(pairs: list[list[str]], seconds: float, least: int) -> dict[str, Any]:
    """Streaming: samples in their order, each state output fed back as the input of the next step.

    ``pairs`` are (input, output). After the last sample the stream begins anew with the state of the first feed.
    Returns ``latencies`` (milliseconds of each step, float64) and ``broken``: the states that hold NaN or infinities at
    the end.
    """
    opened = system()
    state: Feeds = {}
    taken: list[float] = []
    end, step = time.perf_counter() + seconds, 0
    while len(taken) < least or time.perf_counter() < end:
        if step % len(opened.feeds) == 0:
            state = {}
        start = time.perf_counter_ns()
        found = opened.program.run({**opened.feeds[step % len(opened.feeds)], **state})
        state = {given: found[made] for given, made in pairs}
        taken.append((time.perf_counter_ns() - start) / 1e6)
        step += 1
    broken = [n for n, a in state.items() if a.dtype.kind == "f" and not np.isfinite(a).all()]
    return {"latencies": np.array(taken), "broken": broken}
