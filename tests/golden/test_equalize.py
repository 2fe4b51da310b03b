"""``equalize``, before and after."""

from __future__ import annotations

import numpy as np
import pytest

from passes.kit.contract import PassResult
from passes.kit.model import Model, constant
from passes.quantize.equalize import Equalize
from tests.support.runtime import Array, LocalContext, model, op_types, run

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
rng = np.random.default_rng(4)


def normal(*shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


def uneven(channels: int) -> Array:
    """Factors from 1 down to 1/512."""
    return np.asarray(np.exp2(-np.linspace(0, 9, channels)), np.float32)


def equalize(subject: Model, **options: object) -> PassResult:
    result = Equalize(**options)(subject, LocalContext())  # type: ignore[arg-type]
    again = Equalize(**options)(result.model, LocalContext())  # type: ignore[arg-type]
    assert not again.changes, "a second run found something to do"
    return result


def weights(subject: Model, *names: str) -> list[Array]:
    found = [constant(subject.graph.initializers[name]) for name in names]
    return [w for w in found if w is not None]


def bit_equal(before: Model, after: Model, x: Array) -> None:
    wanted, got = run(before, {"x": x}), run(after, {"x": x})
    for name, value in wanted.items():
        assert got[name].tobytes() == value.tobytes(), name


def test_channels_of_two_layers_meet_in_the_middle() -> None:
    first = np.diag([4.0, 1.0, 0.25]).astype(np.float32).reshape(3, 3, 1, 1)
    second = np.diag([1.0, 1.0, 4.0]).astype(np.float32).reshape(3, 3, 1, 1)
    before = model(
        HEAD + "g (float[1,3,2,2] x) => (float[1,3,2,2] y) { c = Conv(x, w, b) r = Relu(c) y = Conv(r, v) }",
        w=first,
        b=np.array([8, 2, 1], np.float32),
        v=second,
    )
    after = equalize(before).model
    w, b, v = weights(after, "w", "b", "v")
    np.testing.assert_array_equal(np.diag(w[:, :, 0, 0]), [2, 1, 1])
    np.testing.assert_array_equal(b, [4, 2, 4])
    np.testing.assert_array_equal(np.diag(v[:, :, 0, 0]), [2, 1, 1])
    bit_equal(before, after, normal(1, 3, 2, 2))


def separable(activation: str = "Relu(a)", **more: Array) -> Model:
    held = {
        "w1": normal(8, 3, 3, 3) * uneven(8)[:, None, None, None],
        "b1": normal(8),
        "w2": normal(8, 1, 3, 3) / uneven(8)[:, None, None, None],
        "w3": normal(6, 8, 1, 1),
        "wg": normal(5, 24) * np.repeat(uneven(6), 4),
    }
    body = f"""a = Conv<pads=[1,1,1,1]>(x, w1, b1) r = {activation} d = Conv<group=8, pads=[1,1,1,1]>(r, w2)
        s = LeakyRelu(d) c = Conv(s, w3) q = Relu(c) m = AveragePool<kernel_shape=[3,3], strides=[3,3]>(q)
        f = Flatten(m) y = Gemm<transB=1>(f, wg)"""
    return model(HEAD + f"g (float[n,3,6,6] x) => (float[n,5] y) {{ {body} }}", **held, **more)


def test_depthwise_layers_pass_it_on_and_a_flat_image_has_each_channel_several_times() -> None:
    before = separable()
    result = equalize(before)
    assert [c.where for c in result.changes] == ["r", "s", "f"]
    (w1, w2) = weights(result.model, "w1", "w2")
    spread = [np.ptp(np.log2(np.abs(w).max(axis=(1, 2, 3)))) for w in (*weights(before, "w1", "w2"), w1, w2)]
    assert spread[2] < spread[0] / 2 and spread[3] < spread[1] / 2
    bit_equal(before, result.model, normal(2, 3, 6, 6))


def test_a_residual_shares_its_factors() -> None:
    body = """a = Conv(x, w1, b1) r = Relu(a) c = Conv(r, w2) s = Add(c, r) q = Relu(s) y = Conv(q, w3)"""
    before = model(
        HEAD + f"g (float[1,3,4,4] x) => (float[1,4,4,4] y) {{ {body} }}",
        w1=normal(8, 3, 1, 1) * uneven(8)[:, None, None, None],
        b1=normal(8),
        w2=normal(8, 8, 1, 1) * uneven(8)[:, None, None, None],
        w3=normal(4, 8, 1, 1),
    )
    result = equalize(before)
    assert len(result.changes) == 1
    bit_equal(before, result.model, normal(1, 3, 4, 4))


def test_matmul_with_its_addition_and_a_transpose_between() -> None:
    body = """m = MatMul(x, w) a = Add(m, b) t = Transpose<perm=[0,2,1]>(a) r = Relu(t)
        u = Transpose<perm=[0,2,1]>(r) y = MatMul(u, v)"""
    before = model(
        HEAD + f"g (float[2,5,6] x) => (float[2,5,3] y) {{ {body} }}",
        w=normal(6, 8) * uneven(8),
        b=normal(8),
        v=normal(8, 3),
    )
    result = equalize(before)
    assert len(result.changes) == 1
    bit_equal(before, result.model, normal(2, 5, 6))


def test_transposed_and_grouped_convolutions() -> None:
    body = "a = ConvTranspose<group=2>(x, w, b) r = Relu(a) y = Conv<group=3>(r, v)"
    before = model(
        HEAD + f"g (float[1,4,3,3] x) => (float[1,3,4,4] y) {{ {body} }}",
        w=(normal(4, 3, 2, 2) * uneven(3)[None, :, None, None]),
        b=normal(6),
        v=normal(3, 2, 1, 1),
    )
    result = equalize(before)
    assert len(result.changes) == 1
    bit_equal(before, result.model, normal(1, 4, 3, 3))


CLIP = {"low": np.array(0, np.float32), "high": np.array(6, np.float32)}


def test_a_clip_holds_all_channels_to_one_limit() -> None:
    before = separable("Clip(a, low, high)", **CLIP)
    kept = equalize(before)
    assert any("Clip limits it" in s.reason for s in kept.skips)
    opened = equalize(before, clip="min")
    assert [c.where for c in kept.changes] == ["s", "f"] and [c.where for c in opened.changes] == ["r", "s", "f"]
    assert "Clip" not in op_types(opened.model) and "Min" in op_types(opened.model)
    x = normal(2, 3, 6, 6) * 20
    assert (run(before, {"x": x}, ["a"])["a"] > 6).any()
    bit_equal(before, opened.model, x)


def test_dead_channels_do_not_blow_up() -> None:
    scale = np.array([1, 1e-8, 0, 1], np.float32)
    before = model(
        HEAD + "g (float[1,3,2,2] x) => (float[1,3,2,2] y) { c = Conv(x, w, b) r = Relu(c) y = Conv(r, v) }",
        w=normal(4, 3, 1, 1) * scale[:, None, None, None],
        b=normal(4),
        v=normal(3, 4, 1, 1),
    )
    after = equalize(before, limit=64.0).model
    (v,) = weights(after, "v")
    old = weights(before, "v")[0]
    grown = np.abs(v / old)
    assert grown[:, 2].max() == 1, "nothing is known of a channel that is zero"
    assert grown.min() >= 1 / 64 / 4 and grown.max() <= 64 * 4
    bit_equal(before, after, normal(1, 3, 2, 2))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("c = Conv(x, w) r = Sigmoid(c) y = Conv(r, v)", "Sigmoid makes it"),
        ("c = Conv(x, w) r = Relu(c) z = Conv(r, v) e = Exp(r) y = Add(z, e)", "Exp reads"),
        ("c = Conv(x, w) r = Relu(c) q = Conv(r, w) y = Conv(q, v)", "shared"),
        ("c = Conv(x, w) r = Mul(c, c) y = Conv(r, v)", "both factors"),
        ("c = Conv(x, w) r = Relu(c) n = Neg(v) z = Conv(r, n) y = Conv(z, v)", "not constant"),
    ],
)
def test_it_refuses(body: str, reason: str) -> None:
    before = model(
        HEAD + f"g (float[1,4,2,2] x) => (float[1,4,2,2] y) {{ {body} }}", w=normal(4, 4, 1, 1), v=normal(4, 4, 1, 1)
    )
    result = equalize(before)
    assert any(reason in s.reason for s in result.skips), [s.reason for s in result.skips]
    bit_equal(before, result.model, normal(1, 4, 2, 2))
