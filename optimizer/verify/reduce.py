"""Two models that should agree and do not: the first value that differs, and the smallest part that shows it.

Values are matched by name: rewrites keep the names of what they do not touch. A part is cut out along named values
that agree, so that it holds nothing but what lies between them and the first one that differs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from optimizer.verify.numerics import NOISE_FACTOR, Difference, Slack, compare
from passes.kit.contract import Exactness
from passes.kit.match import is_free
from passes.kit.model import Model

Array = np.ndarray[Any, Any]
Feed = Mapping[str, Array]
Run = Callable[[Model, Feed, Sequence[str]], Mapping[str, Any]]
"""Named values of a model for one feed."""

TOLERANCE = 1e-5
"""Inner values agree up to this share of the largest element, when nothing else is asked for."""


@dataclass(frozen=True)
class Split:
    """The first value at which two models part. ``left`` and ``right`` describe the nodes that make it, ``agreeing``
    are the named values before it that are the same, ``compared`` counts all that were looked at."""

    value: str
    difference: Difference
    left: str
    right: str
    compared: int
    agreeing: tuple[str, ...]


@dataclass(frozen=True)
class Pair:
    """Two models with the same inputs and outputs, and a feed on which they differ."""

    left: Model
    right: Model
    feed: dict[str, Array]
    output: str

    @property
    def nodes(self) -> int:
        """Nodes of the larger one, those of nested graphs included."""
        return max(sum(1 for _ in model.nodes()) for model in (self.left, self.right))


def first_difference(left: Model, right: Model, feed: Feed, run: Run, tolerance: float = TOLERANCE) -> Split | None:
    """Where ``right``, in its own order, first departs from ``left``; ``None`` when all common values agree.

    ``tolerance`` is relative to the largest element of a value; 0 asks for equal bits. Integers must be equal.
    """
    mine, theirs = _made(left), _made(right)
    names = [name for name in theirs if name in mine]
    names += [str(o.name) for o in right.graph.outputs if o.name not in names]
    a, b = run(left, feed, names), run(right, feed, names)
    agreeing: list[str] = []
    for name in names:
        difference = _apart(name, a[name], b[name], tolerance)
        if not difference.ok:
            return Split(name, difference, _told(mine.get(name)), _told(theirs.get(name)), len(names), tuple(agreeing))
        if isinstance(a[name], np.ndarray):
            agreeing.append(name)
    return None


def reduce(left: Model, right: Model, feed: Feed, run: Run, tolerance: float = TOLERANCE) -> Pair | None:
    """The smallest pair, cut out of both models, that differs beyond ``tolerance``; ``None`` when they agree."""
    found = first_difference(left, right, feed, run, tolerance)
    if found is None:
        return None
    known = {**run(left, feed, found.agreeing), **feed} if found.agreeing else dict(feed)
    ends = [_borders(_value(m, found.value), set(known)) for m in (left, right)]
    inputs = {name: np.asarray(known[name]) for name in sorted(ends[0] | ends[1])}
    parts = [_cut(m, inputs, found.value) for m in (left, right)]
    pair = Pair(parts[0], parts[1], inputs, found.value)
    a, b = (run(part, inputs, [found.value])[found.value] for part in parts)
    if _apart(found.value, a, b, tolerance).ok:
        return Pair(left, right, dict(feed), found.value)  # it takes more than the part
    return pair


def _apart(name: str, a: Any, b: Any, tolerance: float) -> Difference:
    exactness = Exactness.NUMERIC if tolerance else Exactness.EXACT
    scale = 0.0
    if isinstance(a, np.ndarray) and a.dtype.kind == "f" and a.size:
        finite = np.abs(a[np.isfinite(a)].astype(np.float64))
        scale = float(finite.max(initial=0.0))
    return compare([{name: a}], [{name: b}], exactness, [Slack({name: tolerance * scale / NOISE_FACTOR})])[0]


def _made(model: Model) -> dict[str, ir.Node]:
    """Values that nodes of the main graph make, in order, each with its node."""
    return {str(o.name): node for node in model.graph for o in node.outputs if o.name}


def _told(node: ir.Node | None) -> str:
    if node is None:
        return "no node"
    return f"{node.op_type} '{node.name}'" if node.name else node.op_type


def _value(model: Model, name: str) -> ir.Value:
    values = (*(o for node in model.graph for o in node.outputs), *model.graph.outputs)
    return next(v for v in values if v.name == name)


def _borders(value: ir.Value, known: set[str]) -> set[str]:
    """Names of the known values that ``value`` is computed from, with nothing known in between."""
    found: set[str] = set()
    seen: set[ir.Node] = set()
    todo = [node] if (node := value.producer()) is not None else []
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        for read in _reads(node):
            if read.name in known and (read.producer() is not None or read.is_graph_input()):
                found.add(str(read.name))
            elif (maker := read.producer()) is not None:
                todo.append(maker)
    return found


def _reads(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads, what its nested graphs read from outside included."""
    yield from (v for v in node.inputs if v is not None)
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref():
            body = attribute.as_graph()
            own = {o for inner in body.all_nodes() for o in inner.outputs} | set(body.inputs)
            for inner in body.all_nodes():
                yield from (v for v in inner.inputs if v is not None and v not in own)
            yield from (v for v in body.outputs if v not in own)


def _cut(model: Model, inputs: Feed, output: str) -> Model:
    """The part of ``model`` that computes ``output`` from ``inputs``, whose arrays give types and shapes."""
    fork = model.fork()
    graph = fork.graph
    last = _value(fork, output)
    made = _made(fork)
    graph.outputs.clear()
    graph.outputs.append(last)
    last.shape = None
    old = {v.name: v for v in graph.inputs}
    graph.inputs.clear()
    for name, array in inputs.items():
        known = old.get(name)
        if known is None and name in made:
            known = next(o for o in made[name].outputs if o.name == name)
            known.name = f"{name}/made"
        kind = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        port = ir.Value(name=name, type=kind, shape=ir.Shape(array.shape))
        if known is not None:
            known.replace_all_uses_with(port)
        graph.inputs.append(port)
    _sweep(graph)
    fork.map_types.clear()
    fork.forget_digest()
    return fork


def _sweep(graph: ir.Graph) -> None:
    for node in reversed(list(graph)):
        if all(is_free(o) for o in node.outputs):
            for nested in [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]:
                for inner in nested.all_nodes():
                    for index in range(len(inner.inputs)):
                        inner.replace_input_with(index, None)
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if is_free(value):
            graph.initializers.pop(name)
