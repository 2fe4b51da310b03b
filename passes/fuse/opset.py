"""Raising a model's opset where that changes no meaning."""

from __future__ import annotations

import onnx

from passes.kit.match import ONNX
from passes.kit.model import Model
from passes.kit.target import Target

RMS_OPSET = 23
"""The opset that brought RMSNormalization."""

RMS_IR = 11
"""The IR version that was released together with it."""

_OLDEST = 18
"""Below 18 the reductions take their axes as an attribute: raising such a model means rewriting it."""

# fmt: off
_ONLY_TYPES = frozenset(
    {
        "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cast", "CastLike", "Constant", "ConstantOfShape",
        "Conv", "ConvTranspose", "Cos", "Cosh", "DequantizeLinear", "Dropout", "Elu", "Equal", "EyeLike",
        "Flatten", "GlobalAveragePool", "GlobalMaxPool", "GRU", "HardSigmoid", "HardSwish", "Identity", "If",
        "InstanceNormalization", "IsInf", "IsNaN", "Loop", "LpNormalization", "LpPool", "LSTM", "MaxPool",
        "Mish", "Multinomial", "NonMaxSuppression", "Pad", "QuantizeLinear", "ReduceMax", "ReduceMin",
        "Reshape", "RNN", "Round", "Scan", "Selu", "Shape", "Sin", "Sinh", "Size", "Softplus", "Softsign",
        "Squeeze", "Tan", "ThresholdedRelu", "Transpose", "Unsqueeze",
    }
)
# fmt: on
"""Operators whose versions between 18 and 23 differ in the element types that they take, or by attributes and modes
that an older model cannot hold and whose defaults are the old meaning (the version history in ONNX's Changelog.md).
Not among them: AveragePool (19 rounds its last window otherwise), Resize, GridSample, GroupNormalization, DFT."""


def why_not(model: Model, target: Target) -> str:
    """Why the opset cannot be raised to :data:`RMS_OPSET`, or an empty text."""
    if target.max_opset < RMS_OPSET or target.max_ir < RMS_IR:
        return f"RMSNormalization needs opset {RMS_OPSET}, the target takes {target.max_opset}"
    if model.opset < _OLDEST:
        return f"RMSNormalization needs opset {RMS_OPSET}; a model of opset {model.opset} cannot simply be raised"
    if model.ir.functions:
        return f"RMSNormalization needs opset {RMS_OPSET}, and local functions have opsets of their own"
    changed = sorted({n.op_type for n in model.nodes() if n.domain in ONNX and _means_other(n.op_type, model.opset)})
    if changed:
        return f"RMSNormalization needs opset {RMS_OPSET}, where {', '.join(changed)} may mean something else"
    return ""


def raise_opset(fork: Model) -> None:
    """Let the model import :data:`RMS_OPSET`."""
    fork.ir.opset_imports[""] = max(fork.opset, RMS_OPSET)
    fork.ir.ir_version = max(fork.ir.ir_version, RMS_IR)


def _means_other(op_type: str, opset: int) -> bool:
    if op_type in _ONLY_TYPES:
        return False
    try:
        then = onnx.defs.get_schema(op_type, opset, "")
        now = onnx.defs.get_schema(op_type, RMS_OPSET, "")
    except onnx.defs.SchemaError:
        return True
    return bool(then.since_version != now.since_version)
