"""Rewrites that are wrong on purpose, each a pass over a small model: the mistakes that optimizers really make."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from passes.kit.context import Context
from passes.kit.contract import Edit, Exactness, Pass, PassResult, rewrite_graphs
from passes.kit.match import compute, discard, is_op
from passes.kit.model import Model, constant
from tests.support.runtime import model

Array = np.ndarray[Any, Any]

REAL, ADVERSARIAL, STRUCTURE = "real", "adversarial", "structure"
"""The check that catches a mutation: numbers on real inputs, on adversarial ones only, or the checker and types."""


_TYPES = {"Shape": ir.DataType.INT64, "Greater": ir.DataType.BOOL}


@dataclass
class Hand:
    """What a mutation works with: one graph, and the rewiring that it needs."""

    graph: ir.Graph
    edit: Edit

    def node(self, op_type: str, index: int = 0) -> ir.Node:
        return [n for n in self.graph if n.op_type == op_type][index]

    def set(self, op_type: str, index: int = 0, **attributes: Any) -> None:
        for name, value in attributes.items():
            self.node(op_type, index).attributes[name] = ir.convenience.convert_attribute(name, value)

    def swap(self, op_type: str, one: int = 0, other: int = 1) -> None:
        node = self.node(op_type)
        a, b = node.inputs[one], node.inputs[other]
        node.replace_input_with(one, b)
        node.replace_input_with(other, a)

    def hold(self, name: str, change: Callable[[Array], Any]) -> None:
        value = self.graph.initializers[name]
        held = constant(value)
        assert held is not None
        value.const_value = ir.Tensor(np.asarray(change(held), held.dtype), name=name)

    def drop(self, op_type: str) -> None:
        node = self.node(op_type)
        node.outputs[0].replace_all_uses_with(node.inputs[0])  # type: ignore[arg-type]
        discard(node)

    def make(self, op_type: str, inputs: list[ir.Value | None], like: ir.Node, **attributes: Any) -> ir.Value:
        held = [ir.convenience.convert_attribute(k, v) for k, v in attributes.items()]
        kind = ir.TensorType(_TYPES[op_type]) if op_type in _TYPES else like.outputs[0].type
        out = ir.Value(name=self.edit.fresh(f"{op_type}_made"), type=kind)
        node = ir.Node("", op_type, inputs, attributes=held, outputs=[out], name=self.edit.fresh(f"{op_type}/made"))
        self.graph.insert_before(like, node)
        return out

    def become(self, node: ir.Node, op_type: str, inputs: list[ir.Value | None], **attributes: Any) -> None:
        held = [ir.convenience.convert_attribute(k, v) for k, v in attributes.items()]
        compute(self.edit, node.outputs[0], op_type, inputs, attributes=held)

    def number(self, value: Any) -> ir.Value:
        return self.edit.initializer(self.graph, "number", np.asarray(value))


@dataclass(frozen=True)
class Mutation:
    """A wrong rewrite: the model's text and weights, the feed that stands for real data, who catches it."""

    name: str
    caught: str
    text: str
    wrong: Callable[[Hand], None]
    feed: Mapping[str, Array]
    weights: Mapping[str, Array] = field(default_factory=dict)
    exactness: Exactness = Exactness.NUMERIC
    opset: int = 20

    def model(self) -> Model:
        return model(f'<ir_version: 10, opset_import: ["": {self.opset}]> g {self.text}', **self.weights)

    def mutant(self) -> Pass:
        def rewrite(graph: ir.Graph, edit: Edit) -> None:
            self.wrong(Hand(graph, edit))
            edit.change(self.name, graph.outputs[0])

        return _Mutant(rewrite)


@dataclass(frozen=True)
class _Mutant(Pass):
    """Applies one wrong rewrite to the main graph."""

    name = "mutant"
    exactness = Exactness.NUMERIC
    rewrite: Any = None

    def __post_init__(self) -> None:
        """No options to check."""

    def apply(self, model: Model, context: Context) -> PassResult:
        return rewrite_graphs(model, self.rewrite, rounds=1)


def _x(*shape: int, low: float = 0.1, high: float = 1.0) -> dict[str, Array]:
    """Real data: what a normalized image or a feature looks like, never negative, never large."""
    return {"x": np.random.default_rng(3).uniform(low, high, shape).astype(np.float32)}


def _w(*shape: int, scale: float = 1.0) -> Array:
    return (np.random.default_rng(sum(shape)).normal(size=shape) * scale).astype(np.float32)


