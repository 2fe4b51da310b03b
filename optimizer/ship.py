"""What ships: the chosen model with its record, manifest, evidence, report and golden pairs, written whole."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.data.samples import Samples
from optimizer.decide.judge import unmet
from optimizer.decide.pareto import frontier
from optimizer.dissecting import dissect
from optimizer.edging import put_around
from optimizer.faults import Fault, limit_not_met
from optimizer.measure import adequacy
from optimizer.measure.scales import QualityReading, SpeedReading
from optimizer.package import artifact, evidence, golden, manifest
from optimizer.package.golden import GoldenPair
from optimizer.package.receiver.files import describe_file
from optimizer.records import (
    Confidence,
    Interval,
    Judgement,
    Measured,
    Origin,
    Outcome,
    Record,
    Sensitivity,
    Step,
    Verdict,
)
from optimizer.report import frontier as drawing
from optimizer.report import html, markdown
from optimizer.runtime import hardware, sessions
from optimizer.runtime.providers import SESSION
from optimizer.verify.apply import Candidate, code_digest
from optimizer.watch import memory, reference, sketches
from optimizer.workers.pool import CallFailed
from optimizer.workshop import Bench
from passes.kit.model import Model
from passes.kit.recipe import Recipe

GOLDEN_PAIRS = 3
SAME = Interval(1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Choice:
    """What was chosen to ship and why. ``candidate`` is ``None`` when the source itself ships."""

    candidate: Candidate | None
    label: str
    quality: QualityReading | None
    speed: SpeedReading
    verdict: Verdict
    looks: int

    @property
    def lossy(self) -> bool:
        return self.candidate is not None and self.candidate.lossy


def output_folder(bench: Bench) -> Path:
    """Where the artifact goes: ``--output``, else ``./NAME.lathe``."""
    named = bench.settings.output
    return named if named is not None else Path.cwd() / f"{bench.source.name}.lathe"


def ship(
    bench: Bench,
    choice: Choice,
    steps: Sequence[Step],
    warnings: Sequence[str],
    seconds: float,
    sensitivity: Sensitivity | None = None,
) -> Record:
    """Write the artifact and return the record; without an artifact when a limit that the user set is not met."""
    record = record_of(bench, choice, steps, warnings, seconds)
    record = replace(record, frontier=frontier(steps, record.baseline, record.recipe), sensitivity=sensitivity)
    record = looked_into(bench, choice, record)
    missed = unmet(bench.budget.limits(), choice.speed, sizes_of(bench, choice))
    if missed:
        hint = f"The best that keeps the quality is '{choice.label}'; loosen the limit, or give up quality for it"
        fault = limit_not_met(f"the limit cannot be met: {missed[0]}", hint=hint)
        return replace(record, outcome=Outcome.NONE, error=fault.as_json())
    model = choice.candidate.model if choice.candidate else bench.source.model
    recipe = choice.candidate.recipe if choice.candidate else Recipe()
    core, edged = model, put_around(bench, model) if bench.settings.preprocess or bench.settings.postprocess else None
    if edged is not None:
        model, record = edged.model, replace(record, boundary=edged.boundary)
    libraries = tuple(map(str, (edged or bench).site.custom_ops))
    pairs = edged.golden if edged is not None and edged.golden is not None else golden_pairs(bench, model)
    tree = manifest.build(
        model=model,
        source=source_identity(bench),
        recipe=recipe,
        target=bench.target,
        provider=bench.site.provider,
        seed=bench.settings.seed,
        packages=shaping_packages(),
        data=data_digests(bench),
        metric=bench.metric.name if bench.metric else None,
        budget=record.budget,
        lossy=choice.lossy,
        golden=pairs,
        golden_origin=bench.settings.golden,
        custom_ops={Path(p).name: describe_file(Path(p))["sha256"] for p in libraries},
        runs_at={"batch": bench.settings.batch, "threads": bench.settings.threads},
        code=code_digest("passes."),
        licence=manifest.licence_of(bench.source.model, bench.settings.license),
    )
    if edged is not None:
        tree["boundary"] = edged.manifest
    public = replace(record, artifact=None, source=public_name(bench.settings.source.model))
    found = evidence.of(public, choice.label) | proofs_and_settings(bench, choice)
    contents = artifact.Contents(
        model,
        tree,
        found,
        markdown.report(public),
        pairs,
        drawing.svg(public),
        remembered(bench, core),
        html.page(evidence.record(found)),
    )
    place = artifact.write(output_folder(bench), contents, overwrite=bench.settings.overwrite)
    return replace(record, artifact=str(place), libraries=libraries)


def record_of(bench: Bench, choice: Choice, steps: Sequence[Step], warnings: Sequence[str], seconds: float) -> Record:
    """The record of this compile, artifact not yet written."""
    quality, speed = choice.quality, choice.speed
    size, source_size = sizes_of(bench, choice)
    return Record(
        outcome=outcome_of(choice),
        source=bench.settings.source.model,
        artifact=None,
        recipe=choice.candidate.recipe.text() if choice.candidate else "",
        baseline=Measured(
            quality.baseline if quality else None,
            speed.baseline,
            source_size,
            speed.baseline_memory_bytes,
            speed.baseline_load_ms,
            speed.baseline_first_ms,
        ),
        final=Measured(
            quality.candidate if quality else None,
            speed.candidate,
            size,
            speed.memory_bytes,
            speed.load_ms,
            speed.first_ms,
        ),
        speedup=speed.speedup if choice.candidate else SAME,
        quality_drop=quality.drop.interval if quality else None,
        confidence=confidence_of(bench, choice),
        budget=bench.budget.texts(),
        target=bench.target.name,
        provider=bench.site.provider,
        steps=tuple(steps),
        warnings=(
            *bench.warnings,
            *warnings,
            *look_warnings(choice),
            *fault_warnings(choice),
            *calibration_warnings(bench, choice),
        ),
        confirm=choice.verdict,
        environment=hardware.environment(),
        seconds=seconds,
        checked_on=bench.builder.verifier.checked_on(),
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        origin=origin_of(bench, choice),
    )


def origin_of(bench: Bench, choice: Choice) -> Origin:
    """What making it again needs."""
    settings = bench.settings
    return Origin(
        bench.source.digest,
        (choice.candidate.model if choice.candidate else bench.source.model).digest(),
        settings.seed,
        settings.batch,
        settings.threads,
        bench.metric.name if bench.metric else "",
        data_digests(bench),
    )


def sizes_of(bench: Bench, choice: Choice) -> tuple[int, int]:
    """Bytes of what ships and of the source."""
    source = bench.source.size_bytes
    return (choice.candidate.model.file_bytes() if choice.candidate else source), source


def outcome_of(choice: Choice) -> Outcome:
    """Optimized when quality was spent, lossless when not, unchanged when the source ships."""
    if choice.candidate is None:
        return Outcome.UNCHANGED
    return Outcome.OPTIMIZED if choice.lossy else Outcome.LOSSLESS


def confidence_of(bench: Bench, choice: Choice) -> Confidence:
    """How sure the quality claim is. A lossless model is proven by verification on real samples."""
    if bench.synthetic or not bench.judged or (choice.lossy and bench.budget.unlimited):
        return Confidence.UNPROVEN
    if bench.splits is not None and bench.splits.confirm is bench.splits.select:
        return Confidence.UNPROVEN  # too few samples to hold any back
    if choice.lossy and bench.metric is None:
        return Confidence.UNPROVEN  # the user's own evaluation gives one number and no interval
    return Confidence.UNDECIDED if choice.verdict.judgement is Judgement.UNDECIDED else Confidence.PROVEN


def look_warnings(choice: Choice) -> tuple[str, ...]:
    """Confirming again and again on the same samples wears the proof out; say how often it was done."""
    if choice.looks <= 1:
        return ()
    return (f"the confirm samples have now been looked at {choice.looks} times; intervals assume a first look",)


def fault_warnings(choice: Choice) -> tuple[str, ...]:
    """Passes that were left out of what ships."""
    return choice.candidate.fault_lines() if choice.candidate else ()


def calibration_warnings(bench: Bench, choice: Choice) -> tuple[str, ...]:
    """Ranges that the calibration data did not settle, judged on the select samples."""
    if bench.splits is None or bench.synthetic or choice.candidate is None or not choice.lossy:
        return ()
    found = adequacy.look(choice.candidate.model, bench.builder.world, bench.splits.select)
    return () if found is None or found.enough else (found.text,)


def public_name(model: str) -> str:
    """MODEL as it may stand in an artifact: without the folders of the machine that it was made on."""
    return model if ":" in model and "/" not in model else Path(model).name


def golden_pairs(bench: Bench, model: Model) -> tuple[GoldenPair, ...]:
    """A few inputs with the outputs that the shipped model gives for them: synthetic unless the user says data."""
    kind = bench.settings.golden
    if kind == "none":
        return ()
    samples: Samples = bench.splits.select if kind == "data" and bench.splits else bench.bare
    feeds = [feed for feed, _ in samples.take(np.arange(min(GOLDEN_PAIRS, len(samples)))).feeds(1)]
    path = bench.store.put_model(model)
    with sessions.worker() as worker:
        try:
            outputs = sessions.run(worker, path, feeds, bench.site)
        except Fault:
            if kind == "data" or not bench.splits:
                raise
            # Synthetic inputs may be out of range for this model (an index, say): then there is nothing to replay.
            bench.watch.warn(
                "there are no golden pairs, because made-up inputs do not run: --golden data takes real ones"
            )
            return ()
    return golden.pairs(feeds, outputs)


def remembered(bench: Bench, model: Model) -> bytes:
    """What the artifact remembers of its data, for ``lathe check-data``; nothing without real data."""
    if not bench.settings.watched or bench.splits is None or bench.synthetic:
        return b""
    if fault := sketches.missing():
        bench.watch.warn(f"the artifact will not remember its data: {fault}")
        return b""
    bench.watch.stage("remembering what the data looks like")
    try:
        return reference.to_bytes(memory.remember(model, bench.builder.world, bench.splits, bench.settings.seed))
    except (Fault, CallFailed) as error:  # what was found and measured is worth more than its sketches
        bench.watch.warn(f"the artifact will not remember its data: {error}")
        return b""


def looked_into(bench: Bench, choice: Choice, record: Record) -> Record:
    """The record with the profiles of the source and of what ships, and what bounds each."""
    bench.watch.note("looking into the source and the result")
    source = bench.source.model
    was, now = (
        _dissected(bench, side, model)
        for side, model in (
            (record.baseline, source),
            (record.final, choice.candidate.model if choice.candidate else source),
        )
    )
    return replace(record, baseline=was, final=now)


def _dissected(bench: Bench, side: Measured | None, model: Model) -> Measured | None:
    if side is None:
        return None
    found = dissect(model, bench.feed, bench.site, side.latency_ms, bench.store, bench.watch)
    return replace(side, profile=found.profile, roofline=found.roofline)


def proofs_and_settings(bench: Bench, choice: Choice) -> dict[str, Any]:
    """For the evidence: what of the shipped model's rewrites was proved and tested, and how the runtime was set."""
    notes = choice.candidate.notes if choice.candidate else ()
    rewrites = {
        "changes": sum(n.changes for n in notes),
        "proved": sum(n.proved for n in notes),
        "tested": sum(n.tested for n in notes),
        "unreached": sum(n.unreached for n in notes),
        "left_out": [line for n in notes for line in n.left_out],
    }
    runtime = {**bench.site.plain(), "version": bench.site.runtime, "clock": bench.site.clock} | SESSION
    return {"rewrites": rewrites, "runtime": runtime}


