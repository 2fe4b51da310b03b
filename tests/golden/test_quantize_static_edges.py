"""``quantize-static`` where it refuses, raises the opset, or is told what to choose."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from passes.kit.context import NoData
from passes.kit.model import constant
from passes.quantize.layers import quantizable
from passes.quantize.quantize_static import QuantizeStatic
from tests.golden.test_quantize_static import HEAD, SEED, close, fused, normal, quantize, residual, stream
from tests.support.runtime import LocalContext, model, op_types, target


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Every test draws the same numbers, whichever tests ran before it."""
    stream["rng"] = np.random.default_rng(SEED)


@pytest.mark.parametrize(
    ("text", "weights", "reason"),
    [
        ("g (float[1,4] x, float[4,4] w) => (float[1,4] y) { y = Gemm(x, w) }", {}, "computed, not constant"),
        ("g (float[1,4] x, float[4] b) => (float[1,4] y) { y = Gemm(x, w, b) }", {"w": (4, 4)}, "bias is computed"),
        ("g (float[4,1] x) => (float[1,4] y) { y = Gemm <transA = 1> (x, w) }", {"w": (4, 4)}, "transA"),
        ("g (float[2,4] x) => (float[2,4] y) { y = Gemm(x, w, b) }", {"w": (4, 4), "b": (2, 4)}, "output channel"),
        ("g (float[2,4,4] x) => (float[2,4,4] y) { y = MatMul(x, w) }", {"w": (2, 4, 4)}, "3 dimensions"),
        ("g (float[4,4] x) => (float[4,4] y) { y = MatMul(w, x) }", {"w": (4, 4)}, "left operand"),
        (
            "g (float[1,2,3,3,3] x) => (float[1,2,3,3,3] y) { y = Conv(x, w) }",
            {"w": (2, 2, 1, 1, 1)},
            "three dimensions",
        ),
    ],
)
def test_refusals_say_why(text: str, weights: dict[str, tuple[int, ...]], reason: str) -> None:
    before = model(HEAD + text, **{name: normal(*shape) for name, shape in weights.items()})
    result = QuantizeStatic()(before, LocalContext())
    assert not result.changes and result.model is before
    assert len(result.skips) == 1 and reason in result.skips[0].reason


def test_other_types_and_broken_weights_are_refused() -> None:
    text = "g ({0}[1,4] x) => ({0}[1,4] y) {{ y = MatMul(x, w) }}"
    halves = QuantizeStatic()(model(HEAD + text.format("float16"), w=normal(4, 4).astype(np.float16)), LocalContext())
    assert "float16" in halves.skips[0].reason
    broken = normal(4, 4)
    broken[0, 0] = np.inf
    assert (
        "not finite" in QuantizeStatic()(model(HEAD + text.format("float"), w=broken), LocalContext()).skips[0].reason
    )


def test_a_quantized_model_is_left_alone() -> None:
    feeds = [{"x": normal(2, 8, 8, 8)}]
    once = quantize(residual(), feeds).model
    twice = quantize(once, feeds)
    assert not twice.changes
    assert {s.reason for s in twice.skips} == {"its weight is quantized already"}


def test_layers_inside_branches_are_skipped_with_a_reason() -> None:
    before = model(
        HEAD
        + """
        g (bool flag, float[1,4] x) => (float[1,4] y)
        { y = If (flag) <
            then_branch = a () => (float[1,4] p) { p = MatMul(x, w) },
            else_branch = b () => (float[1,4] q) { q = Identity(x) }> }""",
        w=normal(4, 4),
    )
    result = QuantizeStatic()(before, LocalContext())
    assert not result.changes and "If, Loop or Scan" in result.skips[0].reason


def test_a_branch_may_read_a_value_that_becomes_integer() -> None:
    before = model(
        HEAD
        + """
        g (bool flag, float[1,4,2,2] x) => (float[1,4,2,2] y)
        { c = Conv(x, w)
          i = If (flag) <
            then_branch = a () => (float[1,4,2,2] p) { p = Tanh(c) },
            else_branch = b () => (float[1,4,2,2] q) { q = Neg(c) }>
          d = Conv(c, w)
          y = Add(d, i) }""",
        w=normal(4, 4, 1, 1),
    )
    feeds = {"flag": np.array(True), "x": normal(1, 4, 2, 2)}
    close(quantize(before, [feeds]).model, before, feeds)


