"""What the fuzz target found in the product, reduced: each was wrong once."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

from passes import catalogue
from passes.kit.model import Model
from passes.kit.recipe import Recipe
from passes.kit.reducers import ChannelMoments
from tests.support.runtime import LocalContext, model, op_types, run

HEAD = '<ir_version: 8, opset_import: ["" : 17]> g '
_rng = np.random.default_rng(5)


def normal(*shape: int) -> np.ndarray:  # type: ignore[type-arg]
    return _rng.standard_normal(shape).astype(np.float32)


METHODS = ("rtn", "hqq", "gptq", "awq", "gptq-awq")


@pytest.mark.parametrize("recipe", ["quantize-dynamic", *(f"quantize-weights{{method={m}, bits=8}}" for m in METHODS)])
def test_layers_that_read_each_other_directly(recipe: str) -> None:
    """The second one was rewritten to read a value that had gone with the first."""
    text = HEAD + "(float[2,32] x) => (float[2,32] y) { a = Gemm(x, w1, b) c = MatMul(a, w2) y = MatMul(c, w3) }"
    before = model(text, w1=normal(32, 32), b=normal(32), w2=normal(32, 32), w3=normal(32, 32))
    feeds = {"x": normal(2, 32)}
    (subject,) = catalogue.build(Recipe.parse(recipe))
    after = subject(before, LocalContext([feeds])).model
    onnx.checker.check_model(after.to_proto())
    wanted, got = run(before, feeds)["y"], run(after, feeds)["y"]
    assert np.linalg.norm(got - wanted) <= 0.1 * np.linalg.norm(wanted)


def test_a_clip_with_a_computed_bound_keeps_the_relu_before_it() -> None:
    """The unknown bound was written as NaN, which bounds nothing."""
    text = HEAD + "(float[2,4] x, float low) => (float[2,4] y) { r = Relu(x) l = Neg(low) y = Clip(r, l, high) }"
    before = model(text, high=np.array(6, np.float32))
    feeds = {"x": normal(2, 4), "low": np.array(1, np.float32)}
    result = catalogue.find("fuse-activation")()(before, LocalContext())
    assert run(result.model, feeds)["y"].tobytes() == run(before, feeds)["y"].tobytes()
    assert [s.reason for s in result.skips] == ["its bounds are not constant"]


def test_onnxsim_does_not_turn_an_8_bit_float_into_integers() -> None:
    """It folded the cast into a constant of type uint8, and CastLike cast to that."""
    text = """<ir_version: 10, opset_import: ["" : 21]> g (float[4] x) => (float[4] y) {
        zero = Constant<value_floats=[0.0]>() like = Cast<to=17>(zero) n = CastLike(x, like) y = Cast<to=1>(n) }"""
    before = model(text)
    feeds = {"x": np.array([-1.5, 0.3, 2.7, 100], np.float32)}
    for name in ("simplify", "fold-constants"):
        after = catalogue.find(name)()(before, LocalContext()).model
        assert run(after, feeds)["y"].tobytes() == run(before, feeds)["y"].tobytes()


@pytest.mark.parametrize("both", [False, True])
def test_the_default_domain_under_its_long_name(both: bool) -> None:
    """Its version was taken for 0, and passes wrote operators of that age."""
    nodes = [helper.make_node("Relu", ["x"], ["a"], domain="ai.onnx"), helper.make_node("Min", ["a", "six"], ["y"])]
    ports = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [2, 3]) for n in "xy"]
    six = onnx.numpy_helper.from_array(np.array(6, np.float32), "six")
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], [six])
    imports = [helper.make_opsetid("ai.onnx", 17), *([helper.make_opsetid("", 17)] if both else [])]
    proto = helper.make_model(graph, opset_imports=imports, ir_version=8)
    before = Model.from_proto(proto)
    assert before.opset == 17 and {n.domain for n in before.nodes()} == {""}
    after = catalogue.find("fuse-activation")()(before, LocalContext()).model
    onnx.checker.check_model(after.to_proto())
    feeds = {"x": 5 * normal(2, 3)}
    assert run(after, feeds)["y"].tobytes() == run(before, feeds)["y"].tobytes()
    assert op_types(after) == ["Clip"]


@pytest.mark.parametrize("recipe", ["round-adaptively", "absorb-bias{margin=0.0}"])
def test_a_gemm_that_drops_its_bias(recipe: str) -> None:
    """The bias was divided by beta = 0."""
    body = "a = Gemm<beta=0.0>(x, w1, b) r = Relu(a) y = Gemm<beta=0.0>(r, w2, b2)"
    text = HEAD + f"(float[4,8] x) => (float[4,8] y) {{ {body} }}"
    before = model(text, w1=np.abs(normal(8, 8)), b=normal(8), w2=normal(8, 8), b2=normal(8))
    feeds = {"x": np.abs(normal(4, 8)) + 1}
    (subject,) = catalogue.build(Recipe.parse(recipe))
    after = subject(before, LocalContext([feeds])).model
    for value in after.graph.initializers.values():
        assert value.const_value is not None and np.isfinite(value.const_value.numpy()).all()
    wanted, got = run(before, feeds)["y"], run(after, feeds)["y"]
    assert np.linalg.norm(got - wanted) <= 0.02 * np.linalg.norm(wanted)


@pytest.mark.parametrize("broken", [np.nan, np.inf, 1e19])
def test_moments_that_cannot_be_told_are_not_numbers(broken: float) -> None:
    """The sum was cast to an integer all the same, and a bias moved by 9e18."""
    moments = ChannelMoments(axis=1)
    moments.fold(np.array([[1.0, broken], [3.0, 2.0]], np.float32))
    assert moments.mean()[0] == 2 and np.isnan(moments.mean()[1])
    assert moments.mean_square()[0] == 5 and np.isnan(moments.mean_square()[1])


def test_onnxsim_does_not_join_reductions_that_keep_different_axes() -> None:
    text = """(float[2,3,4,5] x) => (float[2,1] y) {
        a = ReduceMean<axes=[1,3], keepdims=0>(x) y = ReduceMean<axes=[1], keepdims=1>(a) }"""
    before = model(HEAD + text)
    after = catalogue.find("simplify")()(before, LocalContext()).model
    feeds = {"x": normal(2, 3, 4, 5)}
    assert run(after, feeds)["y"].shape == (2, 1)


def test_a_dimension_that_was_swept_is_read_again() -> None:
    """The first chain read the dimension off the input and went with the branch not taken; the second one used it."""
    text = """(float[N,4] x) => (float[N,2,2] y) {
        s = Shape(x) zero = Constant<value_ints=[0]>() rest = Constant<value_ints=[2, 2]>() a = Relu(x)
        g1 = Gather(s, zero) no = Constant<value=bool {0}>()
        t = If(no) <then_branch = b1 () => (int64[1] p) { p = Abs(g1) },
                    else_branch = b2 () => (int64[2] q) { q = Constant<value_ints=[2, 2]>() }>
        g2 = Gather(s, zero) target = Concat<axis=0>(g2, t) r = Shape(a) g3 = Gather(r, zero) f = Cast<to=1>(g3)
        z = Reshape(a, target) y = Mul(z, f) }"""
    before = model(HEAD + text)
    after = catalogue.find("fold-constants")()(before, LocalContext()).model
    onnx.checker.check_model(after.to_proto())
    feeds = {"x": normal(3, 4)}
    assert run(after, feeds)["y"].tobytes() == run(before, feeds)["y"].tobytes()


@pytest.mark.parametrize("saturate", [0, 1])
def test_onnxsim_does_not_fold_what_it_would_give_another_element_type(saturate: int) -> None:
    """It folded the branches to bytes under a name of its own, and the CastLike cast to integers."""
    text = f"""<ir_version: 9, opset_import: ["" : 20]> g (float[4] x) => (float[4] y) {{
        t = If(no) <then_branch = b1 () => (float8e4m3fn[1] p) {{ p = Cast<to=17>(w) }},
                    else_branch = b2 () => (float8e4m3fn[1] q) {{ q = Cast<to=17>(w) }}>
        z = Abs(x) c = CastLike<saturate={saturate}>(z, t) y = Cast<to=1>(c) }}"""
    before = model(text, no=np.array(False), w=np.zeros(1, np.float32))
    after = catalogue.find("simplify")()(before, LocalContext()).model
    feeds = {"x": np.array([0.3, 7.7, -400, 1e4], np.float32)}
    assert run(after, feeds)["y"].tobytes() == run(before, feeds)["y"].tobytes()


def test_a_mean_of_doubles_stays_because_no_pooling_takes_them() -> None:
    text = "(double[1,3,4,5] x) => (double[1,3] y) { y = ReduceMean<axes=[2,3], keepdims=0>(x) }"
    result = catalogue.find("pool-reduce-mean")()(model(HEAD + text), LocalContext())
    assert not result.changes and "no pooling kernel" in result.skips[0].reason


def test_onnxruntime_can_move_a_reshape_between_the_pairs_of_8_bit_floats() -> None:
    """Where the scale is 1 its Gemm of a batched MatMul reads a Reshape of them, without a kernel below opset 21."""
    text = HEAD + "(float[1,4,4] x) => (float[1,4,8] y) { a = Relu(x) b = MatMul(a, w) y = Add(b, v) }"
    before, feeds = model(text, w=normal(4, 8), v=normal(8)), {"x": -np.ones((1, 4, 4), np.float32)}
    result = catalogue.find("quantize-fp8")()(before, LocalContext([feeds]))
    assert result.changes and run(result.model, feeds, optimize=True)["y"].shape == (1, 4, 8)


def test_float16_takes_all_values_of_one_type_or_none() -> None:
    """Nothing tells the type of what another domain's operator gives: its reader had float32 beside float16."""
    text = """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]> g (float[1,4,8] x) => (float[1,4,8] y) {
        a = MatMul(x, w) t = com.microsoft.FusedMatMul(a, v) b = MatMul(t, v) y = Add(a, b) }"""
    before, feeds = model(text, w=normal(8, 8), v=normal(8, 8)), {"x": normal(1, 4, 8)}
    result = catalogue.find("convert-float16")()(before, LocalContext([feeds]))
    assert result.changes
    assert np.abs(run(result.model, feeds)["y"] - run(before, feeds)["y"]).max() < 0.1


