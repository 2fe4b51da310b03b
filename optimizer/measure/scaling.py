"""How a model's speed follows the batch, the number of threads, or a length: sweeps that stop by themselves.

Neighbouring values take turns in one rotation, so that "twice the batch gives 1.4 times the samples" is a ratio of
times measured side by side, with its interval.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from optimizer.data.samples import Samples
from optimizer.data.synthetic import synthetic
from optimizer.faults import Fault, usage
from optimizer.measure.bench import SEED, Entrant, Lane, Place, open_lane, take_turns
from optimizer.measure.latency import Effort, Timing, speedup
from optimizer.records import Interval, Sweep, SweepPoint
from optimizer.runtime.hardware import available_memory
from passes.kit.model import Port
from passes.kit.options import closest

GROWS = 1.05
"""Twice the batch must give this much more throughput to count as growth."""

MEMORY_SHARE = 0.8
"""Share of the free memory that the next batch may be expected to take."""

LARGEST_BATCH = 4096
SECONDS = 120.0


@dataclass(frozen=True)
class Sweeps:
    """What is to be swept. ``lengths`` maps an open dimension, by its name or as ``input:axis``, to the values that it
    takes; ``seconds`` is how long the sweep of one model on one provider may take."""

    batch: bool = False
    threads: bool = False
    lengths: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    seconds: float = SECONDS

    def __bool__(self) -> bool:
        return self.batch or self.threads or bool(self.lengths)


# -- the batch ---------------------------------------------------------------------------------------------------------
def by_batch(entrant: Entrant, place: Place, effort: Effort, seconds: float = SECONDS) -> Sweep:
    """Double the batch until throughput stops growing, memory or time is up, or the model cannot do it."""
    lane = open_lane(entrant, place, 1)
    if lane.site is None:
        return _unable("batch", entrant, place, 1, lane.reason)
    if entrant.samples.fed(2) == entrant.samples.fed(1):
        why = f"the model fixes its batch at {lane.samples}: export it with an open axis (--dynamic INPUT:0=batch)"
        return _unable("batch", entrant, place, lane.samples, why)
    points, why, still = list[SweepPoint](), "", 0
    start = time.monotonic()
    while not why:
        larger = open_lane(entrant, place, lane.samples * 2)
        if larger.site is None:
            why = f"batch {lane.samples * 2} does not run: {larger.reason}"
            break
        began = time.monotonic()
        smaller_timing, timing = take_turns([lane, larger], effort)
        if not points:
            points.append(_point(lane.samples, smaller_timing, lane.samples))
        growth = _times(speedup(smaller_timing, timing, SEED), 2)
        points.append(_point(larger.samples, timing, larger.samples, growth))
        still = still + 1 if growth.value < GROWS else 0
        taken = time.monotonic() - began
        why = _end(points, still, start + seconds - time.monotonic() - 2 * taken)
        lane = larger
    return _done("batch", lane, points, best_batch(points), why)


def _end(points: Sequence[SweepPoint], still: int, seconds_left: float) -> str:
    """Why the batch is doubled no further, or an empty text."""
    last, growth = points[-1], points[-1].growth
    assert growth is not None
    if growth.high < GROWS or still >= 2:
        grown = f"{growth.value:.2f}x [{growth.low:.2f}, {growth.high:.2f}]"
        return f"from batch {last.value // 2} to {last.value} throughput grows {grown}"
    if last.value * 2 > LARGEST_BATCH:
        return f"batch {LARGEST_BATCH} is where the sweep ends, and throughput still grows"
    if seconds_left < 0:
        return "the time for the sweep is up, and throughput may still grow"
    if _next_memory(points) > available_memory() * MEMORY_SHARE:
        return f"batch {last.value * 2} is not expected to fit into memory"
    return ""


def _next_memory(points: Sequence[SweepPoint]) -> float:
    """Bytes that twice the last batch should take: what the last doubling added, twice."""
    last, before = points[-1].memory_bytes or 0, points[-2].memory_bytes or 0
    return last + 2 * max(0, last - before)


def best_batch(points: Sequence[SweepPoint]) -> int | None:
    """The smallest batch whose throughput is within :data:`GROWS` of the best, by the growth from step to step."""
    if not points:
        return None
    reached, total = [1.0], 1.0
    for point in points[1:]:
        total *= point.growth.value if point.growth else 1.0
        reached.append(total)
    best = max(reached)
    return next(p.value for p, r in zip(points, reached, strict=True) if r * GROWS >= best)


# -- threads and lengths -----------------------------------------------------------------------------------------------
def by_threads(entrant: Entrant, place_of: Callable[[int], Place], batch: int, cores: int, effort: Effort) -> Sweep:
    """One thread, two, four, ... and as many as there are cores, all in one rotation, by wall time."""
    counts = sorted({*(2**i for i in range(cores.bit_length()) if 2**i <= cores), cores})
    lanes = [open_lane(entrant, place_of(n), batch) for n in counts]
    if all(lane.site is None for lane in lanes):
        return _unable("threads", entrant, place_of(1), batch, lanes[0].reason)
    points = list(_in_turns(counts, lanes, effort, by_time=False))
    timed = [p for p in points if p.latency is not None]
    fastest = min(p.latency.p50 for p in timed if p.latency)
    suggested = next(p.value for p in timed if p.latency and p.latency.p50 <= fastest * GROWS)
    why = f"more threads make a run less than {GROWS - 1:.0%} faster" if suggested < counts[-1] else "all cores help"
    return _done("threads", next(lane for lane in lanes if lane.site), points, suggested, why)


def by_length(entrant: Entrant, place: Place, axis: str, sizes: Sequence[int], batch: int, effort: Effort) -> Sweep:
    """Made-up inputs in which the dimension ``axis`` takes each of ``sizes``, all in one rotation.

    Raises a usage Fault when the model has no such open dimension.
    """
    _check_axis(entrant, axis)
    lanes = []
    for size in sizes:
        samples = _of_length(entrant.samples, axis, size)
        lanes.append(open_lane(entrant, place, batch, next(iter(samples.feeds(batch)))[0]))
    points = list(_in_turns(sizes, lanes, effort, by_time=True))
    return _done(axis, next((lane for lane in lanes if lane.site), lanes[0]), points)


def open_axes(inputs: Sequence[Port]) -> list[str]:
    """The open dimensions of a model: names, and ``input:axis`` for each."""
    named: dict[str, None] = {}
    places: list[str] = []
    for port in inputs:
        for axis, dim in enumerate(port.dims or ()):
            if not isinstance(dim, int):
                places.append(f"{port.name}:{axis}")
                if dim:
                    named[dim] = None
    return [*named, *places]


def _check_axis(entrant: Entrant, axis: str) -> None:
    known = open_axes(entrant.samples.ports)
    if axis in known:
        return
    if not known:
        hint = "Export it with an open axis: --dynamic INPUT:AXIS=NAME."
        raise usage(
            "every dimension of this model is fixed: there is no length to sweep", where=entrant.name, hint=hint
        )
    message = f"the model has no open dimension '{axis}'{closest(axis, known)}"
    raise usage(message, where=entrant.name, hint=f"It has: {', '.join(known)}.")


def _of_length(samples: Samples, axis: str, size: int) -> Samples:
    """Made-up samples of the sizes of ``samples``, but for one dimension."""
    feed, _ = next(iter(samples.feeds(1)))
    dims: dict[str, int] = {}
    for port in samples.ports:
        for i, dim in enumerate(port.dims or ()):
            if axis in (dim, f"{port.name}:{i}"):
                dims[f"{port.name}:{i}"] = size
            elif i or samples.whole:
                dims[f"{port.name}:{i}"] = feed[port.name].shape[i]
    return synthetic(samples.ports, 1, SEED, dims=dims)


# -- points ------------------------------------------------------------------------------------------------------------
def _in_turns(values: Sequence[int], lanes: Sequence[Lane], effort: Effort, *, by_time: bool) -> Iterator[SweepPoint]:
    """A point for each value, against the one before: how many times the throughput, or with ``by_time`` the time."""
    timings = iter(take_turns([lane for lane in lanes if lane.site is not None], effort))
    before: Timing | None = None
    for value, lane in zip(values, lanes, strict=True):
        if lane.site is None:
            yield SweepPoint(value, reason=lane.reason)
            continue
        timing = next(timings)
        growth = speedup(before, timing, SEED) if before is not None else None
        yield _point(value, timing, lane.samples, _inverse(growth) if by_time and growth else growth)
        before = timing


def _point(value: int, timing: Timing, samples: int, growth: Interval | None = None) -> SweepPoint:
    latency = timing.latency()
    return SweepPoint(value, latency, samples / latency.p50 * 1e3, growth, timing.memory_bytes)


def _times(ratio: Interval, factor: float) -> Interval:
    return Interval(ratio.value * factor, ratio.low * factor, ratio.high * factor)


def _inverse(ratio: Interval) -> Interval:
    return Interval(1 / ratio.value, 1 / ratio.high, 1 / ratio.low if ratio.low > 0 else float("inf"))


def _done(kind: str, lane: Lane, points: Sequence[SweepPoint], suggested: int | None = None, why: str = "") -> Sweep:
    """The sweep of what ran on ``lane``, under the name of who ran it."""
    provider = lane.site.provider if lane.site is not None else lane.place.provider
    fixed = (lane.samples, lane.place.threads)
    return Sweep(kind, lane.entrant.name, provider, *fixed, tuple(points), suggested, why, lane.asked)


def _unable(kind: str, entrant: Entrant, place: Place, batch: int, reason: str) -> Sweep:
    point = SweepPoint(batch if kind == "batch" else place.threads, reason=reason)
    return Sweep(kind, entrant.name, place.provider, batch, place.threads, (point,), None, reason)


# -- all of them -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Settings:
    """What does not change in a sweep of something else, and how many cores there are."""

    batch: int
    threads: int
    cores: int
    effort: Effort


def sweep(
    entrants: Sequence[Entrant],
    place_of: Callable[[str, int], Place],
    providers: Sequence[str],
    wanted: Sweeps,
    settings: Settings,
    tell: Callable[[str], None],
) -> list[Sweep]:
    """Every sweep asked for, of every model on every provider; one that cannot go on says why in its place.

    Raises a usage Fault for a dimension that a model does not have, before anything is measured.
    """
    for entrant in entrants:
        for axis in wanted.lengths:
            _check_axis(entrant, axis)
    found: list[Sweep] = []
    for entrant in entrants:
        for provider in providers:
            at = partial(place_of, provider)
            for kind, plan in _plans(entrant, at, wanted, settings):
                tell(f"sweeping {entrant.name} on {provider}: {kind}")
                try:
                    found.append(plan())
                except Fault as fault:
                    found.append(_unable(kind, entrant, at(settings.threads), settings.batch, fault.message))
    return found


def _plans(
    entrant: Entrant, at: Callable[[int], Place], wanted: Sweeps, settings: Settings
) -> Iterator[tuple[str, Callable[[], Sweep]]]:
    place, effort = at(settings.threads), settings.effort
    if wanted.batch:
        yield "batch", partial(by_batch, entrant, place, effort, wanted.seconds)
    if wanted.threads:
        yield "threads", partial(by_threads, entrant, at, settings.batch, settings.cores, effort)
    for axis, sizes in wanted.lengths.items():
        yield axis, partial(by_length, entrant, place, axis, sizes, settings.batch, effort)
