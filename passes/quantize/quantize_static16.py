"""The pass ``quantize-static16``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from passes.kit.context import Context
from passes.kit.contract import Edit, Exactness, Pass, PassResult
from passes.kit.model import Model
from passes.kit.options import option
from passes.quantize import opset
from passes.quantize.grid import Grid, activation_grid, weight_grid
from passes.quantize.pairs import Chosen, Narrow, PairWriter, prepare

IN_ONNX = 21
"""From this opset on QuantizeLinear and DequantizeLinear take 16-bit integers; before, com.microsoft's do."""

DOMAIN = "com.microsoft"
REACH = {"int8": 127, "int16": 32767}


@dataclass(frozen=True)
class QuantizeStatic16(Pass):
    """Quantize weights to 8 (or 16) bits and activations to 16 bits, with ranges observed on calibration data.

    What it does
        A QuantizeLinear and DequantizeLinear pair with 65,536 steps stands in front of every Conv, Gemm and MatMul with
        constant weights, and behind it where its result is no output of the model; its weight becomes signed, symmetric
        integers behind a DequantizeLinear, one scale per output channel (Jacob et al. 2018, arXiv 1712.05877). Biases
        stay float. Below opset 21 the pairs are those of domain com.microsoft. Neural processors run this form where
        8-bit activations lose too much. **The CPU provider has no 16-bit kernels**: it computes in float between the
        pairs, so quality can be judged there, 8-bit weights take a quarter of the space, and the model is slower.

    When it applies
        To float32 layers with constant weights in the main graph, by operators of the target and by name (``only``,
        ``exclude``). It needs calibration data.

    When it refuses
        Weights or biases that are computed, overridable, not finite, of another type, or quantized already; layers in
        the bodies of If, Loop and Scan; tensors with non-finite values or never seen; models that cannot be raised to
        opset 13.

    Exactness
        LOSSY. What is lost comes nearly all from the weights.
    """

    name = "quantize-static16"
    exactness = Exactness.LOSSY

    activation: str = option("uint16", "integer type of activations", choices=("uint16", "int16"))
    weight: str = option("int8", "integer type of weights", choices=tuple(REACH))
    results: bool = option(True, "pairs behind layers too, as processors without float need them")
    only: tuple[str, ...] = option((), "names or patterns of the nodes to quantize (none: all)")
    exclude: tuple[str, ...] = option((), "names or patterns of nodes to leave float")

    def apply(self, model: Model, context: Context) -> PassResult:
        edit = Edit(model)
        chosen = prepare(model, context, edit, (self.exclude, self.only), opset.PER_CHANNEL, self.results)
        if chosen is None:
            return PassResult(model, (), tuple(edit.skips))
        edit = opset.continued(edit, chosen.fork)
        domain = "" if chosen.fork.opset >= IN_ONNX else DOMAIN
        if domain:
            chosen.fork.ir.opset_imports.setdefault(domain, 1)
        writer = PairWriter(chosen.fork.graph, edit, domain)
        self._activations(chosen, writer)
        for node, layer in chosen.layers.items():
            grid = weight_grid(layer.weight, layer.axis, self.weight, REACH[self.weight])
            writer.weight(layer, Narrow(grid.scale, grid.zero, grid.quantize(layer.weight), layer.axis))
            edit.change("layer", node, f"{node.op_type} with {self.activation} activations (float on the CPU provider)")
        chosen.fork.ir.ir_version = max(chosen.fork.ir.ir_version, opset.LEAST_IR)
        return PassResult(chosen.fork, tuple(edit.changes), tuple(edit.skips))

    def _activations(self, chosen: Chosen, writer: PairWriter) -> None:
        """A pair for every value that layers read, and one for every result; one value has one pair."""
        results: list[ir.Value] = [n.outputs[0] for n in chosen.layers] if self.results else []
        values = dict.fromkeys([*(layer.data for layer in chosen.layers.values()), *results])
        for value in values:
            if value in results and not value.is_graph_output():
                readers = [(node, index) for node, index in value.uses()]
            else:
                readers = [(n, 0) for n, layer in chosen.layers.items() if layer.data is value]
            if readers:
                writer.around(value, self._narrow(*chosen.ranges[value.name or ""]), readers)

    def _narrow(self, low: float, high: float) -> Narrow:
        grid: Grid = activation_grid(low, high, self.activation)
        return Narrow(grid.scale, np.asarray(grid.zero))
