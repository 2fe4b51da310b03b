"""simplify, before and after, and the ways in which the tool's result is turned down."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from passes.clean.simplify import Simplify
from passes.kit.contract import PassResult
from passes.kit.model import Model
from tests.support.runtime import LocalContext, model, op_types, run

HEAD = '<ir_version: 8, opset_import: ["": 17]>\n'


def simplify(subject: Model, **options: int) -> PassResult:
    return Simplify(**options)(subject, LocalContext())


def pads() -> Model:
    return model(
        HEAD
        + """g (float[batch, 2, 4, 4] x) => (float[batch, 1, 4, 4] y) {
          half = Constant<value_float=0.5>()
          e = Exp(half)
          p = Constant<value_ints=[0, 0, 1, 1, 0, 0, 1, 1]>()
          padded = Pad(x, p)
          c = Conv(padded, w)
          y = Mul(c, e)
        }""",
        w=np.ones((1, 2, 3, 3), np.float32),
    )


def test_it_folds_floats_and_moves_padding_into_the_convolution() -> None:
    subject = pads()
    subject.ir.metadata_props["author"] = "someone"
    result = simplify(subject)
    assert [op for op in op_types(result.model) if op != "Constant"] == ["Conv"]
    assert {(c.where, c.detail) for c in result.changes} >= {("Exp", "1 -> 0"), ("Pad", "1 -> 0")}
    assert result.model.signature == subject.signature
    assert result.model.ir.metadata_props == {"author": "someone"}
    x = np.arange(64, dtype=np.float32).reshape(2, 2, 4, 4)
    np.testing.assert_allclose(run(result.model, {"x": x})["y"], run(subject, {"x": x})["y"], rtol=1e-6)


def test_a_small_file_does_not_become_a_large_one() -> None:
    lines = [f"c{i} = ConstantOfShape<value = float[1] {{{i}.5}}>(s)\n a{i + 1} = Add(a{i}, c{i})" for i in range(8)]
    text = "g (float[400, 400] x) => (float[400, 400] y) { s = Constant<value_ints=[400, 400]>()\n a0 = Relu(x)\n"
    subject = model(HEAD + text + "\n".join(lines) + "\n y = Neg(a8) }")
    result = simplify(subject)
    assert result.model.weight_bytes() < 1 << 20
    assert simplify(subject, max_growth_bytes=1 << 26).model.weight_bytes() > 1 << 20


def test_the_tool_is_not_asked_to_make_a_constant_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """It fills memory for it before it looks at its size: the repeats below ask for 36 petabytes."""
    asked = []

    def spy(source: onnx.ModelProto, **options: Any) -> tuple[onnx.ModelProto, bool]:
        asked.append(options["skip_constant_folding"])
        return source, True

    monkeypatch.setattr("onnxsim.simplify", spy)
    body = "e = Constant<value_floats=[1.0]>() t = Tile(e, r) h = ReduceSum<keepdims=0>(t) y = Mul(x, h)"
    for repeats, wanted in ((2**53 + 2, True), (8, False)):
        simplify(model(HEAD + f"g (float[n] x) => (float[n] y) {{ {body} }}", r=np.array([repeats])))
        assert asked.pop() is wanted


def test_it_keeps_matmuls_on_three_axes_and_leaves_biases_and_batchnorm_alone() -> None:
    rng = np.random.default_rng(0)
    subject = model(
        HEAD
        + """g (float[n, s, 8] x) => (float[n, s, 8] y) {
          m1 = MatMul(x, w1)
          a1 = Add(m1, b1)
          r = Relu(a1)
          m2 = MatMul(r, w2)
          z = Constant<value_float=1.0>()
          e = Exp(z)
          f = Mul(m2, e)
          y = Add(f, b2)
        }""",
        w1=rng.random((8, 8), np.float32),
        w2=rng.random((8, 8), np.float32),
        b1=np.ones(8, np.float32),
        b2=np.ones(8, np.float32),
    )
    result = simplify(subject)
    assert op_types(result.model).count("MatMul") == 2
    assert "Gemm" not in op_types(result.model)
    assert {"b1", "b2"} <= set(result.model.graph.initializers)


def test_an_unknown_operator_is_skipped_with_the_reason(capfd: pytest.CaptureFixture[str]) -> None:
    result = simplify(model(HEAD + "g (float[2] x) => (float[2] y) { a = Identity(x)\n y = Nonsense(a) }"))
    assert not result.changes
    assert "Nonsense" in result.skips[0].reason
    assert capfd.readouterr().out == ""


def test_map_types_are_skipped() -> None:
    subject = Model(pads().ir, {"y": b""})
    assert "map types" in simplify(subject).skips[0].reason


def test_more_than_one_message_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("passes.clean.simplify.LARGEST_PROTO_BYTES", 10)
    result = simplify(pads())
    assert not result.changes
    assert "do not fit into the one message" in result.skips[0].reason


def _answers(monkeypatch: pytest.MonkeyPatch, answer: Any) -> PassResult:
    def stand_in(proto: onnx.ModelProto, **_: Any) -> Any:
        return answer(proto), True

    monkeypatch.setitem(sys.modules, "onnxsim", SimpleNamespace(simplify=stand_in))
    return simplify(pads())


def _edited(edit: Any) -> Any:
    def answer(proto: onnx.ModelProto) -> onnx.ModelProto:
        copy = onnx.ModelProto.FromString(proto.SerializeToString())
        edit(copy)
        return copy

    return answer


def _raise(proto: onnx.ModelProto) -> None:
    raise RuntimeError("no supported data type: 17\nand a long trace")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (_raise, "onnxsim raised RuntimeError: no supported data type: 17"),
        (lambda proto: None, "returned no model"),
        (
            _edited(lambda p: setattr(p.graph.output[0], "name", "padded")),
            "outputs are padded: tensor_type 1 instead of y: tensor_type 1",
        ),
        (_edited(lambda p: p.graph.input.add(name="more")), "inputs are"),
        (_edited(lambda p: setattr(p.opset_import[0], "version", 18)), "changed the opset"),
        (_edited(lambda p: p.graph.node[-1].input.append("nowhere")), "is not valid"),
    ],
)
def test_a_bad_answer_is_turned_down(monkeypatch: pytest.MonkeyPatch, answer: Any, reason: str) -> None:
    result = _answers(monkeypatch, answer)
    assert not result.changes
    assert reason in result.skips[0].reason


def test_declared_dimensions_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def narrow(proto: onnx.ModelProto) -> None:
        proto.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 7
        for node in [n for n in proto.graph.node if n.op_type == "Exp"]:
            proto.graph.node.remove(node)
        proto.graph.node[-1].input[1] = "half"

    result = _answers(monkeypatch, _edited(narrow))
    assert result.changes
    assert result.model.signature == pads().signature


def test_an_answer_with_the_same_nodes_is_no_change(monkeypatch: pytest.MonkeyPatch) -> None:
    result = _answers(monkeypatch, _edited(lambda p: setattr(p.graph.node[0], "name", "renamed")))
    assert not result.changes
    assert not result.skips
