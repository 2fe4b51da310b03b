"""Verdicts: what pays, what holds, what is undecided, and in which words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import pytest

from optimizer.data.metrics import METRICS
from optimizer.decide import judge, ladder
from optimizer.decide.budget import Budget
from optimizer.decide.judge import Stakes
from optimizer.decide.ladder import Facts
from optimizer.decide.space import Space, offered
from optimizer.measure.scales import QualityReading, SpeedReading
from optimizer.measure.stats import DropEstimate, exact_drop
from optimizer.records import Interval, Judgement, Latency, PassNote, Quality, Step, Verdict

SIZES = (1000, 2000)
STAKES = Stakes(Budget.parse(["top1.drop<=0.01"], METRICS["top1"]))


def quality(drop: DropEstimate) -> QualityReading:
    base = Quality("top1", 0.9, 0.88, 0.92, True, drop.n)
    return QualityReading(base, base, drop)


def speed(value: float, low: float, high: float) -> SpeedReading:
    base, mine = (Latency(ms, ms, ms, "cpu", 100) for ms in (10.0, 10.0 / value))
    return SpeedReading(base, mine, Interval(value, low, high), 500, 800, 1.0)


FAST = speed(2.0, 1.9, 2.1)
NONE_LOST, FEW_LOST, MANY_LOST = exact_drop(0, 0, 1000), exact_drop(4, 0, 500), exact_drop(60, 0, 1000)


@pytest.mark.parametrize(
    ("drop", "fast", "word"),
    [
        (NONE_LOST, FAST, Judgement.ACCEPTED),
        (FEW_LOST, FAST, Judgement.ACCEPTED),
        (MANY_LOST, FAST, Judgement.REJECTED),
        (NONE_LOST, speed(1.01, 1.005, 1.02), Judgement.REJECTED),
        (NONE_LOST, speed(0.6, 0.5, 0.7), Judgement.REJECTED),
    ],
)
def test_during_the_search_point_estimates_decide(drop: DropEstimate, fast: SpeedReading, word: Judgement) -> None:
    assert judge.on_select(True, quality(drop), fast, SIZES, STAKES).judgement is word


@pytest.mark.parametrize(
    ("drop", "fast", "word"),
    [
        (NONE_LOST, FAST, Judgement.ACCEPTED),
        (FEW_LOST, FAST, Judgement.UNDECIDED),
        (MANY_LOST, FAST, Judgement.REJECTED),
        (NONE_LOST, speed(1.1, 0.99, 1.2), Judgement.REJECTED),
    ],
)
def test_at_confirm_bounds_decide(drop: DropEstimate, fast: SpeedReading, word: Judgement) -> None:
    verdict = judge.at_confirm(quality(drop), fast, SIZES, STAKES)
    assert verdict.judgement is word
    assert ("more samples" in verdict.need) == (word is Judgement.UNDECIDED)


@pytest.mark.parametrize("judged", [judge.at_confirm, partial(judge.on_select, True)])
def test_a_drop_of_exactly_what_is_allowed_is_within_the_budget(judged: Callable[..., Verdict]) -> None:
    just = replace(exact_drop(5, 0, 500), value=1 - 0.99)  # a little more than 0.01 in binary
    assert judged(quality(just), FAST, SIZES, STAKES).judgement is not Judgement.REJECTED


def test_a_drop_beyond_the_budget_is_rejected_even_when_it_might_be_chance() -> None:
    drop = exact_drop(3, 0, 200)
    assert drop.value > 0.01 > drop.lower_one_sided
    assert judge.at_confirm(quality(drop), FAST, SIZES, STAKES).judgement is Judgement.REJECTED


def test_lossless_models_may_be_as_fast_but_not_slower() -> None:
    assert judge.not_slower(Interval(1.0, 0.99, 1.01))
    assert not judge.not_slower(Interval(0.99, 0.985, 0.995))
    assert not judge.not_slower(Interval(1.0, 0.9, 1.1))
    assert judge.on_select(False, None, speed(0.9, 0.88, 0.92), SIZES, STAKES).judgement is Judgement.REJECTED


@pytest.mark.parametrize(
    ("text", "missed"),
    [
        ("latency<=0.6x", False),
        ("latency<=0.4x", True),
        ("latency<=6ms", False),
        ("latency<=4ms", True),
        ("size<=0.5x", False),
        ("size<=900B", True),
        ("memory<=600B", False),
        ("memory<=0.5x", True),
    ],
)
def test_limits_are_checked_in_their_own_unit(text: str, missed: bool) -> None:
    limits = Budget.parse([text], None).limits()
    assert bool(judge.unmet(limits, FAST, SIZES)) == missed
    verdict = judge.at_confirm(None, FAST, SIZES, Stakes(Budget.parse([text], None)))
    assert (verdict.judgement is Judgement.REJECTED) == missed


@dataclass(frozen=True)
class Entry:
    step: Step


def entry(label: str, value: float, size: int, word: Judgement = Judgement.ACCEPTED) -> Entry:
    return Entry(Step("r", label, Verdict(word, ""), speedup=Interval(value, value, value), size_bytes=size))


def test_the_goal_ranks_what_was_accepted() -> None:
    tried = [entry("a", 2.0, 30), entry("b", 3.0, 40), entry("c", 1.5, 10), entry("d", 9.0, 1, Judgement.REJECTED)]
    assert [t.step.label for t in judge.ranked(tried, "latency")] == ["b", "a", "c"]
    assert [t.step.label for t in judge.ranked(tried, "size")] == ["c", "a", "b"]


def test_where_nothing_lossy_could_be_tried_it_says_why() -> None:
    assert judge.why_lossless([], "no layer") == "nothing that spends quality was tried: no layer"
    assert judge.why_lossless([]) == "nothing that spends quality was tried"


def test_a_recipe_that_did_nothing_says_why() -> None:
    notes = [PassNote("quantize-static", "lossy", 0, 0.1, skips=("conv1: its weight is quantized already",))]
    assert "changes nothing" in judge.nothing_new("source", notes)
    assert "quantized already" in judge.nothing_new("lossless", notes)


# -- the ladder ------------------------------------------------------------------------------------------------------
LAYERS = tuple(f"layer{i}" for i in range(20))


def step(label: str, word: Judgement, value: float, drop: float) -> Step:
    return Step("r", label, Verdict(word, ""), speedup=Interval(value, value, value), drop=Interval(drop, drop, drop))


def test_without_calibration_or_layers_there_is_no_static_rung() -> None:
    assert [r.label for r in ladder.bold(Facts(2, True, LAYERS, LAYERS))] == ["int8 static", "int8 dynamic"]
    assert [r.label for r in ladder.bold(Facts(2, False, LAYERS, LAYERS))] == ["int8 dynamic"]
    assert ladder.bold(Facts(2, True, (), ())) == []
    (half,) = ladder.bold(Facts(2, True, (), (), half=True))
    assert half.label == "float16" and half.recipe.text().endswith("tidy, convert-float16")


def timed(speedup: float, ms: float) -> Step:
    """A step that takes so many milliseconds and is so much faster than the source."""
    return replace(step("int8", Judgement.REJECTED, speedup, 0.0), latency_ms=Latency(ms, ms, ms, "cpu", 100))


@pytest.mark.parametrize(
    ("goal", "size_bytes", "ms", "wanted"),
    [
        ("latency", 500_000_000, 60.0, True),
        ("latency", 500_000_000, 400.0, False),
        ("latency", 5_000_000, 0.6, False),
        ("size", 5_000_000, 0.6, True),
        ("memory", 500_000_000, 400.0, True),
    ],
    ids=["bound by reading", "bound by computing", "fits the caches", "to be small", "to need little memory"],
)
def test_weights_alone_are_packed_where_reading_them_takes_the_time_or_the_space(
    goal: str, size_bytes: int, ms: float, wanted: bool
) -> None:
    space = Space(offered(), True, LAYERS, LAYERS)
    rungs = ladder.packed(space, goal, size_bytes, [timed(4.0, ms / 4)])
    assert [r.label for r in rungs] == (["weights of 8 bits", "weights of 4 bits"] if wanted else [])


def test_weights_are_packed_by_a_method_that_needs_no_data_where_there_is_none_to_calibrate_with() -> None:
    rungs = ladder.packed(Space(offered(), False, (), LAYERS), "size", 10**6, [])
    assert [dict(r.recipe.steps[-1].options)["method"] for r in rungs] == ["hqq", "hqq"]
    assert ladder.packed(Space(offered(), True, LAYERS, (), 0.0), "size", 10**6, []) == []


@pytest.mark.parametrize(
    ("word", "value", "drop", "wanted"),
    [
        (Judgement.REJECTED, 2.0, 0.03, True),
        (Judgement.ACCEPTED, 2.0, 0.008, True),
        (Judgement.ACCEPTED, 2.0, 0.001, False),
        (Judgement.REJECTED, 0.8, 0.03, False),
    ],
    ids=["lost too much", "only just held", "held with room", "slower anyway"],
)
def test_gentler_rungs_are_tried_where_they_can_help(word: Judgement, value: float, drop: float, wanted: bool) -> None:
    facts = Facts(2, True, LAYERS, ())
    assert ladder.wants_gentler(facts, [step("int8 static", word, value, drop)], 0.01) == wanted


@pytest.mark.parametrize(
    ("word", "value", "drop", "wanted"),
    [
        (Judgement.REJECTED, 2.0, 0.03, True),
        (Judgement.ACCEPTED, 2.0, 0.008, True),
        (Judgement.ACCEPTED, 2.0, 0.001, False),
        (Judgement.REJECTED, 0.8, 0.03, False),
    ],
)
def test_more_care_is_tried_before_layers_are_left_in_float(
    word: Judgement, value: float, drop: float, wanted: bool
) -> None:
    rungs = ladder.refined(Facts(2, True, LAYERS, ()), [step("int8 static", word, value, drop)], 0.01)
    assert bool(rungs) == wanted
    assert not any("exclude" in dict(r.recipe.steps[-1].options) for r in rungs)


def test_gentler_rungs_leave_the_most_sensitive_layers_in_float_boldest_first() -> None:
    rungs = ladder.gentler(Facts(2, True, LAYERS, ()), {name: float(i) for i, name in enumerate(LAYERS)})
    kept = [dict(r.recipe.steps[-1].options)["exclude"] for r in rungs]
    assert [len(k) for k in kept] == sorted({len(k) for k in kept})
    assert kept[0] == ("layer19",) and set(kept[0]) < set(kept[-1])
    assert all(len(k) < len(LAYERS) for k in kept)


def test_what_the_lossless_model_gives_for_nothing_is_not_bought_again() -> None:
    free = Stakes(STAKES.budget, "latency", free_speedup=1.8)
    bought = judge.on_select(True, quality(NONE_LOST), speed(1.81, 1.79, 1.83), SIZES, free)
    assert bought.judgement is Judgement.REJECTED and "lossless model gives 1.80x" in bought.reason
    assert judge.on_select(True, quality(NONE_LOST), FAST, SIZES, free).judgement is Judgement.ACCEPTED


def test_for_size_a_smaller_model_pays_that_is_not_slower() -> None:
    small = Stakes(STAKES.budget, "size", free_speedup=1.5, free_bytes=1900)
    as_fast, slower = speed(1.0, 0.99, 1.01), speed(0.9, 0.89, 0.91)
    assert judge.on_select(True, quality(NONE_LOST), as_fast, (900, 2000), small).judgement is Judgement.ACCEPTED
    assert judge.on_select(True, quality(NONE_LOST), as_fast, (1890, 2000), small).judgement is Judgement.REJECTED
    assert judge.on_select(True, quality(NONE_LOST), slower, (900, 2000), small).judgement is Judgement.REJECTED
    assert judge.at_confirm(quality(NONE_LOST), as_fast, (900, 2000), small).judgement is Judgement.ACCEPTED


def test_the_gentlest_goes_to_confirm_beside_the_fastest() -> None:
    drops = {"a": 0.009, "b": 0.009, "c": 0.008, "d": 0.001, "e": 0.004}
    tried = [Entry(step(name, Judgement.ACCEPTED, 3.0 - i / 10, drop)) for i, (name, drop) in enumerate(drops.items())]
    assert [t.step.label for t in judge.contenders(tried, "latency", 3)] == ["a", "b", "d"]
    assert [t.step.label for t in judge.contenders(tried[:2], "latency", 3)] == ["a", "b"]