@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_fp8_beside_integers_that_would_not_load_at_its_opset(kind: str) -> None:
    """onnxruntime's optimizer writes signed integers of opset 21 with an output type that it then contradicts."""
    text = (
        HEAD
        + """(float[2,8] x) => (float[4,4] y) { q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)
        r = Reshape(d, n) y = MatMul(r, w) }"""
    )
    constants = {"s": np.float32(0.05), "z": np.zeros((), kind), "n": np.array([4, 4]), "w": normal(4, 4)}
    before, feeds = model(text, **constants), {"x": normal(2, 8)}
    result = catalogue.find("quantize-fp8")()(before, LocalContext([feeds]))
    assert bool(result.changes) is (kind == "uint8")
    ort.InferenceSession(result.model.to_bytes(), providers=["CPUExecutionProvider"])


def test_fp8_behind_a_clip_that_gave_nothing_but_zeros() -> None:
    """Its scale was 1; onnxruntime swept the division away and took the 8-bit floats behind the Clip for integers."""
    text = """<ir_version: 10, opset_import: ["" : 21]> g (float[1,4,2,2] x) => (float[1,4,2,2] y) {
        a = Conv(x, w, b) c = Clip(a, low, high) y = Conv(c, v) }"""
    constants = {"w": normal(4, 4, 1, 1), "v": normal(4, 4, 1, 1), "b": np.full(4, -99, np.float32)}
    before = model(text, low=np.float32(0), high=np.float32(6), **constants)
    result = catalogue.find("quantize-fp8")()(before, LocalContext([{"x": normal(1, 4, 2, 2)}]))
    assert result.changes
    ort.InferenceSession(result.model.to_bytes(), providers=["CPUExecutionProvider"])


