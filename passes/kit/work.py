"""The work of a graph, from its shapes alone: multiply-accumulates and bytes of every node.

Nothing is run. Where a shape cannot be derived, what the file declares of it is believed, for these numbers change no
model: they are shown, and held against what a machine can do.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from passes.kit.model import Model
from passes.kit.shapes import Shapes

CONV_WEIGHT = {"Conv": 1, "FusedConv": 1, "NhwcFusedConv": 1, "ConvInteger": 1, "QLinearConv": 3}
"""Operators that convolve, and which of their inputs holds the weights."""

MATMUL_RIGHT = {
    "MatMul": 1,
    "Gemm": 1,
    "FusedMatMul": 1,
    "FusedGemm": 1,
    "MatMulInteger": 1,
    "MatMulIntegerToFloat": 1,
    "DynamicQuantizeMatMul": 1,
    "QLinearMatMul": 3,
    "QGemm": 3,
}
"""Operators that multiply matrices, and which of their inputs holds the right one."""

_UNCOUNTED = frozenset(
    ("Attention", "Einsum", "GRU", "GroupQueryAttention", "LSTM", "MultiHeadAttention", "QAttention", "RNN")
)
_INTEGER = frozenset(
    ("ConvInteger", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat", "QGemm", "QLinearConv",
     "QLinearMatMul")
)  # fmt: skip
_VIEWS = frozenset(("Constant", "Flatten", "Identity", "Reshape", "Shape", "Squeeze", "Unsqueeze"))
"""Operators that move no data worth counting."""

_CONVERSIONS = frozenset(("DequantizeLinear", "QuantizeLinear"))
"""Runtimes join them with the layers that they stand around: there the integers are counted, not the floats."""

_ROWS_ONLY = frozenset(("Gather", "GatherElements", "GatherND", "GatherBlockQuantized"))
"""Operators that read as many rows of a constant as they return."""


@dataclass(frozen=True)
class Work:
    """Multiply-accumulates of one run: in all, by operator, and operators whose work could not be counted."""

    total: int
    by_op: Mapping[str, int]
    unknown: Mapping[str, int]


@dataclass(frozen=True)
class NodeWork:
    """One node of a run: ``macs`` multiply-accumulates (0 for an operator without any, ``None`` when they cannot be
    counted), on integers or on floats, and the ``bytes`` that it reads and writes (``None``: a shape is not known)."""

    node: str
    op: str
    macs: int | None
    integer: bool
    bytes: int | None


@dataclass(frozen=True)
class Traffic:
    """Bytes that one run moves: ``least`` are the weights, inputs and outputs of the model once, ``most`` what every
    node reads and writes for itself. A runtime that joins nodes lies between. ``unknown`` nodes are not counted."""

    least: int
    most: int
    unknown: int


def with_sizes(model: Model, sizes: Mapping[str, int]) -> tuple[Model, dict[str, int]]:
    """``model`` with every open input dimension given a size, and which ones were: ``name`` or ``input:axis``."""
    fork = model.fork()
    assumed: dict[str, int] = {}
    for value in fork.graph.inputs:
        if value.shape is None:
            continue
        dims: list[int] = []
        for axis, dim in enumerate(value.shape):
            if isinstance(dim, int):
                dims.append(dim)
                continue
            key = dim.value or f"{value.name}:{axis}"
            assumed[key] = sizes.get(key, sizes.get(f"{value.name}:{axis}", 1))
            dims.append(assumed[key])
        value.shape = ir.Shape(dims)
    return fork, assumed


def count_work(model: Model, sizes: Mapping[str, int] | None = None) -> Work:
    """Multiply-accumulates of convolutions and matrix products, bodies of If, Loop and Scan counted once each.

    Where a shape cannot be derived, what the file declares of it is believed, ``sizes`` filling in named dimensions.
    Conv: output elements times weights per output channel. ConvTranspose: input elements times weights per input
    channel. Matrix products: output elements times the inner dimension.
    """
    by_op: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    shapes = _Sizes(Shapes(model), sizes or {})
    for node in filter(_does_work, model.nodes()):
        work = _work_of(node, shapes)
        if work is None:
            unknown[op_name(node)] += 1
        else:
            by_op[op_name(node)] += work
    return Work(sum(by_op.values()), dict(by_op.most_common()), dict(unknown.most_common()))


def node_work(model: Model, sizes: Mapping[str, int] | None = None) -> tuple[NodeWork, ...]:
    """Every node with its work, in order, bodies of If, Loop and Scan once each.

    A layer between DequantizeLinear and QuantizeLinear counts as the integers that runtimes make of it. A node is
    named by its own name when nobody else has it, else by its first output's.
    """
    shapes = _Sizes(Shapes(model), sizes or {})
    uses = Counter(n.name for n in model.nodes())
    return tuple(
        NodeWork(
            node.name
            if node.name and uses[node.name] == 1
            else next((o.name for o in node.outputs if o.name), op_name(node)),
            op_name(node),
            _work_of(node, shapes) if _does_work(node) else 0,
            node.op_type in _INTEGER or _between_conversions(node),
            _bytes_of(node, shapes),
        )
        for node in model.nodes()
    )


def traffic(model: Model, nodes: tuple[NodeWork, ...], sizes: Mapping[str, int] | None = None) -> Traffic:
    """What one run moves; ``nodes`` as :func:`node_work` gives them for the same sizes."""
    shapes = _Sizes(Shapes(model), sizes or {})
    ports = [shapes.bytes(v) for v in (*model.graph.inputs, *model.graph.outputs)]
    weights: dict[int, int] = {}
    for node in model.nodes():
        for value in dict.fromkeys(node.inputs):
            if value is None or value.const_value is None or value.is_graph_input():
                continue
            whole = value.const_value.nbytes
            part = shapes.bytes(node.outputs[0]) if node.op_type in _ROWS_ONLY else None
            read = min(whole, part) if part is not None else whole
            weights[id(value)] = max(weights.get(id(value), 0), read)
    least = sum(weights.values()) + sum(b for b in ports if b is not None)
    most = sum(n.bytes for n in nodes if n.bytes is not None)
    return Traffic(least, max(least, most), sum(n.bytes is None for n in nodes))


def op_name(node: ir.Node) -> str:
    """The operator with its domain, unless it is ONNX's own."""
    return f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type


