"""The float twin: the quantized model's weights, no rounding of activations, the clamps that grids stood for."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from optimizer.measure.explain_twin import dequantized, float_twin, unpacked
from passes.kit.model import Model
from passes.quantize.grid import weight_grid
from passes.quantize.quantize_dynamic import QuantizeDynamic
from tests.measure.quantized import applied, chain, images
from tests.support import runtime
from tests.support.runtime import Array, op_types, run

X = images()


def with_rounded_weights(subject: Model) -> Model:
    """The float model with weights on the grid that quantize-static gives them."""
    fork = subject.fork()
    for name, value in fork.graph.initializers.items():
        if name.startswith("w"):
            real = np.asarray(value.const_value.numpy())  # type: ignore[union-attr]
            grid = weight_grid(real, 1 if name == "w3" else 0, "int8", 127)
            value.const_value = onnx_tensor(grid.dequantize(grid.quantize(real)), name)
    fork.forget_digest()
    return fork


def onnx_tensor(array: Array, name: str) -> object:
    import onnx_ir as ir

    return ir.Tensor(array, name=name)


def test_static_int8_without_rounding_is_the_float_model_with_rounded_weights() -> None:
    floating = chain()
    quantized = applied(floating, X)
    assert "Relu" not in op_types(quantized), "the grids have taken the clamps over"
    twin = float_twin(quantized)
    onnx.checker.check_model(twin.model.to_proto())
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(op_types(twin.model))
    x = 0.7 * X  # well inside the grids
    wanted = run(with_rounded_weights(floating), {"x": x})["y"]
    np.testing.assert_allclose(run(twin.model, {"x": x})["y"], wanted, atol=2e-4)
    assert np.abs(run(quantized, {"x": x})["y"] - wanted).max() > 2e-3, "rounding was there to be taken out"
    assert twin.model.signature == quantized.signature and twin.activations > 0


def test_integers_that_are_only_moved_become_floats() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[n,3,8,8] x) => (float[n,8,4,4] y) {
        [conv0] c0 = Conv <pads = [1,1,1,1]> (x, w0)
        [relu0] r0 = Relu (c0)
        [pool] m = MaxPool <kernel_shape = [2,2], strides = [2,2]> (r0)
        [pad] p = Pad (m, pads)
        [conv1] y = Conv (p, w1)
    }"""
    rng = np.random.default_rng(2)
    weights = {"w0": rng.normal(size=(8, 3, 3, 3)), "w1": rng.normal(size=(8, 8, 3, 3))}
    pads = np.array([0, 0, 1, 1, 0, 0, 1, 1])
    floating = runtime.model(text, **{n: w.astype(np.float32) for n, w in weights.items()}, pads=pads)
    quantized = applied(floating, X)
    made = {n.op_type: n for n in quantized.graph}
    assert made["MaxPool"].outputs[0].dtype.name == "UINT8" and made["Pad"].outputs[0].dtype.name == "UINT8"  # type: ignore[union-attr]
    twin = float_twin(quantized).model
    onnx.checker.check_model(twin.to_proto())
    wanted, got = run(floating, {"x": X})["y"], run(twin, {"x": X})["y"]
    assert np.abs(got - wanted).max() < 0.02 * np.abs(wanted).max(), "only the weights differ"


def test_dynamic_int8_becomes_a_product_of_floats() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[n,6] x) => (float[n,4] y) {
        [one] h = MatMul (x, w)
        [add] b = Add (h, c)
        [two] y = MatMul (b, v)
    }"""
    rng = np.random.default_rng(3)
    weights = {"w": rng.normal(size=(6, 5)), "c": rng.normal(size=5), "v": rng.normal(size=(5, 4))}
    floating = runtime.model(text, **{n: w.astype(np.float32) for n, w in weights.items()})
    x = rng.normal(size=(7, 6)).astype(np.float32)
    quantized = applied(floating, x, QuantizeDynamic())
    assert "MatMulInteger" in op_types(quantized)
    twin = float_twin(quantized)
    assert "MatMulInteger" not in op_types(twin.model) and twin.activations == 2
    rounded = {n: weight_grid(weights[n].astype(np.float32), 1, "int8", 127) for n in ("w", "v")}
    w, v = (g.dequantize(g.quantize(weights[n].astype(np.float32))) for n, g in rounded.items())
    wanted = (x @ w + weights["c"].astype(np.float32)) @ v
    np.testing.assert_allclose(run(twin.model, {"x": x})["y"], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zeros", [False, True])
def test_packed_weights_are_unpacked_as_the_runtime_reads_them(bits: int, zeros: bool) -> None:
    rng, k, n, block = np.random.default_rng(4), 48, 6, 32
    blocks = -(-k // block)
    packed = rng.integers(0, 256, (n, blocks, block * bits // 8)).astype(np.uint8)
    scales = rng.uniform(0.01, 0.1, n * blocks).astype(np.float32)
    zero = rng.integers(0, 256, n * -(-blocks * bits // 8)).astype(np.uint8)
    text = f"""<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]> g (float[m,{k}] x) => (float[m,{n}] y) {{
        y = com.microsoft.MatMulNBits <K = {k}, N = {n}, bits = {bits}, block_size = {block}>
            (x, packed, scales{", zero" if zeros else ""})
    }}"""
    subject = runtime.model(text, packed=packed, scales=scales, **({"zero": zero} if zeros else {}))
    x = rng.normal(size=(3, k)).astype(np.float32)
    wanted = run(subject, {"x": x})["y"]
    real = unpacked(packed, scales, zero if zeros else None, k, n, bits, block)
    np.testing.assert_allclose(x @ real, wanted, rtol=1e-4, atol=1e-4)
    twin = float_twin(subject)
    np.testing.assert_allclose(run(twin.model, {"x": x})["y"], wanted, rtol=1e-4, atol=1e-4)
    assert twin.replaced == 1 and twin.activations == 0


def test_blocks_of_a_grid_have_a_scale_each() -> None:
    integers = np.arange(8, dtype=np.int8).reshape(2, 4)
    scale, zero = np.array([[1.0, 10.0], [100.0, 1000.0]], np.float32), np.array([[0, 1], [2, 3]], np.int8)
    found = dequantized(integers, scale, zero, 1, 2)
    assert found.tolist() == [[0, 1, 10, 20], [200, 300, 3000, 4000]]


def test_what_has_no_twin_is_named_and_left_alone() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[2,2] x, float s, uint8 z) => (float[2,2] y) {
        q = QuantizeLinear (x, s, z)
        p = QLinearMatMul (q, s, z, q, s, z, s, z)
        y = DequantizeLinear (p, s, z)
    }"""
    subject = runtime.model(text)
    twin = float_twin(subject)
    assert twin.stuck == ("QLinearMatMul",) and twin.model is subject
    assert float_twin(chain()).replaced == 0
