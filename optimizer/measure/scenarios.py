"""How models do under a load of the field's kinds: MLPerf's scenarios, and streams of models that carry a state.

Every restart is a process of its own for each model and driver, in alternating order; it gives one value, and the
interval is over restarts. docs/adr/0021-scenarios.md says why it looks like this.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.data.samples import Kind, Samples
from optimizer.faults import Fault, limit_not_met, usage
from optimizer.measure import server
from optimizer.measure.carried import Pair
from optimizer.measure.drivers import LOAD, Asked, Load, Pace, Run, light, light_server, loadgen, query_ms, stream
from optimizer.measure.stats import median_interval, ratio_interval
from optimizer.measure.tails import least_queries, quantile_interval
from optimizer.records import Interval, ScenarioRow
from optimizer.runtime import hardware, sessions
from optimizer.runtime.loadgen import KINDS, require
from optimizer.runtime.sessions import Site
from optimizer.workers.pool import CallFailed, Worker, WorkerDied

Array = np.ndarray[Any, Any]

RESTARTS = (5, 3, 1)
"""How many restarts there are: the first of these for which the time is enough."""

ROOM = 0.5
"""Of a core, which must be free beside the model's threads before its waiting is called its own."""

LIBRARY_SAMPLES = 256
LIBRARY_BYTES = 64 * 2**20
WARM_UP_MS = 200.0
SHOWN = (50, 90, 99)


@dataclass(frozen=True)
class Contender:
    """A model under load: its name, a path that the runtime can load, samples that fit it, who makes the load, and the
    pairs (input, output) of its state. ``made_up`` samples begin a stream with a state of zeros."""

    name: str
    path: Path
    samples: Samples
    driver: str = "light"
    pairs: tuple[Pair, ...] = ()
    made_up: bool = False


@dataclass
class _Part:
    """What became of one contender: its runs and how many cores others kept busy meanwhile, or the reason why there
    are none."""

    contender: Contender
    pace: Pace | None = None
    runs: list[Run] = field(default_factory=list)
    others: list[float] = field(default_factory=list)
    reason: str = ""
    code: str = ""

    def fails(self, error: Exception) -> None:
        """It cannot go on: the reason in words, and the code of a Fault."""
        fault = error if isinstance(error, Fault) else None
        self.reason, self.code = (fault.message, fault.code) if fault else (str(error), "failed")


def measure(
    contenders: Sequence[Contender], load: Load, site: Site, seed: int, tell: Callable[[str], None]
) -> list[ScenarioRow]:
    """A row for each contender; a model that cannot run, or for which the time is too short, is a row with the reason.

    Raises a Fault: exit 4 when a driver is not installed, usage when it does not know the scenario.
    """
    if any(c.driver == "loadgen" for c in contenders):
        if load.scenario not in KINDS:
            raise usage(f"loadgen has no scenario '{load.scenario}'", hint="Leave out --driver for this one")
        require()
    parts = [_Part(c) for c in contenders]
    for part in parts:
        _look_at(part, load, site)
    running = [p for p in parts if p.pace is not None]
    restarts = _restarts(running, load) if running else 0
    for restart in range(restarts):
        tell(f"{load.scenario}, restart {restart + 1} of {restarts}")
        order = parts if restart % 2 == 0 else parts[::-1]
        for part in (p for p in order if not p.reason):
            _restart(part, load, site, load.seconds / restarts, seed + restart)
    return _rows(parts, load, site, restarts)


# -- time --------------------------------------------------------------------------------------------------------------
def _look_at(part: _Part, load: Load, site: Site) -> None:
    """How fast the model is when nothing else waits, or why it cannot run."""
    try:
        with sessions.worker() as worker:
            part.pace = _begin(worker, part.contender, load, site)
    except (Fault, WorkerDied, CallFailed) as error:
        part.fails(error)


def _restarts(parts: Sequence[_Part], load: Load) -> int:
    """How many there is time for; none leaves every part with the reason."""
    paces = [p.pace for p in parts if p.pace is not None]
    needs = [(n, _least_seconds(load, paces, n)) for n in RESTARTS]
    found = next((n for n, seconds in needs if seconds <= load.seconds), 0)
    for part in parts if not found else ():
        part.reason, part.code = _too_short(load, needs[-1][1]), "too-short"
    return found


