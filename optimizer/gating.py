"""A gate from end to end: an artifact is opened, held against a policy and a baseline, and ruled on."""

from __future__ import annotations

import json
import math
import time
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.data.metrics import Metric
from optimizer.data.samples import Samples
from optimizer.decide import gate as rulings
from optimizer.decide.gate import Facts, Node
from optimizer.decide.policy import BY_NAME, Policy
from optimizer.faults import usage
from optimizer.measure import duel
from optimizer.measure.duel import Duel
from optimizer.measure.paired import bounded, slices_of
from optimizer.measure.quality import Judge, quality_of
from optimizer.measure.scales import QualityReading
from optimizer.measure.stats import USUAL_SHARE, detectable, paired_drop, samples_for
from optimizer.package import baseline as results_file
from optimizer.package.baseline import Results, Rows
from optimizer.package.check import verify
from optimizer.package.manifest import signature_of
from optimizer.package.receiver.words import MANIFEST, MODEL
from optimizer.plan import OPENVINO_RUNTIME, DataRequest, Settings
from optimizer.progress import Watcher
from optimizer.records import GateRecord, Quality, Ruled, Ruling, to_plain
from optimizer.report.words import amount, can_show
from optimizer.runtime import hardware, providers, sessions
from optimizer.runtime.sessions import Site
from optimizer.source.open import Source
from optimizer.store.store import Store
from optimizer.workers.pool import warm_up
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

Array = np.ndarray[Any, Any]

SECONDS = 12.0
"""Of timing, at most: with everything around it a gate of a small model then takes less than twenty."""

MARGIN = 1.025
"""The latency ratio that a fresh policy allows: what differs by less on a busy machine is noise, and twice as much is
found out."""

WHO_RAN = "optimizer.runtime.inside:who_ran"
TIMED = ("latency", "throughput", "memory")
MEMORY_SECONDS = 1.0


@dataclass(frozen=True)
class Gated:
    """What came out: the record, and the artifact's results as they may be committed (``None`` when it failed)."""

    record: GateRecord
    results: Results | None


@dataclass(frozen=True)
class Contender:
    """An opened model: where the runtime finds it, and what can be read off it."""

    name: str
    path: Path
    digest: str
    facts: Facts
    model: Model


@dataclass
class _Gate:
    """A gate at work: what was opened, and the rulings so far."""

    policy: Policy
    settings: Settings
    seconds: float
    watch: Watcher
    store: Store
    stack: ExitStack
    site: Site
    candidate: Contender
    baseline: Contender | Results | None
    ruled: list[Ruled] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    qualities: tuple[Quality | None, Quality | None] = (None, None)
    rows: Rows | None = None
    timed: Duel | None = None


def read_policy(path: Path) -> Policy:
    """A policy file. Raises a usage Fault for one that is missing, is no TOML, or holds what no rule is."""
    try:
        return Policy.from_toml(tomllib.loads(path.read_text("utf-8")), str(path))
    except FileNotFoundError as error:
        hint = "'lathe gate --init ARTIFACT' writes one"
        raise usage("there is no such policy", where=str(path), hint=hint, code="no-policy") from error
    except OSError as error:
        raise usage(f"cannot be read: {error.strerror}", where=str(path), code="bad-policy") from error
    except ValueError as error:
        raise usage(f"is not valid TOML: {error}", where=str(path), code="bad-policy") from error


