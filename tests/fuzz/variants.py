"""The same function in another spelling: what comes out is bit-equal, whatever goes in."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import onnx
from onnx import helper as h

from tests.fuzz.corners import F8

COMMUTE = ("Add", "Mul", "And", "Or", "Xor", "Equal", "BitwiseAnd", "BitwiseOr")
BRANCH_OPSET = 11
SHARE = 0.12
"""Of all places, how many each change touches."""


def vary(model: onnx.ModelProto, rng: np.random.Generator) -> onnx.ModelProto:
    """Another spelling of ``model``: idle nodes, swapped operands, constants held elsewhere, twins, branches that are
    always taken, new names, another order of nodes."""
    made = copy.deepcopy(model)
    opset = next(o.version for o in made.opset_import if not o.domain)
    writer = _Writer(made.graph, rng, opset)
    for change in (writer.swap, writer.twins, writer.idle, writer.branches, writer.move_constants):
        if rng.random() < 0.6:
            change()
    if rng.random() < 0.3:
        writer.rename()
    if rng.random() < 0.5:
        writer.shuffle()
    return made


class _Writer:
    def __init__(self, graph: onnx.GraphProto, rng: np.random.Generator, opset: int) -> None:
        self.graph, self.rng, self.opset, self.count = graph, rng, opset, 0
        self.kinds, self.ranks = _types(graph, opset)

    def fresh(self) -> str:
        self.count += 1
        return f"v{self.count}_"

    def some(self, items: Any) -> list[Any]:
        return [x for x in items if self.rng.random() < SHARE]

    def rebuild(self, nodes: list[onnx.NodeProto]) -> None:
        held = [copy.deepcopy(n) for n in nodes]
        del self.graph.node[:]
        self.graph.node.extend(held)

    # -- the changes --------------------------------------------------------------------------------------------------
    def swap(self) -> None:
        """Operands of commutative operators change sides."""
        for n in self.graph.node:
            if n.op_type in COMMUTE and not n.domain and len(n.input) == 2 and self.rng.random() < 0.5:
                n.input[0], n.input[1] = n.input[1], n.input[0]

    def twins(self) -> None:
        """A node is computed twice and its readers are divided between the two."""
        nodes = list(self.graph.node)
        for n in self.some(nodes):
            if n.op_type == "Constant" or len(n.output) != 1 or n.domain or _has_body(n):
                continue
            twin = copy.deepcopy(n)
            twin.name, twin.output[0] = f"{n.name}{self.fresh()}", f"{n.output[0]}{self.fresh()}"
            nodes.insert(nodes.index(n) + 1, twin)
            for reader in nodes:
                for i, name in enumerate(reader.input):
                    if name == n.output[0] and self.rng.random() < 0.5:
                        reader.input[i] = twin.output[0]
        self.rebuild(nodes)

    def idle(self) -> None:
        """Edges get nodes that hand on what they are given."""
        nodes: list[onnx.NodeProto] = []
        for n in self.graph.node:
            for i, name in enumerate(n.input):
                if name and name in self.kinds and self.rng.random() < SHARE:
                    extra, last = self._idle_nodes(name)
                    nodes += extra
                    n.input[i] = last
            nodes.append(n)
        self.rebuild(nodes)

    def _idle_nodes(self, name: str) -> tuple[list[onnx.NodeProto], str]:
        kind, rank = self.kinds[name], self.ranks.get(name)
        out = f"{name}{self.fresh()}"
        forms = ["Identity", "Cast", "Concat"]
        if kind == onnx.TensorProto.FLOAT:
            forms += ["Dropout", "Mul"]
        if rank is not None and rank >= 2:
            forms += ["Transpose", "Transpose"]
        if rank is not None and self.opset >= 13:
            forms += ["Unsqueeze"]
        if rank == 0 or kind in F8.values() or (kind == onnx.TensorProto.BOOL and self.opset < 13):
            forms = ["Identity"]
        form = str(self.rng.choice(forms))
        if form == "Transpose":
            perm = [int(i) for i in self.rng.permutation(int(rank or 0))]
            back = [int(i) for i in np.argsort(perm)]
            first = h.make_node("Transpose", [name], [f"{out}t"], f"{out}n1", perm=perm)
            return [first, h.make_node("Transpose", [f"{out}t"], [out], f"{out}n2", perm=back)], out
        if form == "Unsqueeze":
            axes = h.make_tensor(f"{out}a", onnx.TensorProto.INT64, [1], [0])
            self.graph.initializer.append(axes)
            first = h.make_node("Unsqueeze", [name, axes.name], [f"{out}u"], f"{out}n1")
            return [first, h.make_node("Squeeze", [f"{out}u", axes.name], [out], f"{out}n2")], out
        if form == "Mul":
            one = h.make_tensor(f"{out}c", kind, [], [1.0])
            self.graph.initializer.append(one)
            pair = [name, one.name] if self.rng.random() < 0.5 else [one.name, name]
            return [h.make_node("Mul", pair, [out], f"{out}n1")], out
        given = {"Cast": {"to": kind}, "Concat": {"axis": 0}}.get(form, {})
        return [h.make_node(form, [name], [out], f"{out}n1", **given)], out

    def branches(self) -> None:
        """A node moves into the branch of an If that is always taken; the other branch never runs."""
        if self.opset < BRANCH_OPSET:
            return
        nodes = []
        for n in self.graph.node:
            kind = self.kinds.get(n.output[0]) if n.output else None
            simple = len(n.output) == 1 and n.op_type != "Constant" and kind is not None and not _has_body(n)
            if not simple or self.rng.random() >= SHARE / 2 or not n.input:
                nodes.append(n)
                continue
            mark = self.fresh()
            taken = bool(self.rng.random() < 0.5)
            inner = copy.deepcopy(n)
            inner.output[0] = f"{n.output[0]}{mark}in"
            other = copy.deepcopy(inner)
            other.output[0], other.name = f"{n.output[0]}{mark}other", f"{n.name}{mark}o"
            ports = [h.make_tensor_value_info(x.output[0], kind, None) for x in (inner, other)]
            graphs = [
                h.make_graph([x], f"{mark}{i}", [], [p])
                for i, (x, p) in enumerate(zip((inner, other), ports, strict=True))
            ]
            test = h.make_tensor(f"{mark}test", onnx.TensorProto.BOOL, [], [taken])
            self.graph.initializer.append(test)
            yes, no = graphs if taken else graphs[::-1]
            nodes.append(h.make_node("If", [test.name], list(n.output), n.name, then_branch=yes, else_branch=no))
        self.rebuild(nodes)

    def move_constants(self) -> None:
        """Initializers become Constant nodes."""
        listed = {i.name for i in self.graph.input}
        moved = [t for t in self.graph.initializer if t.name not in listed and self.rng.random() < 0.3]
        kept = [copy.deepcopy(t) for t in self.graph.initializer if t not in moved]
        new = [h.make_node("Constant", [], [t.name], f"{t.name}_node", value=t) for t in moved]
        nodes = [*new, *self.graph.node]
        self.rebuild(nodes)
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)

    def rename(self) -> None:
        """Inner values get other names; nodes lose theirs."""
        fixed = {p.name for p in (*self.graph.input, *self.graph.output)}
        made = [o for n in self.graph.node for o in n.output if o] + [t.name for t in self.graph.initializer]
        names = {old: f"r{i}" for i, old in enumerate(made) if old not in fixed}
        for t in self.graph.initializer:
            t.name = names.get(t.name, t.name)
        _rename(self.graph.node, names)

    def shuffle(self) -> None:
        """Another topological order."""
        waiting = list(self.graph.node)
        made = {o for n in waiting for o in n.output}
        done: set[str] = set()
        ordered = []
        while waiting:
            ready = [n for n in waiting if all(i in done or i not in made for i in _reads(n))]
            n = ready[int(self.rng.integers(len(ready)))]
            waiting.remove(n)
            ordered.append(n)
            done.update(n.output)
        self.rebuild(ordered)


def _has_body(n: onnx.NodeProto) -> bool:
    return any(a.type == onnx.AttributeProto.GRAPH for a in n.attribute)


def _reads(n: onnx.NodeProto) -> set[str]:
    found = {i for i in n.input if i}
    for a in n.attribute:
        if a.type == onnx.AttributeProto.GRAPH:
            found |= set().union(*(_reads(m) for m in a.g.node), {o.name for o in a.g.output})
    return found


def _rename(nodes: Any, names: dict[str, str]) -> None:
    for n in nodes:
        n.name = ""
        for field in (n.input, n.output):
            for i, old in enumerate(field):
                field[i] = names.get(old, old)
        for a in n.attribute:
            if a.type == onnx.AttributeProto.GRAPH:
                _rename(a.g.node, names)
                for o in a.g.output:
                    o.name = names.get(o.name, o.name)


def _types(graph: onnx.GraphProto, opset: int) -> tuple[dict[str, int], dict[str, int]]:
    """Element types and ranks, as far as inference knows them."""
    model = h.make_model(copy.deepcopy(graph), opset_imports=[h.make_opsetid("", opset)])
    try:
        known = onnx.shape_inference.infer_shapes(model).graph
    except Exception:
        return {}, {}
    ports = [*known.input, *known.value_info, *known.output]
    kinds = {p.name: p.type.tensor_type.elem_type for p in ports if p.type.tensor_type.elem_type}
    ranks = {p.name: len(p.type.tensor_type.shape.dim) for p in ports if p.type.tensor_type.HasField("shape")}
    return kinds, ranks