def _ids(*shape: int) -> dict[str, Array]:
    return {"x": np.random.default_rng(4).integers(0, 9, shape)}


IMAGE, ROWS = _x(2, 4, 6, 6), _x(2, 8)
_BN = {n: np.abs(_w(4)) + i for i, n in enumerate(("g", "b", "m", "v"))}
_UNARY = "(float[n, 8] x) => (float[n, 8] y) {{ {} }}"


def _fold_into_shared(hand: Hand) -> None:
    hand.hold("w", lambda w: w * 3)
    hand.drop("Mul")


def _bake_batch(hand: Hand) -> None:
    hand.node("Reshape").replace_input_with(1, hand.number(np.array([2, 2, 4])))


def _floor_division(hand: Hand) -> None:
    div = hand.node("Div")
    x, two = div.inputs
    rest = hand.make("Mod", [x, two], div)
    hand.become(div, "Div", [hand.make("Sub", [x, rest], div), two])


def _where_max(hand: Hand) -> None:
    node = hand.node("Max")
    x, zero = node.inputs
    hand.become(node, "Where", [hand.make("Greater", [x, zero], node), x, zero])


def _bare_softmax(hand: Hand) -> None:
    node = hand.node("Softmax")
    exp = hand.make("Exp", [node.inputs[0]], node)
    total = hand.make("ReduceSum", [exp, hand.number(np.array([-1]))], node)
    hand.become(node, "Div", [exp, total])


def _times_zero(hand: Hand) -> None:
    node = next(n for n in hand.graph if is_op(n, "Mul", "Sub"))
    shape = hand.make("Shape", [node.inputs[0]], node)
    hand.become(node, "ConstantOfShape", [shape])


def _half_up(hand: Hand) -> None:
    node = hand.node("Round")
    hand.become(node, "Floor", [hand.make("Add", [node.inputs[0], hand.number(np.float32(0.5))], node)])


def _merge_exp(hand: Hand) -> None:
    """log(exp(x)) is x, until exp overflows."""
    hand.drop("Exp")
    hand.drop("Log")


def _lie_about_shape(hand: Hand) -> None:
    value = hand.node("Relu").outputs[0]
    value.shape, value.type = ir.Shape([3, 7]), ir.TensorType(ir.DataType.FLOAT)