@dataclass(frozen=True)
class _Sizes:
    """Derived shapes, or else declared ones."""

    derived: Shapes
    sizes: Mapping[str, int]

    def static(self, value: ir.Value | None) -> tuple[int, ...] | None:
        found = self.derived.static(value)
        if found is not None or value is None or value.shape is None:
            return found
        dims = [d if isinstance(d, int) else self.sizes.get(d.value or "") for d in value.shape]
        known = tuple(d for d in dims if d is not None)
        return known if len(known) == len(dims) else None

    def bytes(self, value: ir.Value | None) -> int | None:
        """Bytes of a tensor, ``None`` when its shape or type is not known."""
        dims, kind = self.static(value), self.derived.dtype(value)
        if dims is None or kind is None or kind == ir.DataType.STRING:
            return None
        return (math.prod(dims) * kind.bitwidth + 7) // 8


def _does_work(node: ir.Node) -> bool:
    op = node.op_type
    return op in CONV_WEIGHT or op in MATMUL_RIGHT or op in _UNCOUNTED or op in ("ConvTranspose", "MatMulNBits")


def _work_of(node: ir.Node, shapes: _Sizes) -> int | None:
    op = node.op_type
    left = shapes.static(_input(node, 0))
    out = shapes.static(node.outputs[0])
    if op in CONV_WEIGHT:
        weight = shapes.static(_input(node, CONV_WEIGHT[op]))
        return None if weight is None or out is None else math.prod(out) * math.prod(weight[1:])
    if op == "ConvTranspose":
        weight = shapes.static(_input(node, 1))
        return None if weight is None or left is None else math.prod(left) * math.prod(weight[1:])
    if op == "MatMulNBits":
        return None if left is None else math.prod(left) * node.attributes["N"].as_int()
    if op in MATMUL_RIGHT:
        return _product(node, left, shapes.static(_input(node, MATMUL_RIGHT[op])), out)
    return None


def _product(
    node: ir.Node, left: tuple[int, ...] | None, right: tuple[int, ...] | None, out: tuple[int, ...] | None
) -> int | None:
    if not left:
        return None
    turned = "transA" in node.attributes and node.attributes["transA"].as_int() == 1
    if out is not None:
        return math.prod(out) * (left[0] if turned else left[-1])
    if right is None or len(right) != 2 or "transB" in node.attributes:
        return None
    return math.prod(left) * right[-1]  # operators that shape inference does not know


def _between_conversions(node: ir.Node) -> bool:
    """Whether both operands of a layer are dequantized: runtimes compute it on the integers."""
    makers = [v.producer() if v is not None else None for v in node.inputs[:2]]
    return (
        _does_work(node) and len(makers) == 2 and all(m is not None and m.op_type == "DequantizeLinear" for m in makers)
    )


def _bytes_of(node: ir.Node, shapes: _Sizes) -> int | None:
    if node.op_type in _VIEWS or node.op_type in _CONVERSIONS:
        return 0
    inputs = [_behind_conversion(v) for v in dict.fromkeys(node.inputs) if v is not None]
    sizes = [shapes.bytes(v) for v in (*inputs, *map(_before_conversion, node.outputs)) if v.name]
    if node.op_type in _ROWS_ONLY and sizes:
        sizes[0] = sizes[-1]
    known = [s for s in sizes if s is not None]
    return sum(known) if len(known) == len(sizes) else None


def _behind_conversion(value: ir.Value) -> ir.Value:
    """The integers behind a value that is dequantized."""
    maker = value.producer()
    if maker is not None and maker.op_type == "DequantizeLinear" and maker.inputs[0] is not None:
        return maker.inputs[0]
    return value


def _before_conversion(value: ir.Value) -> ir.Value:
    """The integers that a value becomes, when nothing else reads it."""
    uses = list(value.uses())
    if len(uses) == 1 and uses[0][0].op_type == "QuantizeLinear" and not value.is_graph_output():
        return uses[0][0].outputs[0]
    return value


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None