def test_refit_beside_an_original_that_gives_away_a_weight() -> None:
    """An initializer that is an output too could not be moved into the graph of both models."""
    text = HEAD + "(float[64,8] x) => (float[64,4] y, float[8,8] w) { a = MatMul(x, w) r = Relu(a) y = MatMul(r, v) }"
    before = model(text, w=normal(8, 8), v=normal(8, 4))
    context = LocalContext([{"x": normal(64, 8)} for _ in range(4)], original=before)
    pruned, fitted = catalogue.build(Recipe.parse("prune-magnitude, refit"))
    result = fitted(pruned(before, context).model, context)
    assert result.changes
    onnx.checker.check_model(result.model.to_proto(), full_check=True)


def test_pruning_beside_a_weight_that_is_listed_as_an_input() -> None:
    """What the statistics did not need lost its default, and a caller would have had to feed it."""
    text = (
        HEAD
        + """(float[n,8] x, float[4] u) => (float[n,4] y) {
        a = MatMul(x, w) r = Relu(a) m = MatMul(r, v) y = Add(m, u) }"""
    )
    before = model(text, w=normal(8, 16), v=normal(16, 4), u=normal(4))
    (subject,) = catalogue.build(Recipe.parse("prune-channels{multiple=1}"))
    feeds = {"x": normal(64, 8)}
    result = subject(before, LocalContext([feeds]))
    assert result.changes and run(result.model, feeds)["y"].shape == (64, 4)


def test_onnxsim_does_not_spoil_the_bias_of_a_convolution_in_a_body() -> None:
    """It gave the bias a rank that Tile refuses, and the result did not load."""
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[2,2,3,3] x, bool c) => (float[2,2,3,3] y) {
        i = Identity(x) y = If(c) <then_branch = t () => (float[2,2,3,3] p) <float[2,2,1,1] w = {1.0, 2.0, 3.0, 4.0}> {
            k = Conv(x, w) b = Constant<value = float[1,2,1,1] {1.5, -0.5}>() p = Add(k, b) },
        else_branch = e () => (float[2,2,3,3] q) { q = Identity(i) }> }"""
    before = model(text)
    result = catalogue.find("simplify")()(before, LocalContext())
    for flag in (True, False):
        feeds = {"x": normal(2, 2, 3, 3), "c": np.array(flag)}
        np.testing.assert_allclose(run(result.model, feeds)["y"], run(before, feeds)["y"], rtol=1e-6)
