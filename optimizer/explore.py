"""The search of -O3 and the evidence that it and the ladder stand on: what each layer costs and what it saves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from optimizer.climb import Climb, Tried, margin, remember, stakes, try_rung
from optimizer.decide import ladder, search
from optimizer.decide.judge import paid_for_nothing
from optimizer.decide.ladder import Rung
from optimizer.decide.search import Ask, Depth, Seen
from optimizer.decide.space import DYNAMIC, STATIC, Point, Space, grouped
from optimizer.faults import Fault
from optimizer.measure.explain_graph import kernels, layer_times
from optimizer.measure.explain_layers import output_sqnr
from optimizer.measure.sensitivity import sensitivities
from optimizer.measure.sweep import sweep
from optimizer.records import Judgement, Sensitivity, Step
from optimizer.verify.apply import Candidate
from optimizer.workers.pool import CallFailed, WorkerDied
from passes.kit.context import NoData
from passes.kit.model import Model
from passes.quantize.layers import choose

SWEPT = "all layers in one session, each switched on alone"
BUILT = "a model built for each layer, with it alone quantized"

GOALS = {"size": "size_bytes", "memory": "memory_bytes"}


def explore(climb: Climb, base: Candidate, space: Space) -> None:
    """Ask the strategy what to look at until it has nothing left, the time is up or the user says stop."""
    bench = climb.bench
    facts = facts_of(climb, base, space) if not climb.over() else search.Facts(space, None)
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
    forms = {p: t for p in space.forms() if (t := tried_as(climb, p)) is not None}
    known = {point: seen(climb, tried) for point, tried in forms.items()}
    if tried_as(climb, Point(STATIC)) is not None:
        climb.sensitivity = evidence(climb, base, space.layers)
    slower = {
        point.form: ladder.slower_layers(*saved(climb, base, tried.candidate, space.layers or space.products))
        for point, tried in forms.items()
        if known[point].pays and tried.candidate is not None and point.form in (STATIC, DYNAMIC)
    }
    return search.Facts(space, margin(climb), climb.sensitivity, slower, known)


def tried_as(climb: Climb, point: Point) -> Tried | None:
    """The try of a recipe, when it did anything lossy."""
    text = point.recipe().text()
    return next(
        (t for t in climb.tried if t.rung.recipe.text() == text and t.candidate is not None and t.candidate.lossy), None
    )


def static_candidate(climb: Climb) -> Candidate | None:
    """What plain static int8 made of the model, if it made anything."""
    tried = tried_as(climb, Point(STATIC))
    return tried.candidate if tried is not None else None


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
    tried = try_rung(climb, rung, frugal=bool(ask.point.aids or ask.point.left or ask.point.narrowed))
    remember(climb, tried)
    return seen(climb, tried)


def seen(climb: Climb, tried: Tried) -> Seen:
    """A rung as the strategy sees it. One that gave the same model as another is seen as that other."""
    step = tried.step
    if step.verdict.judgement is Judgement.SKIPPED and tried.candidate is not None:
        digest = tried.candidate.model.digest()
        step = next((t.step for t in climb.tried if t.step.model == digest), step)
        return Seen(gain=gain(climb, step), drop=step.drop.value if step.drop else None)
    accepted = step.verdict.judgement is Judgement.ACCEPTED
    drop = step.drop.value if step.drop else (0.0 if accepted else None)
    high = step.drop.high if step.drop else None
    return Seen(None, accepted, gain(climb, step), drop, accepted or may_pay(climb, step), high)


def may_pay(climb: Climb, step: Step) -> bool:
    """Whether a step that was turned down would be worth its quality: it is fast enough, or was not timed at all."""
    if step.speedup is None or step.size_bytes is None:
        return step.drop is not None
    sizes = (step.size_bytes, climb.scales.baseline.size_bytes)
    return not paid_for_nothing(step.speedup, sizes, stakes(climb))


def gain(climb: Climb, step: Step) -> float | None:
    """How many times better than the source in what the goal asks for; ``None`` when that was not measured."""
    spent = getattr(step, GOALS.get(climb.bench.settings.goal, ""), None)
    if spent:
        return climb.scales.baseline.size_bytes / float(spent)
    return step.speedup.value if step.speedup is not None else None


# -- evidence ----------------------------------------------------------------------------------------------------------
def evidence(climb: Climb, base: Candidate, layers: tuple[str, ...]) -> Sensitivity:
    """What each layer does to the outputs when it alone is quantized, and what its integer kernel saves."""
    bench, static = climb.bench, static_candidate(climb)
    assert bench.splits is not None
    bench.watch.stage(f"measuring how sensitive {len(layers)} layers are")
    damage, method = {}, SWEPT
    if static is not None:
        damage = sweep(base.model, static.model, bench.splits.select, bench.site, bench.store)
    if not damage:
        damage, method = one_by_one(climb, base, layers), BUILT
    found = {name: damage[name] for name in layers if name in damage}
    saves, whole = saved(climb, base, static, layers) if static is not None else ({}, 0.0)
    return Sensitivity(method, found, saves, whole, grouped(tuple(found)))


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


def saved(
    climb: Climb, base: Candidate, static: Candidate, layers: tuple[str, ...]
) -> tuple[Mapping[str, float], float]:
    """Milliseconds that each layer's integer kernel saves, and milliseconds of the whole float model: one run each,
    by the runtime's profile of both models. Empty and 0 where the runtime cannot be profiled."""
    bench = climb.bench
    try:
        ran = [kernels(found.path, bench.feed, bench.site) for found in (base, static)]
    except (Fault, WorkerDied, CallFailed) as error:
        bench.watch.note(f"the runtime could not be profiled: {error}")
        return {}, 0.0
    was, now = (layer_times(found.model, ks, layers) for found, ks in zip((base, static), ran, strict=True))
    return {n: was[n] - now[n] for n in layers if n in was and n in now}, sum(k.ms for k in ran[0])


def slower_layers(climb: Climb, base: Candidate, layers: tuple[str, ...]) -> dict[str, float]:
    """The layers that plain static int8 makes slower, with the milliseconds of one run that each loses."""
    static = static_candidate(climb)
    return ladder.slower_layers(*saved(climb, base, static, layers)) if static is not None and not climb.over() else {}


def weight_share(model: Model, ops: tuple[str, ...]) -> float:
    """The share of all bytes of weights that products (by ``ops``) hold which could be quantized."""
    graph = model.fork().graph
    held = {layer.weight_value: layer.weight.nbytes for layer in choose(graph, ops).layers.values()}
    return sum(held.values()) / max(1, model.weight_bytes())


def seconds_left(climb: Climb) -> float | None:
    """Seconds until the time limit."""
    limit = climb.bench.settings.time_limit
    return None if limit is None else max(0.0, limit - climb.seconds())