def hold(
    settings: Settings,
    policy: Policy,
    baseline: str | None,
    watch: Watcher,
    *,
    seconds: float = SECONDS,
    recording: bool = False,
) -> Gated:
    """Hold the model of ``settings.source`` to ``policy``; see :func:`optimizer.api.gate`."""
    start = time.monotonic()
    left_out = policy.comparing() if baseline is None else ()
    if left_out and not recording:
        hint = "Name one with --baseline, take these rules out, or write a first one with --write-baseline"
        raise usage(f"{left_out[0]} compares with a baseline, and none was named", where=policy.where, hint=hint)
    policy = policy.without(left_out)
    warm_up()
    first, sound = _verified(settings.source.model, policy, watch)
    if not sound:
        names = [k for k in policy.rules if k != "artifact.verify" and policy.asks(k)]
        ruled = (*first, *rulings.skipped(policy, names))
        return Gated(_record(settings, policy, baseline, ruled, start), None)
    with ExitStack() as stack:
        gate = _open(settings, policy, baseline, seconds, watch, stack)
        gate.ruled += first
        if left_out:
            gate.warnings.append(f"there is no baseline, so these were left out: {', '.join(left_out)}")
        if policy["instructions.deployed_on"] is not None and policy["artifact.verify"] is None:
            gate.warnings.append("what the artifact needs is its manifest's word: [artifact] verify = true checks it")
        _static(gate)
        if recording or policy.asks(*TIMED, "coverage", "quality"):
            _measured(gate, recording)
        record = _record(settings, policy, baseline, tuple(gate.ruled), start)
        base, mine = gate.qualities
        timed = gate.timed
        record = replace(
            record,
            warnings=tuple(dict.fromkeys(gate.warnings)),
            quality=mine,
            baseline_quality=base,
            latency_ms=timed.candidate if timed else None,
            baseline_latency_ms=timed.baseline if timed else None,
            seconds=time.monotonic() - start,
        )
        return Gated(record, None if record.ruling is Ruling.FAIL else _results(gate, record))


def _record(
    settings: Settings, policy: Policy, baseline: str | None, ruled: tuple[Ruled, ...], start: float
) -> GateRecord:
    artifact = settings.source.model
    inside = Path(artifact) / MODEL
    ordered = sorted(ruled, key=lambda r: list(BY_NAME).index(r.rule))
    return GateRecord(
        artifact,
        inside.as_posix() if inside.is_file() else artifact,
        baseline or "",
        policy.where,
        tuple(ordered),
        environment=hardware.environment(),
        seconds=time.monotonic() - start,
    )


def _verified(artifact: str, policy: Policy, watch: Watcher) -> tuple[list[Ruled], bool]:
    """The receiver's check when it is asked for, and whether anything of the artifact may be loaded."""
    if policy["artifact.verify"] is None:
        return [], True
    watch.stage("verifying the artifact")
    report = verify(Path(artifact).absolute())  # workers may stand in another folder
    wrong = [f"{f.check}: {f.detail}" for f in report.findings if not f.ok]
    return [rulings.verified(wrong, len(report.findings))], report.ok


# -- opening -----------------------------------------------------------------------------------------------------------
def _open(
    settings: Settings, policy: Policy, baseline: str | None, seconds: float, watch: Watcher, stack: ExitStack
) -> _Gate:
    store = Store(settings.cache_dir)
    site, opener = choose_site(policy["run.provider"], policy["run.threads"]), open_site("cpu", 1)
    scratch = stack.enter_context(scratch_folder(store))

    def contender(text: str, part: str) -> tuple[Contender, Source]:
        watch.stage(f"opening the {part}")
        asked = settings.but(source=replace(settings.source, model=text))
        source = open_model(asked, hardware.loosest_target(), store, opener, scratch)
        path = store.put_model(source.model)
        facts = _facts(source, text)
        return Contender(source.name, path, source.model.digest(), facts, source.model), source

    candidate, source = contender(settings.source.model, "artifact")
    against: Contender | Results | None = None
    notes = list(source.warnings)
    if baseline is not None and baseline.endswith(results_file.SUFFIX):
        against = results_file.read(Path(baseline))
    elif baseline is not None:
        against, other = contender(baseline, "baseline")
        notes += [f"baseline: {w}" for w in other.warnings]
    return _Gate(policy, settings, seconds, watch, store, stack, site, candidate, against, warnings=notes)


def _facts(source: Source, text: str) -> Facts:
    model = source.model
    found = [*model.nodes(), *(n for f in model.ir.functions.values() for n in f.all_nodes())]
    nodes = tuple(
        Node(n.name or (str(n.outputs[0].name) if n.outputs else ""), _op(n.domain, n.op_type)) for n in found
    )
    opsets = {domain or "ai.onnx": version for domain, version in model.ir.opset_imports.items()}
    needs = manifest_of(text).get("requires", {}).get("cpu_features_any")
    return Facts(
        source.size_bytes,
        signature_of(model),
        opsets,
        model.ir.ir_version,
        nodes,
        tuple(map(str, needs)) if isinstance(needs, list) else None,
    )


