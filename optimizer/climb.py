"""Trying recipes: a rung is applied, verified, weighed against the source and judged, and the climb remembers it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from optimizer.decide import judge
from optimizer.decide.ladder import Rung
from optimizer.faults import Fault
from optimizer.measure.latency import quick
from optimizer.measure.scales import QualityReading, Scales, SpeedReading, Weighed
from optimizer.measure.work import work_of
from optimizer.records import Judgement, Quality, Sensitivity, Step, Verdict
from optimizer.runtime import sessions
from optimizer.verify.apply import Candidate
from optimizer.workshop import Bench, candidate_weight
from passes.kit.context import NoData
from passes.kit.model import Model


@dataclass(frozen=True)
class Tried:
    """A rung that was climbed: its step in the record and, when its recipe could be applied, what it made."""

    rung: Rung
    step: Step
    candidate: Candidate | None = None
    baseline: Quality | None = None


@dataclass
class Climb:
    """A compile on its way: the bench, the scales, and every recipe tried so far."""

    bench: Bench
    scales: Scales
    started: float
    tried: list[Tried] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    hindrance: str = ""
    sensitivity: Sensitivity | None = None
    stopped: bool = False

    @property
    def steps(self) -> list[Step]:
        return [t.step for t in self.tried]

    def weighed(self, model: Model) -> Weighed:
        """A model that no recipe made, to be put on the scales."""
        return Weighed(self.bench.store.put_model(model), model.digest(), model.file_bytes())

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        self.bench.watch.warn(text)

    def seconds(self) -> float:
        return time.monotonic() - self.started

    def over(self) -> bool:
        """Whether nothing new is tried any more: the time limit was reached, or the user said stop."""
        limit = self.bench.settings.time_limit
        return self.stopped or (limit is not None and self.seconds() > limit)

    def why_over(self) -> str:
        """The reason, in words."""
        return "the search was interrupted" if self.stopped else "the time limit was reached"


def climb_all(climb: Climb, rungs: Sequence[Rung], *, until_accepted: bool = False) -> None:
    """Try rungs in order; with ``until_accepted`` stop at the first that holds, because the rest are gentler."""
    for i, rung in enumerate(rungs):
        climb.bench.watch.progress(
            len(climb.tried), len(climb.tried) + len(rungs) - i, time_left(climb, len(rungs) - i)
        )
        tried = skipped(rung, climb.why_over()) if climb.over() else try_rung(climb, rung)
        remember(climb, tried)
        if until_accepted and tried.step.verdict.judgement is Judgement.ACCEPTED:
            return


def remember(climb: Climb, tried: Tried) -> None:
    """Note what became of a rung, and tell."""
    climb.tried.append(tried)
    climb.bench.watch.step(tried.step)


def try_rung(climb: Climb, rung: Rung, *, frugal: bool = False) -> Tried:
    """Apply the recipe, verify it pass by pass, measure what came out, and judge it.

    With ``frugal`` a candidate whose quality does not hold is not timed.
    """
    bench = climb.bench
    bench.watch.note(f"{rung.label}: {rung.whole.text()}")
    try:
        candidate = built(bench, rung)
    except NoData as error:
        return skipped(rung, str(error))
    try:
        return _measured(climb, rung, candidate, frugal)
    except Fault as fault:
        if fault.code not in (sessions.CRASHED, sessions.HUNG):
            raise
        # The source has run here, so it is the candidate that the provider cannot bear: it alone is let go.
        verdict = Verdict(Judgement.FAULTED, fault.message)
        return Tried(rung, Step(rung.whole.text(), rung.label, verdict, passes=candidate.notes), None)


def built(bench: Bench, rung: Rung) -> Candidate:
    """What the recipe makes of the source, or of the trained model that it starts from. Raises :class:`NoData`."""
    if rung.start is None:
        return bench.builder.build(bench.source.model, rung.recipe)
    found = bench.builder.build(rung.start.model, rung.recipe)
    return replace(found, recipe=rung.start.recipe + found.recipe, lossy=True)


def _measured(climb: Climb, rung: Rung, candidate: Candidate, frugal: bool) -> Tried:
    bench = climb.bench
    digest = candidate.model.digest()
    if digest == climb.scales.baseline.digest:
        return skipped(rung, judge.nothing_new("source", candidate.notes), candidate)
    if twin := next((t for t in climb.tried if t.step.model == digest), None):
        return skipped(rung, judge.nothing_new(twin.step.label, candidate.notes), candidate)
    model = candidate_weight(candidate)
    if candidate.lossy and (same := same_work(climb, candidate)):
        return skipped(rung, judge.no_faster(same), candidate)
    quality = climb.scales.quality(model, bench.splits.select) if bench.splits and bench.judged else None
    if frugal and candidate.lossy and (reason := judge.too_costly(quality, bench.budget)):
        step = step_of(rung, candidate, model, Verdict(Judgement.REJECTED, reason), quality, None)
        return Tried(rung, step, candidate, quality.baseline if quality else None)
    speed = climb.scales.speed(model, quick(bench.settings.seconds))
    sizes = (model.size_bytes, climb.scales.baseline.size_bytes)
    verdict = judge.on_select(candidate.lossy, quality, speed, sizes, stakes(climb))
    step = step_of(rung, candidate, model, verdict, quality, speed)
    return Tried(rung, step, candidate, quality.baseline if quality else None)


def same_work(climb: Climb, candidate: Candidate) -> str:
    """The label of what has the runtime do the same on the same sizes and costs no quality, if there is such a model:
    then a difference in time would be noise. A target with sparse kernels is timed nevertheless."""
    if climb.bench.target.sparse:
        return ""
    work = work_of(candidate.model)
    if work == work_of(climb.bench.source.model):
        return "source"
    free = (t for t in climb.tried if t.candidate is not None and not t.candidate.lossy)
    return next((t.step.label for t in free if t.candidate is not None and work_of(t.candidate.model) == work), "")


def skipped(rung: Rung, reason: str, candidate: Candidate | None = None) -> Tried:
    """A rung that was not measured, with the reason."""
    notes = candidate.notes if candidate else ()
    verdict = Verdict(Judgement.SKIPPED, reason)
    return Tried(rung, Step(rung.whole.text(), rung.label, verdict, passes=notes), candidate)


def step_of(
    rung: Rung,
    candidate: Candidate,
    model: Weighed,
    verdict: Verdict,
    quality: QualityReading | None,
    speed: SpeedReading | None,
) -> Step:
    """What the record keeps of a candidate."""
    return Step(
        recipe=candidate.recipe.text(),
        label=rung.label,
        verdict=verdict,
        model=model.digest,
        quality=quality.candidate if quality else None,
        drop=quality.drop.interval if quality else None,
        speedup=speed.speedup if speed else None,
        latency_ms=speed.candidate if speed else None,
        size_bytes=model.size_bytes,
        memory_bytes=speed.memory_bytes if speed else None,
        passes=candidate.notes,
    )


def stakes(climb: Climb) -> judge.Stakes:
    """What candidates are held to, with what the lossless rung was measured to give for nothing."""
    free = next((t.step for t in climb.tried if t.candidate and not t.candidate.lossy and t.step.speedup), None)
    gained = free.speedup.value if free is not None and free.speedup is not None else 1.0
    settings = climb.bench.settings
    return judge.Stakes(climb.bench.budget, settings.goal, max(1.0, gained), free.size_bytes if free else None)


def margin(climb: Climb) -> float | None:
    """The drop that the budget allows on the select samples, in the metric's unit."""
    base = next((t.baseline for t in climb.tried if t.baseline is not None), None)
    return climb.bench.budget.quality_margin(base.value) if base is not None else None


def time_left(climb: Climb, rungs: int) -> float | None:
    """Seconds that the known rungs should take, by what those before them took."""
    return climb.seconds() / len(climb.tried) * rungs if climb.tried else None
