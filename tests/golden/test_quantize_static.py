"""``quantize-static``, before and after."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from passes.kit.contract import PassResult
from passes.kit.model import Model, constant
from passes.quantize.quantize_static import QuantizeStatic
from tests.support.runtime import LocalContext, model, op_types, run

Array = np.ndarray[Any, Any]
HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
SEED = 7
stream = {"rng": np.random.default_rng(SEED)}


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Every test draws the same numbers, whichever tests ran before it."""
    stream["rng"] = np.random.default_rng(SEED)


def normal(*shape: int, scale: float = 1.0) -> Array:
    return (stream["rng"].standard_normal(shape) * scale).astype(np.float32)


def quantize(subject: Model, feeds: list[dict[str, Array]], **options: Any) -> PassResult:
    before = subject.digest()
    result = QuantizeStatic(**options)(subject, LocalContext(feeds))
    assert Model(subject.ir, subject.map_types).digest() == before, "the input was touched"
    if result.changes:
        onnx.checker.check_model(result.model.to_proto(), full_check=True)
    return result


def fused(subject: Model, tmp_path: Any) -> Counter[str]:
    """Operators that onnxruntime's CPU provider really runs."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(subject.to_bytes(), options, providers=["CPUExecutionProvider"])
    return Counter(n.op_type for n in onnx.load(options.optimized_model_filepath).graph.node)


def close(after: Model, before: Model, feeds: dict[str, Array], share: float = 0.03) -> None:
    """Every output within ``share`` (relative error in the 2-norm)."""
    wanted, got = run(before, feeds), run(after, feeds, optimize=True)
    for name, value in wanted.items():
        assert np.linalg.norm(got[name] - value) <= share * np.linalg.norm(value), name


def residual() -> Model:
    return model(
        HEAD
        + """
        g (float[N, 8, 8, 8] x) => (float[N, 10] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, wa, ba)
            ra = Relu(a)
            b = Conv <pads = [1, 1, 1, 1]> (ra, wb)
            s = Add(b, x)
            rs = Relu(s)
            p = GlobalAveragePool(rs)
            f = Flatten(p)
            y = Gemm <transB = 1> (f, wg, bg)
        }""",
        wa=normal(8, 8, 3, 3, scale=0.2),
        ba=normal(8),
        wb=normal(8, 8, 3, 3, scale=0.2),
        wg=normal(10, 8),
        bg=normal(10),
    )


def test_a_residual_block_becomes_integer_throughout(tmp_path: Any) -> None:
    before, feeds = residual(), [{"x": normal(4, 8, 8, 8)}]
    after = quantize(before, feeds).model
    assert Counter(op_types(after)) == {
        "QuantizeLinear": 5,  # x, both results behind Relu, the second Conv's, the pool's
        "DequantizeLinear": 10,  # each of them once, three weights and two biases
        "Conv": 2,
        "Add": 1,
        "GlobalAveragePool": 1,
        "Flatten": 1,
        "Gemm": 1,
    }
    ran = fused(after, tmp_path)
    assert ran["QLinearConv"] == 2 and ran["QLinearAdd"] == 1 and ran["QGemm"] == 1
    assert ran["QLinearGlobalAveragePool"] == 1 and ran["QuantizeLinear"] == 1 and ran["DequantizeLinear"] == 0
    close(after, before, feeds[0])


def test_grids_are_those_of_the_data() -> None:
    x = np.array([-1.0, 3.0], np.float32).reshape(1, 2, 1, 1)
    weight = np.array([[0.5, -1.0], [0.25, 0.125]], np.float32).reshape(2, 2, 1, 1)
    before = model(
        HEAD + "g (float[1,2,1,1] x) => (float[1,2,1,1] y) { c = Conv(x, w, b) y = Relu(c) }",
        w=weight,
        b=np.array([1.0, -2.0], np.float32),
    )
    graph = quantize(before, [{"x": x}]).model.graph
    held = {name: constant(value) for name, value in graph.initializers.items()}
    assert held["x_scale"] == np.float32(4 / 255) and held["x_zero_point"] == 64
    scales = np.array([1.0, 0.25], np.float32) / np.float32(127)
    np.testing.assert_allclose(held["w_scale"], scales, rtol=1e-6)
    np.testing.assert_array_equal(held["w_quantized"].reshape(2, 2), [[64, -127], [127, 64]])
    np.testing.assert_allclose(held["b_scale"], scales * np.float32(4 / 255), rtol=1e-6)
    np.testing.assert_array_equal(held["b_quantized"], np.rint([1 / (scales[0] * 4 / 255), -2 / (scales[1] * 4 / 255)]))
    assert held["w_quantized"].dtype == np.int8 and held["b_quantized"].dtype == np.int32
    assert held["y_zero_point"] == 0, "the clamp is the end of the grid"
    assert not {"w", "b"} & set(held), "float weights go"


def test_the_file_shrinks_to_a_quarter() -> None:
    before = model(HEAD + "g (float[1,64] x) => (float[1,512] y) { y = MatMul(x, w) }", w=normal(64, 512))
    after = quantize(before, [{"x": normal(1, 64)}]).model
    assert len(after.to_bytes()) < 0.32 * len(before.to_bytes())


def test_carriers_move_integers(tmp_path: Any) -> None:
    before = model(
        HEAD
        + """
        g (float[1, 8, 8, 8] x) => (float[1, 16, 2, 2] y)
        <int64[8] pads = {0,2,0,0,0,2,0,0}, float zero = {0.0}, int64[2] from = {0,0}, int64[2] to = {7,7},
         int64[2] axes = {2,3}, float[4] twice = {1,1,2,2}>
        {
            c = Conv(x, w)
            m = MaxPool <kernel_shape = [2,2], strides = [2,2]> (c)
            s = Slice(m, from, to, axes)
            p = Pad(s, pads, zero)
            u = Resize <mode = "nearest"> (p, , twice)
            h = MaxPool <kernel_shape = [4,4], strides = [4,4]> (u)
            y = Conv(h, v)
        }""",
        w=normal(8, 8, 1, 1),
        v=normal(16, 12, 1, 1),
    )
    feeds = [{"x": normal(1, 8, 8, 8)}]
    result = quantize(before, feeds)
    assert sum(c.rule == "carrier" for c in result.changes) == 5
    ran = fused(result.model, tmp_path)
    assert ran["QuantizeLinear"] == 1 and ran["DequantizeLinear"] == 1 and ran["QLinearConv"] == 2
    close(result.model, before, feeds[0])
    assert all(value.uses() for value in result.model.graph.initializers.values()), "the float filling is gone"


def test_padding_with_something_else_than_zero_stays_float() -> None:
    before = model(
        HEAD
        + """
        g (float[1, 4, 4, 4] x) => (float[1, 4, 6, 6] y)
        <int64[8] pads = {0,0,1,1,0,0,1,1}, float one = {1.0}>
        { c = Conv(x, w) p = Pad(c, pads, one) y = Conv(p, w) }""",
        w=normal(4, 4, 1, 1),
    )
    feeds = [{"x": normal(1, 4, 4, 4)}]
    result = quantize(before, feeds)
    assert not any(c.rule == "carrier" for c in result.changes)
    close(result.model, before, feeds[0])


def test_a_relu_apart_from_its_layer_clips_integers(tmp_path: Any) -> None:
    before = model(
        HEAD
        + """
        g (float[1, 4, 4, 4] x) => (float[1, 4, 4, 4] y)
        { a = Conv(x, w) r = Relu(a) b = Conv(r, v) s = Add(a, b) y = Conv(s, w) }""",
        w=normal(4, 4, 1, 1),
        v=normal(4, 4, 1, 1),
    )
    feeds = [{"x": normal(1, 4, 4, 4)}]
    after = quantize(before, feeds).model
    ran = fused(after, tmp_path)
    assert ran["Clip"] == 1 and ran["Relu"] == 0 and ran["QuantizeLinear"] == 1 and ran["DequantizeLinear"] == 1
    close(after, before, feeds[0], 0.05)


def test_concat_joins_branches_of_different_range(tmp_path: Any) -> None:
    before = model(
        HEAD
        + """
        g (float[1, 4, 4, 4] x) => (float[1, 4, 4, 4] y)
        { a = Conv(x, w) b = Conv(x, v) s = Sigmoid(b) c = Concat <axis = 1> (a, s) y = Conv(c, u) }""",
        w=normal(4, 4, 1, 1, scale=4),
        v=normal(4, 4, 1, 1),
        u=normal(4, 8, 1, 1),
    )
    feeds = [{"x": normal(1, 4, 4, 4)}]
    after = quantize(before, feeds).model
    ran = fused(after, tmp_path)
    assert ran["QLinearConcat"] == 1 and ran["QLinearSigmoid"] == 1 and ran["DequantizeLinear"] == 1
    close(after, before, feeds[0])


def test_a_joiner_takes_a_float_input_along(tmp_path: Any) -> None:
    before = model(
        HEAD
        + """
        g (float[1, 4, 4, 4] x) => (float[1, 4, 4, 4] y)
        { a = Conv(x, w) t = Tanh(x) c = Concat <axis = 1> (a, t) y = Conv(c, u) }""",
        w=normal(4, 4, 1, 1),
        u=normal(4, 8, 1, 1),
    )
    feeds = [{"x": normal(1, 4, 4, 4)}]
    after = quantize(before, feeds).model
    assert fused(after, tmp_path)["QLinearConcat"] == 1
    close(after, before, feeds[0])


def test_an_addition_that_no_layer_reads_stays_float(tmp_path: Any) -> None:
    before = model(
        HEAD
        + """
        g (float[1, 4, 4, 4] x) => (float[1, 4, 4, 4] y)
        { a = Conv(x, w) b = Conv(x, v) s = Add(a, b) y = Tanh(s) }""",
        w=normal(4, 4, 1, 1),
        v=normal(4, 4, 1, 1),
    )
    feeds = [{"x": normal(1, 4, 4, 4)}]
    result = quantize(before, feeds)
    assert not any(c.rule == "joiner" for c in result.changes)
    assert fused(result.model, tmp_path)["QLinearAdd"] == 0
    close(result.model, before, feeds[0])


def test_an_addition_of_floats_is_not_taken_because_a_layer_reads_one_of_them() -> None:
    before = model(
        HEAD
        + """
        g (float[1, 8] x) => (float[1, 8] y, float[1, 8] z)
        { n = Tanh(x) y = MatMul(n, w) t = Sin(x) s = Add(n, t) z = MatMul(s, w) }""",
        w=normal(8, 8),
    )
    result = quantize(before, [{"x": normal(1, 8)}])
    assert [c.rule for c in result.changes] == ["layer", "layer"]


def test_asking_for_a_shape_does_not_dequantize() -> None:
    before = model(
        HEAD
        + "g (float[N, 4, 4, 4] x) => (int64[4] n, float[N, 4, 4, 4] y) { c = Conv(x, w) n = Shape(c) y = Conv(c, w) }",
        w=normal(4, 4, 1, 1),
    )
    feeds = [{"x": normal(2, 4, 4, 4)}]
    after = quantize(before, feeds).model
    shape = next(node for node in after.graph if node.op_type == "Shape")
    assert shape.inputs[0] is not None and shape.inputs[0].name == "c_quantized"
    close(after, before, feeds[0])


def test_clip_goes_when_zero_lies_inside_its_limits() -> None:
    text = (
        HEAD
        + """g (float[1,4,4,4] x) => (float[1,4,4,4] y) <float low = {%s}, float high = {6.0}>
        { c = Conv(x, w) k = Clip(c, low, high) y = Conv(k, w) }"""
    )
    feeds = [{"x": normal(1, 4, 4, 4, scale=4)}]
    for low, gone in (("0.0", True), ("1.0", False)):
        before = model(text % low, w=normal(4, 4, 1, 1))
        after = quantize(before, feeds).model
        assert ("Clip" not in op_types(after)) == gone
        close(after, before, feeds[0])


ENCODER = (
    HEAD
    + """
    g (float[1, S, 16] x) => (float[1, S, 16] y)
    {
        n = LayerNormalization <axis = -1> (x, gain)
        q = MatMul(n, wq)
        qb = Add(q, bq)
        k = MatMul(n, wk)
        kt = Transpose <perm = [0, 2, 1]> (k)
        scores = MatMul(qb, kt)
        attention = Softmax <axis = -1> (scores)
        mixed = MatMul(attention, n)
        out = MatMul(mixed, wo)
        y = Add(x, out)
    }"""
)


def encoder() -> Model:
    weights = {name: normal(16, 16, scale=0.3) for name in ("wq", "wk", "wo")}
    return model(ENCODER, gain=np.ones(16, np.float32), bq=normal(16), **weights)


def test_in_a_transformer_only_weight_matmuls_are_integer(tmp_path: Any) -> None:
    before, feeds = encoder(), [{"x": normal(1, 6, 16)}]
    result = quantize(before, feeds)
    assert Counter(op_types(result.model))["QuantizeLinear"] == 2, "q and k share one; out has its own"
    assert not result.skips, "attention products are no refused layers"
    ran = fused(result.model, tmp_path)
    assert ran["MatMulIntegerToFloat"] == 3 and ran["DequantizeLinear"] == 0 and ran["Softmax"] == 1
    assert ran["QLinearAdd"] == ran["QLinearSoftmax"] == 0
    close(result.model, before, feeds[0], 0.02)


def test_gemm_between_layers_gives_integers_and_the_last_one_floats(tmp_path: Any) -> None:
    before = model(
        HEAD
        + """
        g (float[N, 16] x) => (float[N, 4] y)
        { a = Gemm(x, w, b) r = Relu(a) y = Gemm <alpha = 0.5, beta = 2.0, transB = 1> (r, v, c) }""",
        w=normal(16, 32),
        b=normal(32),
        v=normal(4, 32),
        c=normal(1, 4),
    )
    feeds = [{"x": normal(8, 16)}]
    after = quantize(before, feeds).model
    assert fused(after, tmp_path) == {"QuantizeLinear": 1, "QGemm": 2}
    close(after, before, feeds[0])


def test_shared_weights_are_written_once() -> None:
    before = model(
        HEAD + "g (float[1,16] x) => (float[1,16] y) { a = MatMul(x, w) t = Tanh(a) y = MatMul(t, w) }",
        w=normal(16, 16),
    )
    feeds = [{"x": normal(1, 16)}]
    after = quantize(before, feeds).model
    weights = [v for v in after.graph.initializers.values() if v.dtype == ir.DataType.INT8 and len(v.shape or ()) == 2]
    assert len(weights) == 1
    close(after, before, feeds[0], 0.05)


def test_a_tied_embedding_stays_float_for_the_gather() -> None:
    before = model(
        HEAD
        + """g (int64[S] ids) => (float[S, 32] y)
        { e = Gather(table, ids) h = Tanh(e) y = Gemm <transB = 1> (h, table) }""",
        table=normal(32, 16),
    )
    feeds = [{"ids": np.array([1, 5, 9])}]
    after = quantize(before, feeds).model
    assert {"table", "table_quantized"} <= set(after.graph.initializers)
    gather = next(node for node in after.graph if node.op_type == "Gather")
    assert gather.inputs[0] is after.graph.initializers["table"]
    close(after, before, feeds[0])


def test_an_integer_value_that_is_also_an_output_keeps_its_name_and_type() -> None:
    before = model(
        HEAD + "g (float[1,4,4,4] x) => (float[1,4,4,4] mid, float[1,4,4,4] y) { mid = Conv(x, w) y = Conv(mid, w) }",
        w=normal(4, 4, 1, 1),
    )
    feeds = [{"x": normal(1, 4, 4, 4)}]
    close(quantize(before, feeds).model, before, feeds[0])


def test_a_relu_stays_when_what_stands_before_it_is_an_output(tmp_path: Any) -> None:
    before = model(
        HEAD
        + "g (float[1,4,4,4] x) => (float[1,4,4,4] c, float[1,4,4,4] y) { c = Conv(x, w) r = Relu(c) y = Conv(r, w) }",
        w=normal(4, 4, 1, 1),
    )
    feeds = [{"x": normal(1, 4, 4, 4)}]
    assert (run(before, feeds[0])["c"] < 0).any()
    after = quantize(before, feeds).model
    assert fused(after, tmp_path)["QLinearConv"] == 2
    close(after, before, feeds[0])
