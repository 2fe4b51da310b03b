"""What a layer multiplies its weights with, as rows: values added to a graph so that a Gram matrix can be folded."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from passes.kit.contract import Edit
from passes.kit.match import attribute
from passes.kit.model import constant
from passes.prune.follow import Product
from passes.prune.labels import Array

MOST_INPUTS = 4096
"""Layers with more inputs per output get no Gram matrix: one of float64 would take more than 128 MB."""

SHARED_KEYS = ("strides", "pads", "dilations", "auto_pad")


def fan_in(product: Product) -> int:
    """Inputs of each output."""
    weight = constant(product.weight)
    assert weight is not None
    return int(weight.size // weight.shape[product.outputs])


def matrix(product: Product, weight: Array) -> Array:
    """The weight as float64 [inputs, outputs], inputs in the order of :func:`input_rows`."""
    wide = np.asarray(weight, np.float64)
    if product.node.op_type == "Conv":
        return wide.reshape(len(wide), -1).T
    return wide if product.outputs == 1 else wide.T


def weight_from(product: Product, rows: Array, like: Array) -> Array:
    """Back from :func:`matrix` to the layout and type of the weight."""
    if product.node.op_type == "Conv" or product.outputs == 0:
        rows = rows.T
    return np.ascontiguousarray(rows.reshape(like.shape)).astype(like.dtype)


def rows_of_channels(product: Product, channels: Array) -> Array:
    """Rows of :func:`matrix` that read these input channels."""
    weight = constant(product.weight)
    assert weight is not None
    taps = int(np.prod(weight.shape[2:])) if product.node.op_type == "Conv" else 1
    return np.asarray((channels[:, None] * taps + np.arange(taps)).reshape(-1))


def why_not(product: Product) -> str:
    """Why no Gram matrix is folded for a layer; empty when one can be."""
    node = product.node
    if node.op_type == "ConvTranspose" or product.inputs is None:
        return "it has groups, or is transposed"
    if node.op_type == "Gemm" and attribute(node, "transA", 0):
        return "its input is transposed"
    if node.op_type == "Gemm" and (attribute(node, "alpha", 1.0) != 1 or attribute(node, "beta", 1.0) != 1):
        return "it scales its product"
    if fan_in(product) > MOST_INPUTS:
        return f"it has {fan_in(product)} inputs for each output, more than {MOST_INPUTS}"
    return ""


def input_rows(product: Product, graph: ir.Graph, edit: Edit) -> ir.Value:
    """A new value [..., inputs per output] of ``graph`` with the rows that the layer multiplies its weights with."""
    node, data = product.node, product.node.inputs[0]
    assert data is not None
    if node.op_type != "Conv":
        return data
    weight = constant(product.weight)
    assert weight is not None
    channels, kernel = weight.shape[1], weight.shape[2:]
    taps = int(np.prod(kernel))
    picks = np.tile(np.eye(taps, dtype=weight.dtype).reshape(taps, 1, *kernel), (channels, *([1] * (len(kernel) + 1))))
    held = edit.initializer(graph, "taps", picks)
    shared = {k: a.value for k, a in node.attributes.items() if k in SHARED_KEYS}
    patches = added(graph, edit, "Conv", [data, held], {**shared, "group": channels})
    return channels_last(graph, edit, patches, len(kernel))


def channels_last(graph: ir.Graph, edit: Edit, value: ir.Value, spatial: int) -> ir.Value:
    """[N, C, ...] with its channels moved to the end."""
    order = [0, *range(2, spatial + 2), 1]
    return added(graph, edit, "Transpose", [value], {"perm": order})


def added(
    graph: ir.Graph,
    edit: Edit,
    op_type: str,
    inputs: list[ir.Value | None],
    attributes: dict[str, object] | None = None,
) -> ir.Value:
    """The result of a new node at the end of ``graph``."""
    node = ir.node(op_type, inputs, attributes or {}, name=edit.fresh(f"rows_{op_type}"))  # type: ignore[arg-type]
    node.outputs[0].name = edit.fresh("rows")
    graph.append(node)
    return node.outputs[0]


def trim(graph: ir.Graph, wanted: list[ir.Value]) -> None:
    """Let the graph give the wanted values and make nothing else."""
    graph.outputs.clear()
    graph.outputs.extend(wanted)
    for node in reversed(list(graph)):
        if not any(o.uses() or o.is_graph_output() for o in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not (value.uses() or value.is_graph_output() or value.is_graph_input()):  # a listed default stays one
            graph.initializers.pop(name)
