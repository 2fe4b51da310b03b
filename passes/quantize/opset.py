"""Raising a model's opset, in memory, to where the quantization operators can say what is needed."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx_ir as ir

from passes.kit.contract import Edit
from passes.kit.match import is_op
from passes.kit.model import Model, ModelTooLarge, constant
from passes.kit.shapes import Shapes

PER_CHANNEL = 13
"""DequantizeLinear takes ``axis``, and MaxPool, Clip and Pad take 8-bit integers."""

PER_TENSOR = 10
"""QuantizeLinear and DequantizeLinear exist."""

LEAST_IR = 7
"""The IR version that belongs to opset 13; since IR 4 an initializer need not be an input."""

_TYPED = 21
"""QuantizeLinear has an ``output_dtype``. onnxruntime 1.31 writes it where it moves a pair across a Reshape or the
like, and forgets it where it turns signed integers into unsigned ones for x86: the model does not load."""


def raised(model: Model, opset: int) -> Model | str:
    """A new model at ``opset`` in the default domain, or the reason why it cannot be had.

    onnx's own version converter does the work; its result must pass onnx's full check and keep the signature.
    """
    if model.opset < _TYPED <= opset and _signed(model):
        return f"onnxruntime cannot be trusted with its signed 8-bit integers at opset {opset}"
    if model.ir.functions:
        return f"it has functions of its own, which onnx cannot convert from opset {model.opset} to {opset}"
    try:
        proto = onnx.version_converter.convert_version(model.to_proto(), opset)
        onnx.checker.check_model(proto, full_check=True)
    except ModelTooLarge as error:
        return str(error)
    except Exception as error:  # the converter is native code that raises a different type for every operator
        return f"onnx cannot convert it from opset {model.opset} to {opset}: {_line(error)}"
    # The converter knows nothing of other domains; the model's own list holds.
    converted = Model.from_proto(proto)
    for domain, version in model.ir.opset_imports.items():
        if domain:
            converted.ir.opset_imports[domain] = version
    converted.ir.metadata_props.update(model.ir.metadata_props)
    _keep_dims(converted.graph.inputs, model.graph.inputs)
    _keep_dims(converted.graph.outputs, model.graph.outputs)
    if converted.signature != model.signature:
        return f"converting it from opset {model.opset} to {opset} changes its inputs or outputs"
    return converted


def _signed(model: Model) -> bool:
    """Whether it computes in signed 8-bit integers already."""
    shapes = Shapes(model)
    pairs = (n.inputs for n in model.nodes() if is_op(n, "DequantizeLinear") and constant(n.inputs[0]) is None)
    return any(shapes.dtype(v) == ir.DataType.INT8 for inputs in pairs for v in inputs)


def _keep_dims(new: Sequence[ir.Value], old: Sequence[ir.Value]) -> None:
    """The converter infers shapes and names the sizes that nobody knows; callers keep reading what they read before."""
    for mine, theirs in zip(new, old, strict=False):
        mine.shape = None if theirs.shape is None else theirs.shape.copy()


def continued(edit: Edit, fork: Model) -> Edit:
    """An edit that knows the names of ``fork`` and goes on with the notes of ``edit``."""
    following = Edit(fork)
    following.changes, following.skips = edit.changes, edit.skips
    return following


def _line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
