"""Two models in one graph that read the same inputs, so that activations of both can be looked at side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from passes.kit.model import Model, names_in

PREFIX = "original/"


class Apart(ValueError):
    """The two models cannot stand in one graph; the text says why."""


@dataclass(frozen=True)
class Joint:
    """``model`` holds both. ``originals`` finds the values of the original by the names that they have there."""

    model: Model
    originals: Mapping[str, ir.Value]


def join(model: Model, original: Model) -> Joint:
    """A fork of ``model`` with the nodes of ``original`` beside its own. Raises :class:`Apart`.

    Inputs are shared by name, so the two must have the same signature; the original's other values, its nodes and its
    initializers get a prefix.
    """
    if model.signature.inputs != original.signature.inputs:
        raise Apart("the original has other inputs")
    mine, theirs = model.fork(), original.fork()
    for domain, version in theirs.ir.opset_imports.items():
        if mine.ir.opset_imports.setdefault(domain, version) != version:
            raise Apart(f"the original has version {version} of the operators '{domain}'")
    for key, function in theirs.ir.functions.items():
        mine.ir.functions.setdefault(key, function)
    mine.ir.ir_version = max(mine.ir.ir_version, theirs.ir.ir_version)
    prefix = PREFIX
    while any(name.startswith(prefix) for name in names_in(mine)):
        prefix = f"_{prefix}"
    return Joint(mine, _moved(mine.graph, theirs.graph, prefix))


def _moved(into: ir.Graph, graph: ir.Graph, prefix: str) -> dict[str, ir.Value]:
    """Move the nodes of ``graph``; values by their old names."""
    ports = {v.name: v for v in into.inputs}
    found: dict[str, ir.Value] = {}
    graph.outputs.clear()
    for value in list(graph.inputs):
        if value.name not in graph.initializers:
            value.replace_all_uses_with(ports[value.name])
            found[str(value.name)] = ports[value.name]
    for name, value in list(graph.initializers.items()):
        graph.initializers.pop(name)
        if value.is_graph_input():  # an old file's way to list a default: a copy that nobody can override
            twin = ir.Value(name=name, type=value.type, shape=value.shape, const_value=value.const_value)
            value.replace_all_uses_with(twin)
            value = twin
        value.name = prefix + name
        into.register_initializer(value)
        found[name] = value
    for node in list(graph):
        graph.remove(node)
        if node.name:
            node.name = prefix + node.name
        for output in node.outputs:
            if output.name:
                found[output.name] = output
                output.name = prefix + output.name
        into.append(node)
    return found
