"""The strategy of -O3 on landscapes that are known as a whole: what it asks, when it stops, what it ends with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from optimizer.decide.search import Ask, Depth, Facts, Seen, prices, strategy
from optimizer.decide.space import DYNAMIC, STATIC, WEIGHTS, Offer, Point, Space, grouped, offered
from optimizer.records import Sensitivity
from passes import catalogue
from passes.kit.options import Option

LAYERS = tuple(f"layer{i}" for i in range(12))
MARGIN = 0.01


def option(name: str, *choices: str, kind: str = "str") -> Option:
    return Option(name, kind, choices[0] if choices else (), "help", choices=choices or None)


OFFER = Offer(
    {
        STATIC: {o.name: o for o in (option("observer", "minmax", "mse", "entropy"), option("exclude", kind="list"))},
        DYNAMIC: {"only": option("only", kind="list")},
        "equalize": {},
        "smooth": {},
    }
)
SPACE = Space(OFFER, True, LAYERS, ())


@dataclass
class Landscape:
    """Answers from formulas: drops add up over layers, aids take a share away, layers in float cost speed."""

    damage: dict[str, float]
    helps: dict[str, float] = field(default_factory=dict)
    slow: dict[str, float] = field(default_factory=dict)
    margin: float | None = MARGIN
    asked: list[Ask] = field(default_factory=list)

    def drop(self, point: Point) -> float:
        share = 1.0
        for aid in point.aids:
            share *= self.helps.get(aid.label, 1.3)
        return share * sum(d for n, d in self.damage.items() if n not in point.left)

    def gain(self, point: Point) -> float:
        lost = sum(self.slow.get(n, 0.15) for n in point.left)
        return (3.0 if point.form == STATIC else 1.5) - lost

    def answer(self, ask: Ask) -> Seen:
        self.asked.append(ask)
        drop = self.drop(ask.point)
        if ask.depth is Depth.GLANCE:
            return Seen(sqnr=-100 * drop)
        holds = self.margin is None or drop <= self.margin
        gain = self.gain(ask.point)
        return Seen(None, holds and gain > 1.02, gain if holds else None, drop, gain > 1.02)

    def evidence(self) -> Sensitivity:
        saved = {n: self.slow.get(n, 0.15) for n in self.damage}
        return Sensitivity("made up", self.damage, saved, 1.0, grouped(tuple(self.damage)))


def walk(land: Landscape, space: Space = SPACE, stop: Callable[[int], bool] = lambda _: False) -> Point | None:
    """Run the strategy to its end (or until ``stop``) and return the fastest accepted point."""
    slower = {STATIC: {n: -v for n, v in land.slow.items() if v < 0}}
    asking = strategy(Facts(space, land.margin, land.evidence(), slower))
    seen: dict[Point, Seen] = {}
    answer: Seen | None = None
    while not stop(len(land.asked)):
        try:
            ask = asking.send(answer) if answer is not None else next(asking)
        except StopIteration:
            break
        answer = land.answer(ask)
        if ask.depth is Depth.FULL:
            assert ask.point not in seen, "the same recipe is never measured twice"
            seen[ask.point] = answer
    held = [p for p, s in seen.items() if s.accepted]
    return max(held, key=lambda p: seen[p].gain or 0.0) if held else None


def test_a_form_that_holds_with_room_needs_no_search() -> None:
    land = Landscape(dict.fromkeys(LAYERS, 1e-4))
    assert walk(land) == Point(STATIC)
    assert [a.depth for a in land.asked if a.point.form == STATIC] == [Depth.FULL]


def test_aids_that_help_are_put_together_before_layers_are_given_up() -> None:
    land = Landscape(dict.fromkeys(LAYERS, 0.002), {"mse ranges": 0.3, "equalized": 0.5})
    best = walk(land)
    assert best is not None and not best.left
    assert {a.label for a in best.aids} == {"mse ranges", "equalized"}
    assert "smoothed" not in best.label(), "what does not help is left out"


@pytest.mark.parametrize("bad", [1, 2, 3, 5])
def test_the_fewest_damaging_layers_are_left_in_float(bad: int) -> None:
    damage = {n: 0.02 if i < bad else 1e-5 for i, n in enumerate(LAYERS)}
    land = Landscape(damage)
    best = walk(land)
    assert best is not None and best.left == frozenset(LAYERS[:bad])
    assert sum(a.depth is Depth.FULL for a in land.asked) < 25


def test_leaving_out_ends_where_nothing_is_saved_any_more() -> None:
    land = Landscape(dict.fromkeys(LAYERS, 0.02), slow=dict.fromkeys(LAYERS, 0.6))
    assert walk(land) is None
    counts = [len(a.point.left) for a in land.asked if a.point.left]
    assert max(counts) == 10, "with eleven of twelve in float hardly any time is saved, so that is not looked at"


def test_an_aid_that_helps_only_beside_a_later_one_is_found_in_the_second_round() -> None:
    land = Landscape(dict.fromkeys(LAYERS, 0.002), {"mse ranges": 0.6})
    alone = land.drop
    both = {"equalized", "mse ranges"}
    land.drop = lambda point: 1e-4 if both <= {a.label for a in point.aids} else alone(point)  # type: ignore[method-assign]
    best = walk(land)
    assert best is not None and {a.label for a in best.aids} == both and not best.left
    assert both in [{aid.label for aid in a.point.aids} for a in land.asked if a.depth is Depth.GLANCE]


def test_a_harmless_layer_of_a_group_that_was_left_out_is_taken_back() -> None:
    damage = {f"block{i}/{part}": 1e-5 for i in range(14) for part in "ab"} | {"block3/a": 0.02}
    land = Landscape(damage)
    best = walk(land, Space(OFFER, True, tuple(damage), ()))
    assert frozenset({"block3/a", "block3/b"}) in {a.point.left for a in land.asked}
    assert best is not None and best.left == {"block3/a"}


def test_layers_that_integers_make_slower_are_left_in_float() -> None:
    land = Landscape(dict.fromkeys(LAYERS, 1e-5), slow={"layer0": -0.2, "layer7": -0.1})
    best = walk(land)
    assert best is not None and best.left == {"layer0", "layer7"}


def test_it_may_be_stopped_at_any_moment_and_keeps_what_held() -> None:
    damage = {n: 0.02 if i < 3 else 1e-5 for i, n in enumerate(LAYERS)}
    whole = Landscape(damage)
    walk(whole)
    for count in range(len(whole.asked)):
        land = Landscape(damage)
        walk(land, stop=lambda asked, most=count: asked >= most)
        assert land.asked == whole.asked[:count], "the same answers give the same questions"


def test_nothing_that_pays_ends_without_leaving_layers_out() -> None:
    land = Landscape(dict.fromkeys(LAYERS, 0.05))
    land.gain = lambda point: 0.9  # type: ignore[method-assign]
    assert walk(land) is None
    assert all(not a.point.left for a in land.asked)


def test_only_what_is_offered_is_proposed() -> None:
    asked = {a.point for offer in (Offer({}), OFFER) for a in _asked(Space(offer, True, LAYERS, LAYERS))}
    passes = {step.name for p in asked for step in p.recipe().steps} - {s.name for s in catalogue.LOSSLESS.steps}
    assert passes == {STATIC, DYNAMIC, "equalize", "smooth"}
    uncalibrated = {a.point.form for a in _asked(Space(OFFER, False, (), LAYERS))}
    assert uncalibrated == {DYNAMIC}


def _asked(space: Space) -> list[Ask]:
    land = Landscape(dict.fromkeys(LAYERS, 0.002))
    walk(land, space)
    return land.asked


def test_every_point_of_the_real_catalogue_is_a_recipe_that_can_be_built() -> None:
    space = Space(offered(), True, LAYERS, LAYERS)
    points = [p.with_aid(a) for p in space.forms() for a in space.aids(p.form)]
    points += [Point(STATIC, left=frozenset(LAYERS[:2]), rest=r) for r in space.rests(frozenset(LAYERS[:2]))]
    assert {p.form for p in points} >= {STATIC}
    for point in points:
        recipe = point.recipe()
        catalogue.build(recipe)
        assert type(recipe).parse(recipe.text()) == recipe
    labels = [p.label(len(LAYERS)) for p in points]
    assert len(set(labels)) == len(labels)


def test_what_is_left_out_is_left_out_by_every_pass_that_rounds() -> None:
    space = Space(offered(), True, LAYERS, ())
    aid = next((a for a in space.aids(STATIC) if "round-adaptively" in a.before), None)
    if aid is None:
        pytest.skip("no pass rounds adaptively here")
    steps = Point(STATIC, aids=(aid,), left=frozenset({"a"})).recipe().steps
    assert [dict(s.options).get("exclude") for s in steps if s.name in ("round-adaptively", STATIC)] == [("a",), ("a",)]


def test_packed_weights_are_proposed_where_products_hold_the_weights() -> None:
    packing = Offer({WEIGHTS: {"bits": Option("bits", "int", 4, "help", 2, 8)}})
    assert [dict(p.options)["bits"] for p in Space(packing, True, (), LAYERS, 0.9).forms()] == [8, 4]
    assert not Space(packing, True, (), LAYERS, 0.1).forms()


def test_prices_weigh_damage_against_time() -> None:
    evidence = Sensitivity("", {"a": 1.0, "b": 1.0, "c": 1.0}, {"a": 0.5, "b": 0.1, "c": -1.0}, 1.0)
    found = prices(evidence)
    assert found["a"] < found["b"] < found["c"]
    assert prices(Sensitivity("", {"a": 2.0})) == {"a": 2.0}


def test_groups_follow_names_and_else_neighbours() -> None:
    few = ("a", "b")
    assert grouped(few) == {"a": ("a",), "b": ("b",)}
    blocks = [f"/layers.{i}/{part}" for i in range(9) for part in ("q", "k", "v", "o")]
    found = grouped(blocks)
    assert len(found) == 9 and found["/layers.0/*"] == tuple(blocks[:4])
    flat = [f"node{i}" for i in range(100)]
    found = grouped(flat)
    assert len(found) <= 24 and [n for names in found.values() for n in names] == flat


# -- narrower networks ------------------------------------------------------------------------------------------------
NARROW = Offer(OFFER.passes | {"prune-channels": {"ratio": option("ratio", kind="float")}, "refit": {}})


@dataclass
class Narrowing(Landscape):
    """Each share of the work that is pruned costs as much quality and wins as much time."""

    costs: float = 0.01
    late: bool = True

    def drop(self, point: Point) -> float:
        return super().drop(point) * bool(point.form) + self.costs * self.pruned(point)

    def gain(self, point: Point) -> float:
        faster = 1 + self.pruned(point) + 0.1 * (point.early != self.late) * bool(point.narrowed)
        return (super().gain(point) if point.form else 1.0) * faster

    def pruned(self, point: Point) -> float:
        return sum(float(dict(p.options).get("ratio", 0)) for p in point.narrowed)


def narrow_space() -> Space:
    return Space(NARROW, True, LAYERS, (), prunable=("prune-channels",))


@pytest.mark.parametrize(("costs", "ratio"), [(0.01, 0.55), (0.02, 0.4), (0.07, 0.12), (0.2, 0.0)])
def test_as_much_is_pruned_as_the_quality_bears(costs: float, ratio: float) -> None:
    land = Narrowing(dict.fromkeys(LAYERS, 1e-5), costs=costs)
    best = walk(land, narrow_space())
    assert best is not None and best.form == STATIC and land.pruned(best) == ratio
    texts = [a.point.recipe().text() for a in land.asked]
    assert any("prune-channels{ratio=0.25}, refit" in t for t in texts)
    assert any(t.endswith(f"prune-channels{{ratio={ratio}}}") for t in texts) or not ratio, "what the fit wins is told"


@pytest.mark.parametrize("late", [True, False])
def test_both_orders_of_pruning_and_cleaning_are_tried(late: bool) -> None:
    land = Narrowing(dict.fromkeys(LAYERS, 1e-5), late=late)
    best = walk(land, narrow_space())
    assert best is not None and best.narrowed and best.early != late
    text = best.recipe().text()
    assert text.startswith("prune-channels") == best.early
    assert text.index("refit") < text.index("quantize-static")


def test_narrower_points_say_what_was_pruned() -> None:
    narrowed = narrow_space().narrower("prune-channels", 0.25)
    assert Point("", narrowed=narrowed).label() == "25% of the work pruned, refitted"
    assert Point(STATIC, narrowed=narrowed).label() == "int8 static, 25% of the work pruned, refitted"
