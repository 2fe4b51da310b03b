"""The pruning passes, before and after."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from passes import catalogue
from passes.kit.context import NoData
from passes.kit.contract import PassResult
from passes.kit.model import Model, constant
from passes.kit.options import OptionError
from passes.kit.recipe import Recipe, RecipeError
from passes.prune import layers
from passes.prune.cut import kept_of
from passes.prune.prune_channels import PruneChannels
from passes.prune.prune_heads import PruneHeads
from passes.prune.prune_magnitude import PruneMagnitude
from passes.prune.prune_nm import PruneNm
from passes.prune.refit import Refit
from tests.support.runtime import Array, LocalContext, model, run, target

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
BLOCK = """g (float[n,3,6,6] x) => (float[n,4] y) {
    c = Conv<pads=[1,1,1,1]>(x, w1, b1) r = Relu(c) d = Conv<pads=[1,1,1,1]>(r, w2, b2) s = Relu(d)
    p = GlobalAveragePool(s) f = Flatten(p) y = Gemm<transB=1>(f, w3, b3) }"""
rng = np.random.default_rng(11)


def normal(*shape: int, scale: float = 1.0) -> Array:
    return (rng.standard_normal(shape) * scale).astype(np.float32)


def block(*idle: int) -> Model:
    """Two convolutions of 8 channels; the weights that read the channels ``idle`` of the first are next to nothing."""
    w2 = normal(8, 8, 3, 3, scale=0.2)
    w2[:, list(idle)] *= 1e-4
    return model(
        HEAD + BLOCK,
        w1=normal(8, 3, 3, 3, scale=0.3),
        b1=normal(8, scale=0.1),
        w2=w2,
        b2=normal(8, scale=0.1),
        w3=normal(4, 8, scale=0.4),
        b3=normal(4),
    )


@pytest.fixture(autouse=True)
def _same_numbers_whatever_ran_before() -> None:
    global rng
    rng = np.random.default_rng(11)


FEEDS = [{"x": normal(1, 3, 6, 6)} for _ in range(24)]


def shapes(subject: Model) -> dict[str, tuple[int, ...]]:
    return {name: tuple(v.const_value.shape.numpy()) for name, v in subject.graph.initializers.items() if v.const_value}


def worst(before: Model, after: Model, feeds: Sequence[dict[str, Array]] = FEEDS) -> float:
    error = energy = 0.0
    for feed in feeds:
        wanted, got = run(before, feed)["y"], run(after, feed)["y"]
        error, energy = error + float(((wanted - got) ** 2).sum()), energy + float((wanted**2).sum())
    return error / energy


# -- prune-channels ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("importance", ["obs", "activation"])
def test_the_channels_that_nobody_reads_go_first(importance: str) -> None:
    before = block(1, 2, 5, 7)
    subject = PruneChannels(multiple=1, importance=importance, keep=("c=4",))
    after = subject(before, LocalContext(FEEDS)).model
    assert shapes(after)["w1"] == (4, 3, 3, 3) and shapes(after)["b1"] == (4,) and shapes(after)["w2"] == (8, 4, 3, 3)
    kept = constant(before.graph.initializers["w1"])
    np.testing.assert_array_equal(constant(after.graph.initializers["w1"]), kept[[0, 3, 4, 6]])  # type: ignore[index]
    assert worst(before, after) < 1e-6


@pytest.mark.parametrize("importance", ["l1", "l2"])
def test_small_filters_go_first_by_weights_alone(importance: str) -> None:
    before = block()
    w1 = np.array(constant(before.graph.initializers["w1"]))
    w1[[0, 6]] *= 0.01
    before = model(
        HEAD + BLOCK, **{k: np.array(constant(v)) for k, v in before.graph.initializers.items()} | {"w1": w1}
    )
    after = PruneChannels(multiple=1, importance=importance, keep=("c=6",))(before, LocalContext(FEEDS)).model
    np.testing.assert_array_equal(constant(after.graph.initializers["w1"]), w1[[1, 2, 3, 4, 5, 7]])


def test_the_goal_is_met_where_it_does_least_damage() -> None:
    before = block(1, 2, 5, 7)
    result = PruneChannels(multiple=1, goal="macs<=0.6x")(before, LocalContext(FEEDS))
    assert [c.where for c in result.changes] == ["c"], "the second layer's channels are all read"
    assert worst(before, result.model) < 1e-6


def test_widths_are_multiples_of_what_the_target_likes() -> None:
    wide = model(
        HEAD + "g (float[n,4] x) => (float[n,4] y) { h = MatMul(x, a) r = Relu(h) y = MatMul(r, b) }",
        a=normal(4, 48), b=normal(48, 4),
    )  # fmt: skip
    feeds = [{"x": normal(8, 4)} for _ in range(8)]
    result = PruneChannels(ratio=0.4)(wide, LocalContext(feeds))
    assert shapes(result.model)["a"] == (4, 16)
    assert target().channel_multiple == 16
    result = PruneChannels(ratio=0.4, multiple=4)(wide, LocalContext(feeds))
    assert shapes(result.model)["a"] == (4, 28)


def test_a_goal_out_of_reach_says_what_is_in_reach() -> None:
    result = PruneChannels(multiple=1, goal="macs<=0.01x")(block(), LocalContext(FEEDS))
    assert not result.changes
    (skip,) = [s for s in result.skips if s.where == "goal"]
    assert "cannot be met" in skip.reason and "macs<=0.1" in skip.reason


def test_a_size_goal_counts_bytes() -> None:
    before = block()
    after = PruneChannels(multiple=1, goal="size<=50%")(before, LocalContext(FEEDS)).model
    assert after.weight_bytes() <= 0.5 * before.weight_bytes()


def test_a_latency_goal_reads_the_clock() -> None:
    asked: list[tuple[int, int]] = []

    def costs(subject: Model) -> float:
        """A target on which only the first layer's width takes time."""
        asked.append((shapes(subject)["w1"][0], shapes(subject)["w2"][0]))
        return 1.0 + shapes(subject)["w1"][0]

    result = PruneChannels(multiple=1, goal="latency<=0.7x")(block(), LocalContext(FEEDS, costs=costs))
    assert [c.where for c in result.changes] == ["c"]
    assert costs(result.model) <= 0.7 * 9
    assert (2, 8) in asked and (8, 2) in asked, "each group was timed alone"
    stuck = PruneChannels(multiple=1, goal="latency<=0.7x")(block(), LocalContext(FEEDS, costs=lambda m: 5.0))
    assert not stuck.changes and any("latency<=1x" in s.reason for s in stuck.skips)


