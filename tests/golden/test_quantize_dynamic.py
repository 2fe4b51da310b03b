"""``quantize-dynamic``, before and after."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from passes.kit.contract import PassResult
from passes.kit.model import Model
from passes.quantize.quantize_dynamic import QuantizeDynamic
from tests.support.models import branches
from tests.support.runtime import LocalContext, model, op_types, run, target

Array = np.ndarray[Any, Any]
HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
SEED = 7
stream = {"rng": np.random.default_rng(SEED)}


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Every test draws the same numbers, whichever tests ran before it."""
    stream["rng"] = np.random.default_rng(SEED)


def normal(*shape: int) -> Array:
    return stream["rng"].standard_normal(shape).astype(np.float32)


def quantize(subject: Model, **options: Any) -> PassResult:
    before = subject.digest()
    result = QuantizeDynamic(**options)(subject, LocalContext())
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
    wanted, got = run(before, feeds), run(after, feeds, optimize=True)
    for name, value in wanted.items():
        assert np.linalg.norm(got[name] - value) <= share * np.linalg.norm(value), name


def test_a_linear_layer_becomes_one_integer_kernel(tmp_path: Any) -> None:
    before = model(
        HEAD + "g (float[B,S,64] x) => (float[B,S,128] y) { m = MatMul(x, w) y = Add(b, m) }",
        w=normal(64, 128),
        b=normal(128),
    )
    after = quantize(before).model
    assert op_types(after) == ["DynamicQuantizeLinear", "MatMulInteger", "Cast", "Mul", "Mul", "Add"]
    assert fused(after, tmp_path) == {"DynamicQuantizeMatMul": 1}
    assert len(after.to_bytes()) < 0.35 * len(before.to_bytes())
    close(after, before, {"x": normal(2, 5, 64)})


@pytest.mark.parametrize("attributes", ["", "<transB = 1>", "<alpha = 0.5, beta = 3.0>"])
def test_gemm_in_every_spelling(attributes: str, tmp_path: Any) -> None:
    text = HEAD + f"g (float[N,16] x) => (float[N,24] y) {{ y = Gemm {attributes} (x, w, b) }}"
    before = model(text, w=normal(24, 16) if "transB" in attributes else normal(16, 24), b=normal(1, 24))
    after = quantize(before).model
    assert fused(after, tmp_path) == {"DynamicQuantizeMatMul": 1}
    close(after, before, {"x": normal(5, 16)})


def test_layers_that_read_one_value_share_its_quantization_and_a_weight_is_written_once(tmp_path: Any) -> None:
    before = model(
        HEAD
        + """g (float[1,S,16] x) => (float[1,S,16] y)
        { q = MatMul(x, w) k = MatMul(x, v) s = Mul(q, k) y = MatMul(s, w) }""",
        w=normal(16, 16),
        v=normal(16, 16),
    )
    after = quantize(before).model
    assert op_types(after).count("DynamicQuantizeLinear") == 2
    assert sum(v.dtype == ir.DataType.INT8 and len(v.shape or ()) == 2 for v in after.graph.initializers.values()) == 2
    ran = fused(after, tmp_path)
    assert ran["MatMulIntegerToFloat"] == 2 and ran["DynamicQuantizeMatMul"] == 1
    close(after, before, {"x": normal(1, 3, 16)}, 0.05)


def test_weights_are_signed_and_per_channel_and_reach_what_the_target_allows() -> None:
    before = model(
        HEAD + "g (float[1,4] x) => (float[1,2] y) { y = MatMul(x, w) }",
        w=np.array([[1, 0.01], [0.5, 0.021], [-1, 0.03], [0, -0.04]], np.float32),
    )
    graph = quantize(before).model.graph
    np.testing.assert_array_equal(
        graph.initializers["w_quantized"].const_value.numpy(), [[127, 32], [64, 67], [-127, 95], [0, -127]]
    )
    np.testing.assert_allclose(graph.initializers["w_scale"].const_value.numpy(), [1 / 127, 0.04 / 127], rtol=1e-6)
    whole = quantize(before, per_channel=False).model.graph
    assert whole.initializers["w_scale"].shape == ir.Shape([])
    narrow = QuantizeDynamic()(before, LocalContext(target=target("x86-avx2"))).model.graph
    assert np.abs(narrow.initializers["w_quantized"].const_value.numpy()).max() == 64


