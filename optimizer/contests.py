"""Models measured beside each other in other ways than by single runs here: under load, and on another machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optimizer.data.metrics import Metric
from optimizer.data.samples import Samples
from optimizer.faults import usage
from optimizer.measure import scenarios
from optimizer.measure.carried import pairs_of
from optimizer.measure.drivers import Load
from optimizer.measure.latency import Effort
from optimizer.package import job, job_result
from optimizer.plan import OPENVINO_RUNTIME, DataRequest, Settings, SourceRequest
from optimizer.progress import Silent, Watcher
from optimizer.records import ScenarioRow
from optimizer.runtime import hardware, providers
from optimizer.runtime.sessions import Site
from optimizer.store.store import Store
from optimizer.workshop import (
    choose_metric,
    choose_site,
    made_up_samples,
    open_model,
    open_site,
    read_samples,
    scratch_folder,
)
from passes.kit.model import Model


@dataclass(frozen=True)
class Runner:
    """A model opened to be measured beside others. Without data there is no metric, and samples are made up."""

    name: str
    model: Model
    size_bytes: int
    samples: Samples
    metric: Metric | None
    warnings: tuple[str, ...]


def open_runner(base: Settings, text: str, store: Store, site: Site, watch: Watcher, stack: ExitStack) -> Runner:
    """MODEL opened with the data that ``base`` names. Raises a Fault when either cannot be used."""
    watch.stage(f"opening {text}")
    settings = base.but(source=replace(base.source, model=text))
    scratch = stack.enter_context(scratch_folder(store))
    source = open_model(settings, hardware.loosest_target(), store, site, scratch)
    if base.data.data is None:
        samples, metric = made_up_samples(source.model, base.seed, store, site), None
    else:
        samples = read_samples(base.data.data, settings, source, store, stack)
        metric = choose_metric(settings, source.model, samples, stack)
    return Runner(text, source.model, source.size_bytes, samples, metric, (*source.warnings, *samples.warnings))


@dataclass(frozen=True)
class ScenarioReport:
    """Rows of models under load, and where they were measured."""

    rows: tuple[ScenarioRow, ...]
    environment: Mapping[str, Any]
    warnings: tuple[str, ...] = ()


def under_load(
    models: Sequence[str],
    loads: Sequence[Load],
    *,
    drivers: Sequence[str] = ("light",),
    states: Sequence[str] = (),
    provider: str = "cpu",
    threads: int = 1,
    data: str | None = None,
    settings: Settings | None = None,
    watch: Watcher | None = None,
) -> ScenarioReport:
    """Put models under load: MLPerf's scenarios, or a stream whose state is carried on. Times are the wall clock's.

    Args:
        models: Any MODEL texts; the first is what the others are compared with.
        loads: What is asked of each model, in turn.
        drivers: ``light`` (built in), ``loadgen`` (MLPerf's own, an extra), or both in turns.
        states: Pairs ``input=output`` for streaming; by default those that names and shapes tell.
        provider, threads: Where and with how many threads.
        data: Samples; without any, seeded made-up inputs.
        settings: Anything else (cache folder, seed, source options).
        watch: Told about progress.

    Raises :class:`~optimizer.faults.Fault` when a model, the provider or a driver is not there.
    """
    watch = watch or Silent()
    base = (settings or Settings(SourceRequest(models[0]))).but(data=DataRequest(data), metric=None)
    store, cpu, site = Store(base.cache_dir), open_site("cpu", 1), choose_site(provider, threads)
    rows: list[ScenarioRow] = []
    with ExitStack() as stack:
        runners = [open_runner(base, text, store, cpu, watch, stack) for text in models]
        for load in loads:
            streams = load.scenario == "streaming"
            contenders = [
                scenarios.Contender(
                    r.name,
                    store.put_model(r.model),
                    r.samples,
                    driver,
                    pairs_of(r.model.signature, states) if streams else (),
                    data is None,
                )
                for r in runners
                for driver in drivers
            ]
            watch.stage(f"{load.scenario}: at most about {load.seconds * len(contenders):.0f} s of load")
            rows += scenarios.measure(contenders, load, site, base.seed, watch.note)
    notes = tuple(dict.fromkeys(w for r in runners for w in r.warnings))
    return ScenarioReport(tuple(rows), hardware.environment(), notes)


def export_job(
    models: Sequence[str],
    place: str | Path,
    *,
    provider_names: Sequence[str] = ("cpu",),
    batches: Sequence[int] = (1,),
    threads: Sequence[int] = (1,),
    data: str | None = None,
    seconds: float = 3.0,
    settings: Settings | None = None,
    watch: Watcher | None = None,
) -> int:
    """Write a benchmark that travels: a zip that ``python job.zip`` measures on a machine with numpy and onnxruntime.

    The arguments are those of :func:`optimizer.api.benchmark`; providers need not be here. Returns the bytes written.
    Raises :class:`~optimizer.faults.Fault` when a model cannot be opened or the zip cannot be written.
    """
    watch = watch or Silent()
    names = [_travelling(name) for name in provider_names]
    base = (settings or Settings(SourceRequest(models[0]))).but(data=DataRequest(data), metric=None)
    store, site = Store(base.cache_dir), open_site("cpu", 1)
    with ExitStack() as stack:
        runners = [open_runner(base, text, store, site, watch, stack) for text in models]
        for note in dict.fromkeys(w for r in runners for w in r.warnings):
            watch.warn(note)
        cargo = [job.Cargo(r.name, r.model, r.size_bytes, r.samples) for r in runners]
        return job.write(Path(place), cargo, names, batches, threads, Effort(3, seconds))


def _travelling(text: str) -> str:
    """The full name of a provider of onnxruntime, which is all that the runner knows."""
    if ":" in text or providers.named(text) == OPENVINO_RUNTIME:
        raise usage(
            f"a job cannot take '{text}'", hint="Name a provider of onnxruntime without options, as in openvino"
        )
    return providers.named(text)


def import_results(paths: Sequence[str | Path], job_file: str | Path | None = None) -> tuple[job_result.Imported, ...]:
    """Results of :func:`export_job`'s zips from other machines, each by itself: nothing is compared across machines.

    ``job_file`` is the zip that they must belong to. Raises :class:`~optimizer.faults.Fault` (exit 3) for a result that
    does not hold.
    """
    told = job.read(Path(job_file)) if job_file is not None else None
    return tuple(job_result.read(Path(path), told) for path in paths)
