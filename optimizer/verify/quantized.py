"""Where a model's outputs come out of quantizers, and how large one step is there."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from passes.kit.match import given
from passes.kit.model import Model, constant

_QUANTIZERS = {"QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "QLinearAdd", "QGemm"}
_MOVES = {"Reshape", "Flatten", "Transpose", "Identity", "Squeeze", "Unsqueeze", "Slice", "Gather", "Concat"}
"""Operators that hand values on as they are; their first input is followed."""


def output_steps(model: Model) -> dict[str, float] | None:
    """The quantization step of every output that has one: the scale of the DequantizeLinear that it comes from, and
    1 for the integers of a quantizer. ``None`` for a model without quantizers."""
    if not any(node.op_type in _QUANTIZERS for node in model.nodes()):
        return None
    return {str(v.name): step for v in model.graph.outputs if (step := _step(v)) is not None}


def _step(value: ir.Value) -> float | None:
    node = value.producer()
    while node is not None and node.op_type in _MOVES and node.inputs and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is None:
        return None
    if node.op_type in _QUANTIZERS:
        return 1.0
    scale = constant(given(node, 1)) if node.op_type == "DequantizeLinear" else None
    return None if scale is None else float(np.max(scale))
