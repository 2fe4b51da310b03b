"""tidy, before and after."""

from __future__ import annotations

import numpy as np
import pytest

from passes.clean.tidy import Tidy
from passes.kit.contract import PassResult
from passes.kit.model import Model
from tests.support.runtime import LocalContext, model, op_types, run

HEAD = '<ir_version: 8, opset_import: ["": 17]>\n'
X = np.arange(6, dtype=np.float32).reshape(2, 3) - 2


def tidy(subject: Model, **options: bool) -> PassResult:
    return Tidy(**options)(subject, LocalContext())


def rules(result: PassResult) -> set[str]:
    return {c.rule for c in result.changes}


def test_it_buries_the_dead_and_forwards_the_idle() -> None:
    subject = model(
        HEAD
        + """g (float[2, 3] x) => (float[2, 3] y) {
          dead = Exp(x)
          deader = Log(dead)
          i = Identity(x)
          t = Transpose<perm=[0, 1]>(i)
          c = Cast<to=1>(t)
          j = Concat<axis=0>(c)
          shape = Constant<value_ints=[2, 3]>()
          r = Reshape(j, shape)
          one = Constant<value_float=1.0>()
          m = Mul(one, r)
          y = Neg(m)
        }"""
    )
    result = tidy(subject)
    assert op_types(result.model) == ["Neg"]
    assert rules(result) >= {"dead-node", "identity", "no-op", "concat-of-one", "times-one"}
    np.testing.assert_array_equal(run(result.model, {"x": X})["y"], -X)


def test_an_identity_before_an_output_hands_its_name_over() -> None:
    subject = model(HEAD + "g (float[2, 3] x) => (float[2, 3] y) { a = Relu(x)\n y = Identity(a) }")
    result = tidy(subject)
    assert op_types(result.model) == ["Relu"]
    assert result.model.signature == subject.signature
    np.testing.assert_array_equal(run(result.model, {"x": X})["y"], np.maximum(X, 0))


def test_an_identity_between_an_input_and_an_output_stays() -> None:
    subject = model(HEAD + "g (float[2, 3] x) => (float[2, 3] y) { y = Identity(x) }")
    result = tidy(subject)
    assert not result.changes
    assert "graph output" in result.skips[0].reason


def test_a_bias_behind_an_identity_becomes_the_bias() -> None:
    subject = model(
        HEAD
        + """g (float[1, 2, 4, 4] x) => (float[1, 2, 2, 2] y) {
          b = Identity(bias)
          y = Conv(x, w, b)
        }""",
        w=np.ones((2, 2, 3, 3), np.float32),
        bias=np.array([1, 2], np.float32),
    )
    result = tidy(subject)
    (conv,) = result.model.graph
    assert conv.inputs[2] is result.model.graph.initializers["bias"]


def test_twins_are_computed_once_and_small_constants_count_by_content() -> None:
    subject = model(
        HEAD
        + """g (float[2, 3] x) => (float[2, 3] y) {
          a = Add(x, k1)
          b = Add(x, k2)
          c = Mul(a, b)
          d = Mul(b, a)
          y = Sub(c, d)
        }""",
        k1=np.array(2, np.float32),
        k2=np.array(2, np.float32),
    )
    result = tidy(subject)
    assert op_types(result.model) == ["Add", "Mul", "Sub"]


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        ("a = RandomNormalLike(x)\n b = RandomNormalLike(x)\n y = Sub(a, b)", 3),
        ("a = ReduceSum<keepdims=1>(x)\n b = ReduceSum<keepdims=0>(x)\n y = Sub(a, b)", 3),
        ("a = com.custom.Draw(x)\n b = com.custom.Draw(x)\n y = Sub(a, b)", 3),
    ],
)
def test_what_may_differ_is_not_merged(body: str, kept: int) -> None:
    head = '<ir_version: 8, opset_import: ["": 17, "com.custom": 1]>\n'
    result = tidy(model(head + "g (float[2, 3] x) => (float[2, 3] y) { " + body + " }"))
    assert len(op_types(result.model)) == kept
    assert not result.changes


def test_two_equal_outputs_stay_two() -> None:
    result = tidy(model(HEAD + "g (float[2, 3] x) => (float[2, 3] y, float[2, 3] z) { y = Exp(x)\n z = Exp(x) }"))
    assert not result.changes
    assert result.skips[0].reason == "both results are graph outputs"


def test_large_equal_initializers_are_shared_and_small_ones_are_left_apart() -> None:
    big, small = np.ones((20, 20), np.float32), np.ones(20, np.float32)
    subject = model(
        HEAD
        + """g (float[1, 20] x) => (float[1, 20] y) {
          a = Gemm(x, w1, b1)
          y = Gemm(a, w2, b2)
        }""",
        w1=big,
        w2=big.copy(),
        b1=small,
        b2=small.copy(),
    )
    result = tidy(subject)
    assert sorted(result.model.graph.initializers) == ["b1", "b2", "w1"]


DROPOUT = "g (float[2, 3] x) => (float[2, 3] y{extra}) {{ {body} }}"


