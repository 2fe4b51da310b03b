"""``open-clip``, ``absorb-bias`` and the bias correction of ``quantize-static``, before and after."""

from __future__ import annotations

import numpy as np
import pytest

from passes.kit.model import Model, constant
from passes.quantize.absorb_bias import AbsorbBias
from passes.quantize.correct_bias import Twin, sweeps
from passes.quantize.open_clip import OpenClip
from passes.quantize.quantize_static import QuantizeStatic
from tests.support.runtime import Array, LocalContext, model, op_types, run

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# -- open-clip ---------------------------------------------------------------------------------------------------
def clipped(high: float) -> Model:
    return model(
        HEAD + "g (float[n,4] x) => (float[n,4] y) { m = MatMul(x, w) y = Clip(m, low, high) }",
        w=np.eye(4, dtype=np.float32),
        low=np.array(0, np.float32),
        high=np.array(high, np.float32),
    )


def test_a_limit_that_is_not_reached_goes() -> None:
    feeds = [{"x": np.array([[-1, 2, 5, 3]], np.float32)}]
    result = OpenClip()(clipped(6), LocalContext(feeds))
    assert op_types(result.model) == ["MatMul", "Relu"]
    assert run(result.model, feeds[0])["y"].tobytes() == run(clipped(6), feeds[0])["y"].tobytes()
    kept = OpenClip()(clipped(4), LocalContext(feeds))
    assert not kept.changes and "the data reach 5" in kept.skips[0].reason
    assert OpenClip(reach=1.5)(clipped(4), LocalContext(feeds)).changes


# -- absorb-bias -------------------------------------------------------------------------------------------------
def test_what_a_channel_never_falls_below_goes_into_the_next_bias() -> None:
    body = "c = Conv(x, w, b) r = Relu(c) p = MaxPool<kernel_shape=[2,2], pads=[1,1,1,1]>(r) y = Conv<group=2>(p, v, d)"
    before = model(
        HEAD + f"g (float[n,3,4,4] x) => (float[n,2,h,k] y) {{ {body} }}",
        w=normal(1, 4, 3, 1, 1),
        b=np.array([50, 0, 3, 20], np.float32),
        v=normal(2, 2, 2, 2, 2),
        d=normal(3, 2),
    )
    feeds = [{"x": normal(4, 6, 3, 4, 4)}]
    result = AbsorbBias()(before, LocalContext(feeds))
    assert len(result.changes) == 1
    bias = constant(result.model.graph.initializers["b"])
    assert bias is not None and bias[0] < 20 and bias[1] == 0
    wanted, got = run(before, feeds[0], ["y", "r"]), run(result.model, feeds[0], ["y", "r"])
    np.testing.assert_allclose(got["y"], wanted["y"], atol=1e-5 * np.abs(wanted["y"]).max())
    assert got["r"].max() < 0.5 * wanted["r"].max()


def test_a_gemm_behind_a_gemm_gets_a_bias_of_its_own() -> None:
    before = model(
        HEAD
        + """g (float[n,3] x) => (float[n,2] y) {
            c = Gemm<beta=0.5, transB=1>(x, w, b) r = Relu(c) y = Gemm<alpha=2.0>(r, v) }""",
        w=normal(1, 4, 3),
        b=np.array([90, 0, 3, 40], np.float32),
        v=normal(2, 4, 2),
    )
    feeds = [{"x": normal(4, 30, 3)}]
    result = AbsorbBias()(before, LocalContext(feeds))
    assert len(result.changes) == 1
    assert len(list(result.model.graph)[-1].inputs) == 3
    wanted, got = run(before, feeds[0])["y"], run(result.model, feeds[0])["y"]
    np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("c = Conv(x, w, b) r = Relu(c) y = Conv<pads=[0,0,1,1], kernel_shape=[2,2]>(r, v)", "pads with zeros"),
        ("c = Conv(x, w) r = Relu(c) y = Conv(r, v)", "no constant bias"),
        ("c = Conv(x, w, b) d = Conv(x, w2, b2) s = Add(c, d) r = Relu(s) y = Conv(r, v)", "not one Conv"),
    ],
)
def test_absorbing_is_refused(body: str, reason: str) -> None:
    held = {"w": normal(1, 4, 3, 1, 1), "w2": normal(5, 4, 3, 1, 1), "v": normal(2, 2, 4, 2, 2)}
    held |= {"b": np.full(4, 50, np.float32), "b2": np.full(4, 50, np.float32)}
    used = {n: a for n, a in held.items() if f" {n})" in body or f" {n}," in body}
    before = model(HEAD + f"g (float[n,3,4,4] x) => (float[n,2,h,k] y) {{ {body} }}", **used)
    result = AbsorbBias()(before, LocalContext([{"x": normal(4, 2, 3, 4, 4)}]))
    assert not result.changes
    assert any(reason in s.reason for s in result.skips), [s.reason for s in result.skips]


