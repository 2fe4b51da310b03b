"""Equal computations and equal weights, found once and shared."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from passes.kit.contract import Edit
from passes.kit.match import ONNX, forward
from passes.kit.model import SMALL_TENSOR_BYTES, tensor_digest

_PURE = (*ONNX, "ai.onnx.ml")
"""Domains whose operators are known: what others do, and whether twice the same, is not ours to say."""

_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}

_STATEFUL = {"Dropout", "BatchNormalization"}
"""A training Dropout draws at random, a training BatchNormalization carries state; twins of idle ones do not occur."""

_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def merge_twins(graph: ir.Graph, edit: Edit) -> None:
    """Compute equal subexpressions once (value numbering within one graph, in topological order)."""
    seen: dict[tuple[Any, ...], ir.Node] = {}
    for node in list(graph):
        if node.graph is None or not _mergeable(node):
            continue
        twin = seen.setdefault(_key(node), node)
        if twin is not node:
            _merge(node, twin, edit)


def _merge(node: ir.Node, twin: ir.Node, edit: Edit) -> None:
    pairs = [(old, new) for old, new in zip(node.outputs, twin.outputs, strict=True) if old.name]
    if any(old.is_graph_output() and new.is_graph_output() for old, new in pairs):
        edit.skip("twin", node, "both results are graph outputs")
        return
    if not edit.allows("twin", node):
        return
    edit.change("twin", node, f"is {twin.outputs[0].name}")
    for old, new in pairs:
        if old.uses() or old.is_graph_output():
            forward(old, new)


def _mergeable(node: ir.Node) -> bool:
    if node.domain not in _PURE or node.op_type in _RANDOM | _STATEFUL or node.op_type == "Constant":
        return False
    return not any(a.type in _GRAPHS or a.is_ref() for a in node.attributes.values())


def _key(node: ir.Node) -> tuple[Any, ...]:
    attributes = tuple(sorted((name, _spelled(a)) for name, a in node.attributes.items()))
    outputs = tuple(bool(o.name) for o in node.outputs)
    return node.op_identifier(), attributes, outputs, tuple(_identity(v) for v in node.inputs)


def _identity(value: ir.Value | None) -> object:
    """What a value is: small constants by content, everything else by itself."""
    held = value.const_value if value is not None and not value.is_graph_input() else None
    if held is not None and held.nbytes <= SMALL_TENSOR_BYTES:
        return tensor_digest(held)
    return value


def _spelled(held: ir.Attr) -> str:
    if held.type == ir.AttributeType.TENSOR:
        return tensor_digest(held.as_tensor())
    return f"{held.type}{held.value!r}"


def share_initializers(graph: ir.Graph, edit: Edit) -> None:
    """Keep one of several equal large initializers."""
    seen: dict[str, ir.Value] = {}
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.nbytes <= SMALL_TENSOR_BYTES or value.is_graph_input():
            continue
        first = seen.setdefault(tensor_digest(tensor), value)
        if first is not value and not value.is_graph_output() and edit.allows("shared-initializer", name):
            edit.change("shared-initializer", name, f"is {first.name}")
            value.replace_all_uses_with(first)
            graph.initializers.pop(name)
