"""The pass ``quantize-fp8``."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from passes.kit.context import Context
from passes.kit.contract import Edit, Exactness, Pass, PassResult
from passes.kit.model import Model
from passes.kit.options import option
from passes.quantize import opset
from passes.quantize.grid import SMALLEST_SCALE, Array
from passes.quantize.layers import Layer
from passes.quantize.pairs import Narrow, PairWriter, prepare

LARGEST = 448.0
"""The largest number of float8e4m3fn."""

CPU = "CPUExecutionProvider"

FIRST_OPSET = 21
"""QuantizeLinear and DequantizeLinear take 8-bit floats from 19 on; onnxruntime's Reshape, which it moves between them,
from 21 on."""

LEAST_IR = 10
"""The IR version of opset 21."""


@dataclass(frozen=True)
class QuantizeFp8(Pass):
    """Quantize weights and what layers read to 8-bit floats (float8e4m3fn), for hardware that computes with them.

    What it does
        A QuantizeLinear and DequantizeLinear pair stands in front of every Conv, Gemm and MatMul with constant weights,
        and its weight becomes float8e4m3fn behind a DequantizeLinear: 4 bits of exponent, 3 of mantissa, no infinity
        (Micikevicius et al. 2022, "FP8 Formats for Deep Learning", arXiv 2209.05433). The largest value seen is scaled
        to 448; weights have one scale per output channel, or one each. Biases stay float. TensorRT and other GPU
        runtimes turn such pairs into 8-bit kernels. **On the CPU provider the pairs only simulate**: quality can be
        judged there, and the model is slower than before. For targets of that provider scales stand in a Div before and
        a Mul behind each pair; else onnxruntime would take the pairs for integers and refuse the model or compute
        something else. Below opset 21 the model is raised to 21.

    When it applies
        To float32 layers with constant weights in the main graph, by operators of the target and by name (``only``,
        ``exclude``). It needs calibration data.

    When it refuses
        Weights or biases that are computed, overridable, not finite, of another type, or quantized already; layers in
        the bodies of If, Loop and Scan; tensors with non-finite values or never seen; models that cannot be raised.

    Exactness
        LOSSY. Three bits of mantissa round each number by up to 6 %, whatever its size: outliers cost less than in
        int8.
    """

    name = "quantize-fp8"
    exactness = Exactness.LOSSY

    per_channel: bool = option(True, "one scale per output channel of a weight; otherwise one per weight")
    only: tuple[str, ...] = option((), "names or patterns of the nodes to quantize (none: all)")
    exclude: tuple[str, ...] = option((), "names or patterns of nodes to leave float")

    def apply(self, model: Model, context: Context) -> PassResult:
        edit = Edit(model)
        chosen = prepare(model, context, edit, (self.exclude, self.only), FIRST_OPSET, results=False)
        if chosen is None:
            return PassResult(model, (), tuple(edit.skips))
        edit = opset.continued(edit, chosen.fork)
        writer = PairWriter(chosen.fork.graph, edit, apart=context.target.provider == CPU)
        for value in dict.fromkeys(layer.data for layer in chosen.layers.values()):
            low, high = chosen.ranges[value.name or ""]
            scale = np.asarray(max(-low, high) / LARGEST or 1.0)
            grid = Narrow(_held(scale), np.zeros((), ml_dtypes.float8_e4m3fn))
            writer.around(value, grid, [(n, 0) for n, layer in chosen.layers.items() if layer.data is value])
        for node, layer in chosen.layers.items():
            writer.weight(layer, eight_bit_floats(layer, self.per_channel))
            edit.change("layer", node, f"{node.op_type} in float8e4m3fn (the CPU provider only simulates it)")
        chosen.fork.ir.ir_version = max(chosen.fork.ir.ir_version, LEAST_IR)
        return PassResult(chosen.fork, tuple(edit.changes), tuple(edit.skips))


def eight_bit_floats(layer: Layer, per_channel: bool) -> Narrow:
    """The layer's weight as float8e4m3fn, its largest number (of each output channel, or of all) scaled to 448."""
    others = tuple(i for i in range(layer.weight.ndim) if i != layer.axis) if per_channel else None
    largest = np.abs(layer.weight.astype(np.float64)).max(axis=others, initial=0.0)
    scale = _held(largest / LARGEST)
    shape = [-1 if i == layer.axis else 1 for i in range(layer.weight.ndim)] if per_channel else []
    codes = (layer.weight.astype(np.float64) / scale.astype(np.float64).reshape(shape)).clip(-LARGEST, LARGEST)
    zero = np.zeros(scale.shape, ml_dtypes.float8_e4m3fn)
    narrow = codes.astype(np.float32).astype(ml_dtypes.float8_e4m3fn)
    return Narrow(scale, zero, narrow, layer.axis if per_channel else None)


def _held(scale: Array) -> Array:
    """Never 1: onnxruntime sweeps such a step away and joins the pair with a Clip, which it cannot do for this type."""
    held = np.maximum(scale, SMALLEST_SCALE).astype(np.float32)
    return np.asarray(np.where(held == 1, np.nextafter(held, np.float32(2)), held))
