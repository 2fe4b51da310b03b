"""fold-constants, before and after."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from passes.clean.fold_constants import FoldConstants
from passes.kit.contract import PassResult
from passes.kit.model import Model, constant
from tests.support.runtime import Array, LocalContext, model, op_types, run

HEAD = '<ir_version: 8, opset_import: ["": 18]>\n'


def fold(subject: Model, **options: int) -> PassResult:
    return FoldConstants(**options)(subject, LocalContext())


def test_a_bias_that_arrives_as_a_chain_becomes_an_initializer() -> None:
    subject = model(
        HEAD
        + """g (float[n, 3, 6, 6] x) => (float[n, 4, 4, 4] y) {
          dims = Shape<start=0, end=1>(w)
          one = Constant<value_ints=[1]>()
          size = Expand(dims, one)
          zero = Constant<value_float=0.5>()
          like = CastLike(zero, x)
          bias = Expand(like, size)
          y = Conv(x, w, bias)
        }""",
        w=np.ones((4, 3, 3, 3), np.float32),
    )
    result = fold(subject)
    assert op_types(result.model) == ["Conv"]
    (conv,) = result.model.graph
    bias = constant(conv.inputs[2])
    assert bias is not None
    np.testing.assert_array_equal(bias, np.full(4, 0.5, np.float32))
    assert len(result.model.graph.initializers) == 2


def test_a_fixed_dimension_is_read_out_of_a_free_shape() -> None:
    subject = model(
        HEAD
        + """g (float[n, 6] x) => (int64 y) {
          s = Shape(x)
          one = Constant<value_int=1>()
          g = Gather(s, one)
          two = Constant<value_int=2>()
          p = Mul(g, two)
          r = Size(x)
          y = Add(r, p)
        }"""
    )
    result = fold(subject)
    assert op_types(result.model) == ["Size", "Add"]
    feeds = {"x": np.ones((3, 6), np.float32)}
    assert run(result.model, feeds)["y"] == 18 + 12


RESHAPE = """g (float[n, s, 8] x) => (float[a, b, c, d] y) {{
  dims = Shape(x)
  zero = Constant<value_ints=[0]>()
  one = Constant<value_ints=[1]>()
  n = Gather(dims, zero)
  s = Gather(dims, one)
  two = Constant<value_ints=[2]>()
  four = Constant<value_ints=[4]>()
  target = Concat<axis=0>({parts})
  y = Reshape<allowzero=1>(x, target)
}}"""


@pytest.mark.parametrize(
    ("parts", "target"),
    [("n, s, two, four", [0, 0, 2, 4]), ("two, four, s, n", None), ("n, two, s, four", None), ("n, s, s, n", None)],
)
def test_a_reshape_target_is_known_up_to_copies(parts: str, target: list[int] | None) -> None:
    subject = model(HEAD + RESHAPE.format(parts=parts))
    result = fold(subject)
    reshape = next(n for n in result.model.graph if n.op_type == "Reshape")
    held = constant(reshape.inputs[1])
    assert (held is None) == (target is None)
    assert held is None or held.tolist() == target
    if parts != "n, s, s, n":
        for n, s in ((1, 1), (2, 3), (3, 2), (0, 3)):
            feeds = {"x": np.arange(n * s * 8, dtype=np.float32).reshape(n, s, 8)}
            np.testing.assert_array_equal(run(result.model, feeds)["y"], run(subject, feeds)["y"])


def test_two_inputs_that_name_a_dimension_alike_are_not_trusted_to_agree() -> None:
    subject = model(
        HEAD
        + """g (float[n, 4] x, float[n, 4] other) => (float[a, b] y) {
          n = Shape<start=0, end=1>(other)
          rest = Constant<value_ints=[-1]>()
          target = Concat<axis=0>(n, rest)
          y = Reshape(x, target)
        }"""
    )
    result = fold(subject)
    feeds = {"x": np.ones((2, 4), np.float32), "other": np.ones((4, 4), np.float32)}
    assert run(result.model, feeds)["y"].shape == (4, 2)


def test_a_free_dimension_is_read_off_the_input() -> None:
    subject = model(
        HEAD
        + """g (float[n, 4] x) => (int64[1] y) {
          a = Relu(x)
          da = Shape(a)
          start = Constant<value_ints=[0]>()
          end = Constant<value_ints=[1]>()
          na = Slice(da, start, end)
          b = Exp(a)
          nb = Shape<start=0, end=1>(b)
          y = Add(na, nb)
        }"""
    )
    result = fold(subject)
    assert op_types(result.model) == ["Shape", "Add"]
    (shape, _) = result.model.graph
    assert shape.inputs[0].name == "x"
    assert run(result.model, {"x": np.ones((5, 4), np.float32)})["y"] == [10]


def test_results_that_are_too_large_stay_a_computation() -> None:
    text = HEAD + "g (float[n] x) => (float[n] y) {{ s = Constant<value_ints=[{size}]>()\n c = ConstantOfShape(s)\n"
    text += "m = ReduceMax<keepdims=0>(c)\n y = Add(x, m) }}"
    small, large = fold(model(text.format(size=100))), fold(model(text.format(size=2**40)))
    assert op_types(small.model) == ["ReduceMax", "Add"]
    assert op_types(large.model) == ["ConstantOfShape", "ReduceMax", "Add"]
    assert "more than max-bytes" in large.skips[0].reason
    assert op_types(fold(model(text.format(size=100)), max_bytes=399).model)[0] == "ConstantOfShape"


def test_many_small_results_may_not_be_large_together() -> None:
    text = HEAD + "g (float[n] x) => (float[n] y) { s = Constant<value_ints=[100]>()\n"
    text += "".join(f"c{i} = ConstantOfShape(s)\n m{i} = ReduceMax<keepdims=0>(c{i})\n" for i in range(3))
    text += "y = Sum(x, m0, m1, m2) }"
    result = fold(model(text), max_growth_bytes=850)
    assert op_types(result.model).count("ConstantOfShape") == 1
    assert any("max-growth-bytes = 850" in skip.reason for skip in result.skips)
    assert "ConstantOfShape" not in op_types(fold(model(text)).model)


def test_a_result_that_replaces_as_many_bytes_is_never_too_large() -> None:
    weight = np.ones((30, 20), np.float32)
    alone = "g (float[1, 30] x) => (float[1, 20] y) { t = Transpose<perm=[1, 0]>(w)\n y = MatMul(x, t) }"
    shared = "g (float[1, 30] x) => (float[1, 20] y, float[1, 30] z) { t = Transpose<perm=[1, 0]>(w)\n"
    shared += "y = MatMul(x, t)\n z = MatMul(y, w) }"
    assert op_types(fold(model(HEAD + alone, w=weight.T), max_bytes=0).model) == ["MatMul"]
    assert "Transpose" in op_types(fold(model(HEAD + shared, w=weight.T), max_bytes=0).model)


def test_what_a_caller_may_override_is_not_folded() -> None:
    text = '<ir_version: 4, opset_import: ["": 11]>\n'
    text += "g (float[2] x, float[2] k) => (float[2] y) { a = Add(k, k)\n y = Add(x, a) }"
    assert not fold(model(text, k=np.ones(2, np.float32))).changes


IF = """g (float[2] x) => (float[2] y) {{
  c = Constant<value = bool {{{flag}}}>()
  o = Neg(x)
  y = If (c) <
    then_branch = a () => (float[2] p) {{ t = Exp(o)
      p = Add(t, k) }},
    else_branch = b () => (float[2] p) {{ t = Exp(o)
      p = Sub(t, k) }}
  >
}}"""


@pytest.mark.parametrize(("flag", "kept"), [(1, "Add"), (0, "Sub")])
def test_a_decided_if_gives_way_to_its_branch(flag: int, kept: str) -> None:
    subject = model(HEAD + IF.format(flag=flag), k=np.ones(2, np.float32))
    result = fold(subject)
    assert op_types(result.model) == ["Neg", "Exp", kept]
    feeds = {"x": np.array([0.5, -2], np.float32)}
    np.testing.assert_array_equal(run(result.model, feeds)["y"], run(subject, feeds)["y"])
    onnx.checker.check_model(result.model.to_proto())


def test_a_copy_that_a_branch_leaves_behind_is_folded_with_what_reads_it() -> None:
    """The runtime takes the copy away itself and then refuses Range for a limit that is a list (ONNX's AffineGrid)."""
    subject = model(
        HEAD
        + """g (int64[3] x) => (int64[a] y) {
          zero = Constant<value_int=0>()
          one = Constant<value_int=1>()
          three = Constant<value_ints=[3]>()
          yes = Constant<value = bool {1}>()
          limit = If (yes) <
            then_branch = a () => (int64[1] p) { p = Identity(three) },
            else_branch = b () => (int64[1] q) { q = Slice(x, zeros, ones) }
          >
          r = Range(zero, limit, one)
          y = Add(r, x)
        }""",
        zeros=_ints(0),
        ones=_ints(1),
    )
    result = fold(subject)
    assert op_types(result.model) == ["Add"]
    assert run(result.model, {"x": _ints(1, 1, 1)}, optimize=True)["y"].tolist() == [1, 2, 3]


def test_constants_of_an_outer_graph_are_known_in_a_branch() -> None:
    subject = model(
        HEAD
        + """g (float[4] x, bool f) => (float[a, b] y) {
          two = Constant<value_ints=[2]>()
          y = If (f) <
            then_branch = a () => (float[a, b] p) { s = Concat<axis=0>(two, two)
              p = Reshape(x, s) },
            else_branch = b () => (float[a, b] q) { m = Constant<value_ints=[1, -1]>()
              q = Reshape(x, m) }
          >
        }"""
    )
    result = fold(subject)
    assert sorted(op_types(result.model)) == ["If", "Reshape", "Reshape"]
    for flag, shape in ((True, (2, 2)), (False, (1, 4))):
        assert run(result.model, {"x": np.ones(4, np.float32), "f": np.array(flag)})["y"].shape == shape


# -- every operator of the table against the runtime, bit for bit -------------------------------------------------
_F = np.array([[1.5, -2.25, 3e-39], [7e30, -0.0, 1 / 3]], np.float32)
_G = np.array([[0.1, 3.0, -7.5]], np.float32)
_I = np.array([[7, -7, 3], [-9, 0, 2**40]], np.int64)
_J = np.array([[2, -2, 5]], np.int64)
_B = np.array([True, False, True])


def _ints(*values: int) -> Array:
    return np.array(values, np.int64)


OPERATORS: list[tuple[str, tuple[Array, ...]]] = [
    *(
        (f"{op}(a, b)", pair)
        for op in ("Add", "Sub", "Mul", "Div", "Less", "GreaterOrEqual")
        for pair in ((_F, _G), (_I, _J))
    ),
    *((f"{op}(a, b)", (_I, _J)) for op in ("Mod", "Equal", "Min", "Max", "Greater", "LessOrEqual")),
    ("Mod<fmod=1>(a, b)", (_I, _J)),
    *((f"{op}(a)", (_F,)) for op in ("Neg", "Abs", "Sqrt", "Shape", "Size", "Flatten", "Transpose")),
    *((f"{op}(a, b)", (_B, ~_B)) for op in ("And", "Or", "Xor")),
    ("Not(a)", (_B,)),
    ("Identity(a)", (_B,)),
    ("Where(a, b, c)", (_B, _F, _G)),
    ("Reshape(a, b)", (_F, _ints(0, -1, 1))),
    ("Expand(a, b)", (_G, _ints(2, 2, 1))),
    ("Squeeze(a, b)", (_G, _ints(0))),
    ("Unsqueeze(a, b)", (_G, _ints(0, -1))),
    ("Flatten<axis=0>(a)", (_F,)),
    ("Flatten<axis=-1>(a)", (np.ones((2, 3, 4), np.float32),)),
    ("Transpose<perm=[1, 0]>(a)", (_F,)),
    ("Concat<axis=-2>(a, b)", (_F, _G)),
    ("Slice(a, b, c, d, e)", (_I, _ints(-1), _ints(-100), _ints(1), _ints(-2))),
    ("Slice(a, b, c, d, e)", (_I, _ints(5), _ints(0), _ints(1), _ints(-1))),
    ("Slice(a, b, c, d, e)", (_I, _ints(-1), _ints(-4), _ints(1), _ints(-1))),
    ("Slice(a, b, c, d, e)", (_I, _ints(-100), _ints(2**62), _ints(-1), _ints(2))),
    ("Slice(a, b, c)", (_I, _ints(1), _ints(2))),
    ("Gather<axis=1>(a, b)", (_F, np.array([[-1, 0]], np.int64))),
    ("Tile(a, b)", (_F, _ints(2, 3))),
    ("Range(a, b, c)", (np.array(7), np.array(-2), np.array(-3))),
    ("Range(a, b, c)", (np.array(7), np.array(9), np.array(-3))),
    ("ConstantOfShape<value = int64[1] {3}>(a)", (_ints(2, 3),)),
    ("ConstantOfShape(a)", (_ints(0, 3),)),
    ("Trilu<upper=0>(a, b)", (_F, np.array(-1))),
    ("Trilu(a)", (_F,)),
    *((f"{op}<keepdims=0>(a, b)", (_I, _ints(-1))) for op in ("ReduceSum", "ReduceProd", "ReduceMax", "ReduceMin")),
    ("ReduceSum(a)", (_I,)),
    ("Cast<to=7>(a)", (np.array([1.9, -1.9], np.float32),)),
    ("Cast<to=1>(a)", (np.array([2**53 + 1, -3], np.int64),)),
    ("Cast<to=1>(a)", (np.array([1 / 3, 6e-8, 65504], np.float16),)),
    ("Cast<to=9>(a)", (_F,)),
    ("CastLike(a, b)", (_I, _F)),
]


@pytest.mark.parametrize(("call", "arrays"), OPERATORS, ids=[f"{i}-{c}" for i, (c, _) in enumerate(OPERATORS)])
def test_an_operator_is_evaluated_as_the_runtime_does(call: str, arrays: tuple[Array, ...]) -> None:
    """Fold a node of constants, and compare with the runtime running the same node on inputs."""
    names = "abcde"[: len(arrays)]
    kind = {"float32": "float", "float16": "float16", "int64": "int64", "bool": "bool"}
    ports = ", ".join(
        f"{kind[str(v.dtype)]}{list(v.shape) if v.ndim else ''} {n}" for n, v in zip(names, arrays, strict=True)
    )
    feeds = dict(zip(names, arrays, strict=True))
    text = HEAD + "g ({ports}) => (y) {{ r = {call}\n y = Identity(r) }}"
    wanted = run(model(text.format(ports=ports, call=call)), feeds)["y"]
    folded = fold(model(text.format(ports="", call=call), **feeds)).model
    assert op_types(folded) == ["Identity"]
    got = run(folded, {})["y"]
    assert got.dtype == wanted.dtype
    assert got.shape == wanted.shape
    assert got.tobytes() == wanted.tobytes()


@pytest.mark.parametrize(
    ("call", "value", "reason"),
    [
        ("Cast<to=6>(a)", np.array([1e20], np.float32), "does not fit into int32"),
        ("Cast<to=7>(a)", np.array([np.nan], np.float32), "does not fit into int64"),
        ("Cast<to=10>(a)", np.array([0.1], np.float32), "depends on the runtime"),
        ("Cast<to=17>(a)", np.array([1e20], np.float32), "depends on the runtime"),
        ("Cast<to=19>(a)", np.array([1e20], np.float32), "depends on the runtime"),
        ("Div(a, a)", np.array([0], np.int64), "division by zero"),
        ("ReduceSum(a)", np.array([0.1], np.float32), "order of a float reduction"),
        ("Range(a, a, a)", np.array(0.1, np.float32), "only integer ranges"),
    ],
)
def test_what_runtimes_differ_on_is_refused(call: str, value: Array, reason: str) -> None:
    result = fold(
        model(
            '<ir_version: 9, opset_import: ["": 19]>\n' + "g () => (y) { r = " + call + "\n y = Identity(r) }", a=value
        )
    )
    assert not result.changes
    assert reason in result.skips[0].reason


@pytest.mark.parametrize("make", [np.exp, np.tanh], ids=["Exp", "Tanh"])
def test_functions_of_a_library_are_left_to_the_runtime(make: Callable[[Array], Array]) -> None:
    op = {np.exp: "Exp", np.tanh: "Tanh"}[make]  # type: ignore[index]
    result = fold(model(HEAD + f"g () => (y) {{ r = {op}(a)\n y = Identity(r) }}", a=_F))
    assert not result.changes