def test_what_cannot_go_is_told_with_its_reason() -> None:
    result = PruneChannels(multiple=1)(block(), LocalContext(FEEDS))
    assert ("y", "it is an output of the model, whose signature must stay") in [
        (s.where, s.reason) for s in result.skips
    ]


def test_shares_of_many_groups_at_once() -> None:
    after = PruneChannels(multiple=2, keep=("*=70%",))(block(), LocalContext(FEEDS)).model
    assert shapes(after)["w2"] == (6, 6, 3, 3)


def test_options_that_mean_nothing() -> None:
    with pytest.raises(RecipeError, match="did you mean 'activation'"):
        catalogue.build(Recipe.parse("prune-channels{importance=activations}"))
    with pytest.raises(OptionError, match="did you mean 'latency'"):
        PruneChannels(goal="latenci<=0.5x")
    with pytest.raises(OptionError, match="is no goal"):
        PruneChannels(goal="half")
    with pytest.raises(OptionError, match="takes nothing away"):
        PruneChannels(goal="macs<=1.5x")
    told = PruneChannels(keep=("c", "cc=3"))(block(), LocalContext(FEEDS))
    assert not told.changes
    reasons = [s.reason for s in told.skips]
    assert (
        "this is not of the form layer=48 or layer=75%" in reasons
        and "no such group can be cut (did you mean 'c'?)" in reasons
    )
    (built,) = catalogue.build(Recipe.parse("prune-channels{goal=latency<=0.8x}"))
    assert built == PruneChannels(goal="latency<=0.8x")


