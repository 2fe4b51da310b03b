"""The strategy of -O2: a ladder of whole recipes, from the boldest to the gentlest. Pure: facts in, recipes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from optimizer.decide.judge import LOSSLESS_LABEL, PAYS_POINT
from optimizer.decide.space import Space
from optimizer.records import Judgement, Step
from passes.catalogue import LOSSLESS
from passes.kit.model import Model
from passes.kit.recipe import Recipe
from passes.kit.recipe import Step as Part

STATIC = "int8 static"

SMALLER = ("size", "memory")
"""Goals for which a model is to be small rather than fast."""

COMFORTABLE = 0.5
"""A drop up to this share of what is allowed leaves room for the confirm samples to be harder."""

CACHE_BYTES = 32 * 2**20
"""Models that are smaller stay in the processor's caches, where packed weights save no time."""

READING_PACE = 2e9
"""Bytes of model for each second of a run from which on reading weights is what takes the time: a core reads 8 to 10 GB
a second; products over many rows spend most of their time computing and stay below."""

GENTLE_SHARES = (0.05, 0.12, 0.25, 0.5)
"""Shares of the most sensitive layers that successive rungs leave in float."""


@dataclass(frozen=True)
class Start:
    """A model that was trained, for recipes to start from in place of the source; ``recipe`` says how it was made."""

    model: Model
    recipe: Recipe


@dataclass(frozen=True)
class Rung:
    """One whole recipe to try, with the name that the closing table shows."""

    label: str
    recipe: Recipe
    start: Start | None = None

    @property
    def whole(self) -> Recipe:
        """The recipe with what made its start."""
        return self.start.recipe + self.recipe if self.start is not None else self.recipe


@dataclass(frozen=True)
class Facts:
    """What the ladder depends on: the names of the nodes that could be quantized, statically and dynamically, and
    whether float16 is the fastest floating type of the target."""

    level: int
    calibrated: bool
    layers: tuple[str, ...]
    dynamic_layers: tuple[str, ...]
    half: bool = False


def lossless() -> Rung:
    """The rung that spends no quality."""
    return Rung(LOSSLESS_LABEL, LOSSLESS)


def bold(facts: Facts) -> list[Rung]:
    """The first lossy rungs: everything in float16 where the target has kernels for it, everything quantized,
    statically and dynamically."""
    rungs = [Rung("float16", LOSSLESS + Recipe((Part("convert-float16"),)))] if facts.half else []
    if facts.calibrated and facts.layers:
        rungs.append(_static(STATIC))
    if facts.dynamic_layers:
        rungs.append(Rung("int8 dynamic", LOSSLESS + Recipe((Part("quantize-dynamic"),))))
    return rungs


def packed(space: Space, goal: str, source_bytes: int, steps: Sequence[Step]) -> list[Rung]:
    """Weights alone in 8 and 4 bits: where the goal is to be small, or where the source was measured to spend its time
    reading them."""
    if goal not in SMALLER and not reads_weights(source_bytes, source_ms(steps)):
        return []
    return [Rung(point.label(), point.recipe()) for point in space.packed()]


def reads_weights(model_bytes: int, ms: float | None) -> bool:
    """Whether a model is bound by reading its weights: too large for the caches, and gone through in so few
    milliseconds (``None``: not measured) that it cannot be bound by computing."""
    return ms is not None and model_bytes >= CACHE_BYTES and model_bytes / (ms / 1e3) >= READING_PACE


def source_ms(steps: Sequence[Step]) -> float | None:
    """Milliseconds of the source beside which a step was measured."""
    return next((s.latency_ms.p50 * s.speedup.value for s in steps if s.latency_ms and s.speedup), None)


def refined(facts: Facts, steps: Sequence[Step], margin: float | None) -> list[Rung]:
    """The same layers in integers with more care, where static int8 is fast but spends much of the budget: outliers
    moved into the weights, rounding errors evened out, ranges that leave out the rarest values.

    Where there is nothing to smooth or to correct, the rung makes the model of another one and is not measured again.
    """
    static = next((s for s in steps if s.label == STATIC), None)
    if static is None or margin is None or not is_faster(static):
        return []
    if static.drop is not None and static.drop.value <= margin * COMFORTABLE:
        return []
    smoothed = LOSSLESS + Recipe((Part("smooth"), Part("quantize-static")))
    return [
        Rung(f"{STATIC}, smoothed", smoothed),
        _static(f"{STATIC}, biases corrected", ("correct-bias", True)),
        _static(f"{STATIC}, percentile ranges", ("observer", "percentile")),
    ]


def wants_gentler(facts: Facts, steps: Sequence[Step], margin: float | None) -> bool:
    """Whether leaving layers in float can help: static int8 pays in time, but no static rung keeps the quality with
    room to spare. One that only just keeps it on the select samples may well fail on those that confirm."""
    static = [s for s in steps if s.label.startswith(STATIC) and is_faster(s)]
    if len(facts.layers) < 2 or margin is None or not static:
        return False
    return all(s.drop is not None and s.drop.value > margin * COMFORTABLE for s in static)


def gentler(facts: Facts, sensitivity: Mapping[str, float]) -> list[Rung]:
    """Rungs that leave more and more of the most sensitive layers in float, boldest first."""
    ranked = sorted(sensitivity, key=lambda name: (-sensitivity[name], name))
    rungs, last = [], 0
    for share in GENTLE_SHARES:
        count = max(1, round(share * len(ranked)))
        if last < count < len(ranked):
            name = f"{STATIC}, {count} of {len(facts.layers)} layers in float"
            rungs.append(_static(name, ("exclude", tuple(sorted(ranked[:count])))))
            last = count
    return rungs


def lightened(facts: Facts, steps: Sequence[Step], slower: Mapping[str, float]) -> list[Rung]:
    """The rung that leaves in float the layers whose integer kernel is slower than the float one, where static int8
    is fast. ``slower`` holds the milliseconds that each loses."""
    static = next((s for s in steps if s.label == STATIC), None)
    if static is None or not is_faster(static) or not 0 < len(slower) < len(facts.layers):
        return []
    name = f"{STATIC}, {len(slower)} of {len(facts.layers)} layers in float"
    return [_static(name, ("exclude", tuple(sorted(slower))))]


LOSES_SHARE = 0.01
"""A layer is slower in integers when its kernel costs this share of the whole run more than the float one."""


def slower_layers(saved_ms: Mapping[str, float], whole_ms: float) -> dict[str, float]:
    """The layers that lose more than :data:`LOSES_SHARE` of the run by being integers, with the milliseconds lost."""
    return {name: -ms for name, ms in saved_ms.items() if ms < -LOSES_SHARE * whole_ms}


def only(layer: str) -> Recipe:
    """The recipe that quantizes one layer of a model that the lossless rung has already cleaned."""
    return Recipe((Part("quantize-static", (("only", (layer,)),)),))


def costs_too_much(step: Step) -> bool:
    """Whether a step was turned down for its quality although it is faster."""
    return step.verdict.judgement is Judgement.REJECTED and is_faster(step)


def is_faster(step: Step) -> bool:
    """Whether a step was measured to be faster than the source, by its point estimate."""
    return step.speedup is not None and step.speedup.value >= PAYS_POINT


def _static(label: str, *options: tuple[str, object]) -> Rung:
    return Rung(label, LOSSLESS + Recipe((Part("quantize-static", tuple(options)),)))
