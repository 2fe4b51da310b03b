"""Fold inference BatchNormalization into the linear operator before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from passes.kit.context import Context
from passes.kit.contract import Edit, Exactness, Pass, PassResult
from passes.kit.match import attribute, compute, given, is_op, made_by, rewrite, sole_consumer
from passes.kit.model import Model, constant
from passes.kit.shapes import Shapes

Array = np.ndarray[Any, Any]

_LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_FLOATS = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))
_RULE = "fold-batchnorm"


class _Refused(ValueError):
    """Why a BatchNormalization stays."""


@dataclass(frozen=True)
class FoldBatchnorm(Pass):
    """Fold BatchNormalization into the Conv, ConvTranspose, Gemm or MatMul before it.

    What it does
        In inference BatchNormalization is an affine map per channel c (Ioffe and Szegedy 2015, section 3.1):

            y_c = (x_c - mean_c) * s_c + beta_c,   s_c = gamma_c / sqrt(var_c + epsilon)

        and x = W * z + b is linear in W and b, so that y = (W s) * z + ((b - mean) s + beta). Channels are the first
        axis of a Conv weight, the second axis of a ConvTranspose weight within each group, and the columns of B in
        Gemm (rows when transB) and MatMul. In Gemm alpha stays, and beta is absorbed into the new bias. Computed in
        float64, stored in the type of the weight.

    When it applies
        When the weight, the bias and the four parameters are constant and the linear result is used by the
        BatchNormalization alone. MatMul becomes Gemm for 2-D values, else it gets an Add.

    When it refuses
        Weights that several nodes use ("weight is shared": folding would double them, or change the other user),
        results that somebody else reads or that are graph outputs, parameters that are not constant, training mode,
        statistics outputs that are used, and a BatchNormalization that normalizes more than channels (``spatial = 0``).

    Exactness
        NUMERIC. The same algebra with one rounding of the weights.
    """

    name: ClassVar[str] = "fold-batchnorm"
    exactness: ClassVar[Exactness] = Exactness.NUMERIC

    def apply(self, model: Model, context: Context) -> PassResult:
        return rewrite(model, _fold, context)


def _fold(graph: ir.Graph, edit: Edit, shapes: Shapes) -> None:
    for node in list(graph):
        if node.graph is None or not is_op(node, "BatchNormalization"):
            continue
        linear = made_by(node.inputs[0], *_LINEAR)
        if linear is None:
            continue
        where = node.name or node.outputs[0].name or "?"
        if not edit.allows(_RULE, where):
            continue
        try:
            _fold_pair(linear, node, shapes, edit)
        except _Refused as refusal:
            edit.skip(_RULE, where, str(refusal))
        else:
            edit.change(_RULE, where, f"into {linear.op_type}")


def _fold_pair(linear: ir.Node, norm: ir.Node, shapes: Shapes, edit: Edit) -> None:
    scale, shift = _affine(norm, shapes.opset)
    if linear.graph is not norm.graph or not isinstance(norm.graph, ir.Graph):
        raise _Refused("the linear operator stands in an outer graph")
    if sole_consumer(linear.outputs[0]) is not norm:
        raise _Refused("its input is needed elsewhere, too")
    weight = _weight(linear)
    bias = _bias(linear)
    if linear.op_type == "Gemm":
        bias = bias * float(attribute(linear, "beta", 1.0))
    axis, channels = _channels(linear, weight, shapes)
    if scale.size != channels or bias.size not in (1, channels):
        raise _Refused(f"{scale.size} channels do not fit a weight of shape {weight.shape}")
    folded = _scaled(linear, weight, scale, axis)
    shifted = np.broadcast_to(bias.reshape(-1), (channels,)) * scale + shift
    if not (np.isfinite(folded).all() and np.isfinite(shifted).all()):
        raise _Refused("the folded weights are not finite")
    if (np.abs(folded).max(initial=0) > np.finfo(weight.dtype).max) or folded.dtype != np.float64:
        raise _Refused(f"the folded weights do not fit into {weight.dtype}")
    _replace(linear, norm, folded.astype(weight.dtype), shifted.astype(weight.dtype), shapes, edit)


def _affine(norm: ir.Node, opset: int) -> tuple[Array, Array]:
    """The factor and the shift per channel, in float64."""
    if attribute(norm, "training_mode", 0) or (opset < 7 and not attribute(norm, "is_test", 0)):
        raise _Refused("it is in training mode")
    if any(o.uses() or o.is_graph_output() for o in norm.outputs[1:]):
        raise _Refused("its statistics outputs are used")
    if not attribute(norm, "spatial", 1):
        raise _Refused("it normalizes more than channels (spatial = 0)")
    found = [constant(given(norm, i)) for i in range(1, 5)]
    if any(p is None or p.dtype not in _FLOATS or p.ndim != 1 for p in found):
        raise _Refused("its parameters are not constant")
    gamma, beta, mean, variance = (np.asarray(p, np.float64) for p in found)
    with np.errstate(all="ignore"):
        scale = gamma / np.sqrt(variance + float(attribute(norm, "epsilon", 1e-5)))
        return scale, beta - mean * scale


def _weight(linear: ir.Node) -> Array:
    value = given(linear, 1)
    weight = constant(value)
    if weight is None or value is None:
        raise _Refused("the weight is not constant")
    if weight.dtype not in _FLOATS:
        raise _Refused(f"the weight is {weight.dtype}")
    if len(value.uses()) != 1 or value.is_graph_output():
        raise _Refused("weight is shared")
    return weight


def _bias(linear: ir.Node) -> Array:
    """The bias as float64 of any shape; zero where there is none."""
    value = given(linear, 2) if linear.op_type != "MatMul" else None
    if value is None:
        return np.zeros(1)
    bias = constant(value)
    if bias is None:
        raise _Refused("the bias is not constant")
    if bias.size > 1 and bias.size != bias.shape[-1]:
        raise _Refused("the bias varies along the batch")
    return np.asarray(bias, np.float64)


def _channels(linear: ir.Node, weight: Array, shapes: Shapes) -> tuple[int, int]:
    """The axis of the weight that runs over output channels, and how many of them there are in all groups."""
    if linear.op_type == "Conv":
        return 0, weight.shape[0]
    if linear.op_type == "ConvTranspose":
        return 1, weight.shape[1] * int(attribute(linear, "group", 1))
    if weight.ndim != 2:
        raise _Refused(f"a weight of rank {weight.ndim}")
    if linear.op_type == "MatMul" and shapes.rank(linear.inputs[0]) != 2:
        raise _Refused("channels are the second axis, but MatMul is not known to make a 2-D value")
    axis = 0 if linear.op_type == "Gemm" and attribute(linear, "transB", 0) else 1
    return axis, weight.shape[axis]


def _scaled(linear: ir.Node, weight: Array, scale: Array, axis: int) -> Array:
    wide = np.asarray(weight, np.float64)
    if linear.op_type == "ConvTranspose":
        groups = int(attribute(linear, "group", 1))  # weight [C_in, M / groups, ...], its rows in groups
        rows = np.repeat(scale.reshape(groups, -1), weight.shape[0] // groups, axis=0)
        return np.asarray(wide * rows.reshape(rows.shape + (1,) * (weight.ndim - 2)))
    return np.asarray(wide * scale.reshape([-1 if i == axis else 1 for i in range(weight.ndim)]))


def _replace(linear: ir.Node, norm: ir.Node, weight: Array, bias: Array, shapes: Shapes, edit: Edit) -> None:
    graph = norm.graph
    assert isinstance(graph, ir.Graph)
    name = linear.inputs[1].name if linear.inputs[1] is not None else "weight"
    new_weight = edit.initializer(graph, f"{name}_bn", weight)
    new_bias = edit.initializer(graph, f"{name}_bn_bias", bias)
    kind = "Gemm" if linear.op_type == "MatMul" else linear.op_type
    kept = [a for key, a in linear.attributes.items() if key != "beta"]
    if kind == "Gemm" and shapes.opset < 7:
        kept = [a for a in kept if a.name != "broadcast"] + [ir.AttrInt64("broadcast", 1)]
    compute(edit, norm.outputs[0], kind, [linear.inputs[0], new_weight, new_bias], attributes=kept)
