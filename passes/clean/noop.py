"""Nodes that hand their input on unchanged, each with the proof that they do."""

from __future__ import annotations

import onnx_ir as ir

from passes.kit.contract import Edit
from passes.kit.match import ONNX, attribute, compute, given, made_by, number
from passes.kit.model import constant
from passes.kit.shapes import Shapes

Found = tuple[str, ir.Value]

_TRAINING_IS_DEFAULT_BELOW = 7
"""Dropout had ``is_test`` (0 by default) until opset 6; from 7 on it runs in inference unless told otherwise."""


def stands_for(node: ir.Node, shapes: Shapes, edit: Edit) -> Found | None:
    """The rule that holds and the input that the first output of ``node`` equals in every element, or ``None``."""
    source = given(node, 0)
    if node.domain not in ONNX or source is None or not node.outputs:
        return None
    if node.op_type == "Identity":
        return "identity", source
    if node.op_type == "Dropout":
        return ("dropout", source) if _dropout_rests(node, shapes.opset, edit) else None
    if node.op_type == "Transpose":
        return _transpose(node, source, edit)
    if node.op_type == "Concat":
        return ("concat-of-one", source) if len(node.inputs) == 1 else None
    if node.op_type in ("Mul", "Div"):
        return _times_one(node, shapes)
    test = _TESTS.get(node.op_type)
    return ("no-op", source) if test is not None and test(node, source, shapes) else None


def _dropout_rests(node: ir.Node, opset: int, edit: Edit) -> bool:
    if any(o.uses() or o.is_graph_output() for o in node.outputs[1:]):
        edit.skip("dropout", node, "its mask is used")
        return False
    training = given(node, 2)
    held = constant(training)
    if opset < _TRAINING_IS_DEFAULT_BELOW:
        resting = bool(attribute(node, "is_test", 0))
    else:
        resting = training is None or (held is not None and not held.any())
    if not resting:
        edit.skip("dropout", node, "it may be training")
    return resting


def _transpose(node: ir.Node, source: ir.Value, edit: Edit) -> Found | None:
    """A permutation that is the identity, alone or together with the one before it."""
    perm = attribute(node, "perm", None)
    if perm is None:
        return None
    if list(perm) == list(range(len(perm))):
        return "no-op", source
    before = made_by(source, "Transpose")
    first = attribute(before, "perm", None) if before is not None else None
    if before is None or first is None or before.inputs[0] is None or before.graph is not node.graph:
        return None
    joined = [int(first[i]) for i in perm]
    if joined == list(range(len(joined))):
        return "inverse-transposes", before.inputs[0]
    if not edit.allows("join-transposes", node):
        return None
    edit.change("join-transposes", node, str(joined))
    compute(edit, node.outputs[0], "Transpose", [before.inputs[0]], attributes=[ir.AttrInt64s("perm", joined)])
    return None


def _times_one(node: ir.Node, shapes: Shapes) -> Found | None:
    """x * 1 and x / 1 are x in every bit, -0, infinities and NaN included."""
    if len(node.inputs) != 2 or node.attributes:
        return None
    pairs = [(node.inputs[0], node.inputs[1])]
    if node.op_type == "Mul":
        pairs.append((node.inputs[1], node.inputs[0]))
    for source, factor in pairs:
        held = constant(factor)
        rank = shapes.rank(source)
        if source is None or number(factor) != 1 or held is None or rank is None or held.ndim > rank:
            continue
        if held.dtype.kind in "iu" or shapes.dtype(source) in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
            return "times-one", source
    return None


def _same_shape(node: ir.Node, source: ir.Value, shapes: Shapes) -> bool:
    return shapes.same(source, node.outputs[0])


def _whole_slice(node: ir.Node, source: ir.Value, shapes: Shapes) -> bool:
    steps = constant(given(node, 4))
    forwards = given(node, 4) is None or (steps is not None and bool((steps == 1).all()))
    return forwards and shapes.same(source, node.outputs[0])


def _same_type(node: ir.Node, source: ir.Value, shapes: Shapes) -> bool:
    mine = shapes.dtype(source)
    if node.op_type == "CastLike":
        return mine is not None and mine == shapes.dtype(given(node, 1))
    return mine is not None and mine.value == attribute(node, "to", None)


def _no_padding(node: ir.Node, source: ir.Value, shapes: Shapes) -> bool:
    pads = attribute(node, "pads", attribute(node, "paddings", None))
    if pads is not None:
        return not any(pads)
    held = constant(given(node, 1))
    return held is not None and not held.any()


_TESTS = {
    "Reshape": _same_shape,
    "Expand": _same_shape,
    "Flatten": _same_shape,
    "Slice": _whole_slice,
    "Cast": _same_type,
    "CastLike": _same_type,
    "Pad": _no_padding,
}
