"""The pass ``convert-float16``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
import onnx_ir as ir

from passes.kit.context import Context, NoData, forbidden
from passes.kit.contract import Edit, Exactness, Pass, PassResult
from passes.kit.match import ONNX, allow_unlisted_initializers, discard
from passes.kit.model import Model, constant
from passes.kit.options import option
from passes.kit.reducers import MinMax, Reducer
from passes.kit.shapes import Shapes
from passes.quantize.grid import Array
from passes.quantize.layers import Names

HALF, FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT
LARGEST = float(np.finfo(np.float16).max)

COMPUTE = frozenset(
    ("Attention", "Conv", "ConvTranspose", "Einsum", "GRU", "Gemm", "LSTM", "MatMul", "RNN")
)  # fmt: skip
"""Operators that pay for the casts around them."""

OVERFLOWING = (
    "CumSum", "Exp", "Pow", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceProd", "ReduceSum",
    "ReduceSumSquare",
)  # fmt: skip
"""Operators whose results leave the range of float16 first: sums over many elements, products and powers."""

BY_ATTRIBUTE = frozenset(
    ("Bernoulli", "Cast", "CastLike", "Constant", "ConstantOfShape", "DequantizeLinear", "EyeLike", "Multinomial",
     "QuantizeLinear", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
)  # fmt: skip
"""Operators whose output types do not follow from their inputs, and those that belong to quantized layers."""

FEW = 64
"""A constant of at most so many elements is a setting rather than weights: none of it may vanish."""

Slots = tuple[tuple[int, ...], tuple[int, ...]]
"""Inputs and outputs of a node, by position, that are float32 and become float16."""


@dataclass(frozen=True)
class ConvertFloat16(Pass):
    """Compute in float16 instead of float32, where the device has kernels for it.

    What it does
        Layers and what lies between them take and give float16; their constants become float16. Inputs and outputs of
        the model keep their types: casts stand where values go in and out, and around operators that stay in float32.

    When it applies
        To operators of the default ONNX domain in the main graph that may be float16 by their definition, in groups
        that hold at least one layer (Conv, MatMul, Gemm, ...): a group without one would not pay for its casts.

    When it refuses
        Operators named in ``keep``; nodes named in ``exclude``; nodes with a constant beyond the range of float16
        (65504), or with a setting that would become zero (an epsilon of 1e-12); nodes with a value that comes within
        ``headroom`` of the end of the range on calibration data, where there are any; operators of other domains, and
        what reads them where the type is not known; bodies of If, Loop and Scan, and quantized layers.

    Exactness
        LOSSY. float16 has 11 bits of precision and ends at 65504. The CPU provider computes it in float32 and may leave
        the casts out, so what it costs, and what overflows in spite of the calibration data, is only seen on a device
        that has it.
    """

    name: ClassVar[str] = "convert-float16"
    exactness: ClassVar[Exactness] = Exactness.LOSSY

    keep: tuple[str, ...] = option(OVERFLOWING, "operators that stay in float32")
    exclude: tuple[str, ...] = option((), "names or patterns of nodes to leave in float32")
    headroom: float = option(2.0, "how many times larger values may become than calibration saw", low=1.0, high=1e6)

    def apply(self, model: Model, context: Context) -> PassResult:
        fork = model.fork()
        edit = Edit(fork, forbidden(context))
        chosen = _in_company(self._in_range(self._choose(fork, edit), model, context, edit))
        if not chosen:
            return PassResult(model, (), tuple(edit.skips))
        _Writer(fork.graph, edit, chosen).write()
        allow_unlisted_initializers(fork)
        return PassResult(fork, tuple(edit.changes), tuple(edit.skips))

    def _choose(self, fork: Model, edit: Edit) -> dict[ir.Node, Slots]:
        names, shapes = Names(fork.graph), Shapes(fork)
        found: dict[ir.Node, Slots] = {}
        for node in fork.graph:
            slots = _slots(node, fork.opset, shapes)
            if slots is None:
                continue
            if names.match(node, self.exclude):
                edit.skip("float16", node, "it is excluded by name")
            elif node.op_type in self.keep:
                edit.skip("float16", node, f"{node.op_type} stays in float32")
            elif reason := _misfit(node, slots):
                edit.skip("float16", node, reason)
            elif edit.allows("float16", node):
                found[node] = slots
        return found

    def _in_range(
        self, found: dict[ir.Node, Slots], model: Model, context: Context, edit: Edit
    ) -> dict[ir.Node, Slots]:
        """Without the nodes whose values come too close to the end of the range on calibration data."""
        values = {v.name: v for node, slots in found.items() for v in _values(node, slots) if v.name}
        try:
            seen = context.stats(model, {name: MinMax() for name in values}) if values else {}
        except NoData:
            return found
        far = {name: _farthest(seen[name]) for name in values}
        kept: dict[ir.Node, Slots] = {}
        for node, slots in found.items():
            most = max((far[v.name] for v in _values(node, slots) if v.name), default=0.0)
            if most * self.headroom > LARGEST:
                edit.skip("float16", node, f"its values reach {most:.3g} on the calibration data")
            else:
                kept[node] = slots
        return kept


# -- choosing ----------------------------------------------------------------------------------------------------------
def _slots(node: ir.Node, opset: int, shapes: Shapes) -> Slots | None:
    """What of a node becomes float16, or ``None`` when nothing does, or the node has a body."""
    if node.domain not in ONNX or node.op_type in BY_ATTRIBUTE:
        return None
    if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
        return None
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return None
    if any(not _is_tensor(formal) for formal in (*schema.inputs, *schema.outputs)):
        return None
    inputs = tuple(i for i, v in enumerate(node.inputs) if _may_be_half(v, schema.inputs, i, shapes))
    outputs = tuple(i for i, v in enumerate(node.outputs) if _may_be_half(v, schema.outputs, i, shapes))
    used = _by_type(node.inputs, inputs, schema.inputs) + _by_type(node.outputs, outputs, schema.outputs)
    turned = {kind for kind, half in used if half}
    if not inputs or any(kind in turned and not half for kind, half in used):
        return None  # values that must have one type: the type of some is not known
    return inputs, outputs


def _by_type(
    values: Sequence[ir.Value | None], half: tuple[int, ...], formal: Sequence[onnx.defs.OpSchema.FormalParameter]
) -> list[tuple[str, bool]]:
    """The type variable of each value that is there, and whether it becomes float16."""
    return [
        (formal[min(i, len(formal) - 1)].type_str, i in half) for i, value in enumerate(values) if value is not None
    ]


def _is_tensor(formal: onnx.defs.OpSchema.FormalParameter) -> bool:
    """Whether a parameter may be a tensor at all: sequences keep the type of what was put into them."""
    return any(kind.startswith("tensor(") for kind in formal.types)


def _may_be_half(
    value: ir.Value | None, formal: list[onnx.defs.OpSchema.FormalParameter], index: int, shapes: Shapes
) -> bool:
    if value is None or not formal or not isinstance(value.type, ir.TensorType | None):
        return False
    types = formal[min(index, len(formal) - 1)].types
    return shapes.dtype(value) == FLOAT and "tensor(float16)" in types


def _values(node: ir.Node, slots: Slots) -> list[ir.Value]:
    """The values of a node that would become float16, constants left out."""
    inputs, outputs = slots
    read = [v for v in (node.inputs[i] for i in inputs) if v is not None and constant(v) is None]
    return [*read, *(node.outputs[i] for i in outputs)]


def _farthest(seen: Reducer) -> float:
    """The largest absolute value; 0 where nothing was seen."""
    assert isinstance(seen, MinMax)
    return max(abs(seen.low), abs(seen.high)) if np.isfinite([seen.low, seen.high]).all() else 0.0


def _misfit(node: ir.Node, slots: Slots) -> str:
    """Why the constants of a node cannot be float16, or an empty text."""
    for index in slots[0]:
        array = constant(node.inputs[index])
        if array is None or not array.size:
            continue
        finite = array[np.isfinite(array)]
        if np.abs(finite).max(initial=0.0) > LARGEST:
            return "a constant is beyond the range of float16"
        if array.size <= FEW and ((finite != 0) & (finite.astype(np.float16) == 0)).any():
            return "a constant would become zero in float16"
    return ""


def _in_company(found: Mapping[ir.Node, Slots]) -> dict[ir.Node, Slots]:
    """The nodes of those groups, joined by values that become float16, that hold a layer."""
    group = {node: node for node in found}

    def root(node: ir.Node) -> ir.Node:
        while group[node] is not node:
            group[node] = node = group[group[node]]
        return node

    for node, (inputs, _) in found.items():
        for index in inputs:
            value = node.inputs[index]
            maker = value.producer() if value is not None else None
            if maker is not None and maker in found and value in [maker.outputs[i] for i in found[maker][1]]:
                group[root(node)] = root(maker)
    paying = {root(node) for node in found if node.op_type in COMPUTE}
    return {node: slots for node, slots in found.items() if root(node) in paying}


# -- writing -----------------------------------------------------------------------------------------------------------
class _Writer:
    """Rewrites the chosen nodes of one graph; one cast of each value in each direction."""

    def __init__(self, graph: ir.Graph, edit: Edit, chosen: Mapping[ir.Node, Slots]) -> None:
        self.graph, self.edit, self.chosen = graph, edit, chosen
        self.halves: dict[ir.Value, ir.Value] = {}
        self.spent: dict[ir.Value, None] = {}

    def write(self) -> None:
        made = [node.outputs[i] for node, (_, outputs) in self.chosen.items() for i in outputs]
        self.halves.update({value: value for value in made})
        for node, (inputs, _) in self.chosen.items():
            for index in inputs:
                value = node.inputs[index]
                assert value is not None
                node.replace_input_with(index, self._half(value))
            self.edit.change("float16", node)
        for value in made:
            value.type = ir.TensorType(HALF)
            self._give_back(value)
        for value in self.spent:
            _drop(value)

    def _half(self, value: ir.Value) -> ir.Value:
        """``value`` in float16: itself, a constant turned, or a cast."""
        if value not in self.halves:
            array = constant(value)
            if array is not None:
                self.halves[value] = self._turned(value, array)
                self.spent[value] = None
            else:
                self.halves[value] = self._cast(value, HALF, f"{value.name}_half")
        return self.halves[value]

    def _turned(self, value: ir.Value, array: Array) -> ir.Value:
        return self.edit.initializer(self.graph, f"{value.name}_half", array.astype(np.float16))

    def _give_back(self, value: ir.Value) -> None:
        """Let everything that wants float32 read a cast of a value that has become float16."""
        wanting = [use for use in value.uses() if use.idx not in self.chosen.get(use.node, ((), ()))[0]]
        if not wanting and not value.is_graph_output():
            return
        if value.is_graph_output():
            name, value.name = value.name, self.edit.fresh(f"{value.name}_half")
        else:
            name = self.edit.fresh(f"{value.name}_float")
        back = self._cast(value, FLOAT, name or "", fresh=False)
        for node, index in wanting:
            node.replace_input_with(index, back)
        for i, output in enumerate(self.graph.outputs):
            if output is value:
                self.graph.outputs[i] = back

    def _cast(self, value: ir.Value, to: ir.DataType, name: str, *, fresh: bool = True) -> ir.Value:
        shape = value.shape.copy() if value.shape is not None else None
        out = ir.Value(name=self.edit.fresh(name) if fresh else name, type=ir.TensorType(to), shape=shape)
        attribute = ir.AttrInt64("to", to.value)
        node = ir.Node("", "Cast", [value], attributes=[attribute], outputs=[out], name=self.edit.fresh(f"{name}/Cast"))
        maker = value.producer()
        if maker is not None:
            self.graph.insert_after(maker, node)
        else:
            self.graph.insert_before(self.graph[0], node)
        return out


def _drop(value: ir.Value) -> None:
    """Remove a constant that nobody reads any more."""
    maker = value.producer()
    if maker is not None:
        discard(maker)
    elif value.graph is not None and not value.uses() and not value.is_graph_output() and value.name:
        value.graph.initializers.pop(value.name, None)
