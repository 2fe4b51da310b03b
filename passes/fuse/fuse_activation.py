"""Activations that exporters spell out, written as the operator that they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from passes.kit.context import Context
from passes.kit.contract import Edit, Exactness, Pass, PassResult
from passes.kit.match import (
    attribute,
    compute,
    forward,
    given,
    is_op,
    made_by,
    near,
    number,
    operands,
    rewrite,
    sole_consumer,
    with_number,
)
from passes.kit.model import Model
from passes.kit.options import option
from passes.kit.shapes import Shapes

Bounds = tuple[float | None, float | None]

_NOT_NEGATIVE = ("Relu", "Sigmoid", "Softmax", "HardSigmoid", "Abs", "Exp", "Softplus")
_CLIP_BY_INPUT = 11
_HARD_SWISH = 14


@dataclass(frozen=True)
class FuseActivation(Pass):
    """Write spelled-out clamps and hard activations as one operator.

    What it does
        - Max(x, 0) is Relu(x); Min(Max(x, a), b) is Clip(x, a, b), in either order, when a <= b.
        - Clip(Relu(x), a, b) is Clip(x, max(a, 0), b); Clip(x, 0, +inf) is Relu(x); a Relu of what is never
          negative is dropped.
        - Clip(x + 3, 0, 6) / 6 is HardSigmoid(x; 1/6, 1/2), and x times that is HardSwish(x) (Howard et al. 2019,
          "Searching for MobileNetV3", section 5.2).

    When it applies
        To float32 values and constant bounds, where nobody needs the values in between. One operator reads and
        writes memory once: on onnxruntime 1.31's CPU provider HardSigmoid took 0.31 to 0.79, HardSwish 0.52 to 0.85
        and Relu 0.73 to 0.97 of the time of what they replace, and convolutions absorb Relu and Clip. A spelled-out
        SiLU is left: the runtime fuses it by itself, and the Swish operator of opset 24 is 3 times slower.

    When it refuses
        A Clip without an upper bound turns +inf into the largest float, Relu does not: it stays. Bounds that are
        not constant, a lower bound above the upper one, and HardSwish below opset 14. ``hard-activations = false``
        leaves the hard activations spelled out.

    Exactness
        NUMERIC. Clamps keep every bit but the sign of zero (Max(-0, 0) is 0, Relu(-0) is -0); NaN stays NaN.
        HardSigmoid multiplies by 1/6 where the original divides by 6.
    """

    name: ClassVar[str] = "fuse-activation"
    exactness: ClassVar[Exactness] = Exactness.NUMERIC

    hard_activations: bool = option(True, "write spelled-out hard sigmoid and hard swish as HardSigmoid and HardSwish")

    def apply(self, model: Model, context: Context) -> PassResult:
        return rewrite(model, self._fuse, context)

    def _fuse(self, graph: ir.Graph, edit: Edit, shapes: Shapes) -> None:
        for node in list(graph):
            if node.graph is None or len(node.outputs) != 1 or not _is_float(node, shapes):
                continue
            if is_op(node, "Relu"):
                _drop_relu(node, edit)
            elif is_op(node, "Max", "Min"):
                _clamp(node, edit, shapes)
            elif is_op(node, "Clip"):
                _tighten(node, edit, shapes)
            elif self.hard_activations and is_op(node, "Div", "Mul"):
                _hard(node, edit, shapes)


def _is_float(node: ir.Node, shapes: Shapes) -> bool:
    return any(shapes.dtype(v) == ir.DataType.FLOAT for v in (*node.inputs[:1], *node.outputs))


# -- clamps -------------------------------------------------------------------------------------------------------
def _drop_relu(node: ir.Node, edit: Edit) -> None:
    source = node.inputs[0]
    maker = source.producer() if source is not None else None
    low = bounds(maker)[0] if maker is not None and is_op(maker, "Clip") else None
    if source is None or not (is_op(maker, *_NOT_NEGATIVE) or (low is not None and low >= 0)):
        return
    where = node.outputs[0].name or "?"
    if edit.allows("drop-relu", where) and forward(node.outputs[0], source):
        edit.change("drop-relu", where, f"after {maker.op_type if maker else '?'}")


def _clamp(node: ir.Node, edit: Edit, shapes: Shapes) -> None:
    """Max(x, 0), Min(Max(x, a), b), Max(Min(x, b), a)."""
    found = _one_bound(node, shapes)
    if found is None:
        return
    source, bound = found
    inner = made_by(source, "Relu", "Max", "Min")
    if inner is not None and inner.op_type != node.op_type and sole_consumer(source) is node:
        before = (inner.inputs[0], 0.0) if is_op(inner, "Relu") else _one_bound(inner, shapes)
        if before is not None and before[0] is not None and not (is_op(inner, "Relu") and node.op_type == "Max"):
            low, high = (before[1], bound) if node.op_type == "Min" else (bound, before[1])
            if low <= high and not edit.allows("clip", node):
                return
            if low <= high:
                edit.change("clip", node, f"[{low:g}, {high:g}]")
                make_clip(edit, node.outputs[0], before[0], (low, high), shapes.opset)
            else:
                edit.skip("clip", node, f"its bounds {low:g} and {high:g} cross")
            return
    if node.op_type == "Max" and bound == 0 and edit.allows("relu", node):
        edit.change("relu", node, "Max(x, 0)")
        compute(edit, node.outputs[0], "Relu", [source])


def _one_bound(node: ir.Node, shapes: Shapes) -> tuple[ir.Value, float] | None:
    """The variable operand and the constant bound of a Max or Min that does not change the operand's shape."""
    found = with_number(node)
    if found is None or np.isnan(found[1]) or not shapes.rank(found[0]):
        return None
    return found


