"""Whether a quantized model can saturate the 16-bit sums of x86 CPUs without VNNI, as a bound from its weights.

There onnxruntime multiplies unsigned activations with signed weights by ``vpmaddubsw``, which adds two neighbouring
products in 16 bits and saturates: two weights of 127 under activations of 255 give 64,770, and 32,767 is what comes
out. Which weights are neighbours depends on how a kernel packs them, so the bound takes the worst two of a column,
wherever they lie: a layer that it clears cannot saturate on any kernel, one that it names may be lucky.

The repair is to quantize with integers that reach to 64 only (``quantize-static{weight_range=64}``, or a target whose
``weight_range`` says so): 255 * (64 + 64) = 32,640 fits. It costs one of the weights' eight bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from passes.kit.model import Model, constant

Array = np.ndarray[Any, Any]

LARGEST_ACTIVATION = 255
LOWEST, HIGHEST = -(2**15), 2**15 - 1

SAFE_RANGE = 64
"""The largest absolute weight of which any two fit."""

_WEIGHTED = ("Conv", "Gemm", "MatMul")

# Integer operators: inputs that hold the activation, its zero point (None: always unsigned), the weight; all int8
# weights are raw integers there, because kernels take zero points off afterwards.
_INTEGER: dict[str, tuple[int, int | None, int]] = {
    "QLinearConv": (0, 2, 3),
    "QLinearMatMul": (0, 2, 3),
    "QGemm": (0, 2, 3),
    "ConvInteger": (0, None, 1),
    "MatMulInteger": (0, None, 1),
    "MatMulIntegerToFloat": (0, None, 1),
    "DynamicQuantizeMatMul": (0, None, 1),
}


@dataclass(frozen=True)
class Saturation:
    """The bound of one layer: the largest and the smallest sum of two products that its weights allow, and how many of
    its output channels could pass the ends of 16 bits."""

    node: str
    high: int
    low: int
    channels: int
    at_risk: int

    @property
    def possible(self) -> bool:
        """Whether some activations would saturate it."""
        return self.at_risk > 0


def saturations(model: Model) -> tuple[Saturation, ...]:
    """The bound of every layer with unsigned 8-bit activations and constant signed 8-bit weights, in graph order.

    Layers are Conv, Gemm and MatMul between Dequantize- and QuantizeLinear, and the integer operators of ONNX and
    onnxruntime. Constant left operands and quantized recurrent layers are not looked at.
    """
    graph = model.fork().graph
    found = []
    for node, columns in _layers(graph):
        high, low = pair_bounds(columns)
        risky = (high > HIGHEST) | (low < LOWEST)
        name = node.name or (node.outputs[0].name or node.op_type)
        found.append(
            Saturation(name, int(high.max(initial=0)), int(low.min(initial=0)), len(columns), int(risky.sum()))
        )
    return tuple(found)


def pair_bounds(columns: Array) -> tuple[Array, Array]:
    """The largest and the smallest sum of two products in each row of ``columns`` (int8 [channels, K]), as int64.

    A product lies between 0 and 255 * w, so only weights of one sign add up: the two largest, or the two smallest.
    """
    wide = columns.astype(np.int64)
    if wide.shape[1] < 2:
        wide = np.pad(wide, ((0, 0), (0, 2 - wide.shape[1])))
    ordered = np.partition(wide, (1, wide.shape[1] - 2), axis=1)
    high = np.maximum(ordered[:, -2:], 0).sum(axis=1) * LARGEST_ACTIVATION
    low = np.minimum(ordered[:, :2], 0).sum(axis=1) * LARGEST_ACTIVATION
    return high, low


def _layers(graph: ir.Graph) -> Iterator[tuple[ir.Node, Array]]:
    for node in graph:
        weight = None
        if node.op_type in _WEIGHTED and node.domain in ("", "ai.onnx"):
            weight = _between_pairs(node)
        elif node.op_type in _INTEGER and node.domain in ("", "ai.onnx", "com.microsoft"):
            weight = _of_integers(node)
        if weight is not None and weight.dtype == np.int8 and weight.size:
            yield node, _columns(node, weight)


def _between_pairs(node: ir.Node) -> Array | None:
    """The integer weight of a layer that reads an unsigned activation through DequantizeLinear."""
    data, weight = (_source(node, i) for i in (0, 1))
    if data is None or weight is None or data.type is None or data.type.dtype != ir.DataType.UINT8:
        return None
    return constant(weight)


def _source(node: ir.Node, index: int) -> ir.Value | None:
    value = node.inputs[index]
    producer = value.producer() if value is not None else None
    if producer is None or producer.op_type != "DequantizeLinear":
        return None
    return producer.inputs[0]


def _of_integers(node: ir.Node) -> Array | None:
    data, zero, weight = _INTEGER[node.op_type]
    told = node.inputs[data]
    known = told.type.dtype if told is not None and told.type is not None else None
    if zero is not None and (point := constant(node.inputs[zero])) is not None:
        known = ir.DataType.UINT8 if point.dtype == np.uint8 else ir.DataType.INT8
    # An activation of unknown type may be unsigned: the bound must not miss it.
    return None if known == ir.DataType.INT8 else constant(node.inputs[weight])


def _columns(node: ir.Node, weight: Array) -> Array:
    """The weights as [output channels, K]: what one output is a sum over, in one row."""
    if node.op_type in ("Conv", "QLinearConv", "ConvInteger"):
        return weight.reshape(weight.shape[0], -1)
    transposed = node.op_type in ("Gemm", "QGemm") and _int(node, "transB")
    if weight.ndim == 1:
        return weight.reshape(1, -1)
    if transposed:
        return weight
    return np.swapaxes(weight, -1, -2).reshape(-1, weight.shape[-2])


def _int(node: ir.Node, name: str) -> int:
    attribute = node.attributes.get(name)
    return 0 if attribute is None else int(attribute.value)
