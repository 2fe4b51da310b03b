"""Several models side by side at several providers, batches and thread counts: one row for each.

At one batch and number of threads all models on all providers take their turns in one rotation, each in a process of
its own, so every ratio between two of them is one of times measured side by side. The first one takes part twice: what
it comes to against itself is the noise of the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.data.samples import Samples
from optimizer.faults import Exit, Fault
from optimizer.measure.latency import Effort, Timing, compare, speedup
from optimizer.measure.stats import resolution
from optimizer.plan import PROVIDERS, ProviderText
from optimizer.records import BenchmarkRow, Coverage, Noise
from optimizer.runtime import sessions
from optimizer.runtime.sessions import JOBS, Site
from optimizer.workers.pool import CallFailed, WorkerDied

Array = np.ndarray[Any, Any]
SEED = 0
CPU, CUDA = PROVIDERS["cpu"], PROVIDERS["cuda"]

MOSTLY_SHAPES = 0.01
"""A provider that ran less than this share of the multiply-accumulates did none of the model's work."""


@dataclass(frozen=True)
class Entrant:
    """A model that takes part: its name, a path that the runtime can load, its size, and samples that fit it."""

    name: str
    path: Path
    size_bytes: int
    samples: Samples


@dataclass(frozen=True)
class Place:
    """Where models are to run: the provider asked for (full name and options) and the site that stands for it, or why
    there is none. With ``fall_back`` the CPU takes its place when it cannot run a model."""

    provider: str
    threads: int
    site: Site | None
    reason: str = ""
    fall_back: Site | None = None


@dataclass(frozen=True)
class Lane:
    """One model at one place: the feed that it runs on, where it runs in fact and who runs what, or why it does not."""

    entrant: Entrant
    place: Place
    feed: dict[str, Array]
    samples: int
    site: Site | None = None
    coverage: tuple[Coverage, ...] = ()
    reason: str = ""

    @property
    def asked(self) -> str:
        """The provider asked for, where another one runs the model."""
        return self.place.provider if self.site is not None and self.site.provider != self.place.provider else ""


@dataclass
class Table:
    """What a benchmark measured."""

    rows: list[BenchmarkRow] = field(default_factory=list)
    noise: list[Noise] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def measure(
    entrants: Sequence[Entrant],
    places: Sequence[Place],
    batches: Sequence[int],
    effort: Effort,
    tell: Callable[[str], None],
) -> Table:
    """Rows in order of batch, threads, provider and model."""
    found = Table()
    for batch in batches:
        for threads in dict.fromkeys(p.threads for p in places):
            here = [p for p in places if p.threads == threads]
            tell(f"batch {batch}, {threads} threads")
            rows, noise, notes = _scene([open_lane(e, p, batch) for p in here for e in entrants], batch, effort)
            found.rows += rows
            found.noise += noise
            found.notes += notes
    found.notes = list(dict.fromkeys(found.notes))
    return found


def _scene(lanes: Sequence[Lane], batch: int, effort: Effort) -> tuple[list[BenchmarkRow], list[Noise], list[str]]:
    running = [lane for lane in lanes if lane.site is not None]
    timings = take_turns([*running, *running[:1]], effort)
    noise: list[Noise] = []
    if running:
        first, again = timings[0], timings.pop()
        same = speedup(first, again, SEED)
        noise = [Noise(batch, running[0].place.threads, first.clock, same, resolution(same))]
    rest = iter(timings)
    rows = [
        _missing(lane, batch) if lane.site is None else _row(lane, next(rest), timings[0], lane is running[0])
        for lane in lanes
    ]
    return rows, noise, [note for lane in running for note in _notes(lane)]


def take_turns(lanes: Sequence[Lane], effort: Effort) -> list[Timing]:
    """Time lanes that run, side by side. Raises a Fault when one of them stops to."""
    sites = [lane.site for lane in lanes if lane.site is not None]
    return compare([x.entrant.path for x in lanes], [x.feed for x in lanes], sites, effort) if lanes else []


# -- who runs what -----------------------------------------------------------------------------------------------------
def open_lane(entrant: Entrant, place: Place, batch: int, feed: dict[str, Array] | None = None) -> Lane:
    """Try a model at a place: one profiled run, in a worker of its own, shows who runs what of it.

    A provider that runs nothing of the model is no better than one that is missing: what would be measured is the CPU.
    Raises a usage Fault for an option that the provider does not have.
    """
    fed = entrant.samples.fed(batch)
    lane = Lane(entrant, place, feed if feed is not None else next(iter(entrant.samples.feeds(batch)))[0], fed)
    reason = place.reason
    if place.site is not None:
        tried = _try(lane, place.site)
        if not tried.reason:
            return tried
        reason = tried.reason
    if place.fall_back is None:
        return replace(lane, reason=reason)
    return _try(lane, place.fall_back)