def _tighten(node: ir.Node, edit: Edit, shapes: Shapes) -> None:
    """Clip(Relu(x), a, b) and Clip(x, 0, +inf)."""
    source, held = node.inputs[0], bounds(node)
    if held is None or source is None:
        return
    low, high = held
    inner = made_by(source, "Relu")
    if any(bound is not None and np.isnan(bound) for bound in held):
        if inner is not None:
            edit.skip("clip", node, "its bounds are not constant")
        return
    if inner is not None and inner.inputs[0] is not None and sole_consumer(source) is node:
        if (high is not None and high < 0) or not edit.allows("clip", node):
            return
        edit.change("clip", node, "absorbs the Relu before it")
        make_clip(edit, node.outputs[0], inner.inputs[0], (max(low or 0.0, 0.0), high), shapes.opset)
    elif low == 0 and high == np.inf:
        if not edit.allows("relu", node):
            return
        edit.change("relu", node, "Clip(x, 0, +inf)")
        compute(edit, node.outputs[0], "Relu", [source])
    elif low == 0 and (high is None or high >= np.finfo(np.float32).max):
        edit.skip("relu", node, "Clip without an upper bound turns +inf into the largest float")


def bounds(node: ir.Node | None) -> Bounds:
    """The lower and the upper bound of a Clip, ``None`` where it has none; (nan, nan) when they are not constant."""
    if node is None:
        return None, None
    found: list[float | None] = []
    for index, key in ((1, "min"), (2, "max")):
        value = given(node, index)
        if value is not None:
            held = number(value)
            found.append(np.nan if held is None else held)
        else:
            found.append(attribute(node, key, None))
    return found[0], found[1]


