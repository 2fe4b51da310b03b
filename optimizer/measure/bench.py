"""Several models side by side at several providers, batches and thread counts: one row for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.data.samples import Samples
from optimizer.faults import Fault
from optimizer.measure.latency import Effort, Timing, compare, speedup
from optimizer.records import BenchmarkRow
from optimizer.runtime import sessions
from optimizer.runtime.sessions import Site
from optimizer.workers.pool import CallFailed, WorkerDied

Array = np.ndarray[Any, Any]
SEED = 0


@dataclass(frozen=True)
class Entrant:
    """A model that takes part: its name, a path that the runtime can load, its size, and samples that fit it."""

    name: str
    path: Path
    size_bytes: int
    samples: Samples


def measure(
    entrants: Sequence[Entrant],
    sites: Sequence[Site | tuple[str, int, str]],
    batches: Sequence[int],
    effort: Effort,
    tell: Callable[[str], None],
) -> Iterator[BenchmarkRow]:
    """Rows in order of provider, threads, batch and model.

    A site given as (provider, threads, reason) could not be opened: its rows carry the reason.
    """
    for site in sites:
        for batch in batches:
            if isinstance(site, tuple):
                yield from (_missing(e, site[0], batch, site[1], site[2]) for e in entrants)
                continue
            tell(f"{site.provider}, batch {batch}, {site.threads} threads")
            yield from _side_by_side(entrants, site, batch, effort)


def _side_by_side(entrants: Sequence[Entrant], site: Site, batch: int, effort: Effort) -> list[BenchmarkRow]:
    feeds = [next(iter(e.samples.feeds(batch)))[0] for e in entrants]
    reasons = [_trouble(e, f, site) for e, f in zip(entrants, feeds, strict=True)]
    running = [i for i, reason in enumerate(reasons) if not reason]
    timings = dict(zip(running, _timings([entrants[i] for i in running], [feeds[i] for i in running], site, effort),
                       strict=True))  # fmt: skip
    first = timings.get(0)
    rows = []
    for i, entrant in enumerate(entrants):
        if i not in timings:
            rows.append(_missing(entrant, site.provider, batch, site.threads, reasons[i]))
        else:
            rows.append(_row(entrant, site, entrant.samples.fed(batch), timings[i], first if i else None))
    return rows


def _timings(
    entrants: Sequence[Entrant], feeds: Sequence[dict[str, Array]], site: Site, effort: Effort
) -> list[Timing]:
    return compare([e.path for e in entrants], feeds, site, effort) if entrants else []


def _trouble(entrant: Entrant, feed: dict[str, Array], site: Site) -> str:
    """Why the model cannot run there, or an empty text."""
    try:
        with sessions.worker() as worker:
            sessions.run(worker, entrant.path, [feed], site)
    except (Fault, WorkerDied, CallFailed) as error:
        return error.message if isinstance(error, Fault) else str(error)
    return ""


def _row(entrant: Entrant, site: Site, samples: int, timing: Timing, first: Timing | None) -> BenchmarkRow:
    latency = timing.latency()
    return BenchmarkRow(
        entrant.name,
        site.provider,
        samples,
        site.threads,
        latency,
        samples / latency.p50 * 1e3,
        speedup(first, timing, SEED) if first is not None else None,
        timing.memory_bytes,
        timing.load_ms,
        entrant.size_bytes,
        first_ms=timing.first_ms,
    )


def _missing(entrant: Entrant, provider: str, batch: int, threads: int, reason: str) -> BenchmarkRow:
    return BenchmarkRow(entrant.name, provider, batch, threads, size_bytes=entrant.size_bytes, reason=reason)


def with_quality(rows: Sequence[BenchmarkRow], qualities: dict[tuple[str, str], Any]) -> tuple[BenchmarkRow, ...]:
    """The rows with each model's quality on its provider."""
    return tuple(replace(r, quality=qualities.get((r.model, r.provider))) for r in rows)
