"""What ``lathe benchmark`` measures: models side by side, swept, judged on the same samples, and looked into."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from optimizer import examining
from optimizer.contests import Runner, open_runner
from optimizer.data.metrics import Metric
from optimizer.data.samples import Samples
from optimizer.faults import Fault, usage
from optimizer.measure import bench, latency, scaling
from optimizer.measure.paired import all_against_first
from optimizer.measure.quality import Judge, quality_of
from optimizer.measure.scaling import Sweeps
from optimizer.plan import Settings
from optimizer.progress import Watcher
from optimizer.records import BenchmarkRow, Noise, PairedQuality, Sweep
from optimizer.runtime import hardware, providers
from optimizer.runtime.sessions import Site
from optimizer.store.store import Store
from optimizer.workshop import choose_site, open_site

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class BenchmarkReport:
    """Rows of a benchmark and where it was made; with data, each model's quality beside the first one's."""

    rows: tuple[BenchmarkRow, ...]
    environment: Mapping[str, Any]
    warnings: tuple[str, ...] = ()
    paired: tuple[PairedQuality, ...] = ()
    noise: tuple[Noise, ...] = ()
    sweeps: tuple[Sweep, ...] = ()


@dataclass(frozen=True)
class Wanted:
    """What is to be measured: see :func:`optimizer.api.benchmark`, whose arguments these are."""

    provider_names: tuple[str, ...]
    batches: tuple[int, ...]
    threads: tuple[int, ...]
    seconds: float
    precision: float
    allow_fallback: bool
    sweeps: Sweeps | None
    asked: examining.Asked
    slice_by: str | None


@dataclass(frozen=True)
class Party:
    """Models opened to be measured side by side, each as whoever needs it knows it."""

    runners: tuple[Runner, ...]
    entrants: tuple[bench.Entrant, ...]

    @classmethod
    def of(cls, runners: Sequence[Runner], store: Store) -> Party:
        """The runners, their models stored where a runtime can load them."""
        entrants = (bench.Entrant(r.name, store.put_model(r.model), r.size_bytes, r.samples) for r in runners)
        return cls(tuple(runners), tuple(entrants))


def side_by_side(models: Sequence[str], wanted: Wanted, base: Settings, watch: Watcher) -> BenchmarkReport:
    """Measure ``models`` as ``wanted``, on the data that ``base`` names or made-up inputs.

    Raises :class:`~optimizer.faults.Fault` when a model cannot be opened, or when no provider asked for is here.
    """
    if not models:
        raise usage("no model was named")
    if base.metric and base.data.data is None:
        raise usage(f"the metric '{base.metric}' needs data", hint="Name the data with --data")
    store, cpu = Store(base.cache_dir), open_site("cpu", 1)
    places = _places(wanted)
    with ExitStack() as stack:
        party = Party.of([open_runner(base, text, store, cpu, watch, stack) for text in models], store)
        effort = latency.benchmark(wanted.seconds, wanted.precision)
        found = bench.measure(party.entrants, places, wanted.batches, effort, watch.note)
        sweeps = _swept(party, wanted, watch) if wanted.sweeps else []
        rows, pairs = tuple(found.rows), tuple[PairedQuality, ...]()
        if base.data.data is not None:
            watch.stage("measuring quality")
            judged = dict(_judged(party, rows, store))
            rows = bench.with_quality(rows, {k: quality_of(m, seen) for k, (m, _, seen) in judged.items()})
            pairs = all_against_first(judged, models[0], base.seed, wanted.slice_by)
        watch.stage("looking into the models")
        subjects = {r.name: examining.Subject(r.model, r.samples) for r in party.runners}
        rows = tuple(examining.examined(row, subjects[row.model], wanted.asked, store, watch) for row in rows)
    notes = tuple(dict.fromkeys((*(w for r in party.runners for w in r.warnings), *found.notes)))
    return BenchmarkReport(rows, hardware.environment(), notes, pairs, tuple(found.noise), tuple(sweeps))


def _places(wanted: Wanted) -> list[bench.Place]:
    """Every provider with every number of threads. Raises the first one's Fault when none of them is here."""
    found = [_place(name, count, wanted.allow_fallback) for name in wanted.provider_names for count in wanted.threads]
    if not any(p.site or p.fall_back for p in found):
        choose_site(wanted.provider_names[0], 1)
    return found


def _place(name: str, threads: int, allow_fallback: bool) -> bench.Place:
    fall_back = open_site("cpu", threads) if allow_fallback else None
    try:
        site = choose_site(name, threads)
    except Fault as fault:
        if fault.code != "missing-provider":
            raise
        return bench.Place(providers.full_name(name), threads, None, f"{fault.message}. {fault.hint}", fall_back)
    return bench.Place(site.provider, threads, site, "", fall_back)


def _swept(party: Party, wanted: Wanted, watch: Watcher) -> list[Sweep]:
    assert wanted.sweeps is not None
    watch.stage("sweeping")
    cores, effort = hardware.host().cores, latency.quick(wanted.seconds)
    fixed = scaling.Settings(wanted.batches[0], wanted.threads[0], cores, effort)
    place_of = partial(_place, allow_fallback=wanted.allow_fallback)
    return scaling.sweep(party.entrants, place_of, wanted.provider_names, wanted.sweeps, fixed, watch.note)


def _judged(
    party: Party, rows: Sequence[BenchmarkRow], store: Store
) -> Iterator[tuple[tuple[str, str], tuple[Metric, Samples, Array]]]:
    """What each sample contributes, for each model on each provider that ran. Metrics that compare take the first
    model as reference."""
    sites = {r.provider: Site(r.provider, r.threads, providers.version_of(r.provider)) for r in rows if r.latency}
    for runner, entrant in zip(party.runners, party.entrants, strict=True):
        for site in sites.values():
            if runner.metric is not None:
                judge = Judge(runner.metric, runner.samples, site, store, party.entrants[0].path)
                seen = judge.rows(entrant.path, runner.model.digest())
                yield (runner.name, site.provider), (runner.metric, runner.samples, seen)
