"""The pass ``requantize-form``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from passes.kit.context import Context
from passes.kit.contract import Edit, Exactness, Pass, PassResult
from passes.kit.match import attribute, given
from passes.kit.model import Model, constant
from passes.kit.target import Target
from passes.quantize.int8_families import DEQUANTIZE, QUANTIZE, Family, families, firm

Array = np.ndarray[Any, Any]

SHIFT = 128
NAMES = {ir.DataType.INT8: "int8", ir.DataType.UINT8: "uint8"}
KINDS = {name: kind for kind, name in NAMES.items()}
CLIP_OF_INTEGERS = 12
"""The opset from which Clip takes 8-bit integers; a Relu of int8 becomes one."""


@dataclass(frozen=True)
class RequantizeForm(Pass):
    """Give a quantized model the integer types that the target runs fast, without changing what it computes.

    What it does
        Activations and weights that are int8 where the target wants uint8 (or the other way round) move by 128 together
        with their zero points: ``scale * (q - z) = scale * ((q + 128) - (z + 128))`` (Jacob et al. 2018, arXiv
        1712.05877, equation 1). On x86 only unsigned activations with signed weights reach the fast kernels, while
        signed activations, the default of onnxruntime's ``quantize_static``, run a reference kernel. Operators
        that carry integers (MaxPool, Reshape, Pad ...) follow; Clip and the filling of Pad move too, and a Relu of
        int8 becomes a Clip. QLinearAdd rounds differently for either type, so it keeps its own, between a
        DequantizeLinear and a QuantizeLinear that change the type without changing the number.

    When it applies
        To QuantizeLinear and DequantizeLinear around float operators (QDQ), and to QLinearConv, QLinearMatMul, QGemm,
        QLinearAdd and their like, ConvInteger and MatMulInteger (QOperator). Run it on other people's quantized files.

    When it refuses
        Values that callers see, that unknown operators read or make, whose zero points are computed, or that reach
        into the bodies of If, Loop and Scan. Where unsigned activations could saturate an intermediate sum on the
        target (weights beyond its range), since then the numbers would change.

    Exactness
        EXACT. The same integers up to a shift that the zero points take back.
    """

    name: ClassVar[str] = "requantize-form"
    exactness: ClassVar[Exactness] = Exactness.EXACT

    def apply(self, model: Model, context: Context) -> PassResult:
        fork = model.fork()
        edit = Edit(fork)
        for graph in list(fork.graphs()):
            found = families(graph)
            weights = [f for f in found if f.follows and not f.leads]
            for family in [*weights, *(f for f in found if f not in weights)]:
                _settle(family, graph, context.target, fork.opset, edit)
        return PassResult(fork if edit.changes else model, tuple(edit.changes), tuple(edit.skips))


def _settle(family: Family, graph: ir.Graph, target: Target, opset: int, edit: Edit) -> None:
    """Move one family to the type that the target wants for its role, or say why it stays."""
    role = "weight" if family.follows and not family.leads else "activation"
    wanted = KINDS.get(target.weight if role == "weight" else target.activation)
    between = bool(family.firm_makers or family.firm_readers) and not (family.leads or family.follows)
    if wanted is None or wanted == family.dtype or not family.zeros or between:
        return
    where = family.values[0]
    trouble = family.trouble or _saturates(family, role, target)
    if not trouble and opset < CLIP_OF_INTEGERS and any(n.op_type == "Relu" for n in family.moved):
        trouble = f"a Relu of integers needs opset {CLIP_OF_INTEGERS}"
    if trouble:
        edit.skip("form", where, trouble)
        return
    _Move(family, graph, wanted, edit).run()
    edit.change("form", where, f"{role}: {NAMES[family.dtype]} to {NAMES[wanted]}")


def _saturates(family: Family, role: str, target: Target) -> str:
    """Why unsigned activations with these signed weights could overflow 16 bits on the target, else an empty text."""
    if target.weight_range >= 127 or target.activation != "uint8":
        return ""
    held = [constant(v) for v in (family.values if role == "weight" else family.partners)]
    shift = SHIFT if role == "weight" else 0
    reach = max((int(np.abs(a.astype(np.int64) - shift).max(initial=0)) for a in held if a is not None), default=0)
    if reach <= target.weight_range and all(a is not None for a in held):
        return ""
    return (
        f"weights reach {reach}: with unsigned activations, sums saturate beyond {target.weight_range} on this target"
    )


class _Move:
    """Adds or takes away 128 wherever the integers of one family, or their zero, are written."""

    def __init__(self, family: Family, graph: ir.Graph, wanted: ir.DataType, edit: Edit) -> None:
        self._family, self._graph, self._edit = family, graph, edit
        self._wanted, self._name = wanted, NAMES[wanted]
        self._shift = SHIFT if wanted == ir.DataType.UINT8 else -SHIFT
        self._made: dict[tuple[ir.Value | None, tuple[int, ...]], ir.Value] = {}
        self._back: dict[tuple[ir.Value | None, ...], ir.Value] = {}

    def run(self) -> None:
        for node in self._family.firm_makers:
            self._bridge_out(node)
        for node, index in self._family.firm_readers:
            self._bridge_in(node, index)
        for node, index in self._family.zeros:
            self._zero(node, index)
        for node in self._family.moved:
            self._carrier(node)
        for value in self._family.values:
            if constant(value) is not None:
                self._replace_constant(value)
            elif not any(value is node.outputs[0] for node in self._family.firm_makers):
                value.type = ir.TensorType(self._wanted)

    # -- ends of the family --------------------------------------------------------------------------------------
    def _bridge_out(self, node: ir.Node) -> None:
        """What a firm operator gives in its own type, the family reads in the new one."""
        form, old = firm(node), node.outputs[0]
        assert form is not None and form.result is not None
        scale, zero = given(node, form.result - 1), given(node, form.result)
        readers = [(n, i) for n, i in old.uses() if firm(n) is None]
        new = self._bridge(old, scale, zero, self._moved_zero(zero), self._wanted, node)
        for reader, index in readers:
            reader.replace_input_with(index, new)

    def _bridge_in(self, node: ir.Node, index: int) -> None:
        """What the family gives in the new type, a firm operator reads in the old one; its own output needs nothing."""
        value, scale, zero = node.inputs[index], given(node, index + 1), given(node, index + 2)
        if value is None or value.producer() in self._family.firm_makers or constant(value) is not None:
            return
        if (value, scale, zero) not in self._back:
            back = self._bridge(value, scale, self._moved_zero(zero), zero, self._family.dtype, value.producer())
            self._back[value, scale, zero] = back
        node.replace_input_with(index, self._back[value, scale, zero])

    def _moved_zero(self, zero: ir.Value | None) -> ir.Value:
        held = constant(zero)
        return self._shifted(zero, np.zeros((), NAMES[self._family.dtype]) if held is None else held)

    def _bridge(
        self,
        value: ir.Value,
        scale: ir.Value | None,
        zero: ir.Value | None,
        new_zero: ir.Value | None,
        wanted: ir.DataType,
        after: ir.Node | None,
    ) -> ir.Value:
        assert after is not None
        name = value.name or "value"
        real = ir.node(DEQUANTIZE, [value, scale, zero], name=self._edit.fresh(f"{name}_real"))
        back = ir.node(QUANTIZE, [real.outputs[0], scale, new_zero], name=self._edit.fresh(f"{name}_{NAMES[wanted]}"))
        real.outputs[0].name = self._edit.fresh(f"{name}_real")
        back.outputs[0].name = self._edit.fresh(f"{name}_{NAMES[wanted]}")
        real.outputs[0].type, back.outputs[0].type = ir.TensorType(ir.DataType.FLOAT), ir.TensorType(wanted)
        self._graph.insert_after(after, [real, back])
        return back.outputs[0]

    # -- inside the family ---------------------------------------------------------------------------------------
    def _shifted(self, old: ir.Value | None, array: Array) -> ir.Value:
        """An initializer with every element moved; made once for each old value."""
        key = (old, array.shape)
        if key not in self._made:
            moved = (array.astype(np.int16) + self._shift).astype(self._name)
            wish = f"{old.name if old is not None else 'zero_point'}_{self._name}"
            self._made[key] = self._edit.initializer(self._graph, wish, moved)
        return self._made[key]

    def _zero(self, node: ir.Node, index: int) -> None:
        old = given(node, index)
        array = constant(old)
        if array is None:
            array = np.zeros(self._scale_shape(node, index), NAMES[self._family.dtype])
        _put(node, index, self._shifted(old, array))
        if node.op_type == QUANTIZE:
            node.attributes.pop("output_dtype", None)
        _drop_dead(old, self._graph)

    def _scale_shape(self, node: ir.Node, index: int) -> tuple[int, ...]:
        """A zero point that is left out is zero, in the shape of the scale that stands before it."""
        if node.op_type in ("ConvInteger", "MatMulInteger", "MatMulIntegerToFloat"):
            return ()
        scale = given(node, index - 1)
        held = constant(scale)
        if held is not None:
            return tuple(int(d) for d in held.shape)
        return () if scale is None or scale.shape is None else tuple(int(d) for d in scale.shape.numpy())

    def _carrier(self, node: ir.Node) -> None:
        if node.op_type == "Clip":
            for index in (1, 2):
                self._zero_like(node, index)
        elif node.op_type == "Pad" and attribute(node, "mode", "constant") == "constant":
            self._zero_like(node, 2, fill=True)
        elif node.op_type == "Relu":
            node.op_type = "Clip"
            _put(node, 1, self._shifted(None, np.zeros((), NAMES[self._family.dtype])))

    def _zero_like(self, node: ir.Node, index: int, fill: bool = False) -> None:
        """Move a limit or a filling that is written as an input; what is left out of a Pad is an integer zero."""
        old = given(node, index)
        array = constant(old)
        if array is not None or fill:
            held = array if array is not None else np.zeros((), NAMES[self._family.dtype])
            _put(node, index, self._shifted(old, held))
            _drop_dead(old, self._graph)

    def _replace_constant(self, value: ir.Value) -> None:
        """A constant of the family becomes a new one for the readers that belong to the family."""
        array = constant(value)
        assert array is not None
        new = self._shifted(value, array)
        for reader, index in list(value.uses()):
            if firm(reader) is None:
                reader.replace_input_with(index, new)
        _drop_dead(value, self._graph)


def _put(node: ir.Node, index: int, value: ir.Value) -> None:
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)


def _drop_dead(value: ir.Value | None, graph: ir.Graph) -> None:
    """Remove a constant that nobody reads any more."""
    if value is None or value.uses() or value.is_graph_output() or value.is_graph_input():
        return
    maker = value.producer()
    if maker is not None and maker.graph is graph:
        graph.remove(maker, safe=True)
    elif maker is None and value.name and value.name in graph.initializers:
        del graph.initializers[value.name]