def _least_seconds(load: Load, paces: Sequence[Pace], restarts: int) -> float:
    """Seconds of load that ``restarts`` restarts of the slowest model take at least."""
    slowest = max(query_ms(load, p) for p in paces)
    if load.scenario == "offline":
        return 3 * slowest / 1e3 * restarts
    queries = least_queries(load.percentile, late=1)
    if load.scenario != "server":
        return queries * slowest / 1e3 * restarts
    return (
        queries
        * max(server.gap_ms(p.one_ms, load.bound_ms, load.percentile) for p in paces)
        / 1e3
        * (server.probes(restarts))
    )


def _too_short(load: Load, seconds: float) -> str:
    p, queries = f"p{load.percentile * 100:.0f}", least_queries(load.percentile, late=1)
    what = "three batches take longer" if load.scenario == "offline" else f"{p} takes {queries} queries a run"
    return f"too little time: {what}; give --seconds {math.ceil(seconds * 1.1)} or more"


# -- one restart -------------------------------------------------------------------------------------------------------
def _restart(part: _Part, load: Load, site: Site, seconds: float, seed: int) -> None:
    try:
        with sessions.worker() as worker:
            pace = _begin(worker, part.contender, load, site)
            before = hardware.spent([worker.pid])
            try:
                part.runs.append(_once(Asked(worker, load, pace, seconds, seed), part))
            finally:  # most of all when no rate holds: others may be why
                others = hardware.cores_of_others(before, hardware.spent([worker.pid]))
                part.others += [others] if others is not None else []
    except (WorkerDied, CallFailed, Fault) as error:
        part.fails(error)


def _begin(worker: Worker, contender: Contender, load: Load, site: Site) -> Pace:
    feeds, joined = library(contender)
    found = sessions.ask(
        worker, LOAD + "begin", site, path=str(contender.path), feeds=feeds, joined=sorted(joined),
        batch=load.together, warm_up_ms=WARM_UP_MS,
    )  # fmt: skip
    return Pace(**found)


def library(contender: Contender) -> tuple[list[dict[str, Array]], set[str]]:
    """Samples that are held in memory, one a feed, and the inputs that may be put together along axis 0."""
    samples, feeds, held = contender.samples, list[dict[str, Array]](), 0
    for feed, _ in samples.take(np.arange(min(LIBRARY_SAMPLES, len(samples)))).feeds(1):
        held += sum(a.nbytes for a in feed.values())
        if feeds and held > LIBRARY_BYTES:
            break
        feeds.append(feed)
    if contender.made_up and contender.pairs:
        feeds[0] = {n: np.zeros_like(a) if n in dict(contender.pairs) else a for n, a in feeds[0].items()}
    fixed = samples.whole or samples.batch is not None
    return feeds, set() if fixed else {n for n, how in samples.slicing.items() if how.kind is Kind.ROWS}


def _once(ask: Asked, part: _Part) -> Run:
    """The run of one restart; in server a whole search, which starts from what earlier restarts found."""
    if ask.load.scenario == "server":
        return _search(ask, part)
    if ask.load.scenario == "streaming":
        return stream(ask, part.contender.pairs)
    return loadgen(ask, 0.0)[0] if part.contender.driver == "loadgen" else light(ask)


def _search(ask: Asked, part: _Part) -> Run:
    """The highest rate of one restart: its value, and the run at it."""
    load, held = ask.load, dict[float, Run]()
    share = ask.seconds / server.probes(1)

    def holds(rate: float) -> bool:
        run, good = (loadgen if part.contender.driver == "loadgen" else light_server)(replace(ask, seconds=share), rate)
        held[rate] = run
        return good

    capacity = 1e3 / ask.pace.one_ms * max(1.0, load.together * ask.pace.one_ms / ask.pace.batch_ms)
    start = float(np.exp(np.mean([np.log(r.value) for r in part.runs]))) if part.runs else 0.0
    start = start or 1e3 / server.gap_ms(ask.pace.one_ms, load.bound_ms, load.percentile)
    step = server.NEXT_STEP if part.runs else server.FIRST_STEP
    found = server.highest(holds, start, step=step, lowest=capacity / 1e3)
    if found is None:
        raise _never(load, ask.pace)
    return held[found.low]


def _never(load: Load, pace: Pace) -> Fault:
    text = f"no rate holds: too many queries take longer than {load.bound_ms:g} ms even when few come"
    return limit_not_met(f"{text} (one alone takes {pace.one_ms:.3g} ms)", hint="Raise --latency-bound")


