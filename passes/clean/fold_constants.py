"""Compute at compile time what does not depend on the inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from passes.clean.dims import KnownDims
from passes.clean.evaluate import NotFoldable, TooLarge, can_evaluate, evaluate
from passes.kit.context import Context
from passes.kit.contract import Edit, Exactness, Pass, PassResult
from passes.kit.match import (
    attribute,
    become_constant,
    compute,
    discard,
    forward,
    given,
    is_op,
    rewrite,
    sole_consumer,
)
from passes.kit.model import Model, SharedTensor, constant
from passes.kit.options import option
from passes.kit.shapes import Shapes

_COPY, _INFER = 0, -1
"""What these numbers mean in the target of a Reshape."""

TOO_LARGE = "fold-too-large"
"""The rule of those skips that say how large a constant would be."""


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Replace what does not depend on the inputs by its value.

    What it does
        Constant nodes become initializers. Nodes whose inputs are all constant are computed: data movement, integer
        and boolean arithmetic, comparisons, and + - * / sqrt on floats. Shape, and what is picked out of it, is
        computed as far as dimensions are fixed: with dims [batch, 3, 32, 32], Gather(Shape(x), 1) is 3. A Reshape
        whose target is computed from the dimensions of its own input gets a constant target, with 0 for a dimension
        that is copied and -1 for the one that is left over. A dimension of a graph input that is read off some
        later value is read off the input, so that equal chains become common subexpressions. An If whose condition
        is constant is replaced by the branch that it takes.

    When it applies
        To every graph, nested ones too. Shapes are derived from the inputs and the operators; shapes that the file
        declares for inner values are not believed. The convolution biases of unoptimized exports arrive as
        Shape / Expand / CastLike chains: they become plain initializers, which fold-batchnorm needs.

    When it refuses
        Results larger than ``max-bytes``, or beyond ``max-growth-bytes`` together with those before them, unless they
        replace at least as many bytes. Operators whose last bits are
        the runtime's own (Exp, Erf, Pow, reductions over floats), random ones, casts to floats of 16 and 8 bits, and
        casts out of an integer's range. Values that are graph outputs, and initializers that a caller may override.

    Exactness
        EXACT. Every operation in the table is defined to the last bit: integers, moves, and the float operations
        that IEEE 754-2019 (section 5.4.1) requires to be rounded correctly.
    """

    name: ClassVar[str] = "fold-constants"
    exactness: ClassVar[Exactness] = Exactness.EXACT

    max_bytes: int = option(
        1 << 20, "largest constant that may be made, in bytes, when it does not replace as many", low=0, high=2**31
    )
    max_growth_bytes: int = option(
        1 << 24, "how many bytes of constants all foldings together may add", low=0, high=2**31
    )

    def apply(self, model: Model, context: Context) -> PassResult:
        room = _Room(self.max_growth_bytes)  # many small constants are as large as a big one
        return rewrite(model, lambda graph, edit, shapes: self._fold(graph, edit, shapes, room), context)

    def _fold(self, graph: ir.Graph, edit: Edit, shapes: Shapes, room: _Room) -> None:
        opset = shapes.opset
        known = KnownDims(shapes)
        origins: dict[str, ir.Value] = {}
        for node in list(graph):
            if node.graph is None:
                continue  # swept together with an earlier one
            if node.op_type == "Constant":
                _lift(node, edit)
            elif is_op(node, "If"):
                _take_branch(node, graph, edit)
            elif not (
                self._fold_node(node, opset, edit, shapes, room)
                or _fold_dims(node, known, edit)
                or _fix_reshape(node, known, shapes, opset, edit)
            ):
                _read_from_input(node, graph, known, origins, opset, edit)

    def _fold_node(self, node: ir.Node, opset: int, edit: Edit, shapes: Shapes, room: _Room) -> bool:
        if not can_evaluate(node) or node.outputs[0].is_graph_output():
            return False
        inputs = [_input(node, i, shapes) for i in range(len(node.inputs))]
        if any(v is not None and held is None for v, held in zip(node.inputs, inputs, strict=True)):
            return False
        try:
            freed = _freed(node)
            result = evaluate(node, inputs, opset, max(freed, min(self.max_bytes, room.left)))
        except TooLarge as error:
            option = f"max-bytes = {self.max_bytes:,} or max-growth-bytes = {self.max_growth_bytes:,}"
            edit.skip(TOO_LARGE, node, f"the result takes {error}, more than {option} allows")
            return False
        except NotFoldable as error:
            edit.skip("fold", node, str(error))
            return False
        if not edit.allows("fold", node):
            return False
        edit.change("fold", node, node.op_type)
        room.left -= max(0, result.nbytes - freed)
        return become_constant(edit, node.outputs[0], result)


