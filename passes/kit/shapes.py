"""What is known of the shapes of values, derived from the inputs and the operators alone.

Declared shapes of inner values are not believed: a stranger's file may carry stale ones, and a rewrite that rests
on a wrong shape is wrong in silence. Dimensions of graph inputs are enforced by the runtime, so they are the ground.
Every unknown dimension of an input gets a symbol of its own (the runtime does not enforce that two inputs which name
a dimension alike agree), so two equal symbols mean one and the same number.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import onnx
import onnx_ir as ir

from passes.kit.model import Model

Dim = int | str | None
Dims = tuple[Dim, ...]

_PORT = "input#"
"""How the symbol of an input's dimension begins; no exporter writes a ``#``."""

_LIKE_ITS_INPUT = frozenset(
    ("com.microsoft", kind)
    for kind in ("BiasGelu", "FastGelu", "Gelu", "QLinearLeakyRelu", "QLinearSigmoid", "QLinearSoftmax", "QuickGelu")
)
"""Operators unknown to ONNX's inference whose result has the shape and the element type of their first input."""


class Shapes:
    """Shapes and element types of the values of one model, inferred on the first question."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._found: dict[ir.Value, tuple[Dims | None, ir.DataType | None]] | None = None

    @property
    def opset(self) -> int:
        """Version of the default domain, in nested graphs too."""
        return self._model.opset

    @property
    def main(self) -> ir.Graph:
        """The model's outermost graph."""
        return self._model.graph

    def port(self, symbol: Dim) -> tuple[ir.Value, int] | None:
        """The graph input and the axis that a symbol stands for, if it stands for one."""
        if not isinstance(symbol, str) or not symbol.startswith(_PORT):
            return None
        index, _, axis = symbol.removeprefix(_PORT).partition(".")
        return self.main.inputs[int(index)], int(axis)

    def of(self, value: ir.Value | None) -> Dims | None:
        """Dimensions (a number, a symbol, or ``None``), or ``None`` when not even the rank is known."""
        if value is None:
            return None
        if value.const_value is not None and not value.is_graph_input():
            return tuple(int(d) for d in value.const_value.shape.numpy())
        return self._all().get(value, (None, None))[0]

    def static(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """Dimensions, when all of them are numbers."""
        dims = self.of(value)
        if dims is None or not all(isinstance(d, int) for d in dims):
            return None
        return tuple(d for d in dims if isinstance(d, int))

    def dtype(self, value: ir.Value | None) -> ir.DataType | None:
        """Element type, inferred or else declared."""
        if value is None:
            return None
        return self._all().get(value, (None, None))[1] or value.dtype

    def rank(self, value: ir.Value | None) -> int | None:
        """Number of dimensions: derived, or else declared (a wrong rank does not load, unlike a wrong dimension)."""
        dims = self.of(value)
        if dims is not None:
            return len(dims)
        return len(value.shape) if value is not None and value.shape is not None else None

    def same(self, left: ir.Value | None, right: ir.Value | None) -> bool:
        """Whether both have the same shape for certain: equal numbers, or one and the same symbol."""
        a, b = self.of(left), self.of(right)
        return a is not None and a == b and None not in a

    def _all(self) -> dict[ir.Value, tuple[Dims | None, ir.DataType | None]]:
        if self._found is None:
            self._found = _infer(self._model)
        return self._found


def _infer(model: Model) -> dict[ir.Value, tuple[Dims | None, ir.DataType | None]]:
    scratch = model.fork()
    mine = list(_values(model))
    _forget(scratch)
    _stand_in(scratch)
    try:
        proto = scratch.to_proto(lambda tensor, _: _elsewhere(tensor))
        inferred = Model(ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True)))
    except MemoryError:
        raise  # a file that was made to unfold: whoever opened it must hear of it
    except Exception:
        inferred = scratch  # inference is a help, not a need: what the inputs say still holds
    return {v: (_dims(i), i.dtype) for v, i in zip(mine, _values(inferred), strict=True)}


def _forget(scratch: Model) -> None:
    """Drop every declared shape but those of the inputs, and name each of their unknown dimensions apart."""
    main = scratch.graph
    for index, value in enumerate(main.inputs):
        if value.shape is not None:
            dims = enumerate(value.shape)
            value.shape = ir.Shape([d if isinstance(d, int) else f"{_PORT}{index}.{axis}" for axis, d in dims])
    for graph in scratch.graphs():
        inner = () if graph is main else graph.inputs
        for value in chain(inner, (o for node in graph for o in node.outputs)):
            value.shape = None


def _stand_in(scratch: Model) -> None:
    """Let an Identity stand for operators of which inference would know nothing."""
    for node in scratch.nodes():
        if (node.domain, node.op_type) in _LIKE_ITS_INPUT and node.op_identifier() not in scratch.ir.functions:
            node.domain, node.op_type = "", "Identity"
            node.attributes.clear()
            node.resize_inputs(1)


def _values(model: Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from graph.inputs
        for node in graph:
            yield from node.outputs


def _dims(value: ir.Value) -> Dims | None:
    if value.shape is None:
        return None
    return tuple(d if isinstance(d, int) else d.value for d in value.shape)


def _elsewhere(tensor: ir.TensorProtocol) -> ir.ExternalTensor:
    shape = ir.Shape(tensor.shape.numpy())
    return ir.ExternalTensor("elsewhere", 0, tensor.nbytes, tensor.dtype, shape=shape, name="")
