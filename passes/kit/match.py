"""Reading and rewiring graphs: who made a value, who needs it, and how to replace it without losing its name.

Every function takes and leaves a graph in which each value has one producer. A value's producer may stand in an
outer graph, and its consumers may stand in nested ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from passes.kit.context import Context, forbidden
from passes.kit.contract import Edit, PassResult
from passes.kit.model import Model, constant
from passes.kit.shapes import Shapes

ONNX = ("", "ai.onnx")

UNLISTED_INITIALIZERS_IR = 4
"""The first IR version in which an initializer need not be listed as a graph input."""

Rewrite = Callable[[ir.Graph, Edit, Shapes], None]


def rewrite(model: Model, rule: Rewrite, context: Context | None = None, *, rounds: int = 10) -> PassResult:
    """Fork ``model`` and run ``rule`` on each of its graphs, nested ones too, until nothing changes any more.

    ``rule`` edits the graph in place, reports to the :class:`Edit` and may ask :class:`Shapes` about the values
    that were there when its round began. With ``context`` the edit knows which single rewrites must be left out.
    """
    fork = model.fork()
    edit = Edit(fork, forbidden(context))
    for _ in range(rounds):
        before = len(edit.changes)
        shapes = Shapes(fork)
        for graph in list(fork.graphs()):
            rule(graph, edit, shapes)
        if len(edit.changes) == before:
            break
    if not edit.changes:
        return PassResult(model, (), tuple(edit.skips))
    allow_unlisted_initializers(fork)
    return PassResult(fork, tuple(edit.changes), tuple(edit.skips))


def allow_unlisted_initializers(fork: Model) -> None:
    """Raise the IR version of an old model that now holds initializers which are not graph inputs."""
    if fork.ir.ir_version < UNLISTED_INITIALIZERS_IR:
        listed = {v.name for v in fork.graph.inputs}
        if any(name not in listed for graph in fork.graphs() for name in graph.initializers):
            fork.ir.ir_version = UNLISTED_INITIALIZERS_IR


# -- reading ------------------------------------------------------------------------------------------------------
def is_op(node: ir.Node | None, *ops: str) -> bool:
    """Whether ``node`` is one of these operators of the default ONNX domain."""
    return node is not None and node.domain in ONNX and node.op_type in ops


def made_by(value: ir.Value | None, *ops: str) -> ir.Node | None:
    """The node that makes ``value`` as its first output, if it is one of ``ops`` of the default domain."""
    node = value.producer() if value is not None else None
    return node if is_op(node, *ops) and node is not None and node.outputs[0] is value else None


def is_free(value: ir.Value) -> bool:
    """Whether nobody needs ``value``: no consumer and no graph output."""
    return not value.uses() and not value.is_graph_output()


def sole_consumer(value: ir.Value) -> ir.Node | None:
    """The one node of the same graph that consumes ``value`` once, if nobody else needs it."""
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output():
        return None
    node = next(iter(uses)).node
    return node if node.graph is value.graph else None


def given(node: ir.Node, index: int) -> ir.Value | None:
    """The input at ``index``, or ``None`` when it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """The value of an attribute, or ``default``. Text is decoded; lists come as tuples."""
    found = node.attributes.get(name)
    if found is None or found.is_ref():
        return default
    value = found.value
    return tuple(value) if isinstance(value, (list, tuple)) else value


def number(value: ir.Value | None) -> float | None:
    """The number that a one-element constant of rank 0 or 1 holds, else ``None``: it broadcasts without new axes."""
    array = constant(value)
    if array is None or array.size != 1 or array.ndim > 1 or array.dtype.kind not in "fiu":
        return None
    return float(array.reshape(-1)[0])


def operands(node: ir.Node) -> Iterator[tuple[ir.Value, ir.Value]]:
    """The two operands of a commutative node, in both orders."""
    if len(node.inputs) == 2 and node.inputs[0] is not None and node.inputs[1] is not None:
        yield node.inputs[0], node.inputs[1]
        yield node.inputs[1], node.inputs[0]


def with_number(node: ir.Node | None) -> tuple[ir.Value, float] | None:
    """The operand and the constant of a commutative node that has one constant number, in either order."""
    for variable, other in operands(node) if node is not None else ():
        held = number(other)
        if held is not None and number(variable) is None:
            return variable, held
    return None