def test_without_data_nothing_is_pruned() -> None:
    with pytest.raises(NoData):
        PruneChannels(multiple=1)(block(), LocalContext())


# -- prune-heads ------------------------------------------------------------------------------------------------------
ATTENTION = """g (float[n,s,8] x) => (float[n,s,8] y) {
    a = MatMul(x, w) q0, k0, v0 = Split<axis=2>(a, parts)
    sh = Shape(x) lead = Slice(sh, zero, two) sizes = Concat<axis=0>(lead, form)
    q1 = Reshape(q0, sizes) k1 = Reshape(k0, sizes) v1 = Reshape(v0, sizes)
    q = Transpose<perm=[0,2,1,3]>(q1) k = Transpose<perm=[0,2,3,1]>(k1) v = Transpose<perm=[0,2,1,3]>(v1)
    t = MatMul(q, k) p = Softmax<axis=-1>(t) o = MatMul(p, v)
    o1 = Transpose<perm=[0,2,1,3]>(o) wide = Concat<axis=0>(lead, flat) o2 = Reshape(o1, wide) y = MatMul(o2, u) }"""


def test_whole_heads_go_with_their_queries_keys_and_values() -> None:
    u = normal(8, 8)
    u[4:6] *= 1e-3  # the third of four heads is hardly read
    before = model(
        HEAD + ATTENTION, w=normal(8, 24), u=u, parts=np.array([8, 8, 8]), zero=np.array([0]), two=np.array([2]),
        form=np.array([4, 2]), flat=np.array([8]),
    )  # fmt: skip
    feeds = [{"x": normal(2, 3, 8)} for _ in range(8)]
    assert not PruneChannels(multiple=1)(before, LocalContext(feeds)).changes, "heads are not channels"
    after = PruneHeads(keep=("a=3",))(before, LocalContext(feeds)).model
    assert shapes(after)["w"] == (8, 18) and shapes(after)["u"] == (6, 8)
    kept = [i for i in range(24) if i % 8 not in (4, 5)]
    whole = constant(before.graph.initializers["w"])
    assert whole is not None
    np.testing.assert_array_equal(constant(after.graph.initializers["w"]), whole[:, kept])
    for size in (1, 3, 5):
        x = normal(2, size, 8)
        np.testing.assert_allclose(run(after, {"x": x})["y"], run(before, {"x": x})["y"], atol=0.05)


# -- prune-magnitude, prune-nm ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_half_of_each_weight_becomes_zero_and_nothing_is_promised(method: str) -> None:
    result = PruneMagnitude(method=method)(block(), LocalContext(FEEDS))
    assert [c.where for c in result.changes] == ["c", "d", "y"]
    for name in ("w1", "w2", "w3"):
        array = constant(result.model.graph.initializers[name])
        assert array is not None and abs((array == 0).mean() - 0.5) < 0.02
    assert any("no faster here" in s.reason for s in result.skips)
    assert shapes(result.model) == shapes(block())


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_two_of_four_neighbours_stay(method: str) -> None:
    result = PruneNm(method=method)(block(), LocalContext(FEEDS))
    array = constant(result.model.graph.initializers["w3"])
    assert array is not None
    np.testing.assert_array_equal((array.reshape(4, -1, 4) == 0).sum(axis=2), 2)
    assert [s.where for s in result.skips if "no multiple of 4" in s.reason] == ["c"]
    assert any("no faster here" in s.reason for s in result.skips)
    fast = PruneNm(method=method)(block(), LocalContext(FEEDS, target("tensorrt")))
    assert "2:4 kernels" in fast.changes[0].detail
    assert not any("no faster" in s.reason for s in fast.skips)


def test_looking_at_data_loses_less() -> None:
    before = block()
    lost = [
        worst(before, PruneMagnitude(method=m)(before, LocalContext(FEEDS)).model) for m in ("sparsegpt", "magnitude")
    ]
    assert lost[0] < 0.7 * lost[1]