@dataclass
class _Room:
    """Bytes that foldings may still add."""

    left: int


def _freed(node: ir.Node) -> int:
    """Bytes of constants that go when the node goes."""
    held = [v.const_value for v in dict.fromkeys(node.inputs) if v is not None and sole_consumer(v) is node]
    return sum(tensor.nbytes for tensor in held if tensor is not None)


def _input(node: ir.Node, index: int, shapes: Shapes) -> np.ndarray | None:  # type: ignore[type-arg]
    """The constant at an input. Where only the shape or the type matters, a stand-in of that shape will do."""
    value = node.inputs[index]
    held = constant(value)
    if held is not None or value is None:
        return held
    if is_op(node, "Shape", "Size") and (dims := shapes.static(value)) is not None:
        return np.broadcast_to(np.zeros((), np.bool_), dims)
    if is_op(node, "CastLike") and index == 1 and (dtype := shapes.dtype(value)) is not None:
        return np.zeros(0, dtype.numpy())
    return None


def _lift(node: ir.Node, edit: Edit) -> None:
    """A Constant node becomes an initializer that shares its tensor."""
    value = node.outputs[0]
    if value.is_graph_output() or node.graph is None or "sparse_value" in node.attributes:
        return
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None or not isinstance(node.graph, ir.Graph) or not edit.allows("constant", node):
        return
    edit.change("constant", node, "node -> initializer")
    name = edit.fresh(f"{value.name}_value")
    shape = ir.Shape(tensor.shape.numpy())
    held: ir.TensorProtocol = SharedTensor(tensor, name)
    if tensor.dtype == ir.DataType.STRING:
        held = ir.StringTensor(np.array(tensor.numpy(), object), shape=shape, name=name)
    new = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=held)
    node.graph.register_initializer(new)
    value.replace_all_uses_with(new)
    discard(node)


def _fold_dims(node: ir.Node, known: KnownDims, edit: Edit) -> bool:
    """A value made of dimensions that are all fixed is a constant."""
    value = node.outputs[0] if len(node.outputs) == 1 else None
    dims = known.of(value)
    if value is None or dims is None or value.is_graph_output() or not all(isinstance(d, int) for d in dims.items):
        return False
    if not edit.allows("fold-dims", node):
        return False
    edit.change("fold-dims", node, node.op_type)
    return become_constant(edit, value, np.array(dims.items, np.int64).reshape(dims.shape))


def _fix_reshape(node: ir.Node, known: KnownDims, shapes: Shapes, opset: int, edit: Edit) -> bool:
    """Give a Reshape a constant target when its computed one is known up to copies and one leftover."""
    if not is_op(node, "Reshape") or opset < 5 or node.inputs[0] is None or constant(node.inputs[1]) is not None:
        return False
    wanted, source = known.of(node.inputs[1]), shapes.of(node.inputs[0])
    if wanted is None or wanted.shape == () or source is None or not isinstance(node.graph, ir.Graph):
        return False
    result = shapes.of(node.outputs[0]) or (None,) * len(wanted.items)
    if len(result) != len(wanted.items):
        return False
    target: list[int] = []
    for axis, (asked, got) in enumerate(zip(wanted.items, result, strict=True)):
        dim = got if asked is None else asked
        if isinstance(dim, int):
            if dim == _COPY or dim < _INFER:
                return False
            target.append(dim)
        else:
            copied = dim is not None and axis < len(source) and dim == source[axis]
            target.append(_COPY if copied else _INFER)
    leftover = target.count(_INFER)
    # Beside a copied dimension that is 0 at run time, -1 has no answer, where the computed target had one.
    if leftover > 1 or (leftover and _COPY in target and _INFER not in wanted.items):
        return False
    if not edit.allows("reshape-target", node):
        return False
    edit.change("reshape-target", node, str(target))
    held = edit.initializer(node.graph, f"{node.outputs[0].name}_shape", np.array(target, np.int64))
    compute(edit, node.outputs[0], "Reshape", [node.inputs[0], held])
    return True


