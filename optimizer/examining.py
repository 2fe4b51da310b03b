"""What a benchmark tells of a row beside its speed: what bounds the model, where its time goes, what it costs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from optimizer.data.samples import Samples
from optimizer.dissecting import dissect
from optimizer.faults import Fault
from optimizer.measure import ceilings, costs
from optimizer.plan import OPENVINO_RUNTIME
from optimizer.progress import Watcher
from optimizer.records import BenchmarkRow, Energy
from optimizer.runtime import energy
from optimizer.runtime.providers import named
from optimizer.runtime.sessions import Site
from optimizer.store.store import Store
from optimizer.workers.pool import CallFailed, WorkerDied
from optimizer.workshop import choose_site
from passes.kit.model import Model


@dataclass(frozen=True)
class Asked:
    """What is wanted: profiles, a price from that of an hour, energy from watts where nothing counts it."""

    profile: bool = False
    price_per_hour: float | None = None
    watts: float | None = None


@dataclass(frozen=True)
class Subject:
    """A model of the benchmark, and samples that fit it."""

    model: Model
    samples: Samples


def examined(row: BenchmarkRow, subject: Subject, asked: Asked, store: Store, watch: Watcher) -> BenchmarkRow:
    """The row with what can be told of it; as it is when it has no latency."""
    if row.latency is None:
        return row
    if asked.price_per_hour is not None:
        row = replace(row, per_million=costs.per_million(asked.price_per_hour, row.latency, row.batch))
    try:
        site = choose_site(row.provider, row.threads)
        row = replace(row, energy=_energy(row, subject, asked, site, store))
    except (Fault, WorkerDied, CallFailed) as error:
        watch.note(f"{row.model}: {error}")
        return row
    if named(row.provider) == OPENVINO_RUNTIME:
        return row  # what it made of the model is not onnxruntime's to show
    if asked.profile or ceilings.kept(store, site) is not None:
        found = dissect(subject.model, _feed(row, subject), site, row.latency, store, watch)
        row = replace(row, profile=found.profile if asked.profile else None, roofline=found.roofline)
    return row


def _feed(row: BenchmarkRow, subject: Subject) -> dict[str, costs.Array]:
    return next(iter(subject.samples.feeds(row.batch)))[0]


def _energy(row: BenchmarkRow, subject: Subject, asked: Asked, site: Site, store: Store) -> Energy | None:
    """By a counter where there is one, else from the watts that somebody named, else nothing."""
    assert row.latency is not None
    if (meter := energy.meter(named(site.provider))) is not None:
        return costs.counted(store.put_model(subject.model), _feed(row, subject), row.batch, site, meter)
    return costs.estimated(asked.watts, row.latency, row.batch) if asked.watts is not None else None
