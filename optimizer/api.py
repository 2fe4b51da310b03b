"""The Python API: the verbs of the command line as functions.

import optimizer
record = optimizer.compile("model.onnx", data="samples.npz", metric="top1", budget=["top1.drop<=0.005"])
print(record.outcome, record.speedup, record.artifact)
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optimizer import checking, gating
from optimizer.benchmarking import BenchmarkReport, Wanted, side_by_side
from optimizer.comparing import compare
from optimizer.compile import compile_settings
from optimizer.contests import ScenarioReport, export_job, import_results, under_load
from optimizer.debugging import bisect, reduce
from optimizer.decide.policy import Policy
from optimizer.decide.policy import write as write_policy
from optimizer.doctoring import doctor
from optimizer.examining import Asked
from optimizer.explaining import explain_settings
from optimizer.faults import Fault, bad_input, usage
from optimizer.gating import Gated
from optimizer.measure.explain import Explanation
from optimizer.measure.scaling import Sweeps
from optimizer.package import artifact
from optimizer.package import evidence as evidence_file
from optimizer.package.check import verify
from optimizer.package.formats import package
from optimizer.package.signing import sign
from optimizer.plan import DataRequest, Settings, SourceRequest, default_cache_dir
from optimizer.preflight import plan
from optimizer.progress import Silent, Watcher
from optimizer.records import Record
from optimizer.replaying import replay as replay_settings
from optimizer.report import html, markdown
from optimizer.report.drift import DriftRecord
from optimizer.report.inspection import Inspection, inspect_model
from optimizer.report.nouns import Difference, Replayed
from optimizer.report.pages import PassPage, gather
from optimizer.runtime import hardware
from optimizer.store.store import LIMIT_BYTES, Entry, Store
from optimizer.workshop import (
    choose_target,
    open_bench,
    open_model,
    open_site,
    scratch_folder,
)
from passes import catalogue
from passes.kit.recipe import RecipeError

__all__ = [
    "BenchmarkReport",
    "ExportReport",
    "ScenarioReport",
    "benchmark",
    "bisect",
    "cache_entries",
    "cache_prune",
    "check_data",
    "check_data_settings",
    "compile",
    "compile_settings",
    "diff",
    "doctor",
    "evidence",
    "explain",
    "export",
    "export_job",
    "gate",
    "gate_policy",
    "import_results",
    "inspect",
    "package",
    "passes_list",
    "plan",
    "reduce",
    "replay",
    "report",
    "sign",
    "under_load",
    "verify",
]


def compile(
    model: str | Path,
    data: str | Path | None = None,
    metric: str | None = None,
    budget: str | Sequence[str] = (),
    *,
    output: str | Path | None = None,
    watch: Watcher | None = None,
    **more: Any,
) -> Record:
    """Compile ``model`` and return the record; the artifact is on disk afterwards.

    Args:
        model: ``file.onnx``, ``package.module:factory`` or ``sample:NAME``.
        data: Real samples: a path, or ``module:reader``.
        metric: A built-in name or ``module:function``; by default the one that fits the data.
        budget: A text such as ``top1.drop<=0.005`` or ``latency<=0.5x``, or several, which must all hold.
        output: The artifact's folder, by default ``./NAME.lathe``.
        watch: Told about progress.
        more: Any other field of :class:`optimizer.plan.Settings` or :class:`optimizer.plan.SourceRequest`.

    Raises :class:`optimizer.Fault` for everything that a person should read.
    """
    source_fields = {k: more.pop(k) for k in list(more) if k in SourceRequest.__dataclass_fields__}
    settings = Settings(
        SourceRequest(str(model), **source_fields),
        more.pop("data_request", DataRequest(None if data is None else str(data))),
        metric,
        budget=(budget,) if isinstance(budget, str) else tuple(budget),
        output=Path(output) if output is not None else None,
    )
    unknown = [k for k in more if k not in Settings.__dataclass_fields__]
    if unknown:
        raise usage(f"compile() has no argument '{unknown[0]}'")
    return compile_settings(settings.but(**more), watch)


def benchmark(
    models: Sequence[str],
    *,
    provider_names: Sequence[str] = ("cpu",),
    batches: Sequence[int] = (1,),
    threads: Sequence[int] = (1,),
    data: str | None = None,
    metric: str | None = None,
    seconds: float = 3.0,
    precision: float = 0.01,
    allow_fallback: bool = False,
    sweeps: Sweeps | None = None,
    profile: bool = False,
    price_per_hour: float | None = None,
    watts: float | None = None,
    slice_by: str | None = None,
    settings: Settings | None = None,
    watch: Watcher | None = None,
) -> BenchmarkReport:
    """Measure several models side by side, each in a process of its own, interleaved.

    Args:
        models: Any MODEL texts; an artifact's folder stands for its ``model.onnx``.
        provider_names: Providers by short or full name, with options (``cuda:device_id=1``); one that is missing,
            fails, or runs nothing of a model gives rows with the reason.
        batches, threads: Every combination is measured.
        data, metric: Measure quality too; without data, seeded synthetic inputs are timed.
        seconds: Timed seconds for each model at each combination, at most.
        precision: No more is measured once every ratio is known that well (0.01: to 1 %).
        allow_fallback: Where a provider cannot run a model the CPU does, and the row says so.
        sweeps: Batches, threads or lengths to go through, for each model on each provider.
        profile: Look into every model at every combination: time by operator and node.
        price_per_hour: What the machine costs, to tell the price of a million inferences.
        watts: What the machine draws, to estimate the energy of an inference where no counter tells it.
        slice_by: An array of the data that says which slice a sample is in; by default each class is looked at.
        settings: Anything else (cache folder, seed, source options).
        watch: Told about progress.

    Raises :class:`optimizer.Fault` when a model cannot be opened, or when no provider asked for is here.
    """
    base = (settings or Settings(SourceRequest(next(iter(models), "")))).but(data=DataRequest(data), metric=metric)
    wanted = Wanted(
        tuple(provider_names), tuple(batches), tuple(threads), seconds, precision, allow_fallback, sweeps,
        Asked(profile, price_per_hour, watts), slice_by,
    )  # fmt: skip
    return side_by_side(models, wanted, base, watch or Silent())


def inspect(
    model: str, *, sizes: Mapping[str, int] | None = None, passes: bool = True, settings: Settings | None = None
) -> Inspection:
    """What a model is, and what each lossless pass would do to it.

    ``sizes`` gives open dimensions a size to count the work with. A model that does not run on made-up inputs is shown
    with a warning in place of the passes. Raises :class:`optimizer.Fault`.
    """
    settings = (settings or Settings(SourceRequest(model))).but(level=1)
    with ExitStack() as stack:
        warnings: tuple[str, ...] = ()
        if passes:
            try:
                opened = stack.enter_context(open_bench(settings, Silent()))
                notes = opened.builder.build(opened.source.model, catalogue.LOSSLESS).notes
                return inspect_model(opened.source.model, name=model, sizes=sizes, passes=notes)
            except Fault as fault:
                if fault.code != "runtime-failed":
                    raise
                warnings = (f"passes were not tried on made-up inputs: {fault.message}",)
        store = Store(settings.cache_dir)
        scratch = stack.enter_context(scratch_folder(store))
        source = open_model(settings, hardware.loosest_target(), store, open_site(settings.provider, 1), scratch)
        return replace(inspect_model(source.model, name=model, sizes=sizes), warnings=warnings)


def explain(
    model: str,
    data: str | None = None,
    *,
    against: str | None = None,
    settings: Settings | None = None,
    watch: Watcher | None = None,
) -> Explanation:
    """What quantization costs a model layer by layer, what the runtime makes of it, and what to try next.

    Args:
        model: An artifact's folder or any MODEL; a float one is explained as plain int8 would make it.
        data: Real samples to compare on; without any, made-up inputs.
        against: The float MODEL that it was made of; by default its float twin, made from the model itself.
        settings: Anything else (cache folder, provider, threads, source options).
        watch: Told about progress.

    Raises :class:`optimizer.Fault`.
    """
    base = settings or Settings(SourceRequest(model))
    wanted = base.data if data is None else DataRequest(data)
    return explain_settings(base.but(source=replace(base.source, model=model), data=wanted), against, watch or Silent())


def gate(
    artifact: str | Path,
    policy: str | Path | Policy = "gate.toml",
    *,
    baseline: str | Path | None = None,
    data: str | None = None,
    seconds: float = gating.SECONDS,
    recording: bool = False,
    settings: Settings | None = None,
    watch: Watcher | None = None,
) -> Gated:
    """Hold an artifact to a policy: pass, fail or undecided, rule by rule. Always strict.

    Args:
        artifact: The folder of an artifact; a bare model where the policy does not ask for verification.
        policy: A TOML file or a :class:`~optimizer.decide.policy.Policy`.
        baseline: What is compared with: an artifact or model, measured now, or a results file (``.json``), which can
            answer for quality, size and signature only.
        data: Samples to measure quality on and to time with; by default the policy's.
        seconds: Seconds of timing, at most.
        recording: The results are wanted: without a baseline rules that compare are left out, with a warning.
        settings: Anything else (cache folder, seed).
        watch: Told about progress.

    Raises :class:`optimizer.Fault` when something cannot be opened or the policy cannot be read.
    """
    base = settings or Settings(SourceRequest(str(artifact)))
    base = base.but(source=replace(base.source, model=str(artifact)), data=DataRequest(data))
    rules = policy if isinstance(policy, Policy) else gating.read_policy(Path(policy))
    against = None if baseline is None else str(baseline)
    return gating.hold(base, rules, against, watch or Silent(), seconds=seconds, recording=recording)


def gate_policy(artifact: str | Path, *, settings: Settings | None = None, watch: Watcher | None = None) -> str:
    """A commented policy (TOML) that this artifact, or model, holds today. Raises :class:`optimizer.Fault`."""
    base = settings or Settings(SourceRequest(str(artifact)))
    base = base.but(source=replace(base.source, model=str(artifact)))
    return write_policy(gating.suggestion(base, watch or Silent()), f"Written from {str(artifact)!r}.")


def check_data(
    data: str | Path, artifact: str | Path, *, alpha: float = 0.01, inputs_only: bool = False, **more: Any
) -> DriftRecord:
    """Hold new data against what an artifact remembers of its own: ok, drift or undecided.

    Args:
        data: Samples for the model: a path, or ``module:reader``.
        artifact: The folder of the artifact.
        alpha: How often, at most, data that did not change is called drift.
        inputs_only: Do not run the model.
        more: Any other field of :class:`optimizer.plan.Settings`.

    Raises :class:`optimizer.Fault`.
    """
    settings = Settings(SourceRequest(str(artifact)), DataRequest(str(data)))
    if unknown := [k for k in more if k not in Settings.__dataclass_fields__]:
        raise usage(f"check_data() has no argument '{unknown[0]}'")
    return check_data_settings(settings.but(**more), alpha=alpha, inputs_only=inputs_only)


def check_data_settings(
    settings: Settings, watch: Watcher | None = None, *, alpha: float = 0.01, inputs_only: bool = False
) -> DriftRecord:
    """:func:`check_data` with everything in ``settings``, whose model is the artifact."""
    return checking.check_settings(settings, watch or Silent(), alpha=alpha, inputs_only=inputs_only)


@dataclass(frozen=True)
class ExportReport:
    """Where the ONNX file went, and how well it agrees with PyTorch."""

    path: str
    exporter: str | None
    parity: Any
    size_bytes: int
    warnings: tuple[str, ...]


def export(
    source: SourceRequest | str, output: str | Path, *, overwrite: bool = False, settings: Settings | None = None
) -> ExportReport:
    """PyTorch to ONNX with parity measured on real inputs where there are any. Raises :class:`optimizer.Fault`."""
    request = SourceRequest(source) if isinstance(source, str) else source
    base = (settings or Settings(request)).but(source=request)
    place = Path(output)
    if place.is_dir():
        raise usage("this is a folder, not the name of a file", where=str(place), hint=f"Write {place}/model.onnx.")
    if place.exists() and not overwrite:
        raise usage("the output exists", where=str(place), hint="Choose another name or add --overwrite.")
    artifact.check_parent(place)
    store, site = Store(base.cache_dir), open_site(base.provider, base.threads)
    target = choose_target(base) if base.target else hardware.with_runtime(hardware.loosest_target(), base.runtime)
    with scratch_folder(store) as scratch:
        opened = open_model(base, target, store, site, scratch)
        artifact.write_model_file(place, opened.model)
    return ExportReport(str(place), opened.exporter, opened.parity, opened.size_bytes, opened.warnings)


def evidence(folder: str | Path) -> Record:
    """What was measured for an artifact, read from its evidence. Raises :class:`optimizer.Fault`."""
    return evidence_file.read(Path(folder))


def report(folder: str | Path, output: str | Path | None = None, *, overwrite: bool = False) -> Path:
    """Write the report of the artifact in ``folder`` again, as ``.html`` or ``.md``; returns where it is.

    Raises :class:`optimizer.Fault` when there is no evidence that can be read, or the file exists.
    """
    record = evidence_file.read(Path(folder))
    place = Path(output) if output is not None else Path.cwd() / f"{Path(folder).resolve().stem}.html"
    made = {".html": html.page, ".md": markdown.report}.get(place.suffix)
    if made is None:
        raise usage(f"a report cannot be written as '{place.suffix}'", hint="Name a file that ends in .html or .md")
    try:
        text = made(record)
    except (ArithmeticError, ValueError) as error:  # evidence may be anyone's: its numbers need not make sense
        raise bad_input(f"the evidence cannot be shown: {error}", where=str(folder), code="bad-evidence") from error
    artifact.write_text_file(place, text, overwrite=overwrite)
    return place


def diff(left: str, right: str, *, settings: Settings | None = None) -> Difference:
    """How ``right`` differs from ``left``: recipe, lineage, signature, operators, weights and what was measured.

    Each is an artifact's folder or any MODEL. Raises :class:`optimizer.Fault` when one cannot be opened.
    """
    return compare(str(left), str(right), settings or Settings(SourceRequest(str(left))))


def replay(
    artifact: str | Path,
    *,
    settings: Settings | None = None,
    output: str | Path | None = None,
    watch: Watcher | None = None,
) -> Replayed:
    """Make an artifact again from its manifest and compare every file by its digest.

    Args:
        artifact: The folder of an artifact.
        settings: Where the model and the data are (``source.model`` empty: the name in the manifest); the rest is the
            manifest's.
        output: Keep what was made there.
        watch: Told about progress.

    Raises :class:`optimizer.Fault`: exit 4 when the model or the data is not here, with the digest that is needed.
    """
    kept = None if output is None else Path(output)
    return replay_settings(Path(artifact), settings or Settings(SourceRequest("")), kept, watch or Silent())


def passes_list(names: Sequence[str] = ()) -> tuple[PassPage, ...]:
    """The pages of the named passes, or of all. Raises :class:`optimizer.Fault` for an unknown name."""
    if not names:
        return gather(catalogue.names(), catalogue.find)
    try:
        for name in names:
            catalogue.find(name)
    except RecipeError as error:
        raise usage(str(error), code="unknown-pass") from error
    return gather(names, catalogue.find)


def cache_entries(cache_dir: Path | None = None) -> list[Entry]:
    """Every file of the cache, least recently used first."""
    return Store(cache_dir or default_cache_dir()).entries()


def cache_prune(cache_dir: Path | None = None, max_bytes: int = LIMIT_BYTES) -> int:
    """Remove the least recently used files until the cache fits; returns the bytes freed."""
    return Store(cache_dir or default_cache_dir()).prune(max_bytes)


# Two of these functions are called like a module and a room of ours; importing those put them where the functions
# belong. Modules are still found by their full names.
for _name in ("compile", "package", "verify"):
    setattr(sys.modules["optimizer"], _name, globals()[_name])