@pytest.mark.parametrize(
    ("opset", "body", "extra", "reason"),
    [
        (17, "d = Dropout(x)\n y = Neg(d)", "", ""),
        (11, "d = Dropout<ratio=0.9>(x)\n y = Neg(d)", "", ""),
        (17, "t = Constant<value = bool {0}>()\n d = Dropout(x, , t)\n y = Neg(d)", "", ""),
        (17, "t = Constant<value = bool {1}>()\n d = Dropout(x, , t)\n y = Neg(d)", "", "it may be training"),
        (17, "d, m = Dropout(x)\n y = Neg(d)", ", bool[2, 3] m", "its mask is used"),
        (6, "d = Dropout(x)\n y = Neg(d)", "", "it may be training"),
        (6, "d = Dropout<is_test=1>(x)\n y = Neg(d)", "", ""),
    ],
)
def test_dropout_goes_in_inference_only(opset: int, body: str, extra: str, reason: str) -> None:
    head = f'<ir_version: 8, opset_import: ["": {opset}]>\n'
    result = tidy(model(head + DROPOUT.format(body=body, extra=extra)))
    assert ("Dropout" in op_types(result.model)) == bool(reason)
    assert not reason or reason in {s.reason for s in result.skips}


OLD = """<ir_version: 3, opset_import: ["": 9]>
g (float[2, 3] x, float[3] k) => (float[2, 3] y) { y = Add(x, k) }"""


def test_initializers_are_unlisted_and_the_ir_version_follows() -> None:
    subject = model(OLD, k=np.ones(3, np.float32))
    result = tidy(subject)
    assert [v.name for v in result.model.graph.inputs] == ["x"]
    assert result.model.ir.ir_version == 4
    assert result.model.signature == subject.signature
    np.testing.assert_array_equal(run(result.model, {"x": X})["y"], X + 1)


def test_overridable_inputs_can_be_kept() -> None:
    subject = model(OLD, k=np.ones(3, np.float32))
    assert not tidy(subject, keep_overridable_inputs=True).changes


def test_traces_go_and_a_users_notes_stay() -> None:
    subject = model(HEAD + "g (float[2, 3] x) => (float[2, 3] y) { y = Neg(x) }")
    (node,) = subject.graph
    node.metadata_props["pkg.torch.onnx.stack_trace"] = "whatever"
    node.metadata_props["note"] = 'File "/somewhere/net.py", line 3, in forward'
    node.doc_string = "/home/someone/net.py(12): forward"
    subject.ir.metadata_props["classes"] = "cat/dog, a 10:1 mix"
    result = tidy(subject)
    (node,) = result.model.graph
    assert not node.metadata_props
    assert not node.doc_string
    assert result.model.ir.metadata_props == {"classes": "cat/dog, a 10:1 mix"}
    assert not tidy(subject, strip_metadata=False).changes


def test_two_transpositions_become_one_or_none() -> None:
    text = (
        "g (float[2, 3, 4] x) => (float[{out}] y) {{ a = Transpose<perm=[1, 2, 0]>(x)\n y = Transpose<perm={p}>(a) }}"
    )
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    joined = tidy(model(HEAD + text.format(out="4, 3, 2", p="[1, 0, 2]")))
    assert op_types(joined.model) == ["Transpose"]
    np.testing.assert_array_equal(run(joined.model, {"x": x})["y"], x.transpose(1, 2, 0).transpose(1, 0, 2))
    text = text.replace("y = Transpose", "b = Transpose").replace("(a) }}", "(a)\n y = Neg(b) }}")
    gone = tidy(model(HEAD + text.format(out="2, 3, 4", p="[2, 0, 1]")))
    assert op_types(gone.model) == ["Neg"]


def test_a_reversing_slice_of_the_same_shape_is_no_no_op() -> None:
    subject = model(
        HEAD
        + """g (float[2, 3] x) => (float[2, 3] y) {
          s = Constant<value_ints=[-1]>()
          e = Constant<value_ints=[-9]>()
          a = Constant<value_ints=[1]>()
          b = Slice(x, s, e, a, s)
          y = Neg(b)
        }"""
    )
    result = tidy(subject)
    assert "Slice" in op_types(result.model)


def test_shapes_that_the_file_declares_are_not_believed() -> None:
    """The file says that r has the shape of x; at run time it is the other way around."""
    subject = model(
        HEAD
        + """g (float[2, 3] x, int64[2] shape) => (float[a, b] y) <float[2, 3] r> {
          r = Reshape(x, shape)
          y = Neg(r)
        }"""
    )
    result = tidy(subject)
    assert not result.changes
    assert run(result.model, {"x": X, "shape": np.array([3, 2])})["y"].shape == (3, 2)


def test_inside_a_branch_an_outer_value_keeps_its_identity_before_the_output() -> None:
    subject = model(
        HEAD
        + """g (float[2, 3] x, bool f) => (float[2, 3] y) {
          o = Relu(x)
          y = If (f) <
            then_branch = a () => (float[2, 3] p) { p = Identity(o) },
            else_branch = b () => (float[2, 3] q) { i = Identity(o)
              q = Neg(i) }
          >
        }"""
    )
    result = tidy(subject)
    assert sorted(op_types(result.model)) == ["Identity", "If", "Neg", "Relu"]
    for flag in (True, False):
        feeds = {"x": X, "f": np.array(flag)}
        np.testing.assert_array_equal(run(result.model, feeds)["y"], run(subject, feeds)["y"])


def test_a_local_function_that_nobody_calls_goes() -> None:
    subject = model(
        '<ir_version: 8, opset_import: ["": 17, "local": 1]>\n'
        "g (float[2, 3] x) => (float[2, 3] y) { y = local.used(x) }\n"
        '<domain: "local", opset_import: ["": 17, "local": 1]> used (a) => (b) { b = local.helper(a) }\n'
        '<domain: "local", opset_import: ["": 17]> helper (a) => (b) { b = Neg(a) }\n'
        '<domain: "local", opset_import: ["": 17]> unused (a) => (b) { b = Exp(a) }'
    )
    result = tidy(subject)
    assert sorted(key[1] for key in result.model.ir.functions) == ["helper", "used"]
