"""Families of 8-bit values: which tensors of a quantized graph must change their integer type together.

A tensor ``q`` with zero point ``z`` stands for ``scale * (q - z)``; so do ``q + 128`` and ``z + 128`` (Jacob et al.
2018, arXiv 1712.05877, equation 1), and int8 plus 128 is exactly uint8. What ties tensors together lies between a
quantization and its dequantization: operators that move integers without computing, and kernels that want one type.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from passes.kit.match import attribute, given
from passes.kit.model import constant

EIGHT = (ir.DataType.INT8, ir.DataType.UINT8)
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
DOMAINS = ("", "ai.onnx", "com.microsoft")


@dataclass(frozen=True)
class Form:
    """Where an integer operator has its 8-bit operands and their zero points: pairs of input indices.

    ``tied`` operands and the result (whose zero point is input ``result``, ``None`` when it is not 8-bit) have one type
    in onnxruntime's kernels; the type of the ``right`` operand, the weight as a rule, is its own.
    """

    tied: tuple[tuple[int, int], ...]
    right: tuple[int, int] | None = None
    result: int | None = None


_UNARY = Form(((0, 2),), None, 4)
_BINARY = Form(((0, 2), (3, 5)), None, 7)
FORMS = {
    "QLinearConv": Form(((0, 2),), (3, 5), 7),
    "QLinearMatMul": Form(((0, 2),), (3, 5), 7),
    "QGemm": Form(((0, 2),), (3, 5), 8),
    "ConvInteger": Form(((0, 2),), (1, 3)),
    "MatMulInteger": Form(((0, 2),), (1, 3)),
    "MatMulIntegerToFloat": Form(((0, 4),), (1, 5)),
    "QLinearMul": _BINARY,
    "QLinearAveragePool": _UNARY,
    "QLinearGlobalAveragePool": _UNARY,
    "QLinearLeakyRelu": _UNARY,
    "QLinearReduceMean": _UNARY,
    "QLinearSigmoid": _UNARY,
    "QLinearSoftmax": _UNARY,
}
"""Integer operators of onnx and onnxruntime. QLinearConcat counts its operands itself."""

FIRM = {"QLinearAdd": Form(((0, 2), (3, 5)), None, 7)}
"""Operators that keep their type: onnxruntime's kernel folds the zero points into a float, so that a shift by 128 moves
some of its ties. A family ends there; a DequantizeLinear and a QuantizeLinear on the same grid change the type exactly.
"""

CARRIERS = {
    **dict.fromkeys(("Clip", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND"), (0,)),
    **dict.fromkeys(("Identity", "MaxPool", "Pad", "Relu", "Reshape", "Resize", "Slice", "SpaceToDepth"), (0,)),
    **dict.fromkeys(("Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"), (0,)),
    "Where": (1, 2),
}
"""Operators that move or pick integers, with the inputs that they take them from. Concat takes all of its inputs."""

BLIND = ("Shape", "Size", "ArgMax", "ArgMin")
"""Operators to which a shift by 128 makes no difference."""

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass
class Family:
    """Values of one 8-bit type that change together, and every place where their zero point is written.

    ``zeros`` are (node, index of the zero point among its inputs); ``firm_readers`` (node, index of the value) and
    ``firm_makers`` are the operators where the family ends. ``trouble`` says why it cannot change. ``leads`` when it is
    an activation, ``follows`` when it is the right operand of a layer; ``partners`` are the right operands beside it.
    """

    dtype: ir.DataType
    values: list[ir.Value] = field(default_factory=list)
    zeros: list[tuple[ir.Node, int]] = field(default_factory=list)
    moved: list[ir.Node] = field(default_factory=list)
    partners: list[ir.Value] = field(default_factory=list)
    firm_readers: list[tuple[ir.Node, int]] = field(default_factory=list)
    firm_makers: list[ir.Node] = field(default_factory=list)
    leads: bool = False
    follows: bool = False
    trouble: str = ""


def form_of(node: ir.Node) -> Form | None:
    """The form of an integer operator, or ``None``."""
    if node.domain not in DOMAINS:
        return None
    if node.op_type == "QLinearConcat":
        return Form(tuple((i, i + 2) for i in range(2, len(node.inputs), 3)), None, 1)
    return FORMS.get(node.op_type)


def firm(node: ir.Node) -> Form | None:
    """The form of an integer operator that keeps its type, or ``None``."""
    return FIRM.get(node.op_type) if node.domain in DOMAINS else None


def families(graph: ir.Graph) -> list[Family]:
    """The families of the 8-bit values of ``graph``, in graph order; constants belong to who reads them."""
    seen: set[ir.Value] = set()
    found = []
    for value in _eight_bit(graph):
        if value not in seen:
            family = _Flood(value, graph).family
            seen.update(family.values)
            found.append(family)
    return found


def _eight_bit(graph: ir.Graph) -> Iterator[ir.Value]:
    """Every 8-bit value that an integer operator reads or makes: data, not zero points."""
    for node in graph:
        form = form_of(node)
        if form is not None:
            pairs = (*form.tied, *([form.right] if form.right else []))
            yield from (v for i, _ in pairs if (v := given(node, i)) is not None and eight(v) is not None)
        elif node.op_type in (QUANTIZE, DEQUANTIZE) and node.domain in DOMAINS:
            value = node.outputs[0] if node.op_type == QUANTIZE else node.inputs[0]
            if value is not None and eight(value) is not None:
                yield value


def eight(value: ir.Value) -> ir.DataType | None:
    """The 8-bit type of a value, by what makes it, else by what is declared; ``None`` for any other type."""
    held = constant(value)
    if held is not None:
        return {"int8": ir.DataType.INT8, "uint8": ir.DataType.UINT8}.get(str(held.dtype))
    maker = value.producer()
    if maker is not None and maker.op_type == QUANTIZE:
        zero = given(maker, 2)
        if zero is None:
            wanted = attribute(maker, "output_dtype", 0)
            kind = ir.DataType(wanted) if wanted else ir.DataType.UINT8
            return kind if kind in EIGHT else None
        return eight(zero) if constant(zero) is not None else (zero.dtype if zero.dtype in EIGHT else None)
    form = None if maker is None else form_of(maker) or firm(maker)
    if maker is not None and form is not None and form.result is not None:
        zero = given(maker, form.result)
        return eight(zero) if zero is not None and constant(zero) is not None else None
    if maker is not None and maker.op_type in (*CARRIERS, "Concat"):
        source = given(maker, CARRIERS.get(maker.op_type, (0,))[0])
        return None if source is None or source is value else eight(source)
    return value.dtype if value.dtype in EIGHT else None


class _Flood:
    """Everything that one 8-bit value is tied to."""

    def __init__(self, start: ir.Value, graph: ir.Graph) -> None:
        dtype = eight(start)
        assert dtype is not None
        self.family, self._graph = Family(dtype), graph
        self._queue = [start]
        while self._queue:
            value = self._queue.pop()
            if value not in self.family.values:
                self.family.values.append(value)
                self._made(value)
                for node, index in value.uses():
                    self._read(value, node, index)

    def _refuse(self, reason: str) -> None:
        self.family.trouble = self.family.trouble or reason

    def _made(self, value: ir.Value) -> None:
        if value.is_graph_input() or value.is_graph_output():
            self._refuse("callers see it as an input or output of the model")
        maker = value.producer()
        if maker is None:
            if constant(value) is None and not value.is_graph_input():
                self._refuse("it is not known where it comes from")
        elif maker.op_type == "Constant":
            return
        elif maker.op_type == QUANTIZE and maker.domain in DOMAINS:
            self._zero(maker, 2)
        elif firm(maker) is not None:
            self.family.firm_makers.append(maker)
        elif form_of(maker) is not None:
            self._kernel(maker)
        elif maker.op_type in (*CARRIERS, "Concat"):
            self._carried(maker)
        else:
            self._refuse(f"{maker.op_type} makes it")

    def _read(self, value: ir.Value, node: ir.Node, index: int) -> None:
        if node.graph is not self._graph:
            self._refuse("it is read inside the body of an If, Loop or Scan")
        elif node.op_type == DEQUANTIZE and node.domain in DOMAINS and index == 0:
            self._zero(node, 2)
            self._rank_readers(node)
        elif (form := firm(node)) is not None and any(index == i for i, _ in form.tied):
            self.family.firm_readers.append((node, index))
        elif (form := form_of(node)) is not None and form.right is not None and index == form.right[0]:
            self._zero(node, form.right[1])
            self.family.follows = True
        elif form is not None and any(index == i for i, _ in form.tied):
            self._kernel(node)
        elif node.op_type in (*CARRIERS, "Concat") and node.domain in ("", "ai.onnx"):
            self._carried(node)
        elif node.op_type not in BLIND:
            self._refuse(f"{node.op_type} reads it")

    def _rank_readers(self, node: ir.Node) -> None:
        """Whether the dequantized value is the right operand of layers, or what else reads it (but for a new grid)."""
        for reader, index in node.outputs[0].uses():
            if reader.op_type in LAYERS and index == 1:
                self.family.follows = True
            elif reader.op_type != QUANTIZE and not (reader.op_type in LAYERS and index == 2):
                self.family.leads = True
                weight = given(reader, 1) if reader.op_type in LAYERS else None
                maker = weight.producer() if weight is not None else None
                if maker is not None and maker.op_type == DEQUANTIZE and maker.inputs[0] is not None:
                    self.family.partners.append(maker.inputs[0])

    def _kernel(self, node: ir.Node) -> None:
        form = form_of(node)
        assert form is not None
        self.family.leads = True
        for index, zero in form.tied:
            value = given(node, index)
            if value is not None:
                self._queue.append(value)
                self._zero(node, zero)
        if form.result is not None and (given(node, form.result) is not None or node.op_type != "QGemm"):
            self._queue.append(node.outputs[0])
            self._zero(node, form.result)
        right = given(node, form.right[0]) if form.right else None
        if right is not None:
            self.family.partners.append(right)

    def _carried(self, node: ir.Node) -> None:
        if node.op_type == "Resize" and attribute(node, "mode", "nearest") != "nearest":
            return self._refuse("Resize computes with its integers")
        if node.op_type == "Resize" and attribute(node, "coordinate_transformation_mode", "") == "tf_crop_and_resize":
            return self._refuse("Resize fills in a value of its own")
        if node.op_type in ("Clip", "Pad") and any(
            v is not None and constant(v) is None for v in node.inputs[1 if node.op_type == "Clip" else 2 :][:2]
        ):
            return self._refuse(f"the limits or the filling of {node.op_type} are computed")
        if node.op_type not in ("Clip", "Pad", "Relu"):
            indices = CARRIERS.get(node.op_type, tuple(range(len(node.inputs))))
            self._queue += [v for i in indices if (v := given(node, i)) is not None]
        elif node.inputs[0] is not None:
            self._queue.append(node.inputs[0])
        outputs = node.outputs if node.op_type == "Split" else node.outputs[:1]
        self._queue += [o for o in outputs if o.name]
        if node not in self.family.moved:
            self.family.moved.append(node)
        return None

    def _zero(self, node: ir.Node, index: int) -> None:
        zero = given(node, index)
        if zero is not None and constant(zero) is None:
            self._refuse("its zero point is computed")
        if attribute(node, "block_size", 0):
            self._refuse("it is quantized in blocks")
        if (node, index) not in self.family.zeros:
            self.family.zeros.append((node, index))
