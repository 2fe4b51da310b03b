"""Pairs: Quantize- and DequantizeLinear written around layers one by one, for types that no integer kernel here takes.

Each observed value gets one pair that all chosen readers share; each weight becomes an initializer of the narrow type
behind a DequantizeLinear. Nothing between layers is touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from passes.kit.context import Context
from passes.kit.contract import Edit
from passes.kit.model import Model
from passes.kit.reducers import MinMax
from passes.quantize import opset
from passes.quantize.grid import Array
from passes.quantize.layers import Choice, Layer, choose, nested_layers
from passes.quantize.weights import drop_unused


@dataclass(frozen=True, eq=False)
class Narrow:
    """A float tensor in a narrow type: ``codes`` (``None`` for an activation), float32 ``scale`` and ``zero`` of the
    narrow type, 0-d or [channels] along ``axis``."""

    scale: Array | np.float32
    zero: Array
    codes: Array | None = None
    axis: int | None = None


class PairWriter:
    """Writes pairs into ``graph``. ``domain`` is that of the operators: com.microsoft knows types before onnx does.

    ``apart`` keeps a runtime from joining pairs with what stands around them: pairs get scale 1, between a Div and a
    Mul by the real one. onnxruntime takes 8-bit floats for integers: it makes kernels of such pairs that do not exist
    and the model does not load, or it drops a Relu in front of one and the results are wrong in silence.
    """

    def __init__(self, graph: ir.Graph, edit: Edit, domain: str = "", *, apart: bool = False) -> None:
        self._graph, self._edit, self._domain, self._apart = graph, edit, domain, apart
        self._weights: dict[tuple[object, ...], ir.Value] = {}

    def around(self, value: ir.Value, grid: Narrow, readers: Iterable[tuple[ir.Node, int]]) -> None:
        """Let ``readers`` (node, input index) see ``value`` through a pair."""
        maker, name = value.producer(), value.name or "value"
        steps = Narrow(np.float32(1.0), grid.zero) if self._apart else grid
        scale, zero = self._parameters(f"{name}_step" if self._apart else name, steps)
        chain: list[ir.Node] = []
        if self._apart:
            factor = self._edit.initializer(self._graph, f"{name}_scale", np.asarray(grid.scale, np.float32))
            chain.append(self._plain("Div", value, factor, f"{name}_steps"))
        start = chain[-1].outputs[0] if chain else value
        chain.append(self._node("QuantizeLinear", [start, scale, zero], f"{name}_quantized", value, {}))
        codes = chain[-1].outputs[0]
        codes.type = ir.TensorType(zero.dtype or ir.DataType.UNDEFINED)
        chain.append(self._node("DequantizeLinear", [codes, scale, zero], f"{name}_dequantized", value, {}))
        if self._apart:
            chain.append(self._plain("Mul", chain[-1].outputs[0], factor, f"{name}_scaled"))
        for node in chain[1:]:
            node.outputs[0].type = node.outputs[0].type or ir.TensorType(ir.DataType.FLOAT)
        if maker is not None:
            self._graph.insert_after(maker, chain)
        else:
            self._graph.insert_before(self._graph[0], chain)
        for node, index in readers:
            node.replace_input_with(index, chain[-1].outputs[0])

    def weight(self, layer: Layer, grid: Narrow) -> None:
        """Let the layer read its weight from ``grid``; Gemm's alpha and beta move into weight and bias."""
        node, old = layer.node, [v for v in layer.node.inputs[1:] if v is not None]
        key = (layer.weight_value, layer.axis, grid.scale.tobytes())
        if key not in self._weights:
            self._weights[key] = self._dequantized(layer, grid)
        node.replace_input_with(1, self._weights[key])
        if node.op_type == "Gemm" and ("alpha" in node.attributes or "beta" in node.attributes):
            node.attributes.pop("alpha", None)
            node.attributes.pop("beta", None)
            if layer.bias is not None:
                bias = self._edit.initializer(self._graph, f"{old[1].name}_scaled", np.ascontiguousarray(layer.bias))
                node.replace_input_with(2, bias)
        drop_unused(old)

    def _dequantized(self, layer: Layer, grid: Narrow) -> ir.Value:
        assert grid.codes is not None
        name = layer.weight_value.name or "weight"
        codes = self._edit.initializer(self._graph, f"{name}_quantized", grid.codes)
        attributes = {} if grid.axis is None or self._apart else {"axis": grid.axis}
        steps = Narrow(np.float32(1.0), np.zeros((), grid.zero.dtype)) if self._apart else grid
        inputs = [codes, *self._parameters(f"{name}_step" if self._apart else name, steps)]
        nodes = [self._node("DequantizeLinear", inputs, f"{name}_dequantized", layer.weight_value, attributes)]
        if self._apart:
            shape = [-1 if i == grid.axis else 1 for i in range(grid.codes.ndim)] if grid.axis is not None else []
            scale = self._edit.initializer(self._graph, f"{name}_scale", grid.scale.reshape(shape))
            nodes.append(self._plain("Mul", nodes[0].outputs[0], scale, f"{name}_scaled"))
        for node in nodes:
            node.outputs[0].type, node.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(grid.codes.shape)
        self._graph.insert_before(self._graph[0], nodes)
        return nodes[-1].outputs[0]

    def _parameters(self, name: str, grid: Narrow) -> tuple[ir.Value, ir.Value]:
        scale = self._edit.initializer(self._graph, f"{name}_scale", np.asarray(grid.scale, np.float32))
        return scale, self._edit.initializer(self._graph, f"{name}_zero_point", grid.zero)

    def _plain(self, op: str, left: ir.Value, right: ir.Value, wish: str) -> ir.Node:
        """A node of the default domain that keeps shape and type of its left operand."""
        node = ir.node(op, [left, right], name=self._edit.fresh(f"{wish}_{op}"))
        node.outputs[0].name = self._edit.fresh(wish)
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        node.outputs[0].shape = None if left.shape is None else ir.Shape(list(left.shape))
        return node

    def _node(
        self, op: str, inputs: list[ir.Value], wish: str, like: ir.Value, attributes: Mapping[str, int]
    ) -> ir.Node:
        node = ir.node(op, inputs, attributes, domain=self._domain, name=self._edit.fresh(f"{wish}_{op}"))
        node.outputs[0].name = self._edit.fresh(wish)
        node.outputs[0].shape = None if like.shape is None else ir.Shape(list(like.shape))
        return node


