"""What the runtime made of a model: real sessions with a deliberate island and a deliberate pair that cannot fuse."""

from __future__ import annotations

import numpy as np
import pytest

from optimizer.measure.explain_graph import Kernel, by_op, islands, kernels, layer_kernels, runs_on_integers, unfused
from optimizer.store.store import Store
from passes.kit.model import Model
from passes.quantize.quantize_static import QuantizeStatic
from tests.measure.quantized import SITE, applied, chain, images, store
from tests.support import runtime

assert store

X = images()
FEED = {"x": X[:1]}
LAYERS = ["conv0", "conv1", "conv2", "head"]


def run_by_runtime(subject: Model, store: Store) -> tuple[Kernel, ...]:
    return kernels(store.put_model(subject), FEED, SITE, runs=20)


def test_layers_are_found_before_and_after_whatever_the_runtime_calls_them(store: Store) -> None:
    floating = chain()
    before, after = (run_by_runtime(m, store) for m in (floating, applied(floating, X)))
    was, now = layer_kernels(floating, before, LAYERS), layer_kernels(applied(floating, X), after, LAYERS)
    assert {n: k.plain for n, k in was.items()} == {"conv0": "Conv", "conv1": "Conv", "conv2": "Conv", "head": "Gemm"}
    assert [k.plain for k in now.values()] == ["QLinearConv"] * 3 + ["QGemm"] and list(now) == LAYERS
    assert len({k.name for k in was.values()}) == 4 and all(k.ms > 0 for k in (*was.values(), *now.values()))
    assert all(map(runs_on_integers, now.values())) and not any(map(runs_on_integers, was.values()))
    assert unfused(after) == () and islands(after) == ()
    assert sum(o.ms for o in by_op(after)) == pytest.approx(sum(k.ms for k in after))


def test_a_float_operator_between_integers_is_an_island(store: Store) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[n,3,8,8] x) => (float[n,8,4,4] y) {
        [conv0] c = Conv (x, w0)
        [exp] e = Exp (c)
        [neg] f = Neg (e)
        [conv1] y = Conv (f, w1)
    }"""
    rng = np.random.default_rng(0)
    weights = {"w0": rng.normal(size=(8, 3, 3, 3)) * 0.1, "w1": rng.normal(size=(8, 8, 3, 3)) * 0.1}
    subject = runtime.model(text, **{n: w.astype(np.float32) for n, w in weights.items()})
    found = run_by_runtime(applied(subject, X), store)
    (island,) = islands(found)
    assert unfused(found) == (), "Exp has no integer kernel that it could have been given"
    assert island.nodes == ("exp", "neg") and island.ops == ("Exp", "Neg")
    assert island.conversions == 2 and island.ms > 0


def test_what_flows_out_of_the_model_or_in_from_its_inputs_is_no_island(store: Store) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[n,3,8,8] x) => (float[n,8,6,6] y) {
        [neg] m = Neg (x)
        [conv0] c = Conv (m, w0)
        [exp] y = Exp (c)
    }"""
    w = np.random.default_rng(0).normal(size=(8, 3, 3, 3)).astype(np.float32)
    assert islands(run_by_runtime(applied(runtime.model(text, w0=w), X), store)) == ()


def test_a_pair_that_cannot_fuse_is_found_with_its_weight(store: Store) -> None:
    """A convolution whose result is not quantized runs in float, its weight dequantized on every run."""
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[n,3,8,8] x) => (float[n,8,6,6] y) {
        q = QuantizeLinear (x, s, z)
        d = DequantizeLinear (q, s, z)
        w = DequantizeLinear (w8, sw, zw)
        [lonely] y = Conv (d, w)
    }"""
    w8 = np.random.default_rng(0).integers(-127, 127, (8, 3, 3, 3)).astype(np.int8)
    subject = runtime.model(
        text, s=np.float32(0.03).reshape(()), z=np.array(128, np.uint8), w8=w8,
        sw=np.float32(0.01).reshape(()), zw=np.array(0, np.int8),
    )  # fmt: skip
    (pair,) = unfused(run_by_runtime(subject, store))
    assert pair.node == "lonely" and pair.op.endswith("Conv") and pair.weight


def test_a_layer_left_in_float_between_integers_stays_float(store: Store) -> None:
    """Without a word onnxruntime would quantize its weight itself, with one scale for all channels."""
    floating = chain()
    quantized = applied(floating, X, QuantizeStatic(exclude=("conv1",)))
    found = layer_kernels(quantized, run_by_runtime(quantized, store), LAYERS)
    assert found["conv1"].plain == "Conv" and found["conv0"].plain == "QLinearConv"
    off, on = (runtime.run(quantized, {"x": X}, optimize=o)["y"] for o in (False, True))
    np.testing.assert_allclose(on, off, atol=0.02)


def node(op: str, reads: str, gives: str, ms: float = 1.0) -> Kernel:
    return Kernel(gives, op, tuple(reads.split()), tuple(gives.split()), ms)


def test_what_moves_integers_belongs_to_no_island() -> None:
    found = (
        node("QuantizeLinear", "x", "a"),
        node("Reshape", "a", "b"),
        node("com.microsoft.QLinearConv", "b", "c"),
        node("Transpose", "c", "d"),
        node("DequantizeLinear", "d", "e"),
        node("Sigmoid", "e", "f"),
        node("Slice", "f", "g"),
        node("QuantizeLinear", "g", "h"),
        node("com.microsoft.QLinearConv", "h", "i"),
        node("DequantizeLinear", "i", "y"),
    )
    (island,) = islands(found)
    assert island.nodes == ("f", "g") and island.ms == 4.0 and island.conversions == 2
    assert [u.node for u in unfused(found)] == ["f"], "Sigmoid has an integer kernel that was not taken"


def test_floats_that_flow_in_from_elsewhere_make_it_a_shore() -> None:
    found = [
        node("QuantizeLinear", "x", "a"),
        node("com.microsoft.QLinearConv", "a", "b"),
        node("DequantizeLinear", "b", "c"),
        node("Exp", "c", "d"),
        node("QuantizeLinear", "d", "e"),
        node("com.microsoft.QLinearConv", "e", "y"),
    ]
    assert len(islands(found)) == 1
    found[3:4] = [node("com.microsoft.MatMulIntegerToFloat", "a", "f"), node("Pow", "c f", "d")]
    assert islands(found) == ()