def test_a_tensor_with_infinities_stays_float() -> None:
    before = model(
        HEAD
        + """g (float[1,4] x) => (float[1,4] y)
        { a = MatMul(x, w) l = Log(a) b = MatMul(l, v) s = Tanh(b) y = MatMul(s, u) }""",
        w=np.abs(normal(4, 4)),
        v=np.abs(normal(4, 4)),
        u=normal(4, 4),
    )
    result = quantize(before, [{"x": np.zeros((1, 4), np.float32)}])
    assert [(s.where, "not finite" in s.reason) for s in result.skips] == [("l", True)]
    assert [c.where for c in result.changes if c.rule == "layer"] == ["a", "y"]


def test_old_models_are_raised_and_say_so() -> None:
    text = HEAD.replace("17", "9").replace("8,", "4,") + "g (float[1,4,4,4] x) => (float[1,4,4,4] y) { y = Conv(x, w) }"
    before = model(text, w=normal(4, 4, 1, 1))
    feeds = [{"x": normal(1, 4, 4, 4)}]
    result = quantize(before, feeds)
    assert result.model.opset == 13 and result.model.ir.ir_version >= 7
    assert result.changes[0].rule == "opset" and "from 9 to 13" in result.changes[0].detail
    close(result.model, before, feeds[0])


def test_a_raised_model_keeps_its_dimensions_without_names() -> None:
    text = HEAD.replace("17", "11") + "g (float[a,4,b,c] x) => (float[d,4,e,f] y) { y = Conv(x, w) }"
    before = model(text, w=normal(4, 4, 1, 1))
    for value in (*before.graph.inputs, *before.graph.outputs):
        value.shape = ir.Shape([None, 4, None, None])
    result = quantize(before, [{"x": normal(1, 4, 4, 4)}])
    assert result.model.opset == 13 and result.model.signature == before.signature


def test_where_the_opset_cannot_be_raised_weights_get_one_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    text = HEAD.replace("17", "11") + "g (float[1,4,4,4] x) => (float[1,4,4,4] y) { c = Conv(x, w, b) y = Relu(c) }"
    before = model(text, w=normal(4, 4, 1, 1), b=normal(4))
    feeds = [{"x": normal(1, 4, 4, 4)}]

    def fail(*_: object) -> None:
        raise RuntimeError("no adapter\nfor this operator")

    monkeypatch.setattr(onnx.version_converter, "convert_version", fail)
    result = quantize(before, feeds)
    assert result.model.opset == 11 and result.model.graph.initializers["w_scale"].shape == ir.Shape([])
    assert "no adapter" in result.skips[0].reason
    onnx.checker.check_model(result.model.to_proto())  # the attribute `axis` came with opset 13
    close(result.model, before, feeds[0])
    older = model(text.replace("11", "9"), w=normal(4, 4, 1, 1), b=normal(4))
    assert not quantize(older, feeds).changes


def test_a_conversion_that_changes_the_signature_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    text = HEAD.replace("17", "9") + "g (float[1,4,4,4] x) => (float[1,4,4,4] %s) { %s = Conv(x, w) }"
    before, other = (model(text.replace("%s", name), w=normal(4, 4, 1, 1)) for name in ("y", "z"))
    monkeypatch.setattr(onnx.version_converter, "convert_version", lambda *_: other.to_proto())
    result = quantize(before, [{"x": normal(1, 4, 4, 4)}])
    assert not result.changes and "changes its inputs or outputs" in result.skips[0].reason


def test_nameless_nodes_have_stable_names() -> None:
    before, feeds = residual(), [{"x": normal(2, 8, 8, 8)}]
    names = quantizable(before, target())
    assert names == ("a", "b", "y")
    for name in names:
        only = quantize(before, feeds, only=(name,))
        assert [c.where for c in only.changes if c.rule == "layer"] == [name]
        rest = quantize(before, feeds, exclude=(name,))
        assert [c.where for c in rest.changes if c.rule == "layer"] == [n for n in names if n != name]


def test_double_names_give_way_to_the_names_of_outputs() -> None:
    before = residual()
    for node in before.graph:
        node.name = "twin" if node.op_type == "Conv" else f"own {node.op_type}"
    assert quantizable(before, target()) == ("a", "b", "own Gemm")
    assert quantizable(before, target(), ("Gemm",)) == ("own Gemm",)


