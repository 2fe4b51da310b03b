"""How labels go through each operator: what a node ties together, what it hands on, and what it cannot bear.

A rule reads the labels of a node's inputs, joins and pins them, and sets those of its outputs. Operators without a rule
pin everything that they read. Rules note what must be rewritten beside the constants when positions go
(:class:`Dim`, :class:`Sizes`, :class:`Bounds`, :class:`Groups`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from passes.kit.match import ONNX, attribute, given
from passes.kit.model import constant
from passes.kit.shapes import Dims
from passes.prune.labels import Array, Axes, Labels
from passes.prune.sizes import Lists, moved

CONTRIB = "com.microsoft"

_ELEMENTWISE = (
    "Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike "
    "Ceil Celu Clip Cos Cosh Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish Identity "
    "IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or Pow PRelu Reciprocal Relu Round "
    "Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Where Xor "
    "Dropout"
)
ELEMENTWISE = frozenset(_ELEMENTWISE.split(" "))
"""Operators that compute each position from the same position of their inputs, which broadcast."""

CONTRIB_UNARY = ("Gelu", "FastGelu", "QuickGelu")

POOLS = ("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", "LpPool", "MaxPool")
_REDUCED = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
REDUCERS = tuple(f"Reduce{what}" for what in _REDUCED)


@dataclass(frozen=True, eq=False)
class Product:
    """A Conv, ConvTranspose, Gemm or MatMul by a constant: ``outputs`` and ``inputs`` are the axes of ``weight``
    (``inputs`` is ``None`` where each output reads a group of its own)."""

    node: ir.Node
    weight: ir.Value
    data: ir.Value
    outputs: int
    inputs: int | None


@dataclass(frozen=True, eq=False)
class Dim:
    """Entry ``entry`` of the shape that ``node`` takes as input 1 is the size of ``axis`` of its output."""

    node: ir.Node
    entry: int
    labels: Array


@dataclass(frozen=True, eq=False)
class Sizes:
    """The sizes of a Split are those of its parts."""

    node: ir.Node
    parts: tuple[Array, ...]


@dataclass(frozen=True, eq=False)
class Bounds:
    """Bound ``entry`` of a Slice keeps ``start`` to ``stop`` of an axis."""

    node: ir.Node
    entry: int
    labels: Array
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class Groups:
    """The attribute ``group`` of a convolution is the number of different labels, one a group."""

    node: ir.Node
    labels: Array


Fix = Dim | Sizes | Bounds | Groups


@dataclass(frozen=True, eq=False)
class Folded:
    """Axis ``axis`` of a value is several axes in one, of which one has an unknown size: their sizes and labels."""

    axis: int
    dims: Dims
    labels: Axes


@dataclass
class Trail:
    """The labels of a graph and what was met on the way. ``heads`` holds labels of the batch axes of products of two
    computed values; ``splits`` how many ways a Reshape had to part an axis, by node, and ``chosen`` the one to take;
    ``sizes`` the computed lists of sizes, ``folded`` the values in which an axis hides others."""

    labels: Labels
    chosen: dict[ir.Node, int] = field(default_factory=dict)
    products: list[Product] = field(default_factory=list)
    scales: list[ir.Value] = field(default_factory=list)
    fixes: list[Fix] = field(default_factory=list)
    heads: list[Array] = field(default_factory=list)
    splits: dict[ir.Node, tuple[int, Array]] = field(default_factory=dict)
    sizes: Lists = field(default_factory=dict)
    folded: dict[ir.Value, Folded] = field(default_factory=dict)


Rule = Callable[[ir.Node, Trail], None]
RULES: dict[str, Rule] = {}


def rule(*ops: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators of the default domain."""

    def note(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(ops, function))
        return function

    return note