def near(held: float | None, wanted: float, dtype: ir.DataType | None = ir.DataType.FLOAT) -> bool:
    """Whether ``held`` is ``wanted`` up to eight units in the last place of ``dtype``.

    A constant that is off by the relative error r moves an activation function by less than r times its largest
    output; eight units of float32 (9.5e-7) stay inside the floor of NUMERIC, and cover the literals that exporters
    write (0.7978845608, 1.41421354).
    """
    if held is None or not np.isfinite(held):
        return False
    unit = {ir.DataType.FLOAT16: 2.0**-10, ir.DataType.DOUBLE: 2.0**-52}.get(dtype or ir.DataType.FLOAT, 2.0**-23)
    return abs(held - wanted) <= 8 * unit * abs(wanted)


# -- rewiring -----------------------------------------------------------------------------------------------------
def compute(
    edit: Edit,
    old: ir.Value,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    *,
    domain: str = "",
    attributes: Iterable[ir.Attr] = (),
) -> ir.Node:
    """Let a new node make what ``old`` is, under the old name, where ``old``'s producer stands; sweep what is dead.

    The producer of ``old`` must have no other output that anybody needs.
    """
    producer = old.producer()
    assert producer is not None and isinstance(producer.graph, ir.Graph)
    graph = producer.graph
    name, kind, shape = old.name, old.type, old.shape
    old.name = edit.fresh(f"{name}_before")
    new = ir.Value(name=name, type=kind, shape=shape)
    node = ir.Node(
        domain, op_type, list(inputs), attributes=list(attributes), outputs=[new], name=edit.fresh(f"{name}/{op_type}")
    )
    graph.insert_after(producer, node)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    discard(producer)
    return node


def forward(old: ir.Value, new: ir.Value) -> bool:
    """Let every consumer of ``old`` read ``new`` instead; the producer of ``old`` goes when nobody needs it.

    False, with nothing changed, when ``old`` is a graph output whose name cannot move to ``new``.
    """
    producer = old.producer()
    if old.is_graph_output():
        maker = new.producer()
        movable = maker is not None and producer is not None and maker.graph is producer.graph
        if not movable or new.is_graph_output():
            return False
        name, old_name = old.name, new.name
        old.name, new.name = old_name, name
        new.type, new.shape = old.type, old.shape
    elif new.shape is None and old.shape is not None and not new.is_graph_output():
        new.shape = old.shape.copy()
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    if producer is not None:
        discard(producer)
    return True


def become_constant(edit: Edit, old: ir.Value, array: np.ndarray[Any, Any]) -> bool:
    """Turn ``old`` into an initializer of its graph. False when it is a graph output (its name must stay made)."""
    producer = old.producer()
    if producer is None or old.is_graph_output() or not isinstance(producer.graph, ir.Graph):
        return False
    new = edit.initializer(producer.graph, old.name or "constant", array)
    old.replace_all_uses_with(new)
    discard(producer)
    return True


def discard(node: ir.Node) -> bool:
    """Remove a node that nobody needs, then whatever was made for it alone. False when somebody needs it."""
    if node.graph is None or not all(is_free(o) for o in node.outputs):
        return False
    feeds = [v for v in node.inputs if v is not None]
    feeds += _release_nested(node)
    node.graph.remove(node, safe=True)
    for value in dict.fromkeys(feeds):
        _discard_value(value)
    return True


def _discard_value(value: ir.Value) -> None:
    if not is_free(value):
        return
    producer = value.producer()
    if producer is not None:
        discard(producer)
    elif value.is_initializer() and not value.is_graph_input() and value.graph is not None and value.name:
        value.graph.initializers.pop(value.name)


def _release_nested(node: ir.Node) -> list[ir.Value]:
    """Cut the nodes of a dying node's bodies loose from the outer values that they read; return those values."""
    bodies = [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH and not a.is_ref()]
    read: list[ir.Value] = []
    for body in bodies:
        for inner in body.all_nodes():
            for index, value in enumerate(inner.inputs):
                if value is not None:
                    read.append(value)
                    inner.replace_input_with(index, None)
    return [v for v in read if v.graph is not None and all(v.graph is not b for b in bodies)]
