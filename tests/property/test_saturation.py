"""The bound on 16-bit sums: held against an emulation of the instruction, on weights that hypothesis draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from passes.kit.model import Model
from passes.quantize.quantize_static import QuantizeStatic
from passes.quantize.saturation import SAFE_RANGE, pair_bounds, saturations
from tests.support.runtime import Array, LocalContext, model, target

WEIGHTS = npst.arrays(np.int8, st.tuples(st.integers(1, 3), st.integers(1, 9)), elements=st.integers(-128, 127))


def vpmaddubsw(unsigned: Array, signed: Array) -> Array:
    """Products of bytes, neighbours added in 16 bits with saturation. uint8 [2n], int8 [..., 2n] -> int16 [..., n]."""
    products = unsigned.astype(np.int64) * signed.astype(np.int64)
    pairs = products[..., 0::2] + products[..., 1::2]
    return np.asarray(np.clip(pairs, -(2**15), 2**15 - 1), np.int16)


def dot(unsigned: Array, signed: Array, order: Array) -> Array:
    """The sum as the instruction gives it with weights packed in ``order``: [channels]."""
    if len(order) % 2:
        unsigned, signed, order = (
            np.append(unsigned, np.uint8(0)),
            np.pad(signed, ((0, 0), (0, 1))),
            np.append(order, len(order)),
        )
    return np.asarray(vpmaddubsw(unsigned[order], signed[:, order]).astype(np.int64).sum(axis=-1))


@settings(deadline=None)
@given(WEIGHTS, st.data())
def test_weights_within_the_bound_never_saturate(weights: Array, data: Any) -> None:
    high, low = pair_bounds(weights)
    clear = (high <= 32767) & (low >= -32768)
    width = weights.shape[1]
    order = np.array(data.draw(st.permutations(range(width))))
    unsigned = data.draw(npst.arrays(np.uint8, width))
    exact = weights.astype(np.int64) @ unsigned.astype(np.int64)
    got = dot(unsigned, weights, order)
    assert np.array_equal(got[clear], exact[clear])


@settings(deadline=None)
@given(WEIGHTS)
def test_weights_beyond_the_bound_saturate_in_some_packing(weights: Array) -> None:
    high, low = pair_bounds(weights)
    for row, above, below in zip(weights, high > 32767, low < -32768, strict=True):
        for risky, order, wanted in (
            (above, np.argsort(-row.astype(int), kind="stable"), row > 0),
            (below, np.argsort(row.astype(int), kind="stable"), row < 0),
        ):
            if risky:
                unsigned = np.where(wanted, 255, 0).astype(np.uint8)
                exact = row.astype(np.int64) @ unsigned.astype(np.int64)
                assert dot(unsigned, row[None], order)[0] != exact


def test_the_safe_range_is_the_largest_that_is() -> None:
    assert pair_bounds(np.full((1, 8), SAFE_RANGE, np.int8))[0] == 32640
    assert pair_bounds(np.full((1, 8), SAFE_RANGE + 1, np.int8))[0] > 32767
    assert pair_bounds(np.full((1, 8), -SAFE_RANGE, np.int8))[1] == -32640


NET = """<ir_version: 8, opset_import: ["" : 17]> g (float[1,4,8,8] x) => (float[1,10] y)
    <float[8,4,3,3] w, float[8] b, float[512,10] v> {
    c = Conv<pads = [1,1,1,1]>(x, w, b)
    r = Relu(c)
    f = Flatten(r)
    y = MatMul(f, v)
}"""


@pytest.fixture
def net() -> Model:
    rng = np.random.default_rng(0)
    return model(
        NET,
        w=rng.normal(size=(8, 4, 3, 3)).astype(np.float32),
        b=rng.normal(size=8).astype(np.float32),
        v=rng.normal(size=(512, 10)).astype(np.float32),
    )


@pytest.fixture
def feeds() -> list[dict[str, Array]]:
    return [{"x": np.random.default_rng(i).normal(size=(1, 4, 8, 8)).astype(np.float32)} for i in range(2)]


def test_a_model_quantized_for_vnni_may_saturate_and_one_for_avx2_cannot(
    net: Model, feeds: list[dict[str, Array]]
) -> None:
    wide = saturations(QuantizeStatic()(net, LocalContext(feeds)).model)
    assert [s.channels for s in wide] == [8, 10]
    assert all(s.possible for s in wide)
    assert all(s.at_risk <= s.channels and s.high > 32767 for s in wide)
    narrow = saturations(QuantizeStatic()(net, LocalContext(feeds, target("x86-avx2"))).model)
    assert [s.node for s in narrow] == [s.node for s in wide]
    assert not any(s.possible for s in narrow)


def test_the_repair_can_be_asked_for(net: Model, feeds: list[dict[str, Array]]) -> None:
    repaired = QuantizeStatic(weight_range=SAFE_RANGE)(net, LocalContext(feeds)).model
    assert len(saturations(repaired)) == 2
    assert not any(s.possible for s in saturations(repaired))


def test_signed_activations_are_not_concerned(net: Model, feeds: list[dict[str, Array]]) -> None:
    assert saturations(QuantizeStatic(activation="int8")(net, LocalContext(feeds)).model) == ()


@pytest.mark.parametrize(("zero", "count"), [(np.uint8(3), 1), (np.int8(3), 0)])
def test_integer_operators_are_looked_at(zero: Any, count: int) -> None:
    kind = "uint8" if zero.dtype == np.uint8 else "int8"
    text = f"""<ir_version: 8, opset_import: ["" : 17]> g ({kind}[2,4] a) => ({kind}[2,3] y)
        <float s, {kind} z, int8[4,3] w, int8 zw> {{ y = QLinearMatMul(a, s, z, w, s, zw, s, z) }}"""
    values = {"s": np.float32(1), "z": zero, "zw": np.int8(0)}
    weights = np.zeros((4, 3), np.int8)
    weights[[0, 3], 1] = 100
    subject = model(text, w=weights, **{k: np.asarray(v) for k, v in values.items()})
    onnx.checker.check_model(subject.to_proto())
    found = saturations(subject)
    assert len(found) == count
    assert all((s.high, s.low, s.at_risk, s.channels) == (51000, 0, 1, 3) for s in found)