def follow(node: ir.Node, at: Trail) -> None:
    """Take the labels through one node."""
    listed = moved(node, at.sizes)
    if listed is not None:
        at.sizes[node.outputs[0]] = listed
        at.labels.set(node.outputs[0], [None] * (at.labels.shapes.rank(node.outputs[0]) or 0))
        return
    _pin_sizes(node, at)
    _pin_folded(node, at)
    if node.op_type != "Constant" and any(v is not None and at.labels.shapes.rank(v) is None for v in node.inputs):
        refuse(node, at, f"{name(node)} reads a value of unknown rank")
    elif node.domain in ONNX and node.op_type in RULES:
        RULES[node.op_type](node, at)
    elif node.domain == CONTRIB and node.op_type in CONTRIB_UNARY and len([v for v in node.inputs if v]) == 1:
        elementwise(node, at)
    elif node.op_type != "Constant":
        refuse(node, at, f"{node.op_type} is not understood")


def _pin_sizes(node: ir.Node, at: Trail) -> None:
    """Sizes that are used for anything but the shape of a Reshape or an Expand must stay."""
    for index, value in enumerate(node.inputs):
        if value in at.sizes and not (index == 1 and node.op_type in ("Reshape", "Expand")):
            for entry in at.sizes[value]:
                if isinstance(entry, np.ndarray):
                    at.labels.pin(entry, f"{name(node)} computes with its size")


def _pin_folded(node: ir.Node, at: Trail) -> None:
    """What an axis hides comes back by a Reshape alone."""
    for value in node.inputs:
        if value in at.folded and node.op_type not in ("Reshape", "Transpose"):
            for axis in at.folded[value].labels:
                at.labels.pin(axis, f"{name(node)} reads it folded into an axis of unknown size")


def refuse(node: ir.Node, at: Trail, why: str) -> None:
    """Nothing that the node reads can be cut."""
    for value in node.inputs:
        at.labels.pin_all(value, why)


def name(node: ir.Node) -> str:
    """What to call a node in a reason."""
    return f"{node.op_type} '{node.name or (node.outputs[0].name if node.outputs else '')}'"


# -- position by position ----------------------------------------------------------------------------------------------
@rule(*ELEMENTWISE)
def elementwise(node: ir.Node, at: Trail) -> None:
    """Inputs broadcast: the positions of equal axes go together."""
    if len([o for o in node.outputs if o.uses() or o.is_graph_output()]) > 1:
        refuse(node, at, f"{node.op_type} gives more than one result")
        return
    reads = [v for v in node.inputs if v is not None]
    if node.op_type == "Dropout":
        reads = reads[:1]
    result = broadcast(at, reads, f"{node.op_type} ties it to a value that cannot be cut")
    at.labels.set(node.outputs[0], result)


def broadcast(at: Trail, values: list[ir.Value], why: str) -> Axes:
    """Join the axes of ``values`` as numpy broadcasts them; the labels of the result."""
    rank = max((len(at.labels.of(v)) for v in values), default=0)
    return [_one_axis(at, values, rank, axis, why) for axis in range(rank)]


def _one_axis(at: Trail, values: list[ir.Value], rank: int, axis: int, why: str) -> Array | None:
    sized = []
    for value in values:
        held = at.labels.of(value)
        place = axis - (rank - len(held))
        if place >= 0:
            dims = at.labels.shapes.of(value)
            sized.append((dims[place] if dims is not None and place < len(dims) else None, held[place]))
    wide = [held for size, held in sized if size != 1] or [held for _, held in sized]
    found = wide[0]
    for other in wide[1:]:
        found = at.labels.join(found, other, why)
    return found


# -- products ----------------------------------------------------------------------------------------------------------
@rule("Conv", "ConvTranspose")
def convolution(node: ir.Node, at: Trail) -> None:
    """Outputs of the weight are channels of the result; inputs of the weight are channels of the data. With groups,
    whole groups go: their inputs with their outputs."""
    data, weight, bias = node.inputs[0], node.inputs[1], given(node, 2)
    groups = int(attribute(node, "group", 1))
    held, kernel = at.labels.of(data), at.labels.of(weight)
    if data is None or weight is None or len(held) < 2 or len(kernel) != len(held):
        refuse(node, at, "its shapes are not known")
        return
    for axis in (held[0:1] + held[2:]) + kernel[2:]:
        at.labels.pin(axis, f"{name(node)} reaches over it")
    out, into = (0, 1) if node.op_type == "Conv" else (1, 0)
    if groups == 1:
        at.labels.join(held[1], kernel[into], "the data of a convolution cannot be cut")
        result = kernel[out]
    else:
        result = _grouped(node, at, held[1], groups)
    if bias is not None:
        result = at.labels.join(result, at.labels.of(bias)[0], "the bias or the weight cannot be cut")
    _product(node, at, weight, data, out, into if groups == 1 else None)
    at.labels.set(node.outputs[0], [None, result] + [None] * (len(held) - 2))