def make_clip(edit: Edit, old: ir.Value, source: ir.Value, held: Bounds, opset: int) -> None:
    """Let ``old`` be Clip(source) with float32 bounds, in the spelling of the opset."""
    producer = old.producer()
    assert producer is not None and isinstance(producer.graph, ir.Graph)
    if opset < _CLIP_BY_INPUT:
        pairs = [(k, v) for k, v in zip(("min", "max"), held, strict=True) if v is not None]
        compute(edit, old, "Clip", [source], attributes=[ir.AttrFloat32(k, v) for k, v in pairs])
        return
    inputs: list[ir.Value | None] = [source]
    for key, bound in zip(("min", "max"), held, strict=True):
        array = None if bound is None else np.array(bound, np.float32)
        inputs.append(None if array is None else edit.initializer(producer.graph, f"{old.name}_{key}", array))
    while inputs[-1] is None:
        inputs.pop()
    compute(edit, old, "Clip", inputs)


# -- hard activations ---------------------------------------------------------------------------------------------
def _hard(node: ir.Node, edit: Edit, shapes: Shapes) -> None:
    source = _hard_swish(node)
    if source is not None and shapes.rank(source):
        if not edit.allows("hard-swish", node):
            return
        if shapes.opset >= _HARD_SWISH:
            edit.change("hard-swish", node)
            compute(edit, node.outputs[0], "HardSwish", [source])
        else:
            edit.skip("hard-swish", node, f"HardSwish needs opset {_HARD_SWISH}, the model has {shapes.opset}")
        return
    source = _hard_sigmoid(node)
    if source is not None and shapes.rank(source) and edit.allows("hard-sigmoid", node):
        edit.change("hard-sigmoid", node)
        slopes = [ir.AttrFloat32("alpha", 1 / 6), ir.AttrFloat32("beta", 0.5)]
        compute(edit, node.outputs[0], "HardSigmoid", [source], attributes=slopes)


def _over_six(node: ir.Node | None) -> ir.Value | None:
    """What is divided by six: Div(y, 6) or Mul(y, 1/6)."""
    if is_op(node, "Div") and node is not None and near(number(node.inputs[1]), 6.0):
        return node.inputs[0]
    found = with_number(node) if is_op(node, "Mul") else None
    return found[0] if found is not None and near(found[1], 1 / 6) else None


def _gate(value: ir.Value | None) -> ir.Value | None:
    """x, where ``value`` is Clip(x + 3, 0, 6) and nobody else needs it."""
    clip = made_by(value, "Clip")
    if clip is None or value is None or bounds(clip) != (0.0, 6.0) or sole_consumer(value) is None:
        return None
    add = made_by(clip.inputs[0], "Add")
    found = with_number(add)
    return found[0] if found is not None and near(found[1], 3.0) else None


def _hard_sigmoid(node: ir.Node) -> ir.Value | None:
    return _gate(_over_six(node))


def _hard_swish(node: ir.Node) -> ir.Value | None:
    """x, where ``node`` is x * Clip(x + 3, 0, 6) / 6 in any grouping."""
    product = made_by(_over_six(node), "Mul")
    if product is not None and sole_consumer(product.outputs[0]) is node:
        for source, gate in operands(product):
            if _gate(gate) is source:
                return source
    if not is_op(node, "Mul"):
        return None
    for source, other in operands(node):
        if sole_consumer(other) is not node:
            continue
        maker = other.producer()
        if is_op(maker, "HardSigmoid") and maker is not None:
            usual = near(attribute(maker, "alpha", 0.2), 1 / 6) and near(attribute(maker, "beta", 0.5), 0.5)
            if usual and maker.inputs[0] is source:
                return source
        part = _over_six(maker)
        if part is not None and (_gate(part) is source or (part is source and _gate(source) is not None)):
            return source if _gate(part) is source else None
    return _scaled_gate(node)


def _scaled_gate(node: ir.Node) -> ir.Value | None:
    """x, where ``node`` is (x / 6) * Clip(x + 3, 0, 6)."""
    for scaled, gate in operands(node):
        source = _over_six(scaled.producer())
        if source is not None and sole_consumer(scaled) is node and _gate(gate) is source:
            return source
    return None
