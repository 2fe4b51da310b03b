"""Weights and biases as integers: 8-bit and 32-bit initializers, each behind a DequantizeLinear."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from passes.kit.contract import Edit
from passes.quantize.grid import Array, Grid, bias_grid, weight_grid, widen_for_bias
from passes.quantize.layers import Layer


class WeightWriter:
    """Replaces weights and biases of layers in ``graph``; layers that share a weight share its integers too.

    ``float_bias`` leaves biases as they are, for runtimes that add them in float.
    """

    def __init__(
        self, graph: ir.Graph, edit: Edit, dtype: str, reach: int, per_channel: bool, *, float_bias: bool = False
    ) -> None:
        self._graph, self._edit, self._float_bias = graph, edit, float_bias
        self._dtype, self._reach, self._per_channel = dtype, reach, per_channel
        self._written: dict[tuple[object, ...], ir.Value] = {}

    def grid(self, layer: Layer, input_scale: float) -> Grid:
        """The grid of a layer's weight, wide enough for its bias to fit into int32."""
        grid = weight_grid(layer.weight, layer.axis if self._per_channel else None, self._dtype, self._reach)
        bias = np.zeros(1, np.float32) if layer.bias is None else layer.bias
        return widen_for_bias(grid, bias, input_scale)

    def write(self, layer: Layer, input_scale: float) -> None:
        """Give ``layer`` its integer weight, and its integer bias on the grid ``input_scale * weight scale``."""
        node, grid = layer.node, self.grid(layer, input_scale)
        node.replace_input_with(1, self._constant(layer.weight_value, layer.weight, grid))
        if layer.bias is not None:
            old = node.inputs[2]
            assert old is not None
            node.replace_input_with(2, self._bias(old, layer.bias, bias_grid(grid, input_scale, layer.channels)))
        if node.op_type == "Gemm":
            # alpha and beta are inside the weight and the bias now.
            node.attributes.pop("alpha", None)
            node.attributes.pop("beta", None)

    def _bias(self, old: ir.Value, real: Array, grid: Grid) -> ir.Value:
        if self._float_bias:
            return self._edit.initializer(self._graph, f"{old.name or 'bias'}_float", np.array(real, np.float32))
        return self._constant(old, real, grid)

    def _constant(self, old: ir.Value, real: Array, grid: Grid) -> ir.Value:
        key = (old, grid.scale.tobytes(), grid.axis, grid.dtype, real.shape)
        if key not in self._written:
            self._written[key] = self._dequantized(old.name or "weight", real, grid)
        return self._written[key]

    def _dequantized(self, name: str, real: Array, grid: Grid) -> ir.Value:
        parts = (
            (f"{name}_quantized", grid.quantize(real)),
            (f"{name}_scale", grid.scale),
            (f"{name}_zero_point", grid.zero),
        )
        inputs = [self._edit.initializer(self._graph, wish, array) for wish, array in parts]
        # The attribute `axis` exists from opset 13 on; without it the grid is the whole tensor's.
        attributes = {} if grid.axis is None else {"axis": grid.axis}
        node = ir.node("DequantizeLinear", inputs, attributes, name=self._edit.fresh(f"{name}_DequantizeLinear"))
        self._graph.insert_before(self._graph[0], node)
        value = node.outputs[0]
        value.name = self._edit.fresh(f"{name}_dequantized")
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(real.shape)
        return value


def drop_unused(candidates: Iterable[ir.Value]) -> None:
    """Remove initializers, Constant and Identity nodes among ``candidates`` that nobody reads any more, each from the
    graph that it lies in."""
    for value in candidates:
        while value is not None and not value.uses() and not value.is_graph_output():
            producer, owner = value.producer(), value.graph
            if producer is None:
                if owner is not None and value.name and value.name in owner.initializers and not value.is_graph_input():
                    del owner.initializers[value.name]
                break
            if producer.op_type not in ("Constant", "Identity") or producer.graph is None:
                break
            source = producer.inputs[0] if producer.inputs else None
            producer.graph.remove(producer, safe=True)
            if source is None:
                break
            value = source