def test_names_choose_layers() -> None:
    before = model(
        HEAD + "g (float[1,4] x) => (float[1,4] y) { a = MatMul(x, w) t = Tanh(a) y = MatMul(t, v) }",
        w=normal(4, 4),
        v=normal(4, 4),
    )
    assert [c.where for c in quantize(before, only=("a",)).changes] == ["a"]
    assert [c.where for c in quantize(before, exclude=("a",)).changes] == ["y"]
    assert not quantize(before, exclude=("*",)).changes


def test_convolutions_and_attention_stay_float() -> None:
    before = model(
        HEAD
        + """g (float[1,4,4] x) => (float[1,4,4] y)
        { c = Conv(x, w) t = Transpose <perm = [0,2,1]> (c) y = MatMul(c, t) }""",
        w=normal(4, 4, 1),
    )
    result = quantize(before)
    assert not result.changes and not result.skips


def test_old_models_are_raised_and_say_so() -> None:
    text = '<ir_version: 3, opset_import: ["" : 8]> g (float[1,4] x, float[4,4] w) => (float[1,4] y) '
    listed = model(text + "{ y = MatMul(x, w) }", w=normal(4, 4))
    assert "run `tidy` first" in quantize(listed).skips[0].reason
    text = text.replace("ir_version: 3", "ir_version: 4").replace(", float[4,4] w", "")
    before = model(text + "{ y = MatMul(x, w) }", w=normal(4, 4))
    result = quantize(before)
    assert result.changes[0].rule == "opset" and result.model.opset == 13
    close(result.model, before, {"x": normal(1, 4)})


def test_the_output_keeps_its_name_when_the_layer_makes_it() -> None:
    before = model(HEAD + "g (float[1,4] x) => (float[1,4] y) { y = MatMul(x, w) }", w=normal(4, 4))
    assert quantize(before).model.signature == before.signature


def test_layers_in_both_branches_share_what_they_read_from_outside(tmp_path: Any) -> None:
    branches(tmp_path / "if.onnx")
    before = Model.from_proto(onnx.load(tmp_path / "if.onnx"))
    after = quantize(before).model
    nodes = Counter(n.op_type for n in after.nodes())
    assert nodes["MatMulInteger"] == 4 and nodes["MatMul"] == 0
    assert nodes["DynamicQuantizeLinear"] == 3, "x once, where it is born; the inner value once in each branch"
    assert {"w1", "w2"}.isdisjoint(after.graph.initializers), "the float weights are gone"
    eight = [v for g in after.graphs() for v in g.initializers.values() if v.dtype == ir.DataType.INT8 and v.shape]
    assert len([v for v in eight if len(v.shape or ()) == 2]) == 2, "both branches read the same two matrices"
    for taken in (True, False):
        close(after, before, {"x": normal(6, 32), "c": np.array(taken)}, 0.05)


def test_a_layer_in_a_loop_reads_the_value_that_the_loop_carries() -> None:
    text = (
        HEAD
        + """g (float[N,16] x, int64 n) => (float[N,16] y) {
        go = Constant <value = bool {1}> ()
        y = Loop (n, go, x) <body = b (int64 i, bool c, float[N,16] h) => (bool co, float[N,16] ho) {
            co = Identity (c) m = MatMul (h, w) t = Tanh (m) ho = Add (t, x) }>
        }"""
    )
    before = model(text, w=normal(16, 16))
    after = quantize(before).model
    assert op_types(after).count("MatMulInteger") == 1
    assert "MatMulInteger" not in {n.op_type for n in after.graph}, "it stays in the body"
    for count in (0, 1, 5):
        close(after, before, {"x": normal(3, 16), "n": np.array(count, np.int64)}, 0.05)
