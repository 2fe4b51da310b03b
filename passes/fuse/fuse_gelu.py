"""GELU, spelled out by exporters, as one operator."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from passes.kit.context import Context
from passes.kit.contract import Edit, Exactness, Pass, PassResult
from passes.kit.match import (
    compute,
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

_GELU = 20
"""The opset that brought Gelu."""

_CONTRIB = "com.microsoft"
_CONTRIB_PROVIDERS = ("CPUExecutionProvider", "CUDAExecutionProvider")


@dataclass(frozen=True)
class FuseGelu(Pass):
    """Write a spelled-out GELU as one operator.

    What it does
        Finds both forms of Hendrycks and Gimpel 2016 (equation 1 and the approximation after it):

            gelu(x) = 0.5 x (1 + erf(x / sqrt(2)))
            gelu(x) = 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))

        with the operands of every sum and product in either order, the factor 0.5 in any place, Div or Mul by the
        inverse, and the cube as Pow or as products. From opset 20 on they become Gelu, below it the contrib
        operators Gelu and FastGelu of onnxruntime.

    When it applies
        To float32 values whose intermediate results nobody else needs. On onnxruntime 1.31's CPU provider the erf
        form runs as fast as before (the runtime fuses it by itself when it loads the model), the tanh form in
        0.31 to 0.58 of the time; quantizers see one operator instead of five.

    When it refuses
        Constants that are off by more than eight units in the last place (9.5e-7): a literal like 1.4142 moves the
        result by more than NUMERIC allows. Other element types. Contrib operators for other providers, or where
        ``contrib = false``.

    Exactness
        NUMERIC. The same function, evaluated by one kernel.
    """

    name: ClassVar[str] = "fuse-gelu"
    exactness: ClassVar[Exactness] = Exactness.NUMERIC

    contrib: bool = option(True, "use onnxruntime's contrib operators where the opset has no Gelu")

    def apply(self, model: Model, context: Context) -> PassResult:
        contrib = self.contrib and context.target.provider in _CONTRIB_PROVIDERS

        def fuse(graph: ir.Graph, edit: Edit, shapes: Shapes) -> None:
            for node in list(graph):
                if node.graph is not None and is_op(node, "Erf", "Tanh"):
                    _fuse(node, contrib, edit, shapes)

        return rewrite(model, fuse, context)


def _fuse(node: ir.Node, contrib: bool, edit: Edit, shapes: Shapes) -> None:
    source = _erf_of(node.inputs[0]) if node.op_type == "Erf" else _tanh_of(node.inputs[0])
    last = _outer_product(node, source) if source is not None else None
    if source is None or last is None or not edit.allows("gelu", node):
        return
    if shapes.dtype(source) != ir.DataType.FLOAT:
        edit.skip("gelu", node, f"the element type is {shapes.dtype(source)}, not float32")
        return
    if not shapes.rank(source):
        edit.skip("gelu", node, "the rank of its input is not known")
        return
    approximate = [ir.AttrString("approximate", "tanh")] if node.op_type == "Tanh" else []
    if shapes.opset >= _GELU:
        edit.change("gelu", node, f"Gelu({'tanh' if approximate else 'erf'})")
        compute(edit, last.outputs[0], "Gelu", [source], attributes=approximate)
    elif contrib:
        kind = "FastGelu" if approximate else "Gelu"
        edit.change("gelu", node, f"{_CONTRIB}::{kind}")
        shapes.main.opset_imports.setdefault(_CONTRIB, 1)
        compute(edit, last.outputs[0], kind, [source], domain=_CONTRIB)
    else:
        edit.skip(
            "gelu", node, f"Gelu needs opset {_GELU}, the model has {shapes.opset}, and contrib is not to be used"
        )


def _outer_product(node: ir.Node, source: ir.Value) -> ir.Node | None:
    """The node that makes 0.5 * x * (1 + f), for ``node`` making f and ``source`` being x, in any grouping."""
    plus = sole_consumer(node.outputs[0])
    held = with_number(plus) if is_op(plus, "Add") else None
    first = sole_consumer(plus.outputs[0]) if plus is not None and held is not None and held[1] == 1 else None
    if first is None or plus is None:
        return None
    if _halved(first) is plus.outputs[0]:  # x * (0.5 * (1 + f))
        second = sole_consumer(first.outputs[0])
        return second if _is_product(second, first.outputs[0], source) else None
    if _is_product(first, plus.outputs[0], source):  # 0.5 * (x * (1 + f))
        second = sole_consumer(first.outputs[0])
        return second if second is not None and _halved(second) is first.outputs[0] else None
    for other, sum_ in operands(first) if is_op(first, "Mul") else ():  # (0.5 * x) * (1 + f)
        maker = other.producer()
        if sum_ is plus.outputs[0] and maker is not None and _halved(maker) is source:
            return first
    return None


def _halved(node: ir.Node) -> ir.Value | None:
    """y, where ``node`` is y * 0.5 or y / 2."""
    if is_op(node, "Div") and number(node.inputs[1]) == 2:
        return node.inputs[0]
    found = with_number(node) if is_op(node, "Mul") else None
    return found[0] if found is not None and found[1] == 0.5 else None


def _is_product(node: ir.Node | None, left: ir.Value, right: ir.Value) -> bool:
    return node is not None and is_op(node, "Mul") and any(a is left and b is right for a, b in operands(node))


def _times(value: ir.Value | None, factor: float) -> ir.Value | None:
    """y, where ``value`` is y * factor."""
    found = with_number(made_by(value, "Mul"))
    return found[0] if found is not None and near(found[1], factor) else None


def _erf_of(value: ir.Value | None) -> ir.Value | None:
    """x, where ``value`` is x / sqrt(2)."""
    division = made_by(value, "Div")
    if division is not None and near(number(division.inputs[1]), math.sqrt(2)):
        return division.inputs[0]
    return _times(value, 1 / math.sqrt(2))


def _tanh_of(value: ir.Value | None) -> ir.Value | None:
    """x, where ``value`` is sqrt(2 / pi) (x + 0.044715 x^3)."""
    whole = _times(value, math.sqrt(2 / math.pi))
    if whole is not None:
        return _cubic(whole)
    product = made_by(value, "Mul")
    for left, right in operands(product) if product is not None else ():
        source = _times(left, math.sqrt(2 / math.pi))
        if source is not None and _one_plus_square(right) is source:
            return source
    return None


def _cubic(value: ir.Value) -> ir.Value | None:
    """x, where ``value`` is x + 0.044715 x^3 or x (1 + 0.044715 x^2)."""
    total = made_by(value, "Add")
    for source, cube in operands(total) if total is not None else ():
        if _cube(_times(cube, 0.044715)) is source or _scaled_cube(cube) is source:
            return source
    product = made_by(value, "Mul")
    for source, factor in operands(product) if product is not None else ():
        if _one_plus_square(factor) is source:
            return source
    return None


def _one_plus_square(value: ir.Value) -> ir.Value | None:
    """x, where ``value`` is 1 + 0.044715 x^2."""
    found = with_number(made_by(value, "Add"))
    if found is None or found[1] != 1:
        return None
    return _square(_times(found[0], 0.044715)) or _scaled_square(found[0])


def _square(value: ir.Value | None) -> ir.Value | None:
    """x, where ``value`` is x^2."""
    power = made_by(value, "Pow")
    if power is not None and number(power.inputs[1]) == 2:
        return power.inputs[0]
    product = made_by(value, "Mul")
    return product.inputs[0] if product is not None and product.inputs[0] is product.inputs[1] else None


def _cube(value: ir.Value | None) -> ir.Value | None:
    """x, where ``value`` is x^3."""
    power = made_by(value, "Pow")
    if power is not None and number(power.inputs[1]) == 3:
        return power.inputs[0]
    product = made_by(value, "Mul")
    for source, square in operands(product) if product is not None else ():
        if _square(square) is source:
            return source
    return None


def _scaled_square(value: ir.Value) -> ir.Value | None:
    """x, where ``value`` is (0.044715 x) x."""
    product = made_by(value, "Mul")
    for source, scaled in operands(product) if product is not None else ():
        if _times(scaled, 0.044715) is source:
            return source
    return None


def _scaled_cube(value: ir.Value) -> ir.Value | None:
    """x, where ``value`` is 0.044715 x^3 with the factor inside, as exporters write it."""
    product = made_by(value, "Mul")
    for source, rest in operands(product) if product is not None else ():
        if _square(_times(rest, 0.044715)) is source or _scaled_square(rest) is source:
            return source
    return None
