"""``smooth``, before and after."""

from __future__ import annotations

import numpy as np
import pytest

from passes.kit.contract import PassResult
from passes.kit.model import Model, constant
from passes.quantize.quantize_static import QuantizeStatic
from passes.quantize.smooth import Smooth
from tests.support.runtime import Array, LocalContext, model, run

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
rng = np.random.default_rng(8)


def normal(*shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


def gains(channels: int) -> Array:
    """A gain of 1 with two outliers, as LayerNorms of language models have them."""
    found = np.ones(channels, np.float32)
    found[[1, channels - 2]] = 60
    return found


def smooth(subject: Model, feeds: list[dict[str, Array]], **options: object) -> PassResult:
    result = Smooth(**options)(subject, LocalContext(feeds))  # type: ignore[arg-type]
    assert not Smooth(**options)(result.model, LocalContext(feeds)).changes, "a second run found something to do"  # type: ignore[arg-type]
    for feed in feeds:
        wanted, got = run(subject, feed), run(result.model, feed)
        for name, value in wanted.items():
            np.testing.assert_allclose(got[name], value, atol=1e-5 * np.abs(value).max())
    return result


def error(subject: Model, reference: Model, feeds: list[dict[str, Array]]) -> float:
    """Relative squared error of the int8 model made of ``subject`` against ``reference``."""
    eight = QuantizeStatic()(subject, LocalContext(feeds)).model
    wanted = np.concatenate([run(reference, f)["y"].reshape(-1) for f in feeds])
    got = np.concatenate([run(eight, f)["y"].reshape(-1) for f in feeds])
    return float(np.square(got - wanted).sum() / np.square(wanted).sum())


NORMS = {
    "layer": "n = LayerNormalization(x, g, b)",
    "rms": "n = SimplifiedLayerNormalization(x, g)",
    "decomposed": "p = Mul(x, x) v = ReduceMean<axes=[-1]>(p) e = Sqrt(v) d = Div(x, e) n = Mul(d, g)",
    "shifted": "p = ReduceMean<axes=[-1]>(x) d = Sub(x, p) q = Mul(d, g) n = Add(q, b)",
}


@pytest.mark.parametrize("norm", NORMS)
def test_outliers_behind_a_normalization_go_into_the_weights(norm: str) -> None:
    body = f"{NORMS[norm]} h = MatMul(n, w) k = MatMul(n, u) y = Add(h, k)"
    held = {"g": gains(16), "b": normal(16), "w": normal(16, 12) / 8, "u": normal(16, 12) / 8}
    used = {name: a for name, a in held.items() if f"{name})" in body or f" {name}," in body}
    subject = model(HEAD + f"g (float[n,5,16] x) => (float[n,5,12] y) {{ {body} }}", **used)
    feeds = [{"x": normal(4, 5, 16)} for _ in range(3)]
    result = smooth(subject, feeds)
    assert [c.where for c in result.changes] == ["n"]
    gain = constant(result.model.graph.initializers["g"])
    assert gain is not None and np.ptp(np.log2(gain)) < np.log2(60) / 1.5
    assert error(result.model, subject, feeds) < 0.5 * error(subject, subject, feeds)


def test_a_product_lets_a_factor_through_on_one_side() -> None:
    """SwiGLU: the factor of the result goes into the projection that is not gated."""
    body = """a = MatMul(x, wg) s = Sigmoid(a) g = Mul(a, s) u = MatMul(x, wu) m = Mul(g, u) y = MatMul(m, wd)"""
    subject = model(
        HEAD + f"g (float[n,5,8] x) => (float[n,5,6] y) {{ {body} }}",
        wg=normal(8, 16),
        wu=normal(8, 16) * gains(16) / 8,
        wd=normal(16, 6) / 4,
    )
    feeds = [{"x": normal(4, 5, 8)} for _ in range(3)]
    result = smooth(subject, feeds)
    assert [c.where for c in result.changes] == ["m"]
    old, new = subject.graph.initializers, result.model.graph.initializers
    assert [n for n in old if constant(old[n]).tobytes() != constant(new[n]).tobytes()] == ["wu", "wd"]  # type: ignore[union-attr]
    assert error(result.model, subject, feeds) < 0.75 * error(subject, subject, feeds)


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.75])
def test_the_strength_can_be_given(alpha: float) -> None:
    """``s = max|x|^alpha / max|w|^(1 - alpha)``, up to a common factor and to steps of an eighth of an octave."""
    body = "n = LayerNormalization(x, g) y = MatMul(n, w)"
    weight = normal(16, 12) / 8
    subject = model(HEAD + f"g (float[n,16] x) => (float[n,12] y) {{ {body} }}", g=gains(16), w=weight)
    feeds = [{"x": normal(64, 16)}]
    scaled = constant(smooth(subject, feeds, alpha=alpha).model.graph.initializers["w"])
    assert scaled is not None
    log = np.log2(scaled / weight).mean(axis=1)
    largest = np.abs(run(subject, feeds[0], ["n"])["n"]).max(axis=0)
    wanted = alpha * np.log2(largest) - (1 - alpha) * np.log2(np.abs(weight).max(axis=1))
    np.testing.assert_allclose(log, wanted - wanted.mean(), atol=1 / 16 + 1e-3)


def test_what_has_no_outliers_is_left_alone() -> None:
    body = "n = LayerNormalization(x, g) y = MatMul(n, w)"
    signs = np.sign(normal(16, 16))
    subject = model(
        HEAD + f"g (float[n,16] x) => (float[n,16] y) {{ {body} }}",
        g=np.ones(16, np.float32),
        w=np.sign(normal(16, 16)),
    )
    result = smooth(subject, [{"x": signs}])
    assert not result.changes and "no strength promises" in result.skips[0].reason


def test_layers_give_channels_too_unless_only_normalizations_are_asked_for() -> None:
    body = "a = Conv(x, w1, b1) r = Relu(a) y = Conv(r, w2)"
    subject = model(
        HEAD + f"g (float[n,3,4,4] x) => (float[n,5,4,4] y) {{ {body} }}",
        w1=normal(8, 3, 1, 1) * gains(8)[:, None, None, None],
        b1=normal(8),
        w2=normal(5, 8, 1, 1) / gains(8)[:, None, None],
    )
    feeds = [{"x": normal(3, 3, 4, 4)}]
    assert [c.where for c in smooth(subject, feeds).changes] == ["r"]
    assert not smooth(subject, feeds, givers="norms").changes


def test_a_tied_weight_is_refused() -> None:
    body = "n = LayerNormalization(x, g) h = MatMul(n, w) y = MatMul(h, w)"
    subject = model(HEAD + f"g (float[n,8] x) => (float[n,8] y) {{ {body} }}", g=gains(8), w=normal(8, 8))
    result = smooth(subject, [{"x": normal(9, 8)}])
    assert not result.changes
    assert any("shared" in s.reason for s in result.skips)
