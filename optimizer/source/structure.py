"""What a graph must be like before anything walks it: names written once, no cycles, no more than the caps allow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import onnx

from optimizer.faults import Fault, bad_input
from optimizer.plan import Caps

BROKEN, OVER = "broken-model", "over-limit"
Nodes = Sequence[onnx.NodeProto]
Key = tuple[str, str, str]


def bodies(node: onnx.NodeProto) -> Iterable[onnx.GraphProto]:
    """The graphs in a node's attributes."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


# -- caps ----------------------------------------------------------------------------------------------------------
def check_size(proto: onnx.ModelProto, caps: Caps) -> None:
    """Refuse a model of too many nodes, or whose bodies nest too deep.

    A function counts with its whole content wherever it is called: thirty functions that call one another twice
    stand for a thousand million nodes. Raises :class:`Fault` ``over-limit``, and ``broken-model`` for functions that
    call themselves.
    """
    functions = {_key(f.domain, f.name, getattr(f, "overload", "")): f for f in proto.functions}
    counted: dict[Key, int] = {}
    total = _expanded(proto.graph.node, functions, counted, (), caps)
    for key, function in functions.items():
        if key not in counted:
            counted[key] = _expanded(function.node, functions, counted, (key,), caps)
    if total > caps.nodes:
        message = f"the model stands for {total:,} nodes, more than the {caps.nodes:,} allowed"
        raise bad_input(message, code=OVER, hint="--max-nodes allows more")


def _expanded(
    nodes: Nodes,
    functions: dict[Key, onnx.FunctionProto],
    counted: dict[Key, int],
    calling: tuple[Key, ...],
    caps: Caps,
    depth: int = 0,
) -> int:
    if depth > caps.depth:
        message = f"bodies of If, Loop or Scan nest more than {caps.depth} deep"
        raise bad_input(message, code=OVER, hint="--max-depth allows more")
    total = 0
    for node in nodes:
        total += 1
        for body in bodies(node):
            total += _expanded(body.node, functions, counted, calling, caps, depth + 1)
        key = _key(node.domain, node.op_type, getattr(node, "overload", ""))
        function = functions.get(key)
        if function is None:
            continue
        if key in calling:
            raise bad_input(f"function '{node.op_type}' calls itself", code=BROKEN)
        if len(calling) >= caps.depth:
            message = f"functions call one another more than {caps.depth} deep"
            raise bad_input(message, code=OVER, hint="--max-depth allows more")
        if key not in counted:
            counted[key] = _expanded(function.node, functions, counted, (*calling, key), caps, depth)
        total += counted[key]
    return total


def _key(domain: str, name: str, overload: str) -> Key:
    return "" if domain == "ai.onnx" else domain, name, overload


# -- names ---------------------------------------------------------------------------------------------------------
def check_names(graph: onnx.GraphProto, outer: frozenset[str] = frozenset()) -> None:
    """Every name that is read is written somewhere, and each written once. Raises :class:`Fault` ``broken-model``."""
    inputs = [v.name for v in graph.input]
    weights = [t.name for t in graph.initializer] + [t.values.name for t in graph.sparse_initializer]
    for kind, names in (("inputs", inputs), ("initializers", weights)):
        if twice := _first_twice(names):
            raise bad_input(f"two {kind} are called '{twice}'", code=BROKEN)
    given = {*inputs, *weights}
    written: set[str] = set()
    for node in graph.node:
        for name in filter(None, node.output):
            if name in written:
                raise bad_input(f"two nodes write the value '{name}'", code=BROKEN)
            if name in given:
                raise bad_input(f"a node writes '{name}', which is an input or an initializer", code=BROKEN)
            written.add(name)
    known = outer | given | written
    for node in graph.node:
        for name in node.input:
            if name and name not in known:
                raise bad_input(f"node '{node.name or node.op_type}' reads '{name}', which nothing writes", code=BROKEN)
        for nested in bodies(node):
            check_names(nested, known)
    for value in graph.output:
        if value.name not in known:
            raise bad_input(f"nothing writes the output '{value.name}'", code=BROKEN)


def _first_twice(names: Sequence[str]) -> str:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return ""


# -- order ---------------------------------------------------------------------------------------------------------
def put_in_order(graph: onnx.GraphProto | onnx.FunctionProto) -> bool:
    """Move the nodes of ``graph``, and of the graphs nested in it, behind those that write what they read.

    In place and stable; returns whether anything had to move. Raises :class:`Fault` ``broken-model`` for a cycle.
    """
    moved = False
    for node in graph.node:
        for nested in bodies(node):
            moved |= put_in_order(nested)
    order = _order(graph.node)
    if order == sorted(order):
        return moved
    nodes = [onnx.NodeProto.FromString(graph.node[i].SerializeToString()) for i in order]
    del graph.node[:]
    graph.node.extend(nodes)
    return True


def _order(nodes: Nodes) -> list[int]:
    """Indices in an order in which writers come first, as close to the given one as it can be."""
    import heapq

    writer = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    needs = [{writer[n] for n in _reads(node) if n in writer} for node in nodes]
    readers: list[list[int]] = [[] for _ in nodes]
    for i, found in enumerate(needs):
        for j in found:
            readers[j].append(i)
    waiting = [len(found) for found in needs]
    ready = [i for i, count in enumerate(waiting) if not count]
    heapq.heapify(ready)
    order: list[int] = []
    while ready:
        i = heapq.heappop(ready)
        order.append(i)
        for reader in readers[i]:
            waiting[reader] -= 1
            if not waiting[reader]:
                heapq.heappush(ready, reader)
    if len(order) < len(nodes):
        stuck = next(node for node, count in zip(nodes, waiting, strict=True) if count)
        raise _cycle(stuck)
    return order


def _cycle(node: onnx.NodeProto) -> Fault:
    return bad_input(f"the graph runs in a circle through node '{node.name or node.op_type}'", code=BROKEN)


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node reads from the graph it stands in, those read inside its bodies included."""
    yield from filter(None, node.input)
    for body in bodies(node):
        own = {v.name for v in body.input} | {t.name for t in body.initializer}
        own |= {name for inner in body.node for name in inner.output}
        for inner in body.node:
            yield from (name for name in _reads(inner) if name not in own)
        yield from (v.name for v in body.output if v.name not in own)
