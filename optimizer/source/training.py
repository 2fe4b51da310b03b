"""Graphs that are still in training mode: found, told, and on request rewritten to their inference form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from passes.kit.contract import place
from passes.kit.model import Model, constant

RANDOM = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
TRAINING_FLAG = 2
"""Position of Dropout's ``training_mode`` input (opset 12 upward)."""


@dataclass(frozen=True)
class Sign:
    """One node that behaves as in training. ``fixable`` says whether :func:`fix` knows its inference form."""

    op: str
    where: str
    why: str
    fixable: bool


def find(model: Model) -> tuple[Sign, ...]:
    """Every node in training mode, in the main graph, nested graphs and model functions."""
    signs = (sign_of(node, opset) for graph, opset in _all_graphs(model) for node in graph)
    return tuple(sign for sign in signs if sign is not None)


def fix(model: Model) -> tuple[Sign, ...]:
    """Rewrite ``model`` in place: BatchNormalization to its inference form, Dropout removed. Returns what was done.

    A node whose training-only outputs are used (batch statistics) is left as it is, and so is anything random.
    """
    done = []
    for graph, opset in _all_graphs(model):
        for node in list(graph):
            sign = sign_of(node, opset)
            if sign is not None and sign.fixable:
                (_fix_batchnorm if sign.op == "BatchNormalization" else _remove_dropout)(graph, node)
                done.append(sign)
    model.forget_digest()
    return tuple(done)


def summary(signs: tuple[Sign, ...]) -> str:
    """``2 Dropout, 1 BatchNormalization (first: 'drop1', its training flag is true)``."""
    counts = ", ".join(f"{n} {op}" for op, n in Counter(sign.op for sign in signs).most_common())
    return f"{counts} (first: '{signs[0].where}', {signs[0].why})"


def sign_of(node: ir.Node, opset: int) -> Sign | None:
    """What makes ``node`` a training-mode node, or ``None``."""
    if node.domain not in ("", "ai.onnx"):
        return None
    version = node.version or opset
    if node.op_type in RANDOM:
        return Sign(node.op_type, place(node), "it draws random numbers", False)
    if node.op_type == "BatchNormalization":
        return _batchnorm(node)
    if node.op_type == "Dropout":
        return _dropout(node, version)
    return None


def _batchnorm(node: ir.Node) -> Sign | None:
    extra = [o for o in node.outputs[1:] if o.name]
    if _int(node, "training_mode", 0) == 0 and not extra:
        return None
    why = "training_mode is 1" if _int(node, "training_mode", 0) else "it writes running statistics"
    return Sign(node.op_type, place(node), why, not any(_is_used(o) for o in extra))


def _dropout(node: ir.Node, version: int) -> Sign | None:
    fixable = not any(_is_used(o) for o in node.outputs[1:])
    if version < 7:
        if _int(node, "is_test", 0):
            return None
        return Sign(node.op_type, place(node), "is_test is 0", fixable)
    flag = node.inputs[TRAINING_FLAG] if len(node.inputs) > TRAINING_FLAG else None
    if flag is None:
        return None
    known = constant(flag)
    if known is None:
        return Sign(node.op_type, place(node), f"its training flag is computed ('{flag.name}')", fixable)
    return Sign(node.op_type, place(node), "its training flag is true", fixable) if known.any() else None


def _fix_batchnorm(graph: ir.Graph | ir.Function, node: ir.Node) -> None:
    attributes = [a for a in node.attributes.values() if a.name != "training_mode"]
    _replace(graph, node, ir.Node("", node.op_type, node.inputs, attributes, num_outputs=1, name=node.name))


def _remove_dropout(graph: ir.Graph | ir.Function, node: ir.Node) -> None:
    old, source = node.outputs[0], node.inputs[0]
    if old.is_graph_output():
        _replace(graph, node, ir.Node("", "Identity", [source], num_outputs=1, name=node.name))
        return
    assert source is not None
    ir.convenience.replace_all_uses_with(old, source)
    graph.remove(node, safe=True)


def _replace(graph: ir.Graph | ir.Function, node: ir.Node, new: ir.Node) -> None:
    old, fresh = node.outputs[0], new.outputs[0]
    fresh.name, fresh.type, fresh.shape = old.name, old.type, old.shape
    ir.convenience.replace_nodes_and_values(graph, node, [node], [new], [old], [fresh])


def _is_used(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _int(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None or attribute.is_ref() else attribute.as_int()


def _all_graphs(model: Model) -> Iterator[tuple[ir.Graph | ir.Function, int]]:
    """Every graph with the opset that holds in it; functions import their own."""
    for graph in model.graphs():
        yield graph, model.opset
    for function in model.ir.functions.values():
        opset = function.opset_imports.get("", model.opset)
        yield function, opset
        for graph in function.subgraphs():
            yield graph, opset
