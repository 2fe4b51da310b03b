"""convert-float16, before and after."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from passes.kit.contract import PassResult
from passes.kit.model import Model, constant
from passes.quantize.convert_float16 import OVERFLOWING, ConvertFloat16
from tests.support.runtime import LocalContext, model, op_types, run

HEAD = '<ir_version: 8, opset_import: ["": 17]>\n'
RNG = np.random.default_rng(0)
W = RNG.normal(size=(4, 4)).astype(np.float32)
X = RNG.normal(size=(2, 4)).astype(np.float32)


def convert(subject: Model, **options: Any) -> PassResult:
    result = ConvertFloat16(**options)(subject, LocalContext())
    onnx.checker.check_model(result.model.to_proto(), full_check=True)
    assert result.model.signature == subject.signature
    return result


def text(result: PassResult) -> list[str]:
    """``Op: output types`` of every node."""
    return [f"{n.op_type}: {n.outputs[0].dtype}" for n in result.model.graph]


def reasons(result: PassResult) -> dict[str, str]:
    return {s.where: s.reason for s in result.skips}


def test_layers_and_what_lies_between_them_compute_in_float16() -> None:
    subject = model(
        HEAD
        + """g (float[n, 4] x) => (float[n, 4] y) {
          a = MatMul(x, w)
          b = Relu(a)
          y = MatMul(b, w)
        }""",
        w=W,
    )
    result = convert(subject)
    assert text(result) == ["Cast: FLOAT16", "MatMul: FLOAT16", "Relu: FLOAT16", "MatMul: FLOAT16", "Cast: FLOAT"]
    assert {n: v.const_value.dtype for n, v in result.model.graph.initializers.items() if v.const_value} == {
        "w_half": ir.DataType.FLOAT16
    }, "the weights are shared, and the float ones are gone"
    wanted = np.maximum(X @ W, 0) @ W
    np.testing.assert_allclose(run(result.model, {"x": X})["y"], wanted, rtol=1e-2, atol=1e-2)
    assert not convert(result.model).changes, "nothing float32 is left"


def test_what_overflows_stays_in_float32_between_casts() -> None:
    subject = model(
        HEAD
        + """g (float[n, 4] x) => (float[n, 4] y) {
          a = MatMul(x, w)
          e = Exp(a)
          y = MatMul(e, w)
        }""",
        w=W,
    )
    result = convert(subject)
    assert op_types(result.model) == ["Cast", "MatMul", "Cast", "Exp", "Cast", "MatMul", "Cast"]
    assert reasons(result) == {"e": "Exp stays in float32"}
    assert op_types(convert(subject, keep=()).model) == ["Cast", "MatMul", "Exp", "MatMul", "Cast"]
    assert "ReduceSum" in OVERFLOWING and "Softmax" not in OVERFLOWING


def test_constants_beyond_the_range_keep_their_nodes_in_float32() -> None:
    subject = model(
        HEAD
        + """g (float[n, 4] x) => (float[n, 4] y) {
          a = MatMul(x, w)
          mask = Constant<value_float=-3.4e38>()
          b = Add(a, mask)
          eps = Constant<value_float=1e-12>()
          c = Add(b, eps)
          y = MatMul(c, w)
        }""",
        w=W,
    )
    result = convert(subject)
    assert reasons(result) == {
        "b": "a constant is beyond the range of float16",
        "c": "a constant would become zero in float16",
    }
    held = [constant(n.inputs[1]) for n in result.model.graph if n.op_type == "Add"]
    assert [a is not None and a.dtype == np.float32 for a in held] == [True, True]
    infinite = model(HEAD + "g (float[2, 4] x) => (float[2, 4] y) { a = MatMul(x, w)\n y = Add(a, m) }", w=W,
                     m=np.array([-np.inf], np.float32))  # fmt: skip
    assert len(convert(infinite).changes) == 2, "an infinite mask is infinite in float16 too"


def test_tiny_weights_may_vanish_but_a_group_without_a_layer_stays() -> None:
    tiny = np.where(np.eye(16) > 0, 1.0, 1e-9).astype(np.float32)
    result = convert(model(HEAD + "g (float[2, 16] x) => (float[2, 16] y) { y = MatMul(x, t) }", t=tiny))
    assert op_types(result.model) == ["Cast", "MatMul", "Cast"]
    alone = model(HEAD + "g (float[2, 4] x) => (float[2, 4] y) { a = Relu(x)\n y = Sigmoid(a) }")
    assert not convert(alone).changes


def test_a_value_that_is_an_output_and_read_by_others_is_cast_once() -> None:
    subject = model(
        HEAD
        + """g (float[n, 4] x) => (float[n, 4] y, float[n, 4] z) {
          y = MatMul(x, w)
          e = Exp(y)
          z = Relu(y)
        }""",
        w=W,
    )
    result = convert(subject)
    casts = [(n.inputs[0].name, n.outputs[0].name) for n in result.model.graph if n.op_type == "Cast" and n.inputs[0]]
    assert casts == [("x", "x_half"), ("y_half", "y"), ("z_half", "z")]
    exp = next(n for n in result.model.graph if n.op_type == "Exp")
    assert exp.inputs[0] is not None and exp.inputs[0].name == "y"
    found = run(result.model, {"x": X})
    np.testing.assert_allclose(found["z"], np.maximum(X @ W, 0), rtol=1e-2, atol=1e-2)


def test_bodies_read_float32_and_slots_that_must_be_float32_stay() -> None:
    subject = model(
        HEAD
        + """g (float[1, 4, 4, 4] x, bool c) => (float[1, 4, 8, 8] y, float[1, 4, 4, 4] z) {
          a = Conv(x, k)
          scales = Constant<value_floats=[1.0, 1.0, 2.0, 2.0]>()
          y = Resize<mode="nearest">(a, , scales)
          z = If(c) <
            then_branch = t () => (float[1, 4, 4, 4] p) { p = Neg(a) },
            else_branch = e () => (float[1, 4, 4, 4] q) { q = Abs(a) }
          >
        }""",
        k=RNG.normal(size=(4, 4, 1, 1)).astype(np.float32),
    )
    result = convert(subject)
    resize = next(n for n in result.model.graph if n.op_type == "Resize")
    assert [v.name if v else "" for v in resize.inputs] == ["a", "", "scales"]
    assert resize.inputs[0] is not None and resize.inputs[0].dtype == ir.DataType.FLOAT16
    feeds = {"x": RNG.normal(size=(1, 4, 4, 4)).astype(np.float32), "c": np.array(True)}
    for name, wanted in run(subject, feeds).items():
        np.testing.assert_allclose(run(result.model, feeds)[name], wanted, rtol=1e-2, atol=1e-2)


def test_names_and_settings_decide() -> None:
    subject = model(
        HEAD + "g (float[2, 4] x) => (float[2, 4] y) { a = MatMul(x, w)\n b = Relu(a)\n y = MatMul(b, w) }", w=W
    )
    result = convert(subject, exclude=("y*",))
    assert reasons(result) == {"y": "it is excluded by name"} and len(result.changes) == 2
    assert set(result.model.graph.initializers) == {"w", "w_half"}, "one node still reads the float weights"


def test_sequences_stay_as_they_are() -> None:
    subject = model(
        HEAD
        + """g (float[2, 4] x) => (float[2, 4] y) {
          a = MatMul(x, w)
          s = SplitToSequence<axis=0>(a)
          c = ConcatFromSequence<axis=0>(s)
          y = MatMul(c, w)
        }""",
        w=W,
    )
    result = convert(subject)
    assert len(result.changes) == 2
    np.testing.assert_allclose(run(result.model, {"x": X})["y"], X @ W @ W, rtol=2e-2, atol=2e-2)


def test_values_that_come_near_the_end_of_the_range_stay_in_float32() -> None:
    subject = model(
        HEAD
        + """g (float[n, 4] x) => (float[n, 4] y) {
          a = MatMul(x, w)
          b = Mul(a, large)
          c = Relu(b)
          d = Tanh(c)
          y = MatMul(d, w)
        }""",
        w=W,
        large=np.array([20000.0], np.float32),
    )
    feeds = [{"x": X}]
    result = ConvertFloat16()(subject, LocalContext(feeds=feeds))
    kept = {where for where, why in reasons(result).items() if "on the calibration data" in why}
    assert kept == {"b", "c", "d"}, "whoever makes or reads what is too large"
    assert op_types(result.model) == ["Cast", "MatMul", "Cast", "Mul", "Relu", "Tanh", "Cast", "MatMul", "Cast"]
    far = np.abs(run(subject, feeds[0], ["b"])["b"]).max()
    assert far > 65504 / 2, "the test itself"
    loose = ConvertFloat16(headroom=1.0)(subject, LocalContext(feeds=[{"x": X * 0.3 / far * 65504 / 0.3 * 0.9}]))
    assert len(loose.changes) == 5
