"""Winning quality back by training: the source teaches a pruned student, which is the start of recipes from then on."""

from __future__ import annotations

from typing import Any

from optimizer.climb import Climb, Tried, climb_all
from optimizer.decide.judge import PAYS_POINT
from optimizer.decide.ladder import Rung, Start
from optimizer.faults import Fault, usage
from optimizer.records import Judgement
from optimizer.recover.distill import FITTED_RATE, NOT_TRAINABLE, STEP, Distilled, Lesson, Room, distill
from optimizer.workshop import Bench, open_student
from passes.catalogue import LOSSLESS
from passes.kit.context import NoData
from passes.kit.model import Model
from passes.kit.recipe import Recipe
from passes.kit.recipe import Step as Part

FAMILY = ("prune-channels", "prune-heads", "prune-magnitude", "prune-nm", "refit")
"""Passes whose work training makes up for."""

INTEGERS = Part("quantize-static")

PLAIN = Rung("25% of the work pruned, refitted", LOSSLESS + Recipe.parse("prune-channels{ratio=0.25}, refit"))
"""What is trained where nothing else was pruned."""

MOST = 2
"""Pruned models that are trained at most."""

SCORES_OF_CLASSES = ("top1", "top5", "f1", "agreement", "perplexity", "auroc")


def recover(climb: Climb) -> None:
    """Train what ``--recover`` and ``--student`` ask for, and try recipes that start from it."""
    bench = climb.bench
    if bench.settings.recover != "distill" and bench.settings.student is None:
        return
    if bench.splits is None or not bench.judged or not bench.calibrated:
        climb.warn("nothing is distilled: it needs samples to learn from and samples to be judged on")
        return
    if bench.settings.student is not None:
        student = open_student(bench)
        _require_ports(bench, student)
        _teach(climb, student, Recipe(), "the student", [Recipe(), LOSSLESS, LOSSLESS + Recipe((INTEGERS,))])
        _teach_integers(climb)
        return
    if bench.recipe is None and not any(prunes(t.rung.recipe) for t in climb.tried) and not climb.over():
        climb_all(climb, [PLAIN])
    chosen = worth_training(climb)
    if not chosen and rounded(climb) is None:
        climb.warn("nothing is distilled: no recipe that prunes or quantizes made the model faster or smaller")
    for tried in chosen:
        stem, tail = parted(tried.rung.recipe)
        try:
            student = bench.builder.build(bench.source.model, stem).model
        except NoData as error:
            climb.warn(f"nothing is distilled: {error}")
            return
        label = tried.rung.label
        _teach(climb, student, stem, label, list(dict.fromkeys([tail, Recipe((INTEGERS,))])))
    _teach_integers(climb)


def _teach_integers(climb: Climb) -> None:
    """Train the best of the quantized models, trained before or not, with its quantizers in the loop."""
    tried = rounded(climb)
    if tried is None or tried.candidate is None or climb.over():
        return
    _teach(climb, tried.candidate.model, tried.candidate.recipe, tried.rung.label, [Recipe()])


def worth_training(climb: Climb) -> list[Tried]:
    """The narrowest model that may be faster although it loses too much, and the best of those that hold."""
    pruned = [t for t in climb.tried if t.candidate is not None and t.candidate.lossy and prunes(t.rung.recipe)]
    may = [t for t in pruned if t.step.speedup is None or t.step.speedup.value >= PAYS_POINT]
    lost = [t for t in may if t.step.verdict.judgement is Judgement.REJECTED]
    held = [t for t in may if t.step.verdict.judgement is Judgement.ACCEPTED]
    found = sorted(lost, key=lambda t: t.step.drop.value if t.step.drop else 0.0)[:1]
    found += sorted(held, key=lambda t: -(t.step.speedup.value if t.step.speedup else 0.0))[:1]
    return found[:MOST]


