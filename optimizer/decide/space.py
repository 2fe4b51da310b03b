"""The space of recipes that a search walks: what the passes at hand offer, as points that turn into recipes.

Nothing here names an option that is not there: passes and their options are read from the catalogue when a search
begins, so that a pass that is missing is simply not proposed, and a new observer is proposed without a change here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from passes import catalogue
from passes.catalogue import LOSSLESS
from passes.kit.options import Option, describe
from passes.kit.recipe import Recipe, RecipeError
from passes.kit.recipe import Step as Part

STATIC, DYNAMIC, WEIGHTS = "quantize-static", "quantize-dynamic", "quantize-weights"

CHANNELS, HEADS, REFIT = "prune-channels", "prune-heads", "refit"

PRUNED = ""
"""The form of a model that is only narrower: its weights stay float."""

FORM_NAMES = {STATIC: "int8 static", DYNAMIC: "int8 dynamic", WEIGHTS: "weights"}

BLOCK = 32
"""Weights per scale in the packed forms that are proposed."""

LEAST_SHARE = 0.5
"""Packed weights are proposed where products hold at least this share of the bytes of all weights."""

DATALESS_METHOD = "hqq"
"""The best method of packing weights that looks at no activations."""

FASTEST_ACCURACY = 4
"""``accuracy-level`` at which packed weights are multiplied as 8-bit integers; others compute in float."""


KINDS = ("scaling", "smoothing", "rounding", "observer", "biases")
"""Kinds of aids in the order in which they act: weights are scaled, then rounded, then ranges are taken, then biases
mended."""


@dataclass(frozen=True)
class Offer:
    """The passes that can be used, and of each its options by name."""

    passes: Mapping[str, Mapping[str, Option]]

    def has(self, name: str, option: str = "", choice: str = "") -> bool:
        """Whether a pass is there, has that option, and the option that choice."""
        found = self.passes.get(name)
        if found is None or (option and option not in found):
            return False
        return not choice or choice in (found[option].choices or ())

    def choices(self, name: str, option: str) -> tuple[str, ...]:
        """The choices of an option that are not its default."""
        found = self.passes.get(name, {}).get(option)
        return tuple(c for c in (found.choices or ()) if c != found.default) if found is not None else ()


def offered() -> Offer:
    """What the catalogue offers now; a pass that cannot be loaded is not offered."""
    found: dict[str, Mapping[str, Option]] = {}
    for name in catalogue.names():
        try:
            found[name] = {o.name: o for o in describe(catalogue.find(name))}
        except (RecipeError, TypeError):
            continue
    return Offer(found)


@dataclass(frozen=True)
class Aid:
    """Something that helps the quality of a form and costs no time in the result: passes around it, options of it.

    ``kind`` groups aids that exclude each other (one observer at a time).
    """

    label: str
    kind: str
    before: tuple[str, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()
    after: tuple[str, ...] = ()

    def needs(self, form: str, offer: Offer) -> bool:
        """Whether everything that it uses is there for that form."""
        passes = all(offer.has(name) for name in (*self.before, *self.after))
        return passes and all(offer.has(form, k, v if isinstance(v, str) else "") for k, v in self.options)


_STATIC_AIDS = (
    Aid("equalized", "scaling", before=("equalize",)),
    Aid("equalized and absorbed", "scaling", before=("equalize", "absorb-bias")),
    Aid("clips opened and equalized", "scaling", before=("open-clip", "equalize")),
    Aid("clips opened, equalized and absorbed", "scaling", before=("open-clip", "equalize", "absorb-bias")),
    Aid("smoothed", "smoothing", before=("smooth",)),
    Aid("biases corrected", "biases", options=(("correct-bias", True),)),
    Aid("biases corrected", "biases", after=("correct-bias",)),
    Aid("rounded adaptively", "rounding", before=("round-adaptively",)),
)
"""Cheapest first: what comes late takes longest to apply."""

_DYNAMIC_AIDS = (
    Aid("smoothed", "smoothing", before=("smooth",)),
    Aid("rounded adaptively", "rounding", before=("round-adaptively",)),
)

_FOLLOWS_EXCLUDE = frozenset({"round-adaptively"})
"""Passes before a form that must leave alone what the form leaves alone."""


@dataclass(frozen=True)
class Point:
    """One recipe of the space: a form with its options, aids around it, layers left in float, and what those get.

    ``narrowed`` are the steps that take channels out and make up for it, ``early`` says that they come before the
    cleaning instead of behind it.
    """

    form: str
    options: tuple[tuple[str, Any], ...] = ()
    aids: tuple[Aid, ...] = ()
    left: frozenset[str] = field(default_factory=frozenset)
    rest: str = ""
    narrowed: tuple[Part, ...] = ()
    early: bool = False

    def recipe(self) -> Recipe:
        """The whole recipe, cleaning included."""
        options = [*self.options, *(o for aid in self.aids for o in aid.options)]
        left = (("exclude", tuple(sorted(self.left))),) if self.left else ()
        options += left
        before = [name for aid in self.aids for name in aid.before]
        parts = [Part(name, left if name in _FOLLOWS_EXCLUDE else ()) for name in before]
        parts += [Part(self.form, tuple(options))] if self.form else []
        if self.rest and self.left:
            parts.append(Part(self.rest, (("only", tuple(sorted(self.left))),)))
        parts += [Part(name) for aid in self.aids for name in aid.after]
        if self.early:
            return Recipe(self.narrowed) + LOSSLESS + Recipe(tuple(parts))
        return LOSSLESS + Recipe(self.narrowed) + Recipe(tuple(parts))

    def label(self, layers: int = 0) -> str:
        """What the closing table calls it; ``layers`` is how many could be quantized."""
        narrower = [_narrower(part) for part in self.narrowed] + (["before cleaning"] if self.early else [])
        if not self.form:
            return ", ".join(narrower)
        said = [FORM_NAMES.get(self.form, self.form), *(_spelled(k, v) for k, v in self.options)]
        parts = [" ".join(filter(None, said)), *narrower, *(aid.label for aid in self.aids)]
        if self.left:
            what = FORM_NAMES.get(self.rest, "float")
            parts.append(f"{len(self.left)} of {layers} layers in {what}" if layers else f"{len(self.left)} in {what}")
        return ", ".join(parts)

    def with_aid(self, aid: Aid) -> Point:
        """The same with one more aid, which takes the place of another of its kind."""
        kept = (a for a in self.aids if a.kind != aid.kind)
        return replace(self, aids=tuple(sorted((*kept, aid), key=_order)))

    def without_aid(self, aid: Aid) -> Point:
        """The same with one aid less."""
        return replace(self, aids=tuple(a for a in self.aids if a != aid))


def _order(aid: Aid) -> int:
    return KINDS.index(aid.kind) if aid.kind in KINDS else len(KINDS)


def _narrower(part: Part) -> str:
    ratio = dict(part.options).get("ratio")
    if part.name == REFIT:
        return "refitted"
    return f"{ratio:.0%} of the work pruned{' by heads' if part.name == HEADS else ''}" if ratio else part.name


def _spelled(key: str, value: Any) -> str:
    if key == "bits":
        return f"of {value} bits"
    if key in ("block", "accuracy-level"):
        return ""
    if key == "method":
        return f"by {value}"
    return f"{key} {value if not isinstance(value, tuple) else '+'.join(value)}"


@dataclass(frozen=True)
class Space:
    """What can be proposed for one model: ``layers`` that could be quantized statically, ``products`` (MatMul and Gemm)
    that could be quantized dynamically or by their weights, which hold ``share`` of all bytes of weights; ``prunable``
    are the passes that find something to narrow."""

    offer: Offer
    calibrated: bool
    layers: tuple[str, ...]
    products: tuple[str, ...]
    share: float = 1.0
    prunable: tuple[str, ...] = ()

    def narrower(self, kind: str, ratio: float) -> tuple[Part, ...]:
        """The steps that remove this share of the multiplications by ``kind`` and fit what is left."""
        refit = (Part(REFIT),) if self.offer.has(REFIT) else ()
        return (Part(kind, (("ratio", ratio),)), *refit)

    def forms(self) -> list[Point]:
        """Every form as it is, the ones that are usually fastest first."""
        found = []
        if self.calibrated and self.layers and self.offer.has(STATIC):
            found.append(Point(STATIC))
        if self.products and self.offer.has(DYNAMIC):
            found.append(Point(DYNAMIC))
        return found + self.packed()

    def packed(self) -> list[Point]:
        """Weights alone, 8 and 4 bits: for models whose time goes into reading them. Without data to calibrate with,
        by the method that needs none."""
        if not self.products or self.share < LEAST_SHARE or not self.offer.has(WEIGHTS, "bits"):
            return []
        known = self.offer.passes[WEIGHTS]
        extras: list[tuple[str, Any]] = []
        if "block" in known:
            extras.append(("block", _nearest(known["block"], BLOCK)))
        if "accuracy-level" in known:
            extras.append(("accuracy-level", _nearest(known["accuracy-level"], FASTEST_ACCURACY)))
        if not self.calibrated and DATALESS_METHOD in self.offer.choices(WEIGHTS, "method"):
            extras.append(("method", DATALESS_METHOD))
        return [Point(WEIGHTS, (("bits", _nearest(known["bits"], bits)), *extras)) for bits in (8, 4)]

    def aids(self, form: str) -> list[Aid]:
        """What may help the quality of a form without costing time."""
        if form == WEIGHTS:
            methods = self.offer.choices(WEIGHTS, "method") if self.calibrated else ()
            return [Aid(f"by {m}", "method", options=(("method", m),)) for m in methods]
        if not self.calibrated or form == PRUNED:
            return []
        if form == DYNAMIC:
            return [a for a in _DYNAMIC_AIDS if a.needs(form, self.offer)]
        observers = self.offer.choices(STATIC, "observer")
        ranges = [Aid(f"{o} ranges", "observer", options=(("observer", o),)) for o in observers]
        return ranges + [a for a in _STATIC_AIDS if a.needs(form, self.offer)]

    def rests(self, left: frozenset[str]) -> list[str]:
        """Forms that layers may take which static int8 leaves alone."""
        return [DYNAMIC] if self.offer.has(DYNAMIC, "only") and left & set(self.products) else []


def _nearest(option: Option, wish: Any) -> Any:
    """``wish`` in the type and range of the option, else its default."""
    if option.choices is not None:
        return str(wish) if str(wish) in option.choices else option.default
    inside = (option.low is None or wish >= option.low) and (option.high is None or wish <= option.high)
    return wish if inside and option.kind in ("int", "float") else option.default


def grouped(layers: Sequence[str], most: int = 24) -> dict[str, tuple[str, ...]]:
    """Layers in groups with a name each, in order: one by one while there are at most ``most``, else by the longest
    name prefixes (parts separated by ``/`` or ``.``) that give few enough groups, else neighbours together."""
    if len(layers) <= most:
        return {name: (name,) for name in layers}
    for depth in range(6, 0, -1):
        groups: dict[str, list[str]] = {}
        for name in layers:
            groups.setdefault(_prefix(name, depth), []).append(name)
        if most / 4 <= len(groups) <= most:
            return {f"{key}*" if len(found) > 1 else found[0]: tuple(found) for key, found in groups.items()}
    size = -(-len(layers) // most)
    chunks = [tuple(layers[i : i + size]) for i in range(0, len(layers), size)]
    return {f"{c[0]} ... {c[-1]}" if len(c) > 1 else c[0]: c for c in chunks}


def _prefix(name: str, depth: int) -> str:
    """The first ``depth`` parts of a name, with their separators."""
    end, seen = 0, 0
    for i, letter in enumerate(name):
        if letter in "/." and i:
            seen += 1
            end = i + 1
            if seen == depth:
                return name[:end]
    return name
