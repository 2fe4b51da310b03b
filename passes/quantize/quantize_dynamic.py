"""The pass ``quantize-dynamic``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from passes.kit.context import Context
from passes.kit.contract import Edit, Exactness, Pass, PassResult
from passes.kit.model import Model
from passes.kit.options import option
from passes.quantize import opset
from passes.quantize.grid import weight_grid
from passes.quantize.layers import Choice, Layer, choose_everywhere
from passes.quantize.weights import drop_unused

WEIGHTED = ("MatMul", "Gemm")


@dataclass(frozen=True)
class QuantizeDynamic(Pass):
    """Quantize the weights of MatMul and Gemm to 8 bits; each run finds the range of its own activations.

    What it does
        Every such layer becomes ``Cast(MatMulInteger(x8, w8)) * (scale_x * scale_w) + bias`` behind one
        DynamicQuantizeLinear per value that layers read: standard operators, which onnxruntime joins, bias included,
        into one integer kernel. Weights are signed and symmetric, one scale per output channel (Krishnamoorthi 2018,
        arXiv 1806.08342); unsigned ones miss the fast kernels. Below opset 11 the model is raised to 13.

    When it applies
        To float32 MatMul and Gemm with constant weights, in the bodies of If, Loop and Scan too, by operators of the
        target and by name (``only``, ``exclude``). It needs no data.

    When it refuses
        Weights or biases that are computed, overridable, not finite, of another type, or quantized already.
        Convolutions and attention products stay float.

    Exactness
        LOSSY. One outlier coarsens the whole tensor in which it stands; small layers may gain no time.
    """

    name = "quantize-dynamic"
    exactness = Exactness.LOSSY

    per_channel: bool = option(True, "one scale per output channel of a weight; otherwise one per weight")
    only: tuple[str, ...] = option((), "names or patterns of the nodes to quantize (none: all)")
    exclude: tuple[str, ...] = option((), "names or patterns of nodes to leave float")

    def apply(self, model: Model, context: Context) -> PassResult:
        edit = Edit(model)
        ops = [op for op in WEIGHTED if op in context.target.dynamic_ops]
        fork = model.fork()
        choice = self._choose(fork, ops)
        for refused, reason in choice.refused.items():
            edit.skip("layer", refused, reason)
        if choice.layers and model.opset < FIRST_OPSET:
            raised = opset.raised(model, opset.PER_CHANNEL)
            if not isinstance(raised, Model):
                edit.skip("opset", "model", f"{raised}; DynamicQuantizeLinear exists from opset {FIRST_OPSET} on")
                return PassResult(model, (), tuple(edit.skips))
            edit.change("opset", "model", f"raised from {model.opset} to {opset.PER_CHANNEL}")
            fork = raised
            choice = self._choose(fork, ops)
        if not choice.layers:
            return PassResult(model, (), tuple(edit.skips))
        writer = _Writer(fork.graph, opset.continued(edit, fork), context.target.weight_range, self.per_channel)
        for layer in choice.layers.values():
            writer.write(layer)
        fork.ir.ir_version = max(fork.ir.ir_version, LEAST_IR)
        return PassResult(fork, tuple(edit.changes), tuple(edit.skips))

    def _choose(self, fork: Model, ops: Sequence[str]) -> Choice:
        return choose_everywhere(fork, ops, self.exclude, self.only)


FIRST_OPSET = 11
"""DynamicQuantizeLinear begins here (MatMulInteger one earlier)."""

LEAST_IR = 6
"""The IR version of opset 11."""


class _Writer:
    """Replaces layers one by one, each where it lies. New weights go to ``main``, the outermost graph, where bodies see
    them and share them."""

    def __init__(self, main: ir.Graph, edit: Edit, reach: int, per_channel: bool) -> None:
        self._main, self._edit, self._reach, self._per_channel = main, edit, reach, per_channel
        self._inputs: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value]] = {}
        self._weights: dict[tuple[object, ...], tuple[ir.Value, ir.Value, ir.Value]] = {}

    def write(self, layer: Layer) -> None:
        """``y = Cast(MatMulInteger(x8, w8)) * (scale_x * scale_w) [+ bias]``, which onnxruntime knows as one kernel."""
        node, name = layer.node, layer.node.name or layer.node.outputs[0].name
        eight, scale, zero = self._input(layer.reads)
        weight, weight_scale, weight_zero = self._weight(layer)
        product = self._new("MatMulInteger", [eight, weight, zero, weight_zero], node, f"{name}_integer")
        real = self._new("Cast", [product], node, f"{name}_cast", to=int(ir.DataType.FLOAT))
        scales = self._new("Mul", [scale, weight_scale], node, f"{name}_scales")
        result = self._new("Mul", [real, scales], node, f"{name}_scaled")
        if layer.bias is not None:
            bias = self._edit.initializer(self._main, f"{name}_bias", np.ascontiguousarray(layer.bias))
            result = self._new("Add", [result, bias], node, f"{name}_biased")
        self._replace(node, result)
        self._edit.change("layer", name, f"{node.op_type} with 8-bit weights")

    def _input(self, data: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        """``data`` in 8 bits with its scale and zero point, made where ``data`` is: all who see it see them too."""
        if data not in self._inputs:
            node = ir.node(
                "DynamicQuantizeLinear",
                [data],
                num_outputs=3,
                name=self._edit.fresh(f"{data.name}_DynamicQuantizeLinear"),
            )
            for output, part in zip(node.outputs, ("quantized", "scale", "zero_point"), strict=True):
                output.name = self._edit.fresh(f"{data.name}_{part}")
            producer, owner = data.producer(), data.graph
            assert isinstance(owner, ir.Graph)
            if producer is not None:
                owner.insert_after(producer, node)
            else:
                owner.insert_before(owner[0], node)
            self._inputs[data] = (node.outputs[0], node.outputs[1], node.outputs[2])
        return self._inputs[data]

    def _weight(self, layer: Layer) -> tuple[ir.Value, ir.Value, ir.Value]:
        """int8 [inputs, outputs] with its scale and zero point."""
        matrix = layer.weight if layer.axis == 1 else layer.weight.T
        alpha = layer.node.attributes.get("alpha")
        key = (layer.weight_value, layer.axis, None if alpha is None else alpha.value)
        if key not in self._weights:
            grid = weight_grid(matrix, 1 if self._per_channel else None, "int8", self._reach)
            name = layer.weight_value.name or "weight"
            parts = (("quantized", grid.quantize(matrix)), ("scale", grid.scale), ("zero_point", grid.zero))
            eight, scale, zero = (self._edit.initializer(self._main, f"{name}_{part}", a) for part, a in parts)
            self._weights[key] = (eight, scale, zero)
        return self._weights[key]

    def _new(self, op: str, inputs: list[ir.Value], before: ir.Node, name: str, **attributes: int) -> ir.Value:
        node = ir.node(op, inputs, attributes, name=self._edit.fresh(name))
        _graph_of(before).insert_before(before, node)
        node.outputs[0].name = self._edit.fresh(name)
        return node.outputs[0]

    def _replace(self, node: ir.Node, result: ir.Value) -> None:
        """``result`` takes the place of the node's output, name included; what only the node read goes."""
        old, sources = node.outputs[0], [v for v in node.inputs[1:] if v is not None]
        result.type = old.type
        result.shape = None if old.shape is None else ir.Shape(list(old.shape))
        name = old.name
        graph = _graph_of(node)
        for i, output in enumerate(graph.outputs):
            if output is old:
                graph.outputs[i] = result
        old.replace_all_uses_with(result)
        graph.remove(node, safe=True)
        result.name = name
        drop_unused(sources)


def _graph_of(node: ir.Node) -> ir.Graph:
    assert isinstance(node.graph, ir.Graph)
    return node.graph