def rounded(climb: Climb) -> Tried | None:
    """The fastest quantized model that loses too much, or else the fastest of those that lose anything.

    Where the user wrote the recipe it need not be faster.
    """
    found = [t for t in climb.tried if t.candidate is not None and quantizes(t.candidate.recipe)]
    own = climb.bench.recipe is not None
    may = [t for t in found if own or t.step.speedup is None or t.step.speedup.value >= PAYS_POINT]
    losing = [t for t in may if t.step.drop is not None and t.step.drop.value > 0]
    lost = [t for t in losing if t.step.verdict.judgement is Judgement.REJECTED]
    return max(lost or losing, key=lambda t: t.step.speedup.value if t.step.speedup else 0.0, default=None)


def quantizes(recipe: Recipe) -> bool:
    """Whether a recipe makes integers of numbers."""
    return any(step.name.startswith("quantize-") for step in recipe.steps)


def prunes(recipe: Recipe) -> bool:
    """Whether a recipe takes anything out."""
    return any(step.name in FAMILY for step in recipe.steps)


def parted(recipe: Recipe) -> tuple[Recipe, Recipe]:
    """A recipe up to its last pass that prunes, and the rest."""
    last = max((i for i, step in enumerate(recipe.steps) if step.name in FAMILY), default=-1)
    return Recipe(recipe.steps[: last + 1]), Recipe(recipe.steps[last + 1 :])


def rate_behind(stem: Recipe) -> float | None:
    """The learning rate of a student that ``stem`` made; ``None`` leaves it to what is trained."""
    fitted = any(step.name == "refit" for step in stem.steps)
    return FITTED_RATE if fitted and not quantizes(stem) else None


def _teach(climb: Climb, student: Model, stem: Recipe, label: str, tails: list[Recipe]) -> None:
    bench = climb.bench
    bench.watch.stage(f"distilling: {label}")
    settings = bench.settings
    lesson = Lesson(settings.steps, settings.minutes, settings.seed, rate_behind(stem))
    try:
        found = distill(student, bench.source.model, lesson, _room(climb))
    except Fault as fault:
        if fault.code != NOT_TRAINABLE:
            raise
        climb.warn(f"'{label}' is not trained: {fault.message}")  # what was found before stands
        return
    bench.watch.note(f"{label}: {found.note}")
    climb.warn(f"distilled '{label}': {found.note}")
    if found.steps == 0 and stem.steps:
        return  # it is what it was, and was tried
    start = Start(found.model, stem + Recipe((_part(found, bench),)))
    climb_all(climb, [Rung(_named(label, tail), tail, start) for tail in tails])


def _part(found: Distilled, bench: Bench) -> Part:
    options: dict[str, Any] = {"steps": found.steps, "seed": bench.settings.seed}
    if bench.settings.student is not None:
        options["student"] = bench.settings.student
    return Part(STEP, tuple(options.items()))


def _named(label: str, tail: Recipe) -> str:
    return f"{label}, distilled" + (", int8 static" if INTEGERS in tail.steps else ", cleaned" if tail.steps else "")


def _room(climb: Climb) -> Room:
    bench = climb.bench
    assert bench.splits is not None and bench.builder.world.samples is not None

    def score(model: Model) -> float:
        assert bench.splits is not None
        weighed = climb.weighed(model)
        return -climb.scales.quality(weighed, bench.splits.select).drop.value

    classes = bench.metric is not None and bench.metric.name.partition(":")[0] in SCORES_OF_CLASSES
    return Room(
        site=bench.site,
        store=bench.store,
        samples=bench.splits.calibrate,
        score=score,
        tell=bench.watch.progress,
        over=climb.over,
        classes=classes,
    )


def _require_ports(bench: Bench, student: Model) -> None:
    """The student must stand in for the source: the same inputs and outputs by name. Raises a Fault (exit 2)."""
    mine, theirs = bench.source.model.signature, student.signature
    for what, ours, his in (("inputs", mine.inputs, theirs.inputs), ("outputs", mine.outputs, theirs.outputs)):
        if [(p.name, p.type) for p in ours] != [(p.name, p.type) for p in his]:
            names = ", ".join(map(str, ours))
            raise usage(f"the student has other {what} than the model", where="--student", hint=f"It needs: {names}")