# -- refit ------------------------------------------------------------------------------------------------------------
def test_refit_wins_back_what_can_be_won() -> None:
    before = block()
    cut = PruneChannels(multiple=1, keep=("c=5",))(before, LocalContext(FEEDS)).model
    context = LocalContext(FEEDS, original=before)
    result = Refit(ridge=1e-6, rows=64)(cut, context)
    assert worst(before, result.model) < 0.3 * worst(before, cut)
    assert result.model.signature == before.signature
    fresh = [{"x": normal(1, 3, 6, 6)} for _ in range(20)]
    errors = [
        sum(float(((run(m, f)["y"] - run(before, f)["y"]) ** 2).sum()) for f in fresh) for m in (cut, result.model)
    ]
    assert errors[1] < 0.5 * errors[0], "on samples that it has not seen"


def test_a_layer_whose_inputs_repeat_others_is_fitted_exactly() -> None:
    """A hidden unit that doubles another: the fit moves its weight onto the other one."""
    a = normal(4, 6)
    a[:, 5] = 2 * a[:, 0]
    before = model(
        HEAD + "g (float[n,4] x) => (float[n,3] y) { h = MatMul(x, a) y = MatMul(h, b) }", a=a, b=normal(6, 3)
    )
    feeds = [{"x": normal(16, 4)} for _ in range(8)]
    cut = PruneChannels(multiple=1, keep=("h=5",))(before, LocalContext(feeds)).model
    after = Refit(ridge=0.0)(cut, LocalContext(feeds, original=before)).model
    x = normal(7, 4)
    np.testing.assert_allclose(run(after, {"x": x})["y"], run(before, {"x": x})["y"], atol=1e-3)


def test_a_branch_makes_up_for_its_shortcut(monkeypatch: pytest.MonkeyPatch) -> None:
    text = """g (float[n,4,5,5] x) => (float[n,4,5,5] y) {
        s = Conv(x, w0) h = Relu(s) a = Conv(h, w1, b1) r = Relu(a) b = Conv(r, w2, b2)
        t = Add(b, h) y = Conv(t, w3) }"""
    held = {f"w{i}": normal(6 if i < 3 else 4, 4 if i == 0 else 6, 1, 1) for i in range(4)}
    before = model(HEAD + text, **held, b1=normal(6), b2=normal(6))
    feeds = [{"x": normal(1, 4, 5, 5)} for _ in range(40)]
    context = LocalContext(feeds, original=before)
    cut = PruneChannels(multiple=1, keep=("s=5",))(before, context).model

    def error(subject: Model) -> float:
        """At the sum of branch and shortcut, less the channel that is gone."""
        fewer = [(run(subject, f, ["t"])["t"], run(before, f, ["t"])["t"]) for f in feeds]
        kept = kept_of(subject, "b", 1)
        return sum(float(((got - wanted[:, kept]) ** 2).sum()) for got, wanted in fewer)

    both = Refit(only=("b",))(cut, context)
    assert [c.where for c in both.changes] == ["b"] and error(both.model) < 0.95 * error(cut)
    monkeypatch.setattr(layers, "_sum_behind", lambda layer: None)
    assert error(both.model) < error(Refit(only=("b",))(cut, context).model)


def test_too_little_data_says_how_much_is_needed() -> None:
    before = block()
    cut = PruneChannels(multiple=1, keep=("c=4",))(before, LocalContext(FEEDS)).model
    result = Refit()(cut, LocalContext(FEEDS[:1], original=before))
    reasons = [s.reason for s in result.skips]
    assert "36 rows of data are too few for 36 inputs: 2.0 times as many calibration samples are needed" in reasons


def test_nothing_to_make_up_for() -> None:
    before = block()
    result: PassResult = Refit()(before, LocalContext(FEEDS, original=before))
    assert not result.changes and "nothing was changed" in result.skips[0].reason
