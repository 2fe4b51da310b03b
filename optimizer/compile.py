"""The spine: how a model becomes an artifact. Read it from top to bottom; every stage lives in a room of its own.

A compile is a search over recipes. The source is the baseline. Each candidate is a whole recipe, applied pass by pass
and verified pass by pass; what spends quality is judged by quality and by time against the baseline; the best ones
are confirmed on samples nobody has looked at; and what ships is the best that held, else the lossless model, else the
source itself.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from optimizer import ship
from optimizer.decide import judge, ladder
from optimizer.decide.ladder import Rung
from optimizer.measure.latency import quick, thorough
from optimizer.measure.scales import QualityReading, Scales, SpeedReading, Weighed
from optimizer.measure.sensitivity import sensitivities
from optimizer.measure.stats import corrected_alpha
from optimizer.package import artifact
from optimizer.plan import Settings
from optimizer.preflight import require_room
from optimizer.progress import Silent, Watcher
from optimizer.records import Judgement, Quality, Record, Step, Verdict
from optimizer.verify.apply import Candidate
from optimizer.workshop import Bench, candidate_weight, open_bench
from passes.kit.context import NoData
from passes.quantize.layers import nested_layers, quantizable

CONFIRM_AT_MOST = 3

NESTED = "they lie in the body of an If, Loop or Scan, whose values cannot be observed"


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

    @property
    def steps(self) -> list[Step]:
        return [t.step for t in self.tried]

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        self.bench.watch.warn(text)

    def seconds(self) -> float:
        return time.monotonic() - self.started

    def out_of_time(self) -> bool:
        limit = self.bench.settings.time_limit
        return limit is not None and self.seconds() > limit


def compile_settings(settings: Settings, watch: Watcher | None = None) -> Record:
    """Compile what ``settings`` name; the artifact is on disk when the record comes back.

    Raises :class:`~optimizer.faults.Fault` for anything that a person should read.
    """
    started = time.monotonic()
    if settings.output is not None:
        artifact.check_output(settings.output, overwrite=settings.overwrite)
    with open_bench(settings, watch or Silent()) as bench:
        artifact.check_output(ship.output_folder(bench), overwrite=settings.overwrite)
        require_room(bench)
        climb = Climb(bench, bench.scales(), started)
        bench.watch.stage("trying recipes")
        climb_all(climb, first_rungs(bench))
        search(climb)
        bench.watch.stage("confirming")
        choice = confirm(climb)
        bench.watch.stage("writing the artifact")
        record = ship.ship(bench, choice, climb.steps, climb.warnings, climb.seconds())
        climb.scales.forget_journal()
        bench.store.prune()
    return record


# -- trying recipes ----------------------------------------------------------------------------------------------------
def first_rungs(bench: Bench) -> list[Rung]:
    """What is tried whatever comes out: the lossless rung, and the user's own recipe where there is one.

    A model that is newer than the target's runtime passes through untouched: there is no silent down-conversion.
    """
    if bench.source.beyond or (bench.settings.level == 0 and bench.settings.recipe is None):
        return []
    own = [Rung("your recipe", bench.recipe)] if bench.recipe is not None else []
    return [ladder.lossless(), *own]


def search(climb: Climb) -> None:
    """Climb the ladder: bold rungs first, then other ranges, then rungs that leave sensitive layers in float."""
    bench = climb.bench
    base = climb.tried[0].candidate if climb.tried else None
    if base is None or bench.recipe is not None or bench.settings.level < 2 or bench.splits is None:
        return
    layers = quantizable(base.model, bench.target) if bench.calibrated else ()
    dynamic = quantizable(base.model, bench.target, bench.target.dynamic_ops)
    if hidden := nested_layers(base.model):
        climb.warn(f"{len(hidden)} layers stay float: {NESTED}")
    facts = ladder.Facts(bench.settings.level, bench.calibrated, layers, dynamic)
    climb_all(climb, ladder.bold(facts))
    climb_all(climb, ladder.refined(facts, climb.steps))
    if ladder.wants_gentler(facts, climb.steps, margin(climb)) and not climb.out_of_time():
        bench.watch.stage(f"measuring how sensitive {len(layers)} layers are")
        ranked = dict(layer_sensitivities(climb, base, layers))
        climb_all(climb, ladder.gentler(facts, ranked), until_accepted=True)


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


def climb_all(climb: Climb, rungs: Sequence[Rung], *, until_accepted: bool = False) -> None:
    """Try rungs in order; with ``until_accepted`` stop at the first that holds, because the rest are gentler."""
    for i, rung in enumerate(rungs):
        climb.bench.watch.progress(
            len(climb.tried), len(climb.tried) + len(rungs) - i, time_left(climb, len(rungs) - i)
        )
        tried = skipped(rung, "the time limit was reached") if climb.out_of_time() else try_rung(climb, rung)
        climb.tried.append(tried)
        climb.bench.watch.step(tried.step)
        if until_accepted and tried.step.verdict.judgement is Judgement.ACCEPTED:
            return


def try_rung(climb: Climb, rung: Rung) -> Tried:
    """Apply the recipe, verify it pass by pass, measure what came out, and judge it."""
    bench = climb.bench
    bench.watch.note(f"{rung.label}: {rung.recipe.text()}")
    try:
        candidate = bench.builder.build(bench.source.model, rung.recipe)
    except NoData as error:
        return skipped(rung, str(error))
    digest = candidate.model.digest()
    if digest == climb.scales.baseline.digest:
        return skipped(rung, judge.nothing_new("source", candidate.notes), candidate)
    if twin := next((t for t in climb.tried if t.step.model == digest), None):
        return skipped(rung, judge.nothing_new(twin.step.label, candidate.notes), candidate)
    model = candidate_weight(candidate)
    quality = climb.scales.quality(model, bench.splits.select) if bench.splits and bench.judged else None
    speed = climb.scales.speed(model, quick(bench.settings.seconds))
    sizes = (model.size_bytes, climb.scales.baseline.size_bytes)
    verdict = judge.on_select(candidate.lossy, quality, speed, sizes, stakes(climb))
    step = step_of(rung, candidate, model, verdict, quality, speed)
    return Tried(rung, step, candidate, quality.baseline if quality else None)


def skipped(rung: Rung, reason: str, candidate: Candidate | None = None) -> Tried:
    """A rung that was not measured, with the reason."""
    notes = candidate.notes if candidate else ()
    verdict = Verdict(Judgement.SKIPPED, reason)
    return Tried(rung, Step(rung.recipe.text(), rung.label, verdict, passes=notes), candidate)


def step_of(
    rung: Rung,
    candidate: Candidate,
    model: Weighed,
    verdict: Verdict,
    quality: QualityReading | None,
    speed: SpeedReading,
) -> Step:
    """What the record keeps of a candidate."""
    return Step(
        recipe=candidate.recipe.text(),
        label=rung.label,
        verdict=verdict,
        model=model.digest,
        quality=quality.candidate if quality else None,
        drop=quality.drop.interval if quality else None,
        speedup=speed.speedup,
        latency_ms=speed.candidate,
        size_bytes=model.size_bytes,
        memory_bytes=speed.memory_bytes,
        passes=candidate.notes,
    )


def layer_sensitivities(climb: Climb, base: Candidate, layers: Sequence[str]) -> Iterator[tuple[str, float]]:
    """How much the outputs move when one layer alone is quantized, layer by layer, within the time limit."""
    bench = climb.bench
    assert bench.splits is not None

    def build(layer: str) -> Path:
        return bench.builder.build(base.model, ladder.only(layer)).path

    for done, found in enumerate(sensitivities(layers, build, base.path, bench.splits.select, bench.site)):
        bench.watch.progress(done + 1, len(layers), None)
        yield found
        if climb.out_of_time():
            return


def time_left(climb: Climb, rungs: int) -> float | None:
    """Seconds that the known rungs should take, by what those before them took."""
    return climb.seconds() / len(climb.tried) * rungs if climb.tried else None


# -- confirming --------------------------------------------------------------------------------------------------------
def confirm(climb: Climb) -> ship.Choice:
    """Prove the best candidates, at most three, on samples that nobody has looked at, and time them again."""
    bench, scales = climb.bench, climb.scales
    contenders = judge.ranked([t for t in climb.tried if t.candidate and t.candidate.lossy], bench.settings.goal)
    contenders = contenders[:CONFIRM_AT_MOST]
    alpha = corrected_alpha(0.05, max(1, len(contenders)))
    looks = bench.store.look(bench.splits.confirm.digest()) if contenders and bench.splits and bench.judged else 0
    for tried in contenders:
        assert tried.candidate is not None
        model = candidate_weight(tried.candidate)
        quality = scales.quality(model, bench.splits.confirm, alpha) if bench.splits and bench.judged else None
        speed = scales.speed(model, thorough(bench.settings.seconds))
        sizes = (model.size_bytes, scales.baseline.size_bytes)
        verdict = judge.at_confirm(quality, speed, sizes, stakes(climb))
        undecided = verdict.judgement is Judgement.UNDECIDED
        if verdict.judgement is Judgement.ACCEPTED or (undecided and not bench.settings.strict):
            return ship.Choice(tried.candidate, tried.rung.label, quality, speed, verdict, looks)
        let_go(climb, tried, verdict)
    return without_loss(climb)


def let_go(climb: Climb, tried: Tried, verdict: Verdict) -> None:
    """A candidate that does not hold at confirm is let go in the record too, with the reason found there."""
    step = replace(tried.step, verdict=replace(verdict, reason=f"at confirm: {verdict.reason}"))
    climb.tried[climb.tried.index(tried)] = replace(tried, step=step)
    climb.bench.watch.step(step)


def without_loss(climb: Climb) -> ship.Choice:
    """The lossless model if it is not slower, else the source itself."""
    bench, scales = climb.bench, climb.scales
    why = judge.why_lossless(climb.steps)
    lossless = next((t for t in climb.tried if t.candidate and not t.candidate.lossy), None)
    if lossless is not None and lossless.candidate is not None:
        model = candidate_weight(lossless.candidate)
        speed = (
            scales.speed(model, thorough(bench.settings.seconds)) if model.digest != scales.baseline.digest else None
        )
        if speed is not None and judge.not_slower(speed.speedup):
            quality = scales.quality(model, bench.splits.confirm) if bench.splits and bench.judged else None
            verdict = Verdict(Judgement.ACCEPTED, f"{judge.speed_text(speed.speedup)} without loss; {why}")
            return ship.Choice(lossless.candidate, lossless.rung.label, quality, speed, verdict, 0)
        why = f"{judge.why_slower(speed.speedup) if speed else 'the lossless passes found nothing to do'}; {why}"
    quality = scales.quality(scales.baseline, bench.splits.confirm) if bench.splits and bench.judged else None
    speed = scales.speed(scales.baseline, quick(bench.settings.seconds))
    return ship.Choice(None, "source", quality, speed, Verdict(Judgement.ACCEPTED, why), 0)