def _try(lane: Lane, site: Site) -> Lane:
    try:
        with sessions.worker() as worker:
            told = sessions.ask(worker, JOBS + "coverage", site, path=str(lane.entrant.path), feeds=lane.feed)
    except (WorkerDied, CallFailed) as error:
        return replace(lane, reason=str(error))
    except Fault as fault:
        if fault.exit is Exit.USAGE:
            raise  # an option that cannot be meant is nobody's failure
        return replace(lane, reason=_sentence(fault))
    coverage = tuple(Coverage(**share) for share in told)
    reason = idle(coverage, site.provider)
    return replace(lane, reason=reason) if reason else replace(lane, site=site, coverage=coverage)


def _sentence(fault: Fault) -> str:
    return f"{fault.message}. {fault.hint}" if fault.hint and fault.code == "missing-provider" else fault.message


def idle(coverage: Sequence[Coverage], provider: str) -> str:
    """Why a provider cannot be said to have run a model, or an empty text."""
    name = ProviderText.parse(provider).name
    nodes, work = shares(coverage, name)
    if name == CPU or (nodes > 0 and (work is None or work >= MOSTLY_SHAPES)):
        return ""
    others = ", ".join(c.provider for c in coverage if c.provider != name)
    if not nodes:
        return f"{name} ran none of the model's nodes: {others or 'nobody'} did"
    return f"{name} ran {work:.1%} of the model's work: {others} did the rest"


def shares(coverage: Sequence[Coverage], name: str) -> tuple[float, float | None]:
    """The shares of nodes and of multiply-accumulates that one provider ran; no share of the work where it is not
    known, or there is none."""
    nodes = sum(c.nodes for c in coverage)
    mine = [c for c in coverage if c.provider == name]
    known = [c.macs for c in coverage if c.macs is not None]
    total = sum(known) if len(known) == len(coverage) else 0
    ran = sum(c.nodes for c in mine) / nodes if nodes else 0.0
    return ran, sum(c.macs or 0 for c in mine) / total if total else None


def _notes(lane: Lane) -> Iterator[str]:
    """What a reader of the row should know."""
    assert lane.site is not None
    told = ProviderText.parse(lane.site.provider)
    where = f"{lane.entrant.name} on {told.name}"
    if lane.asked:
        yield f"{lane.entrant.name}: the CPU stands in for {lane.asked} (--allow-fallback)"
        return
    nodes, work = shares(lane.coverage, told.name)
    others = ", ".join(c.provider for c in lane.coverage if c.provider != told.name)
    if nodes < 1:
        part = f" and {work:.1%} of the multiply-accumulates" if work is not None else ""
        yield f"{where}: {nodes:.1%} of the nodes{part} ran there, the rest on {others}"
    elif told.name == CUDA and "enable_cuda_graph" not in dict(told.options):
        yield f"{where}: every node runs there, so a CUDA graph may save launches: --provider cuda:enable_cuda_graph=1"


# -- rows --------------------------------------------------------------------------------------------------------------
def _row(lane: Lane, timing: Timing, first: Timing, is_first: bool) -> BenchmarkRow:
    assert lane.site is not None
    latency = timing.latency(tails=True)
    return BenchmarkRow(
        lane.entrant.name,
        lane.site.provider,
        lane.samples,
        lane.site.threads,
        latency,
        lane.samples / latency.p50 * 1e3,
        None if is_first else speedup(first, timing, SEED),
        timing.memory_bytes,
        timing.load_ms,
        lane.entrant.size_bytes,
        asked=lane.asked,
        coverage=lane.coverage,
        memory=timing.memory,
        first_ms=timing.first_ms,
    )


def _missing(lane: Lane, batch: int) -> BenchmarkRow:
    entrant, place = lane.entrant, lane.place
    return BenchmarkRow(
        entrant.name, place.provider, batch, place.threads, size_bytes=entrant.size_bytes, reason=lane.reason
    )


def with_quality(rows: Sequence[BenchmarkRow], qualities: Mapping[tuple[str, str], Any]) -> tuple[BenchmarkRow, ...]:
    """The rows with each model's quality on its provider."""
    return tuple(replace(r, quality=qualities.get((r.model, r.provider))) for r in rows)
