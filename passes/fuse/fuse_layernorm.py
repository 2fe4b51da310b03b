"""LayerNorm and RMSNorm, spelled out by exporters, as one operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from passes.fuse.opset import RMS_OPSET, raise_opset, why_not
from passes.kit.context import Context
from passes.kit.contract import Edit, Exactness, Pass, PassResult
from passes.kit.match import (
    attribute,
    compute,
    given,
    is_op,
    made_by,
    number,
    operands,
    rewrite,
    sole_consumer,
    with_number,
)
from passes.kit.model import Model, constant
from passes.kit.options import option
from passes.kit.shapes import Shapes

_LAYER_NORM_OPSET = 17


@dataclass(frozen=True)
class _Norm:
    """A normalization that was found: d / sqrt(mean(d^2) + epsilon), d = x - mean(x) when ``centred``."""

    source: ir.Value
    centred: bool
    axes: int
    epsilon: float
    last: ir.Node


@dataclass(frozen=True)
class FuseLayernorm(Pass):
    """Write spelled-out layer normalizations as one operator.

    What it does
        Over the last axes of x, with d = x - mean(x):

            LayerNorm(x) = d / sqrt(mean(d^2) + epsilon) * scale + bias     (Ba, Kiros and Hinton 2016, equation 4)
            RMSNorm(x)   = x / sqrt(mean(x^2) + epsilon) * scale            (Zhang and Sennrich 2019, equation 4)

        The square may be Pow or a product, the division Div, Reciprocal and Mul, or Pow(., -0.5). They become
        LayerNormalization (opset 17) and RMSNormalization (opset 23). Where the model's opset is older, RMSNorm
        raises it to 23, if every operator of the model means the same there.

    When it applies
        To float32, means over the last axes with kept dimensions, a constant positive epsilon, and a scale (and
        bias) whose shape is exactly that of the normalized axes. On onnxruntime 1.31's CPU provider RMSNormalization
        takes 0.37 to 0.66 of the time of its six parts; LayerNormalization is what the runtime makes of the parts
        by itself, so it costs the same and is there for quantizers and readers.

    When it refuses
        LayerNorm below opset 17 (the runtime still fuses it when it loads the model). RMSNorm below opset 23 when an
        operator changed its meaning in between, when the target does not take opset 23, or with
        ``raise-opset = false``; onnxruntime's SimplifiedLayerNormalization would run there, but no ONNX checker
        knows it, and SkipSimplifiedLayerNormalization is as slow as the parts.

    Exactness
        NUMERIC. The same algebra in one kernel.
    """

    name: ClassVar[str] = "fuse-layernorm"
    exactness: ClassVar[Exactness] = Exactness.NUMERIC

    raise_opset: bool = option(True, "raise the opset to 23 for RMSNormalization where that changes nothing else")

    def apply(self, model: Model, context: Context) -> PassResult:
        obstacle = self._obstacle(model, context)

        def fuse(graph: ir.Graph, edit: Edit, shapes: Shapes) -> None:
            for node in list(graph):
                if node.graph is not None and is_op(node, "Div", "Mul"):
                    found = _find(node, shapes)
                    if found is not None:
                        _fuse(found, obstacle, edit, shapes)

        result = rewrite(model, fuse, context)
        if any(n.op_type == "RMSNormalization" for n in result.model.nodes()) and result.changes:
            raise_opset(result.model)
        return result

    def _obstacle(self, model: Model, context: Context) -> str:
        """Why RMSNormalization cannot be used, or an empty text."""
        if model.opset >= RMS_OPSET:
            return ""
        if not self.raise_opset:
            return f"RMSNormalization needs opset {RMS_OPSET}, the model has {model.opset}, and raise-opset is off"
        return why_not(model, context.target)


def _fuse(found: _Norm, obstacle: str, edit: Edit, shapes: Shapes) -> None:
    rule = "layer-norm" if found.centred else "rms-norm"
    if shapes.dtype(found.source) != ir.DataType.FLOAT:
        edit.skip(rule, found.last, f"the element type is {shapes.dtype(found.source)}, not float32")
        return
    if found.centred and shapes.opset < _LAYER_NORM_OPSET:
        edit.skip(rule, found.last, f"LayerNormalization needs opset {_LAYER_NORM_OPSET}, the model has {shapes.opset}")
        return
    if not found.centred and obstacle:
        edit.skip(rule, found.last, obstacle)
        return
    dims = shapes.of(found.source)
    scaled = _then(found.last, "Mul", dims, found.axes, shapes)
    if scaled is None:
        edit.skip(rule, found.last, "no scale over exactly the normalized axes follows")
        return
    last, scale = scaled
    shifted = _then(last, "Add", dims, found.axes, shapes) if found.centred else None
    inputs = [found.source, scale]
    if shifted is not None:
        last = shifted[0]
        inputs.append(shifted[1])
    attributes = [ir.AttrInt64("axis", -found.axes), ir.AttrFloat32("epsilon", found.epsilon)]
    kind = "LayerNormalization" if found.centred else "RMSNormalization"
    if not edit.allows(rule, last):
        return
    edit.change(rule, last, kind)
    if not found.centred:  # at once, or inference would know nothing of what reads it
        shapes.main.opset_imports[""] = max(shapes.opset, RMS_OPSET)
    compute(edit, last.outputs[0], kind, inputs, attributes=attributes)


def _then(
    node: ir.Node, op_type: str, dims: tuple[int | str | None, ...] | None, axes: int, shapes: Shapes
) -> tuple[ir.Node, ir.Value] | None:
    """The sole consumer of ``node``, if it is ``op_type`` with a second operand shaped like the last ``axes`` axes."""
    consumer = sole_consumer(node.outputs[0])
    if dims is None or consumer is None or not is_op(consumer, op_type):
        return None
    wanted = dims[-axes:]
    for mine, other in operands(consumer):
        if mine is node.outputs[0] and constant(other) is not None and shapes.static(other) == wanted:
            return consumer, other
    return None


# -- the parts ----------------------------------------------------------------------------------------------------
def _find(node: ir.Node, shapes: Shapes) -> _Norm | None:
    """The normalization that ``node`` finishes: d / root or d * (1 / root)."""
    for deviation, root in _quotients(node):
        held = with_number(made_by(root, "Add"))
        if held is None or not 0 < held[1] < 1:
            continue
        mean = made_by(held[0], "ReduceMean")
        squared = mean.inputs[0] if mean is not None else None
        axes = _last_axes(mean, shapes) if mean is not None else None
        if axes is None or _square(squared) is not deviation:
            continue
        return _centre(deviation, axes, held[1], node, shapes)
    return None


def _centre(deviation: ir.Value, axes: int, epsilon: float, last: ir.Node, shapes: Shapes) -> _Norm:
    minus = made_by(deviation, "Sub")
    mean = made_by(minus.inputs[1], "ReduceMean") if minus is not None else None
    if (
        minus is not None
        and mean is not None
        and minus.inputs[0] is mean.inputs[0]
        and _last_axes(mean, shapes) == axes
    ):
        source = minus.inputs[0]
        if source is not None and minus.graph is last.graph:
            return _Norm(source, True, axes, epsilon, last)
    return _Norm(deviation, False, axes, epsilon, last)


def _quotients(node: ir.Node) -> list[tuple[ir.Value, ir.Value]]:
    """Pairs (d, a) such that ``node`` makes d / sqrt(a)."""
    if node.op_type == "Div":
        root = made_by(node.inputs[1], "Sqrt")
        pairs = [(node.inputs[0], root.inputs[0])] if root is not None else []
    else:
        pairs = [(d, _under_inverse_root(inverse)) for d, inverse in operands(node)]
    return [(d, a) for d, a in pairs if d is not None and a is not None]


def _under_inverse_root(value: ir.Value) -> ir.Value | None:
    """a, where ``value`` is 1 / sqrt(a)."""
    power = made_by(value, "Pow")
    if power is not None:
        return power.inputs[0] if number(power.inputs[1]) == -0.5 else None
    inverse = made_by(value, "Reciprocal", "Div")
    if inverse is None or (inverse.op_type == "Div" and number(inverse.inputs[0]) != 1):
        return None
    root = made_by(inverse.inputs[-1], "Sqrt")
    return root.inputs[0] if root is not None else None


def _square(value: ir.Value | None) -> ir.Value | None:
    """x, where ``value`` is x^2."""
    power = made_by(value, "Pow")
    if power is not None:
        return power.inputs[0] if number(power.inputs[1]) == 2 else None
    product = made_by(value, "Mul")
    return product.inputs[0] if product is not None and product.inputs[0] is product.inputs[1] else None


def _last_axes(mean: ir.Node, shapes: Shapes) -> int | None:
    """Over how many last axes a ReduceMean with kept dimensions runs, or ``None``."""
    axes = attribute(mean, "axes", None)
    if axes is None:
        held = constant(given(mean, 1))
        axes = None if held is None else tuple(int(i) for i in held.reshape(-1))
    if not axes or not attribute(mean, "keepdims", 1):
        return None
    rank = shapes.rank(mean.inputs[0])
    if rank is None and any(a >= 0 for a in axes):
        return None
    behind = sorted(a - (rank or 0) if a >= 0 else a for a in axes)
    return len(behind) if behind == list(range(-len(behind), 0)) else None