# -- rows --------------------------------------------------------------------------------------------------------------
def _rows(parts: Sequence[_Part], load: Load, site: Site, restarts: int) -> list[ScenarioRow]:
    rows = [_row(p, load, site, restarts) for p in parts]
    first = parts[0]
    if first.reason:
        return rows
    less = load.scenario not in ("server", "offline")
    return [rows[0], *(
        row if part.reason or restarts < 2 else replace(row, against=_against(first.runs, part.runs, less=less))
        for row, part in zip(rows[1:], parts[1:], strict=True)
    )]  # fmt: skip


def _against(first: Sequence[Run], mine: Sequence[Run], *, less: bool) -> Interval:
    a, b = [[r.value] for r in first], [[r.value] for r in mine]
    return ratio_interval(a, b) if less else ratio_interval(b, a)


def _row(part: _Part, load: Load, site: Site, restarts: int) -> ScenarioRow:
    contender, rate = part.contender, load.scenario in ("server", "offline")
    judged = "highest rate" if load.scenario == "server" else "throughput" if rate else f"p{load.percentile * 100:.0f}"
    unit = {"server": "queries/s", "offline": "samples/s"}.get(load.scenario, "ms")
    bound = load.bound_ms if load.scenario == "server" else None
    row = ScenarioRow(
        contender.name, load.scenario, contender.driver, site.provider, site.threads, load.together, judged,
        unit=unit, bound_ms=bound, reason=part.reason, code=part.code,
        warnings=_fixed(contender.samples) + _crowded(part.others, site),
    )  # fmt: skip
    if part.reason or not part.runs:
        return row
    lowest = min(part.runs, key=lambda r: r.value)
    verdicts = {r.verdict for r in part.runs}
    return replace(
        row,
        result=_interval(part.runs, load),
        restarts=restarts,
        queries=sum(r.queries for r in part.runs),
        percentiles=_percentiles(part.runs, load),
        held=lowest.value if load.scenario == "server" else None,
        real_time_factor=_real_time(part.runs, load),
        verdict="INVALID" if "INVALID" in verdicts else lowest.verdict,
        checks={n: all(r.checks.get(n, False) for r in part.runs) for n in lowest.checks},
        warnings=row.warnings
        + tuple(f"the state '{n}' is not finite at the end of a stream" for n in part.runs[-1].broken),
        others_cores=float(np.mean(part.others)) if part.others else None,
    )


def _crowded(others: Sequence[float], site: Site) -> tuple[str, ...]:
    """A warning when no core was free for the model and for what lets queries come: waking up late is then part of
    every latency, by an amount that depends on the scheduler and on the driver's threads."""
    cores = hardware.host().cores
    if not others or max(others) <= max(cores - site.threads - ROOM, ROOM):
        return ()
    text = f"other processes kept up to {max(others):.1f} of {cores} cores busy: waiting for one is part of these times"
    return (f"{text}, and drivers wait differently",)


def _fixed(samples: Samples) -> tuple[str, ...]:
    rows = samples.fed(1)
    return () if rows == 1 else (f"a sample of a query is one feed of {rows} samples: the model fixes its batch",)


def _interval(runs: Sequence[Run], load: Load) -> Interval:
    """Over restarts; within the run when there is one only."""
    if len(runs) > 1:
        return median_interval([[r.value] for r in runs])
    (run,) = runs
    if run.latencies is not None and load.scenario != "server":
        return quantile_interval(run.latencies, load.percentile)
    return Interval(run.value, 0.0, math.inf)


def _percentiles(runs: Sequence[Run], load: Load) -> dict[str, float]:
    """Milliseconds by percent, where there are enough queries; of the run that held in server."""
    shown = [min(runs, key=lambda r: r.value)] if load.scenario == "server" else list(runs)
    if shown[0].latencies is None:
        keys = [str(p) for p in SHOWN if all(str(p) in r.percentiles for r in shown)]
        return {k: float(np.mean([r.percentiles[k] for r in shown])) for k in keys}
    taken = np.concatenate([r.latencies for r in shown if r.latencies is not None])
    enough = [p for p in SHOWN if len(taken) >= least_queries(p / 100, late=1)]
    return {str(p): float(np.quantile(taken, p / 100)) for p in enough}


def _real_time(runs: Sequence[Run], load: Load) -> Interval | None:
    """Time taken over time that the steps stand for: below 1 the model keeps up."""
    if load.chunk_ms is None or load.scenario != "streaming":
        return None
    factors = [float(np.mean(r.latencies)) / load.chunk_ms for r in runs if r.latencies is not None]
    return median_interval([[f] for f in factors]) if len(factors) > 1 else Interval(factors[0], 0.0, math.inf)