def _grouped(node: ir.Node, at: Trail, data: Array | None, groups: int) -> Array | None:
    """The labels of the result of a convolution with groups: each group's inputs and outputs go together."""
    kernel = at.labels.of(node.inputs[1])
    wide, narrow = kernel[0], kernel[1]
    at.labels.pin(narrow, "whole groups go, not parts of each")
    if data is None or wide is None or len(data) % groups or len(wide) % groups:
        at.labels.pin(data, "the weight of a grouped convolution cannot be cut")
        at.labels.pin(wide, "the data of a grouped convolution cannot be cut")
        return None
    if node.op_type == "Conv":
        outputs = len(wide) // groups
        result, own = wide, wide
    else:
        outputs = len(narrow) if narrow is not None else 0
        own = wide
        result = np.repeat(wide[:: len(wide) // groups], outputs)
    each = [at.labels.together([*d, *w]) for d, w in zip(_parts(data, groups), _parts(own, groups), strict=True)]
    at.fixes.append(Groups(node, np.array(each)))
    return result


def _parts(labels: Array, count: int) -> Array:
    return labels.reshape(count, -1)


def _product(node: ir.Node, at: Trail, weight: ir.Value, data: ir.Value, outputs: int, inputs: int | None) -> None:
    if constant(weight) is not None:
        at.products.append(Product(node, weight, data, outputs, inputs))


@rule("Gemm")
def gemm(node: ir.Node, at: Trail) -> None:
    """alpha A' B' + beta C: rows of A', columns of B', and what both share."""
    a, b, c = node.inputs[0], node.inputs[1], given(node, 2)
    left, right = at.labels.of(a), at.labels.of(b)
    if a is None or b is None or len(left) != 2 or len(right) != 2:
        refuse(node, at, "its shapes are not known")
        return
    turned, back = bool(attribute(node, "transA", 0)), bool(attribute(node, "transB", 0))
    rows, shared = (left[1], left[0]) if turned else (left[0], left[1])
    inner, columns = (right[1], right[0]) if back else (right[0], right[1])
    at.labels.join(shared, inner, "the data of a product cannot be cut")
    result: Axes = [rows, columns]
    if c is not None:
        result = _with_addend(at, result, c)
    _product(node, at, b, a, 0 if back else 1, 1 if back else 0)
    at.labels.set(node.outputs[0], result)


def _with_addend(at: Trail, result: Axes, addend: ir.Value) -> Axes:
    held, dims = at.labels.of(addend), at.labels.shapes.of(addend) or ()
    found = list(result)
    for place, axis in enumerate(held):
        where = place + 2 - len(held)
        along = found[where]
        if place >= len(dims) or dims[place] != 1 or (along is not None and len(along) == 1):
            found[where] = at.labels.join(found[where], axis, "the bias of a product cannot be cut")
    return found


@rule("MatMul")
def matmul(node: ir.Node, at: Trail) -> None:
    """Rows of the left, columns of the right, what both share, and batch axes that broadcast."""
    a, b = node.inputs[0], node.inputs[1]
    left, right = at.labels.of(a), at.labels.of(b)
    if a is None or b is None or len(left) < 2 or len(right) < 2:
        refuse(node, at, "a product of vectors")
        return
    at.labels.join(left[-1], right[-2], "the data of a product cannot be cut")
    rank = max(len(left), len(right))
    batch = [_one_axis(at, [a, b], rank, axis, "a product ties it to a value that cannot be cut")
             for axis in range(rank - 2)]  # fmt: skip
    computed = constant(a) is None and constant(b) is None
    at.heads += [axis for axis in batch if axis is not None and computed]
    if constant(b) is not None and len(right) == 2:
        _product(node, at, b, a, 1, 0)
    at.labels.set(node.outputs[0], [*batch, left[-2], right[-1]])


# -- normalization, pooling, reduction ---------------------------------------------------------------------------------
@rule("BatchNormalization", "InstanceNormalization")
def channel_norm(node: ir.Node, at: Trail) -> None:
    """Each channel has its own scale and shift."""
    held = at.labels.of(node.inputs[0])
    if len(held) < 2 or len([o for o in node.outputs if o.uses() or o.is_graph_output()]) > 1:
        refuse(node, at, f"{name(node)} is training, or has no channels")
        return
    result = held[1]
    for value in node.inputs[1:]:
        result = at.labels.join(result, at.labels.of(value)[0], f"{name(node)} has numbers that cannot be cut")
    if node.op_type == "BatchNormalization" and node.inputs[1] is not None:
        at.scales.append(node.inputs[1])
    elif node.op_type == "InstanceNormalization":
        for axis in held[2:]:
            at.labels.pin(axis, f"{name(node)} reaches over it")
    at.labels.set(node.outputs[0], [held[0], result, *held[2:]])


@rule("LayerNormalization", "Softmax", "LogSoftmax", "Hardmax", "LpNormalization", "RMSNormalization")
def mixing(node: ir.Node, at: Trail) -> None:
    """What is normalized over cannot lose positions: every other one would change."""
    held = at.labels.of(node.inputs[0])
    if not held:
        refuse(node, at, f"{name(node)} of a single number")
        return
    soft = node.op_type in ("Softmax", "LogSoftmax", "Hardmax")
    old = soft and at.labels.shapes.opset < 13
    axis = int(attribute(node, "axis", 1 if old else -1)) % max(1, len(held))
    alone = node.op_type == "LpNormalization" or (soft and not old)
    over = range(axis, axis + 1) if alone else range(axis, len(held))
    for place in over:
        at.labels.pin(held[place], f"{name(node)} normalizes over it")
    for value in node.inputs[1:]:
        at.labels.pin_all(value, f"{name(node)} normalizes over it")
    if len([o for o in node.outputs if o.uses() or o.is_graph_output()]) > 1:
        refuse(node, at, f"{name(node)} gives more than one result")
        return
    at.labels.set(node.outputs[0], [None if i in over else axis for i, axis in enumerate(held)])


@rule(*POOLS)
def pool(node: ir.Node, at: Trail) -> None:
    """Pooling goes over positions, channel by channel."""
    held = at.labels.of(node.inputs[0])
    if len(held) < 3 or len([o for o in node.outputs if o.uses() or o.is_graph_output()]) > 1:
        refuse(node, at, f"{name(node)} gives places, or has no channels")
        return
    for axis in held[2:]:
        at.labels.pin(axis, f"{name(node)} reaches over it")
    at.labels.set(node.outputs[0], [held[0], held[1]] + [None] * (len(held) - 2))


@rule(*REDUCERS)
def reduction(node: ir.Node, at: Trail) -> None:
    """What is summed over cannot lose positions that may not be zero."""
    held = at.labels.of(node.inputs[0])
    told = given(node, 1)
    axes = attribute(node, "axes", None) if told is None else constant(told)
    if told is not None and axes is None:
        refuse(node, at, f"the axes of {name(node)} are computed")
        return
    listed = [int(a) % max(1, len(held)) for a in np.asarray(axes if axes is not None else [], np.int64).reshape(-1)]
    if not listed and attribute(node, "noop_with_empty_axes", 0):
        at.labels.set(node.outputs[0], list(held))
        return
    over = set(listed or range(len(held)))
    for axis in over & set(range(len(held))):
        at.labels.pin(held[axis], f"{name(node)} goes over it")
    keep = bool(attribute(node, "keepdims", 1))
    at.labels.set(node.outputs[0], [None if i in over else a for i, a in enumerate(held) if keep or i not in over])
