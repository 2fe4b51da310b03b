"""The layers that ``refit`` fits, and what each of them should give."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from passes.kit.contract import Edit
from passes.kit.match import discard, given, is_free, is_op, sole_consumer
from passes.kit.model import Model, constant
from passes.prune.cut import KEPT, THINNED, kept_of
from passes.prune.follow import Product
from passes.prune.groups import Structure
from passes.prune.joint import Joint
from passes.prune.labels import Array
from passes.prune.rows import why_not

ADDS = ("Add", "Sum")


@dataclass(frozen=True, eq=False)
class Layer:
    """A product whose weight can be changed.

    ``bias`` is the node and the input that hold its bias (``None``: it has none and cannot get one); ``result`` the
    name of what it gives, bias included; ``axis`` and ``spatial`` say where the channels of that are and how many axes
    follow; ``weightless``: only the bias can be fitted; ``depth`` counts the layers before it.
    """

    product: Product
    bias: tuple[ir.Node, int] | None
    result: ir.Value
    axis: int
    spatial: int
    outputs: int
    weightless: bool
    depth: int

    @property
    def node(self) -> ir.Node:
        return self.product.node


@dataclass(frozen=True)
class Target:
    """What a layer should give: ``wanted`` of the original (positions ``kept`` of it) in place of ``now``."""

    wanted: ir.Value
    now: ir.Value
    kept: Array | None


def find_layers(structure: Structure, model: Model) -> list[Layer]:
    """The layers of the graph that was studied, in its order: those that were pruned and all behind them. Without a
    note of what was pruned, all."""
    products = {p.node: p for p in structure.trail.products}
    depth: dict[ir.Value, int] = {}
    touched = touched_values(model)
    behind: set[ir.Value] = set()
    found = []
    for node in model.graph:
        moved = not touched or any(v in behind for v in node.inputs) or any(o.name in touched for o in node.outputs)
        behind.update(node.outputs if moved else ())
        level = max((depth.get(v, 0) for v in node.inputs if v is not None), default=0)
        product = products.get(node)
        for output in node.outputs:
            depth[output] = level + (product is not None)
        if moved and product is not None and (layer := _layer(product, structure, level)) is not None:
            found.append(layer)
    return found


def touched_values(model: Model) -> set[str]:
    """Results of layers of which a pass noted that they lost channels or weights."""
    keys = [str(k) for k in model.ir.metadata_props]
    cut = {k.removeprefix(KEPT).partition("/")[2] for k in keys if k.startswith(KEPT)}
    return cut | {k.removeprefix(THINNED) for k in keys if k.startswith(THINNED)}


def _layer(product: Product, structure: Structure, depth: int) -> Layer | None:
    weight, dims = constant(product.weight), structure.trail.labels.shapes.rank(product.node.outputs[0])
    if weight is None or weight.dtype.kind != "f" or dims is None:
        return None
    convolves = "Conv" in product.node.op_type
    weightless = bool(why_not(product)) or len(product.weight.uses()) > 1 or _computed(product.weight)
    bias = _bias(product, int(weight.shape[product.outputs]))
    if weightless and bias is None:
        return None
    result = bias[0].outputs[0] if bias is not None else product.node.outputs[0]
    outputs = structure.trail.labels.shapes.of(product.node.outputs[0]) or ()
    axis = 1 if convolves else dims - 1
    count = outputs[axis] if len(outputs) == dims else None
    if not isinstance(count, int):
        return None
    return Layer(product, bias, result, axis, dims - 2 if convolves else 0, count, weightless, depth)


def _computed(value: ir.Value) -> bool:
    maker = value.producer()
    return maker is not None and maker.op_type != "Constant"


def _bias(product: Product, outputs: int) -> tuple[ir.Node, int] | None:
    """Where the bias of a layer stands or can be put."""
    node = product.node
    if node.op_type != "MatMul":
        held = given(node, 2)
        array = constant(held)
        if held is None:
            return (node, 2)
        fits = array is not None and array.size == outputs and array.ndim == 1
        return (node, 2) if fits else None
    reader = sole_consumer(node.outputs[0])
    if not is_op(reader, *ADDS) or reader is None or len(reader.inputs) != 2:
        return None
    index = 1 if reader.inputs[0] is node.outputs[0] else 0
    array = constant(given(reader, index))
    return (reader, index) if array is not None and array.ndim and array.shape[-1] == array.size == outputs else None


def find_target(layer: Layer, joint: Joint, model: Model, taken: Collection[ir.Value]) -> Target | str:
    """What the layer should give, as values of the joint graph; or why that cannot be told. Sums in ``taken`` are made
    up for by another layer."""
    mine = {o.name: o for n in joint.model.graph for o in n.outputs}
    name = str(layer.result.name)
    kept = kept_of(model, str(layer.node.outputs[0].name), layer.axis)
    wanted = joint.originals.get(name)
    if wanted is None or constant(wanted) is not None:
        return "the original has no value of this name"
    if kept is not None and int(kept.sum()) != layer.outputs:
        return "it lost positions that nobody wrote down"
    dims = wanted.shape
    width = len(kept) if kept is not None else layer.outputs
    if dims is not None and len(dims) > layer.axis and isinstance(dims[layer.axis], int) and dims[layer.axis] != width:
        return "it lost positions that nobody wrote down"
    merged = _sum_behind(layer)
    if merged is not None and str(merged.name) in joint.originals and mine[merged.name] not in taken:
        return Target(joint.originals[str(merged.name)], mine[merged.name], kept)
    return Target(wanted, mine[name], kept)


def _sum_behind(layer: Layer) -> ir.Value | None:
    """The sum with a shortcut that the layer's result goes into, if it goes nowhere else."""
    reader = sole_consumer(layer.result)
    if not is_op(reader, *ADDS) or reader is None or len(reader.inputs) != 2:
        return None
    other = reader.inputs[0] if reader.inputs[1] is layer.result else reader.inputs[1]
    return reader.outputs[0] if other is not None and constant(other) is None and other is not layer.result else None


def replace_constant(node: ir.Node, index: int, array: Array, graph: ir.Graph, edit: Edit) -> None:
    """Let input ``index`` of ``node`` be a new constant; the old one goes when nobody else needs it."""
    old = given(node, index)
    if len(node.inputs) <= index:
        node.resize_inputs(index + 1)
    wish = f"{old.name}_fitted" if old is not None else f"{node.name or node.outputs[0].name}_bias"
    new = edit.initializer(graph, wish, np.asarray(array))
    node.replace_input_with(index, new)
    if old is None or not is_free(old) or old.is_graph_input():
        return
    maker = old.producer()
    if maker is not None:
        discard(maker)
    elif old.name:
        graph.initializers.pop(old.name, None)
