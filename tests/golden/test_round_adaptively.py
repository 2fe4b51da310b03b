"""``round-adaptively``, before and after."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from passes.kit.contract import PassResult
from passes.kit.model import Model, constant
from passes.quantize.quantize_dynamic import QuantizeDynamic
from passes.quantize.quantize_static import QuantizeStatic
from passes.quantize.round_adaptively import RoundAdaptively
from passes.quantize.rounding import round_to_least_error
from tests.support.runtime import Array, LocalContext, model, run, target

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
SITE = target("x86-avx2")  # a reach of 64: coarser grids, larger differences


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_two_weights_on_the_same_input_do_not_err_the_same_way() -> None:
    """Two equal inputs: only the sum of both weights counts, and 0.4 + 0.4 is nearer to 1 than to 0."""
    weight = np.array([[[0.4, 0.4, 3.0]]])
    gram = np.array([[[1, 1, 0], [1, 1, 0], [0, 0, 1.0]]])
    found = round_to_least_error(weight, np.ones((1, 1)), gram, 3, 8)
    assert sorted(found.integers[0, 0, :2]) == [0, 1]
    assert found.integers[0, 0, 2] == 3
    assert found.error < 0.2 * found.nearest


def test_the_largest_weight_stays_because_the_scale_is_read_off_it() -> None:
    found = round_to_least_error(np.array([[[3.0, -0.4, -0.4]]]), np.ones((1, 1)), np.ones((1, 3, 3)), 3, 8)
    assert found.integers[0, 0, 0] == 3 and sorted(found.integers[0, 0, 1:]) == [-1, 0]


@pytest.mark.parametrize("seed", range(6))
def test_the_result_is_at_a_minimum_of_every_coordinate_and_near_the_best_of_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(1, 1, 5))
    x = rng.normal(size=(4, 5)) + rng.normal(size=(4, 1))
    gram = (x.T @ x)[None]
    scale = np.full((1, 1), np.abs(weight).max() / 3)
    found = round_to_least_error(weight, scale, gram, 3, 20)
    damped = gram[0] + 0.01 * np.diag(gram[0]).mean() * np.eye(5)

    def cost(z: Array) -> float:
        e = weight[0, 0] - scale[0, 0] * z
        return float(e @ damped @ e)

    z = found.integers[0, 0]
    free = np.abs(np.rint(weight[0, 0] / scale[0, 0])) < 3
    for k, step in product(np.flatnonzero(free), (-1, 1)):
        moved = z.copy()
        moved[k] = np.clip(moved[k] + step, -3, 3)
        assert cost(moved) >= cost(z) - 1e-12
    assert cost(z) <= found.nearest + 1e-12
    assert np.isclose(cost(z), found.error)


def convolutions(bias: bool) -> tuple[Model, list[dict[str, Array]]]:
    given = ", b" if bias else ""
    body = f"""a = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w1{given}) r = Relu(a)
        d = Conv<group=8, pads=[1,1,1,1]>(r, w2) s = Relu(d) c = Conv<group=2>(s, w3) q = Relu(c)
        g = GlobalAveragePool(q) f = Flatten(g) y = Gemm<alpha=0.5, transB=1>(f, w4)"""
    weights = {"w1": normal(1, 8, 3, 3, 3), "w2": normal(2, 8, 1, 3, 3), "w3": normal(3, 12, 4, 1, 1)}
    weights["w4"] = normal(4, 6, 12)
    if bias:
        weights["b"] = normal(5, 8)
    subject = model(HEAD + f"g (float[n,3,12,12] x) => (float[n,6] y) {{ {body} }}", **weights)
    smooth = [np.kron(normal(9 + i, 4, 3, 4, 4), np.ones((3, 3), np.float32)) for i in range(4)]
    return subject, [{"x": s + 0.5} for s in smooth]


def error(subject: Model, reference: Model, feeds: list[dict[str, Array]], name: str) -> float:
    return float(
        np.mean([np.square(run(subject, f, [name])[name] - run(reference, f, [name])[name]).mean() for f in feeds])
    )


def rounded(subject: Model, feeds: list[dict[str, Array]], **options: object) -> PassResult:
    return RoundAdaptively(**options)(subject, LocalContext(feeds, SITE))  # type: ignore[arg-type]


@pytest.mark.parametrize("per_channel", ["yes", "no"])
@pytest.mark.parametrize("bias", [True, False])
def test_quantization_finds_the_same_integers_and_errs_less(per_channel: str, bias: bool) -> None:
    before, feeds = convolutions(bias)
    result = rounded(before, feeds, per_channel=per_channel)
    assert len(result.changes) == 4
    eight = QuantizeStatic(per_channel=per_channel)(result.model, LocalContext(feeds, SITE)).model
    for name in ("w1", "w2", "w3", "w4"):
        real = constant(result.model.graph.initializers[name])
        integers = constant(eight.graph.initializers[f"{name}_quantized"])
        scale = constant(eight.graph.initializers[f"{name}_scale"])
        assert real is not None and integers is not None and scale is not None
        wide = scale.reshape(-1, *[1] * (real.ndim - 1)) if scale.ndim else scale
        np.testing.assert_allclose(integers * wide, real, rtol=1e-5, atol=1e-7)  # Gemm's alpha is in w4 now
    # The first layer's input is the same in all three models: there the promise is exact.
    nearest = QuantizeStatic(per_channel=per_channel, only=("a",))(before, LocalContext(feeds, SITE)).model
    mine = QuantizeStatic(per_channel=per_channel, only=("a",))(result.model, LocalContext(feeds, SITE)).model
    assert error(mine, before, feeds, "a") < 0.75 * error(nearest, before, feeds, "a")


def test_matrices_and_dynamic_quantization() -> None:
    body = "a = MatMul(x, w1) r = Relu(a) y = MatMul(r, w2)"
    before = model(
        HEAD + f"g (float[n,7,16] x) => (float[n,7,5] y) {{ {body} }}", w1=normal(1, 16, 24), w2=normal(2, 24, 5)
    )
    mix = normal(3, 4, 16)
    feeds = [{"x": normal(4 + i, 8, 7, 4) @ mix} for i in range(4)]
    result = rounded(before, feeds)
    assert len(result.changes) == 2
    plain, mine = (QuantizeDynamic()(m, LocalContext((), SITE)).model for m in (before, result.model))
    assert error(mine, before, feeds, "y") < 0.8 * error(plain, before, feeds, "y")


def test_rounding_twice_changes_nothing() -> None:
    before, feeds = convolutions(False)
    once = rounded(before, feeds).model
    again = rounded(once, feeds)
    for name in ("w1", "w2", "w3", "w4"):
        first, second = (constant(m.graph.initializers[name]) for m in (once, again.model))
        np.testing.assert_allclose(second, first, rtol=1e-6)  # type: ignore[arg-type]


def test_it_refuses() -> None:
    body = "a = MatMul(x, w) r = Relu(a) b = MatMul(r, w) y = MatMul(b, v)"
    before = model(HEAD + f"g (float[n,6] x) => (float[n,3] y) {{ {body} }}", w=normal(1, 6, 6), v=normal(2, 6, 3))
    result = rounded(before, [{"x": normal(3, 9, 6)}])
    assert {s.reason for s in result.skips} == {"its weight is shared"} and len(result.changes) == 1
    assert rounded(before, [{"x": normal(3, 9, 6)}], inputs=5).changes == ()
    broken = rounded(before, [{"x": np.full((2, 6), np.nan, np.float32)}])
    assert not broken.changes and any("not finite" in s.reason for s in broken.skips)
