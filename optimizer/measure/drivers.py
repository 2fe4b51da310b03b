"""Who makes the load: the built-in light driver and MLPerf's loadgen, each asked in the same words.

Both take their queries from the same samples, run them the same way and are held to the same number of queries, so that
their results may be compared (``benchmarks/scenarios.py`` does).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from optimizer.measure.carried import Pair
from optimizer.measure.tails import least_queries, most_late
from optimizer.runtime import sessions
from optimizer.workers.pool import Worker

Array = np.ndarray[Any, Any]
LOAD = "optimizer.runtime.load:"
LOADGEN = "optimizer.runtime.loadgen:"

JUDGED: Mapping[str, float] = {"single-stream": 0.90, "multi-stream": 0.99, "server": 0.99, "streaming": 0.99}
"""The percentile of the latency that each scenario is judged by; offline is judged by its throughput."""

SCENARIOS = (*JUDGED, "offline")
SAMPLES_PER_QUERY = 8
PLENTY, LOADGEN_PLENTY = 1.5, 1.1
"""How many more queries are asked for than a look beforehand suggests, and how many more loadgen makes by itself."""

OFFLINE_BATCH = 8


@dataclass(frozen=True)
class Load:
    """A scenario as asked for: what a query is, the bound of server (milliseconds), and seconds of load for each model.

    ``batch`` is how many samples may run together (``None``: what suits the scenario). ``chunk_ms`` is how much real
    time one step of a stream stands for.
    """

    scenario: str
    seconds: float
    batch: int | None = None
    samples_per_query: int = SAMPLES_PER_QUERY
    bound_ms: float = 0.0
    chunk_ms: float | None = None

    @property
    def together(self) -> int:
        """How many samples may run together."""
        usual = {"multi-stream": self.samples_per_query, "offline": OFFLINE_BATCH}
        return self.batch or usual.get(self.scenario, 1)

    @property
    def percentile(self) -> float:
        """The one that the scenario is judged by, as a share."""
        return JUDGED.get(self.scenario, 0.99)


@dataclass(frozen=True)
class Run:
    """One run of one restart: the value that counts, and what was seen on the way. ``latencies`` are milliseconds."""

    value: float
    queries: int
    latencies: Array | None = None
    percentiles: Mapping[str, float] = field(default_factory=dict)
    verdict: str = ""
    checks: Mapping[str, bool] = field(default_factory=dict)
    broken: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pace:
    """Milliseconds of a run with one sample, and with as many as may run together."""

    one_ms: float
    batch_ms: float


@dataclass(frozen=True)
class Asked:
    """What a driver is asked for: a load on the model in ``worker``, for ``seconds``."""

    worker: Worker
    load: Load
    pace: Pace
    seconds: float
    seed: int

    def call(self, op: str, **args: Any) -> Any:
        """A job in the worker."""
        return sessions.ask(self.worker, op, **args)


def query_ms(load: Load, pace: Pace) -> float:
    """Milliseconds of one query when nothing else waits; of one batch in offline."""
    if load.scenario != "multi-stream":
        return pace.batch_ms if load.scenario == "offline" else pace.one_ms
    return math.ceil(load.samples_per_query / load.together) * pace.batch_ms


def light(ask: Asked) -> Run:
    """A run of the built-in driver, of any scenario but server."""
    load = ask.load
    if load.scenario == "offline":
        count = offline_samples(load, ask.pace, ask.seconds)
        took = ask.call(LOAD + "offline", samples=count, seed=ask.seed)
        return Run(count / took, count)
    together = load.samples_per_query if load.scenario == "multi-stream" else 1
    least = least_queries(load.percentile, late=1)
    taken = ask.call(LOAD + "stream", samples=together, seconds=ask.seconds, least=least, seed=ask.seed)
    return Run(float(np.quantile(taken, load.percentile)), len(taken), taken)


def offline_samples(load: Load, pace: Pace, seconds: float) -> int:
    """How many samples last for about ``seconds``, in whole batches."""
    return max(1, round(seconds * 1e3 / pace.batch_ms)) * load.together


def loadgen(ask: Asked, rate: float) -> tuple[Run, bool]:
    """A run of MLPerf's loadgen and whether it calls it VALID; ``rate`` is that of server, in queries a second."""
    load = ask.load
    kind, expected, seconds = load.scenario, rate, ask.seconds
    # loadgen makes its queries beforehand and calls a run invalid that was done too early: rather too many of them.
    if kind == "offline":
        expected, seconds = load.together / ask.pace.batch_ms * 1e3 * PLENTY, seconds / PLENTY / LOADGEN_PLENTY
    elif kind != "server":
        expected = 1e3 / query_ms(load, ask.pace) * PLENTY
    least = 1 if kind == "offline" else least_queries(load.percentile, late=1)
    told = ask.call(
        LOADGEN + "drive", scenario=kind, seconds=seconds, least=least, seed=ask.seed, expected=expected,
        samples=load.samples_per_query, bound_ms=load.bound_ms, percentile=load.percentile,
    )  # fmt: skip
    value = rate if kind == "server" else told["rate"] if kind == "offline" else told["judged_ms"]
    percentiles = {} if kind == "offline" else told["percentiles"]
    queries = told["queries"] // (load.samples_per_query if kind == "multi-stream" else 1)
    return Run(value, queries, None, percentiles, told["verdict"], told["checks"]), told["verdict"] == "VALID"


def light_server(ask: Asked, rate: float) -> tuple[Run, bool]:
    """A run of server by the built-in driver, and whether the bound was kept."""
    load = ask.load
    count = max(least_queries(load.percentile, late=1), math.ceil(rate * ask.seconds))
    allowed = most_late(count, load.percentile)
    seed = [ask.seed, round(rate * 1e3)]  # another rate, other arrivals
    taken = ask.call(
        LOAD + "server", rate=rate, queries=count, seed=seed, bound_ms=load.bound_ms, most_late=allowed
    )  # fmt: skip
    good = len(taken) == count and int((taken > load.bound_ms).sum()) <= allowed
    return Run(rate, len(taken), taken), good


def stream(ask: Asked, pairs: Sequence[Pair]) -> Run:
    """A stream with its state carried on."""
    least = least_queries(ask.load.percentile, late=1)
    found = ask.call(LOAD + "carry", pairs=[list(p) for p in pairs], seconds=ask.seconds, least=least)
    taken = found["latencies"]
    return Run(float(np.quantile(taken, ask.load.percentile)), len(taken), taken, broken=tuple(found["broken"]))
