"""Advice: each rule speaks when its evidence is there, with a recipe that can be built."""

from __future__ import annotations

from dataclasses import replace

from optimizer.decide.advise import advice
from optimizer.decide.space import offered
from optimizer.measure.explain import Advice, Explanation, Layer
from optimizer.measure.explain_graph import Island, OpTime, Unfused
from passes import catalogue
from passes.kit.recipe import Recipe

OFFER = offered()
GOOD = tuple(Layer(f"c{i}", "Conv", "int8", "QLinearConv", 40.0, 1.0, 50.0, 0.05, 0.02) for i in range(6))
CALM = Explanation(
    "m", "quantize/dequantize pairs", "its twin", 'tidy, quantize-static{exclude=["/head"]}', "cpu", 8, 40.0, 60.0,
    GOOD, (), (), (OpTime("Conv", 6, 0.3),), (OpTime("QLinearConv", 6, 0.12),), (),
)  # fmt: skip


def given(found: Explanation) -> tuple[Advice, ...]:
    made = advice(found, OFFER)
    for one in made:
        catalogue.build(Recipe.parse(one.recipe))
    return made


def test_nothing_stands_out() -> None:
    (one,) = given(CALM)
    assert "nothing stands out" in one.text and "-O3" in one.text and not one.recipe


def test_a_slower_layer_is_to_be_left_in_float_beside_what_is_already() -> None:
    slow = replace(GOOD[0], before_ms=0.01, after_ms=0.03)
    (one,) = given(replace(CALM, layers=(slow, *GOOD[1:])))
    assert one.text == "c0 is slower in integers than in float"
    assert one.recipe == 'tidy, quantize-static{exclude=["/head", "c0"]}'


def test_a_hair_is_not_slower() -> None:
    hair = replace(GOOD[0], before_ms=0.0100, after_ms=0.0115)
    assert "nothing stands out" in given(replace(CALM, layers=(hair, *GOOD[1:])))[0].text


def test_pairs_that_did_not_fuse_islands_and_signed_activations() -> None:
    pair, island = Unfused("c1", "Conv", True, 0.02), Island(("act",), ("Sigmoid",), 2, 0.01)
    broken = replace(CALM, unfused=(pair,), islands=(island,), signed=True)
    texts = [a.text for a in given(broken)]
    assert any("c1 is quantized in the file but computed in float" in t for t in texts)
    assert any("float islands take 10 us: Sigmoid" in t for t in texts)
    assert OFFER.has("requantize-form") == any("signed" in t for t in texts)
    meant = replace(broken, islands=(Island(("c1",), ("Conv",), 2, 0.01),))
    assert not any("islands" in a.text for a in given(meant)), "a layer that was left in float is no accident"


def test_many_pairs_that_did_not_fuse_ask_for_another_start() -> None:
    pairs = tuple(Unfused(f"c{i}", "Conv", True, 0.02) for i in range(4))
    slow = tuple(replace(y, after_ms=0.2) for y in GOOD[:4])
    (one,) = given(replace(CALM, unfused=pairs, layers=(*slow, *GOOD[4:])))
    assert "anew" in one.text and one.recipe.endswith("quantize-static")


def test_one_layer_that_does_most_of_the_damage() -> None:
    worst = replace(GOOD[2], alone_db=30.0)
    (one,) = given(replace(CALM, output_db=32.0, layers=(worst, *GOOD[:2], *GOOD[3:])))
    assert one.text.startswith("c2 cause") and 'exclude=["/head", "c2"]' in one.recipe


def test_little_signal_asks_for_other_ranges() -> None:
    texts = [a.recipe for a in given(replace(CALM, output_db=20.0, recipe=""))]
    assert any("observer=" in t for t in texts)
    assert all(t.startswith("tidy") for t in texts), "nobody knows the recipe, so it starts with cleaning"


def test_what_the_runtime_quantizes_itself() -> None:
    layer = Layer("c9", "Conv", "float", "QLinearConv")
    assert any(
        "the runtime quantizes the weights itself" in a.text for a in given(replace(CALM, layers=(*GOOD, layer)))
    )
