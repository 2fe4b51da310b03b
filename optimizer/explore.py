"""The search of -O3 and the evidence that it and the ladder stand on: what each layer costs and what it saves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from optimizer.climb import Climb, Tried, margin, remember, skipped, try_rung
from optimizer.decide import ladder, search
from optimizer.decide.ladder import Rung
from optimizer.decide.search import Ask, Depth, Seen
from optimizer.decide.space import STATIC, Point, Space, grouped
from optimizer.faults import Fault
from optimizer.measure.explain_graph import kernels, layer_times
from optimizer.measure.explain_layers import output_sqnr
from optimizer.measure.sensitivity import sensitivities
from optimizer.measure.sweep import sweep
from optimizer.records import Judgement, Sensitivity, Step
from optimizer.verify.apply import Candidate
from optimizer.workers.pool import CallFailed, WorkerDied
from passes.kit.context import NoData

SWEPT = "all layers in one session, each switched on alone"
BUILT = "a model built for each layer, with it alone quantized"

GOALS = {"size": "size_bytes", "memory": "memory_bytes"}


def explore(climb: Climb, base: Candidate, space: Space) -> None:
    """Ask the strategy what to look at until it has nothing left, the time is up or the user says stop."""
    bench = climb.bench
    facts = facts_of(climb, base, space)
    strategy = search.strategy(facts)
    bench.watch.stage("searching")
    answer: Seen | None = None
    while not climb.over():
        try:
            ask = strategy.send(answer) if answer is not None else next(strategy)
        except StopIteration:
            bench.watch.note("nothing is left that could be better")
            return
        bench.watch.note(f"{ask.depth.value}: {ask.point.label(len(space.layers))} ({ask.why})")
        bench.watch.progress(len(climb.tried), len(climb.tried) + 1, seconds_left(climb))
        answer = glance(climb, base, ask.point) if ask.depth is Depth.GLANCE else weigh(climb, ask, space)
    climb.warn(f"{climb.why_over()}; the best so far is confirmed")


def facts_of(climb: Climb, base: Candidate, space: Space) -> search.Facts:
    """What the strategy starts from: the forms that the ladder has measured, and the evidence about layers."""
    known = {}
    for point in space.forms():
        text = point.recipe().text()
        found = next((t for t in climb.tried if t.rung.recipe.text() == text), None)
        if found is not None:
            known[point] = seen(climb, found)
    static = next((t for t in climb.tried if t.rung.recipe.text() == Point(STATIC).recipe().text()), None)
    if static is not None and static.candidate is not None and static.candidate.lossy:
        climb.sensitivity = evidence(climb, base, static.candidate, space.layers)
    found_out = climb.sensitivity
    return search.Facts(
        space,
        margin(climb),
        found_out.layers if found_out else {},
        found_out.saved_ms if found_out else {},
        next((t.step.latency_ms.p50 for t in climb.tried if t.step.latency_ms is not None), 0.0),
        found_out.groups if found_out else {},
        known,
    )


def glance(climb: Climb, base: Candidate, point: Point) -> Seen:
    """Signal over noise at the outputs, on a few samples: nothing is judged or timed."""
    bench = climb.bench
    assert bench.splits is not None
    try:
        candidate = bench.builder.build(bench.source.model, point.recipe())
        if candidate.faults or not candidate.lossy:
            return Seen()
        return Seen(output_sqnr(base.model, candidate.model, bench.splits.select, bench.site, bench.store))
    except (NoData, Fault, WorkerDied, CallFailed) as error:
        bench.watch.note(f"{point.label()}: {error}")
        return Seen()


def weigh(climb: Climb, ask: Ask, space: Space) -> Seen:
    """Try a recipe as the ladder does; one that only varies a form is timed only when its quality holds."""
    rung = Rung(ask.point.label(len(space.layers)), ask.point.recipe())
    tried = try_rung(climb, rung, frugal=bool(ask.point.aids or ask.point.left))
    remember(climb, tried)
    return seen(climb, tried)


def seen(climb: Climb, tried: Tried) -> Seen:
    """A rung as the strategy sees it. One that gave the same model as another is seen as that other."""
    step = tried.step
    if step.verdict.judgement is Judgement.SKIPPED and tried.candidate is not None:
        digest = tried.candidate.model.digest()
        step = next((t.step for t in climb.tried if t.step.model == digest), step)
        return Seen(accepted=False, gain=gain(climb, step), drop=step.drop.value if step.drop else None)
    accepted = step.verdict.judgement is Judgement.ACCEPTED
    drop = step.drop.value if step.drop else (0.0 if accepted else None)
    return Seen(accepted=accepted, gain=gain(climb, step), drop=drop)


def gain(climb: Climb, step: Step) -> float | None:
    """How many times better than the source in what the goal asks for; ``None`` when that was not measured."""
    spent = getattr(step, GOALS.get(climb.bench.settings.goal, ""), None)
    if spent:
        return climb.scales.baseline.size_bytes / float(spent)
    return step.speedup.value if step.speedup is not None else None


# -- evidence ----------------------------------------------------------------------------------------------------------
def evidence(climb: Climb, base: Candidate, static: Candidate, layers: tuple[str, ...]) -> Sensitivity:
    """What each layer does to the outputs when it alone is quantized, and what its integer kernel saves."""
    bench = climb.bench
    assert bench.splits is not None
    bench.watch.stage(f"measuring how sensitive {len(layers)} layers are")
    damage = sweep(base.model, static.model, bench.splits.select, bench.site, bench.store)
    method = SWEPT
    if not damage:
        damage, method = one_by_one(climb, base, layers), BUILT
    found = {name: damage[name] for name in layers if name in damage}
    return Sensitivity(method, found, saved(climb, base, static, layers), grouped(tuple(found)))


def one_by_one(climb: Climb, base: Candidate, layers: tuple[str, ...]) -> dict[str, float]:
    """The slow way, for models whose layers cannot be switched: each gets a model of its own."""
    bench = climb.bench
    assert bench.splits is not None

    def build(layer: str) -> Path:
        return bench.builder.build(base.model, ladder.only(layer)).path

    found: dict[str, float] = {}
    for name, damage in sensitivities(layers, build, base.path, bench.splits.select, bench.site):
        found[name] = damage
        bench.watch.progress(len(found), len(layers), None)
        if climb.over():
            break
    return found


def saved(climb: Climb, base: Candidate, static: Candidate, layers: tuple[str, ...]) -> Mapping[str, float]:
    """Milliseconds of one run that each layer's integer kernel saves, by the runtime's profile of both models."""
    bench = climb.bench
    try:
        times = [
            layer_times(found.model, kernels(found.path, bench.feed, bench.site), layers) for found in (base, static)
        ]
    except (Fault, WorkerDied, CallFailed) as error:
        bench.watch.note(f"the runtime could not be profiled: {error}")
        return {}
    was, now = times
    return {name: was[name] - now[name] for name in layers if name in was and name in now}


def seconds_left(climb: Climb) -> float | None:
    """Seconds until the time limit."""
    limit = climb.bench.settings.time_limit
    return None if limit is None else max(0.0, limit - climb.seconds())

