"""Coupled groups: the channels, heads and hidden units of a model that can be taken out, and why others cannot.

A *unit* is the smallest thing that can go: all positions, along all axes of all weights, that carry one label. A
*group* holds the units that lie on the same axes (the output channels of a layer, say, with what normalizes and reads
them).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from passes.kit.contract import place
from passes.kit.model import Model, constant
from passes.kit.shapes import Shapes
from passes.prune import moves as _moves  # registers its rules
from passes.prune.follow import CONTRIB, CONTRIB_UNARY, Product, Trail, follow
from passes.prune.labels import Array, Labels

assert _moves

TRIES = 6
"""How often the axes that reshapes split are chosen anew, when the first choice cannot be cut."""

INSIDE = "it is read inside the body of an If, Loop or Scan"
KEPT = "it is an output of the model, whose signature must stay"

Slot = tuple[str, int]
"""An axis of a constant, by name."""


@dataclass(frozen=True)
class Group:
    """Units that lie on the same axes of the same weights.

    ``units`` are labels, in the order of the weights; ``slots`` says for each axis which positions each unit takes
    (int64 arrays, one for each unit). ``breadth`` is how many positions of its widest producer a unit takes, ``heads``
    whether units are heads of an attention.
    """

    name: str
    units: tuple[int, ...]
    slots: Mapping[Slot, tuple[Array, ...]]
    breadth: int
    heads: bool

    @property
    def size(self) -> int:
        return len(self.units)


@dataclass(frozen=True)
class Refusal:
    """Channels of a layer that cannot go, and why."""

    where: str
    reason: str


@dataclass(frozen=True)
class Structure:
    """What was found in a graph. Nodes and values are those of the graph that was studied."""

    trail: Trail
    groups: tuple[Group, ...]
    refused: tuple[Refusal, ...]


def study(model: Model) -> Structure:
    """The groups of the main graph of ``model``. The graph is only read."""
    shapes = understood_shapes(model)
    chosen: dict[ir.Node, int] = {}
    for _ in range(TRIES):
        trail = _followed(model, shapes, dict(chosen))
        again = {
            node: chosen.get(node, 0) + 1
            for node, (able, labels) in trail.splits.items()
            if chosen.get(node, 0) < able and all(trail.labels.why(int(i)) for i in labels)
        }
        if not again:
            break
        chosen |= again
    return Structure(trail, *_grouped(model.graph, trail))


def understood_shapes(model: Model) -> Shapes:
    """Shapes with the contrib activations, which inference does not know, taken for what keeps the shape."""
    shapes = Shapes(model)
    strange = [n for n in model.graph if n.domain == CONTRIB and n.op_type in CONTRIB_UNARY and len(n.inputs) == 1]
    kinds = [(n, n.op_type) for n in strange]
    try:
        for node in strange:
            node.domain, node.op_type = "", "Identity"
        shapes.of(model.graph.outputs[0] if model.graph.outputs else None)
    finally:
        for node, kind in kinds:
            node.domain, node.op_type = CONTRIB, kind
    return shapes


def _followed(model: Model, shapes: Shapes, chosen: dict[ir.Node, int]) -> Trail:
    trail = Trail(Labels(shapes), chosen)
    for node in model.graph:
        follow(node, trail)
    for value, axes in list(trail.labels.held.items()):
        why = KEPT if value.is_graph_output() else ""
        if any(use.node.graph is not model.graph for use in value.uses()):
            why = INSIDE
        if why:
            for axis in axes:
                trail.labels.pin(axis, why)
    for value, listed in trail.sizes.items():
        if value.is_graph_output() or any(use.node.graph is not model.graph for use in value.uses()):
            for entry in listed:
                trail.labels.pin(
                    entry if isinstance(entry, np.ndarray) else None, "its size is an output, or read inside"
                )
    return trail


def _grouped(graph: ir.Graph, trail: Trail) -> tuple[tuple[Group, ...], tuple[Refusal, ...]]:
    places = _places(trail)
    producers = _producers(trail)
    heads = {int(r) for axis in trail.heads for r in trail.labels.roots(axis)}
    alike: dict[tuple[Slot, ...], list[int]] = {}
    refused: dict[Refusal, None] = {}
    for unit, found in places.items():
        slots = tuple(found)
        makes = [s for s in slots if s in producers]
        if not makes:
            continue
        if why := trail.labels.why(unit):
            refused.setdefault(Refusal(producers[makes[0]], why))
        else:
            alike.setdefault(slots, []).append(unit)
    groups = []
    for slots, units in alike.items():
        named = [producers[s] for s in slots if s in producers]
        if len(units) < 2:
            refused.setdefault(Refusal(named[0], "it is the only one of its kind"))
            continue
        held = {s: tuple(np.array(places[u][s], np.int64) for u in units) for s in slots}
        breadth = max(len(held[s][0]) for s in slots if s in producers)
        groups.append(Group(named[0], tuple(units), held, breadth, units[0] in heads))
    return _named_apart(groups), tuple(refused)


def _places(trail: Trail) -> dict[int, dict[Slot, list[int]]]:
    """For every unit the positions that it takes along axes of constants."""
    found: dict[int, dict[Slot, list[int]]] = {}
    for value, axes in trail.labels.held.items():
        if value.producer() is not None and value.producer().op_type != "Constant":  # type: ignore[union-attr]
            continue
        if constant(value) is None or not value.name:
            continue
        for axis, labels in enumerate(axes):
            for position, root in enumerate(trail.labels.roots(labels) if labels is not None else ()):
                found.setdefault(int(root), {}).setdefault((value.name, axis), []).append(position)
    return found


def _producers(trail: Trail) -> dict[Slot, str]:
    """The axes of weights along which layers make channels, with the names of the layers."""
    return {(str(p.weight.name), p.outputs): place(p.node) for p in trail.products}


def _named_apart(groups: Iterable[Group]) -> tuple[Group, ...]:
    """Groups by the names of their layers; a name that comes again gets a number."""
    seen: dict[str, int] = {}
    found = []
    for group in groups:
        count = seen[group.name] = seen.get(group.name, 0) + 1
        name = group.name if count == 1 else f"{group.name}#{count}"
        found.append(Group(name, group.units, group.slots, group.breadth, group.heads))
    return tuple(found)


def readers(structure: Structure, group: Group) -> list[Product]:
    """The layers that read the group's channels."""
    return [
        p for p in structure.trail.products if p.inputs is not None and (str(p.weight.name), p.inputs) in group.slots
    ]


def makers(structure: Structure, group: Group) -> list[Product]:
    """The layers that make the group's channels."""
    return [p for p in structure.trail.products if (str(p.weight.name), p.outputs) in group.slots]
