"""Weight-bearing layers: which Conv, Gemm and MatMul nodes can take 8-bit weights, and why the others cannot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import onnx_ir as ir

from passes.kit.model import Model, constant
from passes.kit.target import Target

Array = np.ndarray[Any, Any]

WEIGHTED = ("Conv", "Gemm", "MatMul")
"""Operators whose weights are quantized. ConvTranspose has no integer kernel in onnxruntime's CPU provider."""


@dataclass(frozen=True, eq=False)
class Layer:
    """One node with constant float32 weights.

    ``axis`` is the output channel's axis in ``weight``; ``channels`` its length. ``weight`` holds Gemm's ``alpha`` and
    ``bias`` (float32 [channels], or ``None``) its ``beta`` already.
    """

    node: ir.Node
    data: ir.Value
    weight_value: ir.Value
    weight: Array
    axis: int
    bias: Array | None

    @property
    def channels(self) -> int:
        return int(self.weight.shape[self.axis])

    @property
    def reads(self) -> ir.Value:
        """What the node reads now: ``data``, or what took its place when the layer before it was rewritten."""
        return self.node.inputs[0] or self.data


@dataclass(frozen=True)
class Refused:
    """A node that stays float, with the reason. ``quiet`` when it has nothing to do with weights at all."""

    reason: str
    quiet: bool = False


class Names:
    """Stable names of nodes: the node's own name when it has one and nobody else does, else its first output's."""

    def __init__(self, graph: ir.Graph) -> None:
        self._uses = Counter(n.name for n in graph if n.name)

    def of(self, node: ir.Node) -> str:
        if node.name and self._uses[node.name] == 1:
            return node.name
        return next((o.name for o in node.outputs if o.name), node.name or node.op_type)

    def match(self, node: ir.Node, patterns: Iterable[str]) -> bool:
        """Whether a pattern (an exact name, or one with ``*``, ``?``, ``[...]``) names this node."""
        known = {self.of(node), node.name or ""}
        return any(p in known or any(fnmatchcase(name, p) for name in known) for p in patterns)


@dataclass(frozen=True)
class Choice:
    """Which layers a pass works on, and why it leaves the others."""

    layers: Mapping[ir.Node, Layer]
    refused: Mapping[ir.Node, str]


def choose(graph: ir.Graph, ops: Sequence[str], exclude: Sequence[str] = (), only: Sequence[str] = ()) -> Choice:
    """The layers of ``graph`` (nested graphs are not entered) that take 8-bit weights, by ``ops`` and name patterns."""
    names = Names(graph)
    layers: dict[ir.Node, Layer] = {}
    refused: dict[ir.Node, str] = {}
    for node in graph:
        if node.op_type not in WEIGHTED or node.op_type not in ops or node.domain not in ("", "ai.onnx"):
            continue
        if names.match(node, exclude) or (only and not names.match(node, only)):
            continue
        found = read_layer(node)
        if isinstance(found, Layer):
            layers[node] = found
        elif not found.quiet:
            refused[node] = found.reason
    return Choice(layers, refused)


def choose_everywhere(
    model: Model, ops: Sequence[str], exclude: Sequence[str] = (), only: Sequence[str] = ()
) -> Choice:
    """The same over all graphs of ``model``, the bodies of If, Loop and Scan included."""
    found = [choose(graph, ops, exclude, only) for graph in model.graphs()]
    layers = {node: layer for choice in found for node, layer in choice.layers.items()}
    return Choice(layers, {node: reason for choice in found for node, reason in choice.refused.items()})


