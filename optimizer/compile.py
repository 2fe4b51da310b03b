"""The spine: how a model becomes an artifact. Read it from top to bottom; every stage lives in a room of its own.

A compile is a search over recipes. The source is the baseline. Each candidate is a whole recipe, applied pass by pass
and verified pass by pass; what spends quality is judged by quality and by time against the baseline; the best ones
are confirmed on samples nobody has looked at; and what ships is the best that held, else the lossless model, else the
source itself.
"""

from __future__ import annotations

import threading
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from optimizer import ship
from optimizer.climb import Climb, Tried, climb_all, margin, stakes
from optimizer.decide import judge, ladder
from optimizer.decide.ladder import Rung
from optimizer.decide.search import prices
from optimizer.decide.space import Space, offered
from optimizer.explore import evidence, explore, slower_layers, weight_share
from optimizer.interrupts import first_interrupt
from optimizer.measure.latency import quick, thorough
from optimizer.measure.stats import corrected_alpha
from optimizer.package import artifact
from optimizer.plan import Settings
from optimizer.preflight import computes_in_float16, proof, require_room
from optimizer.progress import Silent, Watcher
from optimizer.recommending import faster_elsewhere
from optimizer.records import Judgement, Record, Verdict
from optimizer.recovering import recover
from optimizer.runtime.providers import short_name
from optimizer.workshop import Bench, candidate_weight, open_bench
from passes.prune.structured import prunable
from passes.quantize.layers import nested_layers, quantizable, quantizable_at_run_time

DATALESS = "there is no data to judge it on"
FLOATLESS = "no layer with constant float32 weights can be quantized"

HALFLESS = "float16, which pays on {target}, can only be measured there: --provider {provider} on a machine that has it"

NESTED = "lie in the body of an If, Loop or Scan, whose values cannot be observed: static int8 leaves them in float"


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
        bench.watch.stage(f"trying recipes{proof(bench)}")
        climb_all(climb, first_rungs(bench))
        with two_step_interrupt(climb):
            search(climb)
            recover(climb)
        bench.watch.stage("confirming")
        choice = confirm(climb)
        for advice in () if climb.over() else faster_elsewhere(bench, choice):
            climb.warn(advice)
        bench.watch.stage("writing the artifact")
        record = ship.ship(bench, choice, climb.steps, climb.warnings, climb.seconds(), climb.sensitivity)
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


def two_step_interrupt(climb: Climb) -> AbstractContextManager[None]:
    """At -O3 the first Ctrl-C ends the search and the best so far is confirmed; the second ends the compile."""

    def stop() -> None:
        climb.stopped = True
        # From a thread: the signal may have come in the middle of a write to the same stream, which cannot be entered
        # again; the thread waits until that write is done.
        text = "stopping after the recipe in hand; once more ends without an artifact"
        threading.Thread(target=climb.bench.watch.warn, args=(text,), daemon=True).start()

    return first_interrupt(stop) if climb.bench.settings.level >= 3 else nullcontext()


def search(climb: Climb) -> None:
    """Climb the ladder: bold rungs first, then other ranges, then rungs that leave sensitive layers in float.

    -O3 goes on from the bold rungs by itself, guided by what was measured.
    """
    bench = climb.bench
    base = climb.tried[0].candidate if climb.tried else None
    if base is None or bench.recipe is not None or bench.settings.level < 2:
        return
    if bench.splits is None:
        climb.hindrance = DATALESS
        return
    layers = quantizable(base.model, bench.target) if bench.calibrated else ()
    dynamic = quantizable_at_run_time(base.model, bench.target)
    if hidden := nested_layers(base.model):
        climb.warn(f"{len(hidden)} layers {NESTED}")
    half = computes_in_float16(bench)
    if bench.target.float_types[0] == "float16" and not half:
        climb.warn(HALFLESS.format(target=bench.target.name, provider=short_name(bench.target.provider)))
    climb.hindrance = "" if layers or dynamic or half else FLOATLESS
    facts = ladder.Facts(bench.settings.level, bench.calibrated, layers, dynamic, half)
    climb_all(climb, ladder.bold(facts))
    share = weight_share(base.model, bench.target.dynamic_ops)
    narrow = prunable(base.model, bench.target) if bench.calibrated and bench.settings.level >= 3 else ()
    space = Space(offered(), bench.calibrated, layers, dynamic, share, narrow)
    if bench.settings.level >= 3:
        explore(climb, base, space)
        return
    climb_all(climb, ladder.packed(space, bench.settings.goal, climb.scales.baseline.size_bytes, climb.steps))
    climb_all(climb, ladder.lightened(facts, climb.steps, slower_layers(climb, base, layers)))
    climb_all(climb, ladder.refined(facts, climb.steps, margin(climb)))
    if ladder.wants_gentler(facts, climb.steps, margin(climb)) and not climb.over():
        climb.sensitivity = evidence(climb, base, layers)
        climb_all(climb, ladder.gentler(facts, prices(climb.sensitivity)), until_accepted=True)


# -- confirming --------------------------------------------------------------------------------------------------------
def confirm(climb: Climb) -> ship.Choice:
    """Prove the best candidates, at most three, on samples that nobody has looked at, and time them again."""
    bench, scales = climb.bench, climb.scales
    lossy = [t for t in climb.tried if t.candidate and t.candidate.lossy]
    contenders = judge.contenders(lossy, bench.settings.goal, judge.CONFIRM_AT_MOST)
    alpha = corrected_alpha(0.05, max(1, len(contenders)))
    looks = bench.store.look(bench.splits.confirm.digest()) if contenders and bench.splits and bench.judged else 0
    undecided: list[ship.Choice] = []
    for tried in contenders:
        assert tried.candidate is not None
        model = candidate_weight(tried.candidate)
        quality = scales.quality(model, bench.splits.confirm, alpha) if bench.splits and bench.judged else None
        speed = scales.speed(model, thorough(bench.settings.seconds))
        sizes = (model.size_bytes, scales.baseline.size_bytes)
        verdict = judge.at_confirm(quality, speed, sizes, stakes(climb))
        choice = ship.Choice(tried.candidate, tried.rung.label, quality, speed, verdict, looks)
        if verdict.judgement is Judgement.ACCEPTED:
            return choice
        let_go(climb, tried, verdict)
        if verdict.judgement is Judgement.UNDECIDED:
            undecided.append(choice)
    if undecided and not bench.settings.strict:
        return undecided[0]  # none is proven: the best of those that may well hold
    return without_loss(climb)


def let_go(climb: Climb, tried: Tried, verdict: Verdict) -> None:
    """A candidate that does not hold at confirm is let go in the record too, with the reason found there."""
    step = replace(tried.step, verdict=replace(verdict, reason=f"at confirm: {verdict.reason}"))
    climb.tried[climb.tried.index(tried)] = replace(tried, step=step)
    climb.bench.watch.step(step)


def without_loss(climb: Climb) -> ship.Choice:
    """The lossless model if it is not slower, else the source itself."""
    bench, scales = climb.bench, climb.scales
    why = judge.why_lossless(climb.steps, climb.hindrance)
    free = [t for t in climb.tried if t.candidate and not t.candidate.lossy]
    lossless = max(free, key=lambda t: t.step.speedup.value if t.step.speedup else 0.0, default=None)
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