# -- correct-bias ------------------------------------------------------------------------------------------------
def biased(bias: bool) -> tuple[Model, list[dict[str, Array]]]:
    """Depthwise and pointwise layers whose channels differ in size: one scale for a weight shifts their means."""
    uneven = np.exp2(-np.linspace(0, 6, 8)).astype(np.float32)[:, None, None, None]
    given = ", b" if bias else ""
    body = f"""a = Conv<pads=[1,1,1,1]>(x, w1{given}) r = Relu(a) d = Conv<group=8, pads=[1,1,1,1]>(r, w2{given})
        s = Relu(d) c = Conv(s, w3{given}) q = Relu(c) g = GlobalAveragePool(q) f = Flatten(g) m = MatMul(f, wm)
        y = Add(m, bm)"""
    weights = {"w1": normal(1, 8, 3, 3, 3) * uneven, "w2": normal(2, 8, 1, 3, 3) * uneven[::-1]}
    weights |= {"w3": normal(3, 8, 8, 1, 1) * uneven, "wm": normal(4, 8, 6), "bm": normal(5, 6)}
    if bias:
        weights["b"] = normal(6, 8)
    subject = model(HEAD + f"g (float[n,3,8,8] x) => (float[n,6] y) {{ {body} }}", **weights)
    return subject, [{"x": np.abs(normal(10 + i, 2, 3, 8, 8))} for i in range(4)]


def means(subject: Model, feeds: list[dict[str, Array]], name: str) -> Array:
    found = np.concatenate([run(subject, f, [name])[name] for f in feeds])
    return np.asarray(found.mean(axis=tuple(i for i in range(found.ndim) if i != 1), dtype=np.float64))


@pytest.mark.parametrize("bias", [True, False])
def test_means_of_every_layer_are_those_of_the_float_model(bias: bool) -> None:
    before, feeds = biased(bias)
    plain = QuantizeStatic(per_channel="no")(before, LocalContext(feeds)).model
    corrected = QuantizeStatic(per_channel="no", correct_bias=True)(before, LocalContext(feeds))
    assert [c.rule for c in corrected.changes].count("correct-bias") == 4
    for name in ("a", "d", "c", "y"):
        wanted = means(before, feeds, name)
        shift = [np.abs(means(m, feeds, name) - wanted).max() for m in (plain, corrected.model)]
        assert shift[1] < 0.05 * shift[0] + 1e-4, name
    integers = [n for n in corrected.model.graph if n.op_type == "Conv"]
    assert all(n.inputs[2] is not None and n.inputs[2].producer().op_type == "DequantizeLinear" for n in integers)  # type: ignore[union-attr]
    found = run(corrected.model, feeds[0], optimize=True)["y"]
    np.testing.assert_allclose(found, run(corrected.model, feeds[0])["y"], atol=0.05 * np.abs(found).max())


def test_the_float_model_is_not_touched_and_the_old_biases_go() -> None:
    before, feeds = biased(True)
    digest = before.digest()
    result = QuantizeStatic(correct_bias=True)(before, LocalContext(feeds))
    before.forget_digest()
    assert before.digest() == digest
    read = {v.name for n in result.model.graph for v in n.inputs if v is not None}
    assert set(result.model.graph.initializers) <= read


def test_deep_networks_are_corrected_in_a_bounded_number_of_sweeps() -> None:
    node = next(iter(model(HEAD + "g (float[1] x) => (float[1] y) { y = Relu(x) }").graph))
    twins = [Twin(node, str(i), str(i), 1, i // 2) for i in range(200)]
    groups = sweeps(twins)
    assert len(groups) == 24
    assert [t for g in groups for t in g] == twins, "every layer once, in order"
    assert [len(g) for g in sweeps(twins[:6])] == [2, 2, 2]
