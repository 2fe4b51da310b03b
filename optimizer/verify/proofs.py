"""Local equivalence proofs: which rewrites follow from the structure of the graph, and which were only tested.

Every value of both models gets a normal form: a digest of the expression that makes it, in which Identity nodes and
resting Dropouts are read through, constants stand by their content wherever they are kept, two transpositions are one,
and operators on constants are replaced by what ONNX's own reference evaluator computes. Equal normal forms are equal
computations, bit for bit. Where a value of the same name has another normal form, it is *not proved*, and is taken to
be equal from there on, so that what follows is judged by itself. Names, metadata, dead nodes and doubled ones do not
show in normal forms, so rewrites of these are proved by their absence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir

from passes.kit.contract import Change, PassResult, place
from passes.kit.match import attribute, given, is_op
from passes.kit.model import Model, constant, tensor_digest

LARGEST_FOLD = 1 << 20
"""Bytes of constants that a proof evaluates at once."""

# fmt: off
_EVALUATED = (
    "Abs", "Add", "And", "Cast", "Ceil", "Concat", "Div", "Equal", "Flatten", "Floor",
    "Gather", "Greater", "Less", "Max", "Min", "Mul", "Neg", "Not", "Or", "Reciprocal",
    "Reshape", "Slice", "Sqrt", "Squeeze", "Sub", "Transpose", "Unsqueeze", "Where",
)
# fmt: on
"""Operators whose result is never much larger than what goes in."""


_KNOWN = ("", "ai.onnx.ml", "com.microsoft")


@dataclass(frozen=True)
class Counts:
    """How many rewrites were proved, only tested, or stand where no input is known to lead."""

    proved: int = 0
    tested: int = 0
    unreached: int = 0


def count(before: Model, result: PassResult) -> Counts:
    """How each rewrite of a verified pass is known to be right.

    A rewrite is proved when every value that it can reach, up to the next one of the same name in both models, is. A
    rewrite inside a branch or a loop body, where the inputs may not have led, is unreached unless proved.
    """
    doubtful = unproved(before, result.model)
    if not doubtful:
        return Counts(proved=len(result.changes))
    main = {place(n): list(n.outputs) for n in before.graph}
    main |= {str(o.name): [o] for n in before.graph for o in n.outputs}
    main |= {
        str(v.name): [o for u in v.uses() for o in u.node.outputs]
        for v in before.graph.initializers.values()
        if all(u.node.graph is before.graph for u in v.uses())
    }
    shared = {str(o.name) for n in result.model.graph for o in n.outputs}
    nested = {place(n) for g in list(before.graphs())[1:] for n in g}
    proved = sum(_is_proved(c, main, shared, doubtful) for c in result.changes)
    inner = sum(c.where in nested and not _is_proved(c, main, shared, doubtful) for c in result.changes)
    return Counts(proved, len(result.changes) - proved - inner, inner)


def _is_proved(change: Change, main: Mapping[str, list[ir.Value]], shared: set[str], doubtful: set[str]) -> bool:
    if change.where not in main:
        return False
    todo, seen = list(main[change.where]), set()
    while todo:
        value = todo.pop()
        if value in seen:
            continue
        seen.add(value)
        if value.name in shared or value.is_graph_output():
            if value.name in doubtful:
                return False
            continue
        for use in value.uses():
            if use.node.graph is not value.graph:
                return False  # into a branch or a loop body
            todo.extend(use.node.outputs)
    return True


def unproved(before: Model, after: Model) -> set[str]:
    """Names of the values of ``after``'s main graph that are not proved to equal their namesakes in ``before``, given
    that all values before them do. Outputs of the model are always among the candidates."""
    known = _Forms(before).all()
    forms = _Forms(after)
    doubtful: set[str] = set()
    for node in after.graph:
        for value in node.outputs:
            mine = forms.of(value)
            theirs = known.get(str(value.name))
            if theirs is not None and mine != theirs:
                doubtful.add(str(value.name))
                forms.assume(value, theirs)
    named = {o.name: forms.of(o) for o in after.graph.outputs}
    return doubtful | {str(name) for name, form in named.items() if known.get(str(name)) != form}


@dataclass
class _Forms:
    """Normal forms of the values of one model."""

    model: Model
    _found: dict[ir.Value, str] = field(default_factory=dict)
    _depth: int = 0
    _held: dict[ir.Value, np.ndarray | None] = field(default_factory=dict)  # type: ignore[type-arg]

    def all(self) -> dict[str, str]:
        """By name, for the main graph's nodes, and what its outputs read."""
        found = {str(o.name): self.of(o) for node in self.model.graph for o in node.outputs if o.name}
        return found | {str(o.name): self.of(o) for o in self.model.graph.outputs}

    def assume(self, value: ir.Value, form: str) -> None:
        self._found[value] = form

    def of(self, value: ir.Value | None) -> str:
        if value is None:
            return "-"
        if value not in self._found:
            self._found[value] = self._form(value)
        return self._found[value]

    def _form(self, value: ir.Value) -> str:
        # An initializer that an old file lists as an input, too, is no part of the signature: it is what it holds.
        held = value.const_value or ir.convenience.get_const_tensor(value)
        if held is not None:
            return f"constant {tensor_digest(held)}"
        if (array := self._constant(value)) is not None:
            return f"constant {tensor_digest(ir.Tensor(array))}"
        node = value.producer()
        if node is None:
            return f"input {value.name}"
        if is_op(node, "Identity") or (is_op(node, "Dropout") and _rests(node, value, self.model.opset)):
            return self.of(node.inputs[0])
        perm = attribute(node, "perm", None) if is_op(node, "Transpose") else None
        if perm is not None:
            return self._transposed(node.inputs[0], perm)
        inputs = [self.of(v) for v in node.inputs]
        while inputs and inputs[-1] == "-":
            inputs.pop()
        spelled = [self._spelled(node.attributes[key]) for key in sorted(node.attributes)]
        index = str(list(node.outputs).index(value))
        return _digest(self._operator(node, value), *spelled, index, *inputs)

    def _operator(self, node: ir.Node, value: ir.Value) -> str:
        """Which function a node computes. One that draws at random or is not known is equal to its namesake only."""
        function = self.model.ir.functions.get(node.op_identifier())
        body = (
            hashlib.sha256(ir.to_proto(function).SerializeToString(deterministic=True)).hexdigest() if function else ""
        )
        domain = "" if node.domain == "ai.onnx" else node.domain
        apart = "" if domain in _KNOWN and _deterministic(node) else str(value.name)
        return _digest(domain, node.op_type, node.overload, str(self.model.ir.opset_imports.get(domain)), body, apart)

    def _transposed(self, source: ir.Value | None, perm: tuple[int, ...]) -> str:
        maker = source.producer() if source is not None else None
        while maker is not None and (is_op(maker, "Identity") or attribute(maker, "perm", None)):
            if is_op(maker, "Transpose"):
                perm = tuple(attribute(maker, "perm", ())[i] for i in perm)
            source = maker.inputs[0]
            maker = source.producer() if source is not None else None
        if perm == tuple(range(len(perm))):
            return self.of(source)
        return _digest("Transpose", str(perm), self.of(source))

    def _spelled(self, held: ir.Attr) -> str:
        if held.is_ref():
            return f"{held.name}=@{held.ref_attr_name}"
        if held.type == ir.AttributeType.TENSOR:
            return f"{held.name}={tensor_digest(held.as_tensor())}"
        if held.type == ir.AttributeType.GRAPH:
            return f"{held.name}={self._body(held.as_graph())}"
        value = tuple(held.value) if isinstance(held.value, (list, tuple)) else held.value
        return f"{held.name}={held.type}{value!r}"

    def _body(self, graph: ir.Graph) -> str:
        self._depth += 1
        for number, port in enumerate(graph.inputs):
            self._found.setdefault(port, f"port {self._depth}.{number}")
        for node in graph:  # in order, so that no form is looked for far behind
            for value in node.outputs:
                self.of(value)
        self._depth -= 1
        return _digest(str(len(graph.inputs)), *(self.of(o) for o in graph.outputs))

    def _constant(self, value: ir.Value | None) -> np.ndarray | None:  # type: ignore[type-arg]
        """What a value is known to hold: kept by the model, or computed from that by the reference evaluator."""
        if value is None or value in self._held:
            return self._held.get(value) if value is not None else None
        self._held[value] = None
        held = constant(value)
        node = value.producer()
        if held is not None and held.nbytes > LARGEST_FOLD:
            held = None
        elif held is None and node is not None and is_op(node, *_EVALUATED) and len(node.outputs) == 1:
            held = self._evaluated(node)
        self._held[value] = held
        return held

    def _evaluated(self, node: ir.Node) -> np.ndarray | None:  # type: ignore[type-arg]
        arrays = [self._constant(v) for v in node.inputs]
        if not arrays or any(v is not None and a is None for v, a in zip(node.inputs, arrays, strict=True)):
            return None
        if sum(a.nbytes for a in arrays if a is not None) > LARGEST_FOLD:
            return None
        names = [f"i{i}" if a is not None else "" for i, a in enumerate(arrays)]
        feeds = {name: a for name, a in zip(names, arrays, strict=True) if a is not None}
        return _reference(node, names, feeds, self.model.opset)


def _reference(
    node: ir.Node,
    names: list[str],
    feeds: dict[str, np.ndarray],  # type: ignore[type-arg]
    opset: int,
) -> np.ndarray | None:  # type: ignore[type-arg]
    from onnx.reference import ReferenceEvaluator

    held = [ir.to_proto(a) for a in node.attributes.values()]
    proto = onnx.NodeProto(op_type=node.op_type, input=names, output=["o"], attribute=held)
    ports = [onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
             for n, a in feeds.items()]  # fmt: skip
    graph = onnx.helper.make_graph([proto], "g", ports, [onnx.ValueInfoProto(name="o")])
    try:
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
        with np.errstate(all="ignore"):
            return np.asarray(ReferenceEvaluator(model).run(None, feeds)[0])
    except Exception:
        return None  # not proved, then


def _rests(node: ir.Node, value: ir.Value, opset: int) -> bool:
    training = given(node, 2)
    held = constant(training)
    return value is node.outputs[0] and opset >= 12 and (training is None or (held is not None and not held.any()))


def _deterministic(node: ir.Node) -> bool:
    return not (node.op_type.startswith("Random") or node.op_type in ("Bernoulli", "Multinomial", "Dropout"))


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