def _op(domain: str, op_type: str) -> str:
    return op_type if domain in ("", "ai.onnx") else f"{domain}.{op_type}"


def manifest_of(text: str) -> Mapping[str, Any]:
    """The manifest of an artifact's folder, empty for anything else. What it says is believed only after a check."""
    try:
        tree = json.loads((Path(text) / MANIFEST).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return tree if isinstance(tree, dict) and isinstance(tree.get("requires", {}), dict) else {}


# -- what needs no run -------------------------------------------------------------------------------------------------
def _static(gate: _Gate) -> None:
    policy, mine, against = gate.policy, gate.candidate.facts, gate.baseline
    then: tuple[int | None, Mapping[str, Any] | None] = (None, None)
    if isinstance(against, Contender):
        then = (against.facts.size_bytes, against.facts.signature)
    elif isinstance(against, Results):
        then = (against.size_bytes, against.signature)
    if policy["artifact.signature"] is not None and then[1] is not None:
        gate.ruled.append(rulings.signature(mine.signature, then[1]))
    gate.ruled += rulings.size(policy, mine.size_bytes, then[0])
    gate.ruled += rulings.operators(policy, mine)
    gate.ruled += rulings.instructions(policy, mine, hardware.host().features)


# -- what is measured --------------------------------------------------------------------------------------------------
def _measured(gate: _Gate, recording: bool) -> None:
    samples = _samples(gate)
    if gate.policy.asks("quality") or (recording and samples is not None):
        _quality(gate, samples)
    bare = (
        samples
        if samples is not None
        else made_up_samples(gate.candidate.model, gate.settings.seed, gate.store, open_site("cpu", 1))
    )
    if samples is None and gate.policy.asks(*TIMED):
        gate.warnings += bare.warnings
    if gate.policy["coverage.min_nodes"] is not None:
        _coverage(gate, bare)
    _timed(gate, bare)


def _samples(gate: _Gate) -> Samples | None:
    asked, policy = gate.settings.data.data, gate.policy
    if asked is None and policy["quality.data"] is not None:
        named = policy["quality.data"]
        asked = named if ":" in named else str(Path(policy.where).parent / named)
    if asked is None:
        return None
    gate.watch.stage("reading the data")
    source = Source("", "onnx", asked, gate.candidate.model, 0, "")
    samples = read_samples(asked, gate.settings, source, gate.store, gate.stack)
    gate.warnings += samples.warnings
    return samples


def _quality(gate: _Gate, samples: Samples | None) -> None:
    policy = gate.policy
    drops = [n for n in ("quality.max_drop", "quality.max_slice_drop") if policy[n] is not None]
    asked = [*drops, *(n for n in ("quality.worst",) if policy[n] is not None)]
    if samples is None:
        gate.ruled += [
            rulings.undecided(n, "there are no samples to measure quality on", "--data SOURCE") for n in asked
        ]
        return
    settings = gate.settings.but(metric=policy["quality.metric"], data=DataRequest("given"))
    metric = choose_metric(settings, gate.candidate.model, samples, gate.stack)
    assert metric is not None
    gate.watch.stage(f"measuring {metric.name}: {_power(gate, metric, len(samples))}")
    reference = gate.baseline.path if isinstance(gate.baseline, Contender) else None
    if metric.against == "reference" and reference is None:
        text = f"{metric.name} compares with the baseline's own outputs, which are not here"
        gate.ruled += [rulings.undecided(n, text, "--baseline with the artifact itself") for n in asked]
        return
    judge = Judge(metric, samples, gate.site, gate.store, reference)
    rows = judge.rows(gate.candidate.path, gate.candidate.digest)
    if metric.against == "labels":
        gate.rows = Rows(metric.name, samples.digest(), rows)
    mine = quality_of(metric, rows)
    gate.qualities = (None, mine)
    if drops:
        gate.ruled += _drops(gate, judge, rows, mine, drops)
    if policy["quality.worst"] is not None:
        gate.ruled.append(rulings.quality_worst(policy, mine))


def _power(gate: _Gate, metric: Metric, samples: int) -> str:
    """What so many samples can show of a 0/1 metric; a margin that is smaller is warned of before anything is run."""
    if not metric.binary or metric.function is not None:
        return f"{samples:,} samples"
    said = can_show(samples, metric.name, detectable(samples, USUAL_SHARE), USUAL_SHARE)
    asked = gate.policy["quality.max_drop"]
    margin = rulings.margin_of(gate.policy, metric).quality_margin(1.0) if asked is not None else None
    if margin is not None and margin < detectable(samples, USUAL_SHARE):
        wanted = samples_for(margin, USUAL_SHARE)
        need = f"; about {wanted:,} samples would do" if wanted else ""
        gate.warnings.append(f"{said}, and the policy allows {amount(metric.name, margin)}{need}")
    return said


def _drops(gate: _Gate, judge: Judge, rows: Array, mine: Quality, asked: Sequence[str]) -> list[Ruled]:
    """The drop from the baseline on the same samples, of all of them together and slice by slice."""
    base, why = _baseline_rows(gate, judge, rows.shape)
    if base is None:
        need = "a results file of the same metric and samples (--write-baseline), or the baseline itself"
        return [rulings.undecided(n, f"the results file {why}", need) for n in asked]
    metric, policy, seed = judge.metric, gate.policy, gate.settings.seed
    before, found = quality_of(metric, base), list[Ruled]()
    gate.qualities = (before, mine)
    if "quality.max_drop" in asked:
        reading = QualityReading(before, mine, paired_drop(metric, base, rows, seed))
        found.append(rulings.quality_drop(policy, reading, rulings.margin_of(policy, metric)))
    if (rule := "quality.max_slice_drop") in asked:
        margin = rulings.margin_of(policy, metric, rule).quality_margin(before.value) or 0.0
        where = f"{policy.where}: quality.slice_by"
        cut = slices_of(judge.samples, metric, policy["quality.slice_by"], where)
        slices = bounded(metric, base, rows, cut[1], margin, seed) if cut is not None else []
        if cut is not None and slices:
            found.append(rulings.slice_drop(cut[0], slices, margin))
        else:
            why = f"{metric.name} is no metric of single samples" if cut is not None else "the data has no classes"
            found.append(rulings.undecided(rule, why, "quality.slice_by, an array of the data with a slice per sample"))
    return found


def _baseline_rows(gate: _Gate, judge: Judge, shape: tuple[int, ...]) -> tuple[Array | None, str]:
    """The baseline's rows, measured now or kept in a results file, or what is wrong with that file."""
    against, metric = gate.baseline, judge.metric
    if isinstance(against, Contender):
        return judge.rows(against.path, against.digest), ""
    assert against is not None
    kept = against.rows
    if kept is None:
        return None, "keeps no quality"
    if kept.metric != metric.name:
        return None, f"keeps {kept.metric}, not {metric.name}"
    if kept.data != judge.samples.digest() or kept.values.shape != shape:
        return None, "was measured on other samples"
    return kept.values, ""


def _coverage(gate: _Gate, samples: Samples) -> None:
    if providers.named(gate.site.provider) == OPENVINO_RUNTIME:
        found = "the openvino package runs a graph of its own, whose nodes are not the model's"
        need = "a provider of onnxruntime: lathe benchmark counts what openvino runs"
        gate.ruled.append(rulings.undecided("coverage.min_nodes", found, need))
        return
    feed = next(iter(samples.feeds(gate.policy["run.batch"])))[0]
    with sessions.worker() as worker:
        told = worker.call(WHO_RAN, path=str(gate.candidate.path), feeds=feed, **gate.site.plain())
    ran = {provider: [Node(name, op) for name, op in nodes] for provider, nodes in told.items()}
    gate.ruled.append(rulings.coverage(gate.policy, providers.named(gate.site.provider), ran))


def _timed(gate: _Gate, samples: Samples) -> None:
    """Latency, throughput and memory: side by side where a rule compares, alone where it does not."""
    policy = gate.policy
    both = policy.asks("latency") and policy.asks("throughput")
    budget = gate.seconds / 2 if both else gate.seconds
    compares = [n for n in policy.comparing() if n.partition(".")[0] in TIMED]
    against = gate.baseline if isinstance(gate.baseline, Contender) else None
    if compares and (why := _not_side_by_side(gate)):
        gate.ruled += [rulings.undecided(n, why, "--baseline with the artifact itself") for n in compares]
        policy, against = policy.without(tuple(compares)), None
    if policy.asks("latency", "memory"):
        ratio = policy["latency.max_ratio"]
        wanted = against if ratio is not None or policy["memory.max_ratio"] is not None else None
        seconds = budget if policy.asks("latency") else MEMORY_SECONDS
        found = gate.timed = _fight(gate, samples, wanted, policy["run.batch"], seconds, ratio)
        if found.reading is not None and ratio is not None:
            gate.ruled.append(rulings.latency_ratio(policy, found.reading))
        if policy["latency.max"] is not None:
            gate.ruled.append(rulings.latency_bound(policy, found.candidate))
        gate.ruled += rulings.memory(policy, found.memory_bytes, found.baseline_memory_bytes)
    if policy.asks("throughput"):
        least, batch = policy["throughput.min_ratio"], policy["throughput.batch"]
        wanted = against if least is not None else None
        found = _fight(gate, samples, wanted, batch, budget, 1 / least if least else None)
        if found.reading is not None and least is not None:
            gate.ruled.append(rulings.throughput_ratio(policy, found.reading))
        if policy["throughput.min"] is not None:
            gate.ruled.append(rulings.throughput_bound(policy, found.candidate, samples.fed(batch)))


def _not_side_by_side(gate: _Gate) -> str:
    """Why candidate and baseline cannot be timed beside each other; empty when they can."""
    against = gate.baseline
    if isinstance(against, Results):
        return "latencies of another time or machine do not count, and a results file is all there is"
    assert against is not None
    ports = [{(p["name"], p["type"]) for p in c.facts.signature["inputs"]} for c in (gate.candidate, against)]  # type: ignore[attr-defined]
    return "" if ports[0] == ports[1] else "the inputs differ from the baseline's, so both cannot be fed alike"


def _fight(
    gate: _Gate, samples: Samples, against: Contender | None, batch: int, seconds: float, allowed: float | None
) -> Duel:
    feed = next(iter(samples.feeds(batch)))[0]
    beside = f" beside {against.name}" if against else ""
    gate.watch.stage(f"timing {gate.candidate.name}{beside}, batch {samples.fed(batch)}")
    other = against.path if against else None

    def tell(done: float, total: float) -> None:
        gate.watch.progress(round(done), round(total), total - done)

    return duel.fight(gate.candidate.path, other, feed, gate.site, seconds, allowed, tell)


# -- what is kept ------------------------------------------------------------------------------------------------------
def _results(gate: _Gate, record: GateRecord) -> Results:
    mine = gate.candidate
    shown = {
        "quality": to_plain(record.quality),
        "latency_ms": to_plain(record.latency_ms),
        "operators": mine.facts.operators(),
        "opsets": dict(mine.facts.opsets),
        "environment": dict(record.environment),
    }
    return Results(mine.name, mine.digest, mine.facts.size_bytes, mine.facts.signature, gate.rows, shown)


def suggestion(settings: Settings, watch: Watcher) -> dict[str, Any]:
    """The values that a fresh policy for this artifact (or model) asks for, as a policy file would give them."""
    with ExitStack() as stack:
        gate = _open(settings, Policy({}), None, 0.0, watch, stack)
        facts, manifest = gate.candidate.facts, manifest_of(settings.source.model)
    runs, drops = manifest.get("runs_at"), [t for t in manifest.get("budget") or () if ".drop<=" in str(t)]
    values: dict[str, Any] = {
        "run.provider": str(manifest.get("provider", settings.provider)).partition(":")[0],
        "run.threads": runs.get("threads", 1) if isinstance(runs, dict) else 1,
        "run.batch": runs.get("batch", 1) if isinstance(runs, dict) else 1,
        "artifact.verify": bool(manifest),
        "artifact.signature": True,
        "latency.max_ratio": MARGIN,
        "size.max": f"{math.ceil(facts.size_bytes * 1.05 / 1e3)}kB",
        "memory.max_ratio": 1.1,
        "operators.allow": facts.operators(),
        "operators.opsets": facts.used_opsets(),
        "operators.max_ir": facts.ir,
    }
    if drops and manifest.get("metric"):
        values |= {"quality.metric": str(manifest["metric"]), "quality.max_drop": str(drops[0]).partition("<=")[2]}
    if facts.needs:
        values["instructions.deployed_on"] = list(facts.needs)
    return values