def quantizable(model: Model, target: Target, ops: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of the weight-bearing nodes that ``quantize-static`` would quantize, in graph order.

    ``ops`` limits the operators (none: those of ``target``). Each name, given to ``only`` or ``exclude``, means that
    one node: it is the node's own name when it has one to itself, else the name of its first output.
    """
    graph = model.fork().graph  # reading a Constant names its tensor, and the model is not ours
    names = Names(graph)
    return tuple(names.of(node) for node in choose(graph, ops or target.static_ops).layers)


def quantizable_at_run_time(model: Model, target: Target) -> tuple[str, ...]:
    """Names of the nodes that ``quantize-dynamic`` would quantize: those of the main graph, then those in bodies."""
    fork = model.fork()
    ops = target.dynamic_ops
    return tuple(names.of(n) for g in fork.graphs() for names in [Names(g)] for n in choose(g, ops).layers)


def read_layer(node: ir.Node) -> Layer | Refused:
    """The layer that a Conv, Gemm or MatMul node is, or the reason why it cannot be quantized."""
    data, weight_value = node.inputs[0], node.inputs[1]
    if data is None or weight_value is None:
        return Refused("an input is missing")
    weight = settled(weight_value)
    if weight is None:
        return _no_weight(node, data, weight_value)
    if weight.dtype != np.float32:
        return Refused(f"its weight is {weight.dtype}, only float32 is quantized")
    if settled(data) is not None:
        return Refused("both of its inputs are constant; run `fold-constants` first")
    if weight.size == 0 or not np.isfinite(weight).all():
        return Refused("its weight is empty or not finite")
    return _with_bias(node, data, weight_value, weight)


def settled(value: ir.Value | None) -> Array | None:
    """The array that a value is known to hold, seen through Identity nodes, else ``None``."""
    while value is not None and (producer := value.producer()) is not None and producer.op_type == "Identity":
        value = producer.inputs[0]
    return constant(value)


def _no_weight(node: ir.Node, data: ir.Value, weight: ir.Value) -> Refused:
    producer = weight.producer()
    if producer is not None and producer.op_type == "DequantizeLinear":
        return Refused("its weight is quantized already")
    if weight.is_graph_input() and weight.is_initializer():
        return Refused("its weight is an initializer that callers may override; run `tidy` first")
    if node.op_type == "MatMul":
        left = settled(data) is not None
        return Refused("its weight is the left operand" if left else "both operands are computed", quiet=not left)
    return Refused("its weight is computed, not constant")


def _with_bias(node: ir.Node, data: ir.Value, weight_value: ir.Value, weight: Array) -> Layer | Refused:
    if node.op_type == "MatMul":
        if weight.ndim != 2:
            return Refused(f"its weight has {weight.ndim} dimensions, not 2")
        return Layer(node, data, weight_value, weight, 1, None)
    if node.op_type == "Conv" and weight.ndim > 4:
        return Refused("a convolution over three dimensions is faster in float: its integer kernel is not vectorized")
    axis = 0
    alpha = beta = 1.0
    if node.op_type == "Gemm":
        if _int(node, "transA", 0):
            return Refused("its input is transposed (transA)")
        axis = 0 if _int(node, "transB", 0) else 1
        alpha, beta = _float(node, "alpha", 1.0), _float(node, "beta", 1.0)
    bias: Array | None = None
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = settled(node.inputs[2])
        if bias is None:
            return Refused("its bias is computed, not constant")
        if bias.size not in (1, weight.shape[axis]) or (bias.ndim > 1 and bias.shape[-1] != bias.size):
            return Refused("its bias is not one number per output channel")
        if not np.isfinite(bias).all():
            return Refused("its bias is not finite")
        bias = np.broadcast_to(bias.reshape(-1) * np.float32(beta), (weight.shape[axis],))
    return Layer(node, data, weight_value, weight if alpha == 1.0 else weight * np.float32(alpha), axis, bias)


def nested_layers(model: Model) -> list[ir.Node]:
    """Weight-bearing nodes inside the bodies of If, Loop and Scan; their activations cannot be observed."""
    return [n for g in model.graph.subgraphs() for n in g if n.op_type in WEIGHTED]


def _int(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else int(attribute.value)


def _float(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else float(attribute.value)
