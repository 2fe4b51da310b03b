"""A residual sum before LayerNormalization, spelled so that the runtime leaves the two apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from passes.kit.context import Context
from passes.kit.contract import Edit, Exactness, Pass, PassResult
from passes.kit.match import compute, is_op, made_by, rewrite
from passes.kit.model import Model, constant
from passes.kit.shapes import Shapes

CPU = "CPUExecutionProvider"
VARIADIC_BROADCAST = 8
"""Opset from which Sum broadcasts like Add."""


@dataclass(frozen=True)
class PlainResidual(Pass):
    """Keep the residual sum before a LayerNormalization apart from it.

    What it does
        Writes ``Add(x, f(x))`` as ``Sum(x, f(x))`` where the result goes into a LayerNormalization. With two inputs
        both are the same addition.

    When it applies
        On onnxruntime's CPU provider, which turns Add + LayerNormalization into SkipLayerNormalization: one operator
        that is slower there than the two (about twice, measured with onnxruntime 1.31) and that also takes the bias
        out of reach of the quantized matrix products. Sum is not part of that pattern.

    When it refuses
        A sum with a constant (a bias, not a residual), types other than float32, opsets below 8 and other providers.

    Exactness
        EXACT. Sum of two inputs is their addition.
    """

    name: ClassVar[str] = "plain-residual"
    exactness: ClassVar[Exactness] = Exactness.EXACT

    def apply(self, model: Model, context: Context) -> PassResult:
        if context.target.provider != CPU or model.opset < VARIADIC_BROADCAST:
            return PassResult(model)
        return rewrite(model, _keep_apart, context)


def _keep_apart(graph: ir.Graph, edit: Edit, shapes: Shapes) -> None:
    for node in list(graph):
        if not is_op(node, "LayerNormalization"):
            continue
        add = made_by(node.inputs[0], "Add")
        if add is None or add.graph is not graph or shapes.dtype(add.outputs[0]) != ir.DataType.FLOAT:
            continue
        if any(constant(value) is not None for value in add.inputs):
            edit.skip("residual", add, "it adds a constant, which is a bias and no residual")
            continue
        if not edit.allows("residual", add):
            continue
        edit.change("residual", add, "Sum")
        compute(edit, add.outputs[0], "Sum", list(add.inputs))