_CONV = "(float[n, 4, 6, 6] x) => (float[n, 4, h, w_] y) {{ y = {}(x, w) }}"
_NORM = "(float[n, 8] x) => (float[n, 8] y) { y = LayerNormalization<epsilon = 0.00001>(x, g, b) }"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation("batchnorm-epsilon-lost", REAL, "(float[n, 4, 6, 6] x) => (float[n, 4, 6, 6] y) "
             "{ y = BatchNormalization<epsilon = 0.1>(x, g, b, m, v) }",
             lambda h: h.set("BatchNormalization", epsilon=1e-5), IMAGE, _BN),
    Mutation("wrong-axis", REAL, "(float[n, 4, 6] x) => (float[n, 4, 6] y) { y = Softmax<axis = -1>(x) }",
             lambda h: h.set("Softmax", axis=1), _x(2, 4, 6)),
    Mutation("swapped-sub", REAL, _UNARY.format("y = Sub(x, w)"), lambda h: h.swap("Sub"), ROWS, {"w": _w(8)}),
    Mutation("swapped-div", REAL, _UNARY.format("y = Div(x, w)"), lambda h: h.swap("Div"), ROWS, {"w": _w(8)}),
    Mutation("swapped-where", REAL, _UNARY.format("c = Greater(x, w)  y = Where(c, x, w)"),
             lambda h: h.swap("Where", 1, 2), ROWS, {"w": np.full(8, 0.5, np.float32)}),
    Mutation("pad-off-by-one", REAL, _CONV.format("Conv<pads = [1, 1, 1, 1]>"),
             lambda h: h.set("Conv", pads=[0, 0, 2, 2]), IMAGE, {"w": _w(4, 4, 3, 3)}),
    Mutation("shared-weight-folded-twice", REAL,
             _UNARY.format("a = MatMul(x, w)  s = Mul(a, three)  b = MatMul(x, w)  y = Add(s, b)"),
             _fold_into_shared, ROWS, {"w": _w(8, 8), "three": np.float32(3)}),
    Mutation("transposed-layout", REAL,
             "(float[n, 4, 4] x) => (float[n, 16] y) { t = Transpose<perm = [0, 2, 1]>(x)  y = Flatten(t) }",
             lambda h: h.drop("Transpose"), _x(2, 4, 4)),
    Mutation("gemm-transB-flipped", REAL, _UNARY.format("y = Gemm<transB = 1>(x, w)"),
             lambda h: h.set("Gemm", transB=0), ROWS, {"w": _w(8, 8)}),
    Mutation("gemm-beta-lost", REAL, _UNARY.format("y = Gemm<beta = 0.5>(x, w, c)"),
             lambda h: h.set("Gemm", beta=1.0), ROWS, {"w": _w(8, 8), "c": _w(8)}),
    Mutation("layernorm-epsilon", REAL, _NORM, lambda h: h.set("LayerNormalization", epsilon=1e-3), ROWS,
             {"g": _w(8), "b": _w(8)}),
    Mutation("gelu-tanh-for-erf", REAL, _UNARY.format("y = Gelu(x)"),
             lambda h: h.set("Gelu", approximate="tanh"), ROWS),
    Mutation("keepdims-lost", REAL, "(float[n, 4, 6] x) => (float[n, a, b] y) { y = ReduceMax<keepdims = 1>(x, axes) }",
             lambda h: h.set("ReduceMax", keepdims=0), _x(2, 4, 6), {"axes": np.array([1])}),
    Mutation("ceil-mode", REAL, "(float[n, 4, 5, 5] x) => (float[n, 4, h, w] y) "
             "{ y = MaxPool<kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1>(x) }",
             lambda h: h.set("MaxPool", ceil_mode=0), _x(2, 4, 5, 5)),
    Mutation("count-include-pad", REAL, "(float[n, 4, 6, 6] x) => (float[n, 4, h, w] y) "
             "{ y = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1>(x) }",
             lambda h: h.set("AveragePool", count_include_pad=0), IMAGE),
    Mutation("wrong-group", REAL, _CONV.format("Conv<group = 2, pads = [1, 1, 1, 1]>"),
             lambda h: h.set("Conv", group=1), IMAGE, {"w": _w(4, 2, 3, 3)}),
    Mutation("split-sizes", REAL, "(float[n, 8] x) => (float[n, p] y) { a, b = Split<axis = 1>(x, sizes)  y = Neg(a) }",
             lambda h: h.hold("sizes", lambda s: s[::-1]), ROWS, {"sizes": np.array([3, 5])}),
    Mutation("slice-end-off-by-one", REAL, "(float[n, 8] x) => (float[n, p] y) { y = Slice(x, s, e, a) }",
             lambda h: h.hold("e", lambda e: e - 1), ROWS,
             {"s": np.array([1]), "e": np.array([7]), "a": np.array([1])}),
    Mutation("concat-order", REAL, "(float[n, 8] x) => (float[n, 16] y) { a = Neg(x)  y = Concat<axis = 1>(a, x) }",
             lambda h: h.swap("Concat"), ROWS),
    Mutation("gather-one-further", REAL, "(int64[n] x) => (float[n, 3] y) { y = Gather(w, x) }",
             lambda h: h.hold("w", lambda w: np.roll(w, 1, 0)), _ids(5), {"w": _w(9, 3)}),
    Mutation("depth-to-space-mode", REAL, "(float[n, 8, 2, 2] x) => (float[n, 2, 4, 4] y) "
             '{ y = DepthToSpace<blocksize = 2, mode = "DCR">(x) }',
             lambda h: h.set("DepthToSpace", mode="CRD"), _x(2, 8, 2, 2)),
    Mutation("resize-rounding", REAL, "(float[n, 1, 4, 4] x) => (float[n, 1, h, w] y) "
             '{ y = Resize<mode = "nearest", nearest_mode = "floor", coordinate_transformation_mode = "asymmetric">'
             "(x, , scales) }",
             lambda h: h.set("Resize", nearest_mode="ceil"), _x(1, 1, 4, 4), {"scales": np.float32([1, 1, 2, 2])}),
    Mutation("cumsum-exclusive", REAL, _UNARY.format("y = CumSum<exclusive = 1>(x, axis)"),
             lambda h: h.set("CumSum", exclusive=0), ROWS, {"axis": np.array(1)}),
    Mutation("zero-point-lost", REAL, _UNARY.format("q = QuantizeLinear(x, s, z)  y = DequantizeLinear(q, s, z)"),
             lambda h: h.node("DequantizeLinear").resize_inputs(2), ROWS,
             {"s": np.float32(0.01), "z": np.uint8(3)}),
    Mutation("requantized-coarser", REAL, _UNARY.format("q = QuantizeLinear(x, s, z)  y = DequantizeLinear(q, s, z)"),
             lambda h: h.hold("s", lambda s: s * 4), ROWS, {"s": np.float32(0.004), "z": np.uint8(0)}),
    Mutation("cast-saturation-dropped", ADVERSARIAL, "(float[n, 8] x) => (float[n, 8] y) "
             "{ q = Cast<to = 17, saturate = 0>(x)  y = Cast<to = 1>(q) }",
             lambda h: h.set("Cast", saturate=1), ROWS),
    Mutation("relu-dropped", ADVERSARIAL, _UNARY.format("r = Relu(x)  y = Mul(r, w)"), lambda h: h.drop("Relu"), ROWS,
             {"w": _w(8)}),
    Mutation("clip-bound", ADVERSARIAL, _UNARY.format("y = Clip(x, low, high)"),
             lambda h: h.hold("high", lambda v: v + 0.5), ROWS, {"low": np.float32(0), "high": np.float32(6)}),
    Mutation("leaky-slope", ADVERSARIAL, _UNARY.format("y = LeakyRelu<alpha = 0.1>(x)"),
             lambda h: h.set("LeakyRelu", alpha=0.01), ROWS),
    Mutation("narrow-cast", ADVERSARIAL, "(float[n, 8] x) => (float[n, 8] y) "
             "{ h = Cast<to = 11>(x)  y = Cast<to = 1>(h) }",
             lambda h: h.set("Cast", to=int(ir.DataType.BFLOAT16)), {"x": np.float32([[0, 1, 2, 3, 0.5, 4, 8, 16]])}),
    Mutation("x-minus-x", ADVERSARIAL, _UNARY.format("y = Sub(x, x)"), _times_zero, ROWS),
    Mutation("x-times-zero", ADVERSARIAL, _UNARY.format("y = Mul(x, zero)"), _times_zero, ROWS,
             {"zero": np.float32(0)}),
    Mutation("max-drops-nan", ADVERSARIAL, _UNARY.format("y = Max(x, zero)"), _where_max, ROWS,
             {"zero": np.float32(0)}),
    Mutation("square-root-of-square", ADVERSARIAL, _UNARY.format("a = Mul(x, x)  y = Sqrt(a)"),
             lambda h: h.become(h.node("Sqrt"), "Identity", [h.graph.inputs[0]]), ROWS),
    Mutation("softmax-without-maximum", ADVERSARIAL, _UNARY.format("y = Softmax<axis = -1>(x)"), _bare_softmax, ROWS),
    Mutation("log-of-exp", ADVERSARIAL, _UNARY.format("e = Exp(x)  l = Log(e)  y = Identity(l)"), _merge_exp, ROWS),
    Mutation("round-half-up", ADVERSARIAL, _UNARY.format("y = Round(x)"), _half_up, ROWS),
    Mutation("integer-division-floors", ADVERSARIAL, "(int64[n, 4] x) => (int64[n, 4] y) { y = Div(x, two) }",
             _floor_division, _ids(2, 4), {"two": np.array(2)}),
    Mutation("modulo-sign", ADVERSARIAL, "(int64[n, 4] x) => (int64[n, 4] y) { y = Mod(x, three) }",
             lambda h: h.set("Mod", fmod=1), _ids(2, 4), {"three": np.array(3)}, Exactness.EXACT),
    Mutation("last-of-equals", ADVERSARIAL, "(float[n, 8] x) => (int64[n] y) { y = ArgMax<axis = 1, keepdims = 0>(x) }",
             lambda h: h.set("ArgMax", select_last_index=1), ROWS, exactness=Exactness.EXACT),
    Mutation("batch-baked-in", ADVERSARIAL, "(float[n, 8] x) => (float[n, 2, 4] y) "
             "{ s = Shape<start = 0, end = 1>(x)  t = Concat<axis = 0>(s, rest)  y = Reshape(x, t) }",
             _bake_batch, ROWS, {"rest": np.array([2, 4])}, Exactness.EXACT),
    Mutation("stale-shape", STRUCTURE, _UNARY.format("r = Relu(x)  y = Neg(r)"), _lie_about_shape, ROWS,
             exactness=Exactness.EXACT),
)  # fmt: skip
"""Forty-two mistakes; each names the check that must find it."""