@dataclass(frozen=True)
class Chosen:
    """A fork that is ready for pairs, its layers, and the ranges (low, high) of the values asked for, by name."""

    fork: Model
    layers: Mapping[ir.Node, Layer]
    ranges: Mapping[str, tuple[float, float]]


def prepare(
    model: Model,
    context: Context,
    edit: Edit,
    names: tuple[tuple[str, ...], tuple[str, ...]],
    least: int,
    results: bool,
) -> Chosen | None:
    """Choose layers by the target's operators and ``names`` (exclude, only), raise the opset to ``least``, observe.

    Ranges are those of what layers read and, with ``results``, of what they give. A layer whose values cannot be used
    is left out with a skip; ``None`` when none is left. Raises :class:`passes.kit.context.NoData`.
    """
    for node in nested_layers(model):
        edit.skip("nested", node, "it lies in the body of an If, Loop or Scan, whose values cannot be observed")

    def choice(of: Model) -> Choice:
        return choose(of.graph, context.target.static_ops, *names)

    fork = model.fork()
    found = choice(fork)
    for refused, reason in found.refused.items():
        edit.skip("layer", refused, reason)
    if not found.layers:
        return None
    if model.opset < least:
        raised = opset.raised(model, least)
        if not isinstance(raised, Model):
            edit.skip("opset", "model", f"{raised}; the types of this pass exist from opset {least} on")
            return None
        edit.change("opset", "model", f"raised from {model.opset} to {least}")
        fork, found = raised, choice(raised)
    wanted = _values(found.layers, results)
    seen = context.stats(fork, {name: MinMax() for name in wanted})
    ranges = {n: (r.low, r.high) for n, r in seen.items() if isinstance(r, MinMax) and not _trouble(r)}
    layers = {}
    for node, layer in found.layers.items():
        bad = [n for n in _values({node: layer}, results) if n not in ranges]
        if bad:
            edit.skip("activation", bad[0], "it was never seen in the calibration data, or is not finite there")
        else:
            layers[node] = layer
    return Chosen(fork, layers, ranges) if layers else None


def _values(layers: Mapping[ir.Node, Layer], results: bool) -> list[str]:
    values = [layer.data for layer in layers.values()]
    values += [node.outputs[0] for node in layers] if results else []
    return list(dict.fromkeys(value.name or "" for value in values))


def _trouble(seen: MinMax) -> bool:
    return bool(int(seen.arrays["broken"])) or not int(seen.arrays["count"])