def _read_from_input(
    node: ir.Node, graph: ir.Graph, known: KnownDims, origins: dict[str, ir.Value], opset: int, edit: Edit
) -> None:
    """Read one free dimension off the graph input that it belongs to, once for the whole graph."""
    value = node.outputs[0] if len(node.outputs) == 1 else None
    dims = known.of(value)
    if value is None or dims is None or dims.shape != (1,) or opset < 15 or value.is_graph_output():
        return
    symbol = dims.items[0]
    port = known.port(graph, symbol)
    if not isinstance(symbol, str) or port is None or not edit.allows("dim-of-input", node):
        return
    source, axis = port
    maker = origins[symbol].producer() if symbol in origins else None
    if maker is not None and maker.graph is not graph:
        del origins[symbol]  # it was swept with the last one that read it
    if is_op(node, "Shape") and node.inputs[0] is source:
        origins.setdefault(symbol, value)
        if origins[symbol] is not value:
            edit.change("dim-of-input", node, symbol)
            forward(value, origins[symbol])
        return
    if symbol not in origins:
        shape = ir.Node(
            "",
            "Shape",
            [source],
            attributes=[ir.AttrInt64("start", axis), ir.AttrInt64("end", axis + 1)],
            outputs=[ir.Value(name=edit.fresh(f"{source.name}_dim{axis}"), type=ir.TensorType(ir.DataType.INT64))],
            name=edit.fresh(f"{source.name}_dim{axis}/Shape"),
        )
        shape.outputs[0].shape = ir.Shape([1])
        graph.insert_before(graph[0], shape)
        origins[symbol] = shape.outputs[0]
    edit.change("dim-of-input", node, symbol)
    forward(value, origins[symbol])


def _take_branch(node: ir.Node, graph: ir.Graph, edit: Edit) -> None:
    """Replace an If with a constant condition by the nodes of the branch that it takes."""
    condition = constant(given(node, 0))
    if condition is None or condition.size != 1:
        return
    branch = attribute(node, "then_branch" if condition.reshape(-1)[0] else "else_branch", None)
    if not isinstance(branch, ir.Graph) or len(branch.outputs) != len(node.outputs):
        return
    inner = list(branch.outputs)
    if any(o.graph is not branch or o.producer() is None for o in inner) or len(set(inner)) != len(inner):
        edit.skip("take-branch", node, "the branch hands a value through")
        return
    if not edit.allows("take-branch", node):
        return
    edit.change("take-branch", node, "then" if condition.reshape(-1)[0] else "else")
    branch.outputs.clear()
    for value in list(branch.initializers.values()):
        assert value.name is not None and value.const_value is not None
        branch.initializers.pop(value.name)
        value.name = edit.fresh(f"{value.name}_inlined")
        graph.register_initializer(value)
    moved = list(branch)
    branch.remove(moved)
    for step in moved:
        step.name = edit.fresh(f"{step.name or step.op_type}_inlined")
        for output in step.outputs:
            if output.name:
                output.name = edit.fresh(f"{output.name}_inlined")
    graph.insert_before(node, moved)
    for old, new in zip(list(node.outputs), inner, strict=True):
        if old.uses() or old.is_graph_output():
            _hand_over(old, new)
    discard(node)


def _hand_over(old: ir.Value, new: ir.Value) -> None:
    """``forward`` without sweeping: the If goes as a whole afterwards."""
    if old.is_graph_output():
        old.name, new.name = new.name, old.name
        new.type, new.shape = old.type, old.shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)