def source_identity(bench: Bench) -> manifest.SourceIdentity:
    """The source with whatever shapes it again: the options that an export takes, the artifact that it came from."""
    asked = bench.settings.source
    given = {
        "example": asked.example,
        "dynamic": list(asked.dynamic),
        "shapes": list(asked.shapes),
        "opset": asked.opset,
        "fix_training": asked.fix_training,
        "weights": describe_file(asked.folder / asked.weights)["sha256"] if asked.weights else None,
    }
    options = {key: value for key, value in given.items() if value}
    parents = manifest.parents_of(asked.folder / asked.model) if bench.source.kind == "onnx" else ()
    name = public_name(asked.model)
    return manifest.SourceIdentity(name, bench.source.kind, bench.source.digest, options, parents)


def data_digests(bench: Bench) -> dict[str, str]:
    """The digest of each split."""
    if bench.splits is None:
        return {}
    return {
        f.name: getattr(bench.splits, f.name).digest() for f in dataclasses.fields(bench.splits) if f.name != "warnings"
    }


def shaping_packages() -> dict[str, str]:
    """Versions of the packages that shape the bytes of a model. The openvino package only runs one beside others."""
    found: dict[str, str] = hardware.environment()["packages"]
    return {name: version for name, version in found.items() if name != "openvino"}
