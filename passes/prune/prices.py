"""What a model costs at given widths: multiplications, bytes, or milliseconds by measured tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from passes.kit.model import Model, constant
from passes.prune.allocate import Widths
from passes.prune.groups import Group, Slot, Structure
from passes.prune.importance import Ranking

Price = Callable[[Widths], float]


@dataclass(frozen=True)
class Axis:
    """An axis of a constant that some groups lie on: its length, and for each group its units and how many positions
    each of them takes."""

    length: int
    parts: tuple[tuple[str, int, float], ...]

    def left(self, widths: Widths) -> float:
        """The share of the positions that is left."""
        gone = sum((size - widths.get(name, size)) * each for name, size, each in self.parts)
        return 1.0 - gone / self.length


def gone_at(groups: Sequence[Group], rankings: Mapping[str, Ranking], widths: Widths) -> list[int]:
    """The units that go when each group keeps so many."""
    return [u for g in groups for u in rankings[g.name].order[: g.size - widths.get(g.name, g.size)]]


def axes(structure: Structure, groups: Sequence[Group]) -> dict[Slot, Axis]:
    """The axes of constants that the groups lie on."""
    lengths = {
        (str(value.name), axis): len(labels)
        for value, held in structure.trail.labels.held.items()
        for axis, labels in enumerate(held)
        if labels is not None
    }
    parts: dict[Slot, list[tuple[str, int, float]]] = {}
    for group in groups:
        for slot, places in group.slots.items():
            parts.setdefault(slot, []).append((group.name, group.size, sum(len(p) for p in places) / group.size))
    return {slot: Axis(lengths[slot], tuple(found)) for slot, found in parts.items()}


def macs(structure: Structure, groups: Sequence[Group]) -> Price:
    """Multiplications of all layers with constant weights, for one sample; sizes that are not known count as one."""
    known = axes(structure, groups)
    shapes = structure.trail.labels.shapes
    layers: list[tuple[float, list[Axis]]] = []
    for product in structure.trail.products:
        weight = constant(product.weight)
        assert weight is not None
        reads = product.node.op_type == "ConvTranspose"
        dims = shapes.of(product.data if reads else product.node.outputs[0]) or ()
        places = dims[2:] if "Conv" in product.node.op_type else dims[:-1]
        count = float(weight.size) * float(np.prod([d if isinstance(d, int) else 1 for d in places]))
        slots = [(str(product.weight.name), a) for a in (product.outputs, product.inputs) if a is not None]
        layers.append((count, [known[s] for s in slots if s in known]))
    return lambda widths: _sum(layers, widths)


def size(model: Model, structure: Structure, groups: Sequence[Group]) -> Price:
    """Bytes of all weights."""
    held: dict[str, list[Axis]] = {}
    for (name, _), axis in axes(structure, groups).items():
        held.setdefault(name, []).append(axis)
    bytes_of = {
        str(value.name): float(array.nbytes)
        for value in structure.trail.labels.held
        if (array := constant(value)) is not None and value.name
    }
    cut = [(bytes_of[name], found) for name, found in held.items()]
    rest = float(model.weight_bytes()) - sum(count for count, _ in cut)
    return lambda widths: rest + _sum(cut, widths)


def _sum(counts: Sequence[tuple[float, Sequence[Axis]]], widths: Widths) -> float:
    return sum(count * float(np.prod([a.left(widths) for a in found])) for count, found in counts)


def milliseconds(tables: Mapping[str, Mapping[int, float]], whole: float) -> Price:
    """Milliseconds of one run, by what the target was measured to take at a few widths of each group alone.

    What two groups save together is taken for the sum. ``whole`` is what the model takes as it is.
    """
    lines = {name: (sorted(table), [min(table[k], whole) for k in sorted(table)]) for name, table in tables.items()}

    def price(widths: Widths) -> float:
        took = (np.interp(widths.get(name, line[0][-1]), *line) for name, line in lines.items())
        return whole - sum(whole - float(ms) for ms in took)

    return price
