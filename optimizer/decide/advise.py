"""What to try next with a quantized model: pure rules from an explanation to recipes."""

from __future__ import annotations

from collections.abc import Sequence

from optimizer.decide.space import STATIC, Offer
from optimizer.measure.explain import FLOAT, Advice, Explanation, Layer
from passes.catalogue import LOSSLESS
from passes.kit.recipe import Recipe, RecipeError
from passes.kit.recipe import Step as Part

SLOWER = 1.1
"""A layer is called slower when its integer kernel takes this many times the float one's time."""

WORTH_MS = 0.01
"""Times are worth advice from this share of the whole run on."""

DOMINATES = 0.25
"""A layer dominates when it alone causes this share of the damage of all layers together."""

WEAK_DB = 30.0
"""Below this signal over noise at the outputs, other ranges and roundings are worth a try."""

MANY = 0.25
"""Where more than this share of the layers did not fuse, leaving them out one by one is no cure."""

MOST_NAMED = 4


def advice(found: Explanation, offer: Offer) -> tuple[Advice, ...]:
    """What may make the model better, what is surest first."""
    rules = (_signed(found, offer), _requantized(found), _slower(found), _unfused(found), _dominant(found))
    given = [a for a in (*rules, *_weak(found, offer), _islands(found)) if a is not None]
    if not given:
        given = [Advice("nothing stands out; a search may still find something: lathe optimize -O3 --time-limit 300")]
    return tuple(given)


def _signed(found: Explanation, offer: Offer) -> Advice | None:
    if not found.signed or not offer.has("requantize-form"):
        return None
    return Advice(
        "activations are signed; where the processor wants unsigned ones, the same numbers can be moved by 128",
        "requantize-form",
    )


def _requantized(found: Explanation) -> Advice | None:
    hit = [y.layer for y in found.layers if y.form == FLOAT and y.kernel.startswith(("QLinear", "QGemm"))]
    if not hit:
        return None
    return Advice(
        f"{_names(hit)} {_is(hit)} float in the file, but the runtime quantizes the weights itself, with one scale "
        "each; quantized per channel beforehand they lose less",
        _with_static(found, exclude=[]),
    )


def _slower(found: Explanation) -> Advice | None:
    least = found.before_ms * WORTH_MS
    told = {u.node for u in found.unfused}
    hit = [y.layer for y in found.layers if y.form != FLOAT and y.layer not in told and _loses(y, least)]
    if not hit:
        return None
    return Advice(f"{_names(hit)} {_is(hit)} slower in integers than in float", _with_static(found, exclude=hit))


def _loses(layer: Layer, least: float) -> bool:
    was, now = layer.before_ms, layer.after_ms
    return was is not None and now is not None and now > was * SLOWER and now - was > least


def _unfused(found: Explanation) -> Advice | None:
    hit = [u.node for u in found.unfused]
    if not hit:
        return None
    if len(hit) > len(found.layers) * MANY:
        text = f"{len(hit)} operators are quantized in the file but computed in float: quantize the float source anew"
        return Advice(text, Recipe((*LOSSLESS.steps, Part(STATIC))).text())
    text = (
        f"{_names(hit)} {_is(hit)} quantized in the file but computed in float: leave it in float, or clean the graph"
    )
    return Advice(f"{text} before quantizing", _with_static(found, exclude=hit))


def _dominant(found: Explanation) -> Advice | None:
    damage = {y.layer: 10 ** (-y.alone_db / 10) for y in found.layers if y.alone_db is not None and y.form != FLOAT}
    total = sum(damage.values())
    hit = [n for n in sorted(damage, key=lambda n: -damage[n]) if damage[n] > DOMINATES * total]
    if not hit or len(damage) < 4 or (found.output_db or 0.0) > WEAK_DB + 10:
        return None
    share = sum(damage[n] for n in hit) / total
    return Advice(f"{_names(hit)} cause {share:.0%} of the error at the outputs", _with_static(found, exclude=hit))


def _weak(found: Explanation, offer: Offer) -> list[Advice]:
    if found.output_db is None or found.output_db >= WEAK_DB or not any(y.form == "int8" for y in found.layers):
        return []
    given = []
    observer = next((o for o in ("auto", "mse", "percentile") if offer.has(STATIC, "observer", o)), "")
    if observer:
        given.append(Advice(f"{found.output_db:.0f} dB at the outputs is little: other ranges may help",
                            _with_static(found, observer=observer)))  # fmt: skip
    if offer.has("equalize"):
        recipe = _with_static(found, before="equalize")
        given.append(Advice("layers of one kernel per channel may gain by evening out their channels", recipe))
    return given


def _islands(found: Explanation) -> Advice | None:
    worth = [i for i in found.islands if i.ms > found.after_ms * WORTH_MS]
    hit = [i for i in worth if not {"Conv", "Gemm", "MatMul"} & set(i.ops)]  # those were left in float on purpose
    if not hit:
        return None
    ops = sorted({op for island in hit for op in island.ops})
    text = f"float islands take {sum(i.ms for i in hit) * 1e3:.0f} us: {', '.join(ops[:6])} stand between integers"
    return Advice(f"{text}; clean the float source first, or quantize it with these operators too", LOSSLESS.text())


def _with_static(found: Explanation, *, exclude: Sequence[str] = (), observer: str = "", before: str = "") -> str:
    """The recipe that made the model, changed; cleaning and static int8 when nobody knows it."""
    try:
        known = Recipe.parse(found.recipe)
    except RecipeError:
        known = Recipe()
    steps = list(known.steps) or [*LOSSLESS.steps, Part(STATIC)]
    index = next((i for i, s in enumerate(steps) if s.name == STATIC), None)
    if index is None:
        steps, index = [*LOSSLESS.steps, Part(STATIC)], len(LOSSLESS.steps)
    options = dict(steps[index].options)
    if exclude:
        options["exclude"] = tuple(dict.fromkeys((*options.get("exclude", ()), *exclude)))
    if observer:
        options["observer"] = observer
    steps[index] = Part(STATIC, tuple(options.items()))
    if before and not any(s.name == before for s in steps):
        steps.insert(index, Part(before))
    return Recipe(tuple(steps)).text()


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:MOST_NAMED])
    return f"{shown} and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else shown


def _is(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"