def test_patterns_match_names_with_brackets_literally() -> None:
    before = model(HEAD + "g (float[1,4] x) => (float[1,4] y) { y = MatMul(x, w) }", w=normal(4, 4))
    next(iter(before.graph)).name = "layers[0]/fc"
    assert not QuantizeStatic(exclude=("layers[0]/fc",))(before, LocalContext()).changes
    assert not QuantizeStatic(exclude=("layers*",))(before, LocalContext()).changes


def test_bias_behind_identity_and_constant_nodes() -> None:
    before = model(
        HEAD
        + """g (float[1,4,4,4] x) => (float[1,2,4,4] y)
        { c = Constant <value = float[2] {1.0, -1.0}> ()  i = Identity(c)  y = Conv(x, w, i) }""",
        w=normal(2, 4, 1, 1),
    )
    feeds = [{"x": normal(1, 4, 4, 4)}]
    after = quantize(before, feeds).model
    assert op_types(after).count("Identity") == op_types(after).count("Constant") == 0
    close(after, before, feeds[0])


@pytest.mark.parametrize(
    ("conv", "x", "w"),
    [
        ("Conv <group = 4, pads = [1,1,1,1]>", (1, 4, 8, 8), (4, 1, 3, 3)),
        ("Conv <group = 2>", (1, 8, 8, 8), (4, 4, 1, 1)),
        ("Conv <pads = [2,2]>", (1, 4, 16), (8, 4, 5)),
        ('Conv <strides = [2,2], auto_pad = "SAME_UPPER">', (1, 4, 9, 9), (4, 4, 3, 3)),
        ("Conv <dilations = [2,2]>", (1, 4, 9, 9), (4, 4, 3, 3)),
    ],
)
def test_convolutions_of_every_shape(conv: str, x: tuple[int, ...], w: tuple[int, ...], tmp_path: Any) -> None:
    dims = ",".join(map(str, x))
    text = HEAD + f"g (float[{dims}] x) => (float{[*'ABCD'][: len(x)]} y) {{ y = {conv} (x, w) }}".replace("'", "")
    before, feeds = model(text, w=normal(*w)), [{"x": normal(*x)}]
    after = quantize(before, feeds).model
    assert fused(after, tmp_path)["QLinearConv"] == 1
    close(after, before, feeds[0])


def test_several_inputs_and_dynamic_shapes() -> None:
    before = model(
        HEAD
        + """g (float[B,S,8] a, float[B,S,8] b) => (float[B,S,4] y)
        { s = Add(a, b) h = MatMul(s, w) n = Shape(h) r = Reshape(h, n) y = Relu(r) }""",
        w=normal(8, 4),
    )
    seen = [{"a": normal(b, s, 8), "b": normal(b, s, 8)} for b, s in ((1, 3), (2, 5))]
    after = quantize(before, seen).model
    for feeds in seen:
        close(after, before, feeds)


def test_target_decides_reach_and_types() -> None:
    before, feeds = residual(), [{"x": normal(2, 8, 8, 8)}]
    narrow = QuantizeStatic()(before, LocalContext(feeds, target("x86-avx2"))).model
    eight = [
        v.const_value.numpy() for v in narrow.graph.initializers.values() if v.name and v.name.endswith("_quantized")
    ]
    assert max(np.abs(a).max() for a in eight if a.dtype == np.int8) == 64
    signed = quantize(before, feeds, activation="int8", weight="uint8").model
    held = {name: constant(v) for name, v in signed.graph.initializers.items()}
    assert held["wa_quantized"].dtype == np.uint8 and held["rs_zero_point"] == -128
    close(narrow, before, feeds[0], 0.06)
    close(signed, before, feeds[0])


def test_percentile_leaves_outliers_out() -> None:
    before = model(HEAD + "g (float[1,1000] x) => (float[1,4] y) { y = MatMul(x, w) }", w=normal(1000, 4))
    x = np.linspace(0, 1, 1000, dtype=np.float32)[None]
    x[0, -1] = 100.0
    scale = {
        observer: float(
            constant(
                quantize(before, [{"x": x}], observer=observer, percentile=99.0).model.graph.initializers["x_scale"]
            )
        )
        for observer in ("minmax", "percentile")
    }
    assert scale["minmax"] == np.float32(100 / 255)
    assert abs(scale["percentile"] * 255 - 0.99) < 2 * 100 / 2048


def test_without_data_it_says_so() -> None:
    with pytest.raises(NoData):
        QuantizeStatic()(residual(), LocalContext())
