"""How much each unit of a group matters: from weights alone, or from what was seen on calibration data.

- ``l1``, ``l2``: the norm of the weights that make the unit (Li et al. 2017, "Pruning Filters for Efficient ConvNets",
  arXiv 1608.08710).
- ``bn``: the magnitude of BatchNormalization's scale (Liu et al. 2017, "Learning Efficient Convolutional Networks
  through Network Slimming", arXiv 1708.06519).
- ``activation``: mean square of the unit's activations times the squared norm of the weights that read it, the
  structured form of Wanda's score (Sun et al. 2024, "A Simple and Effective Pruning Approach for LLMs",
  arXiv 2306.11695).
- ``obs``: the squared error that the reading layers are left with when the unit goes and all other weights are fitted
  anew, with the Gram matrix of their inputs as Hessian: Optimal Brain Surgeon (Hassibi & Stork 1992; LeCun et al. 1989,
  "Optimal Brain Damage", is its diagonal form) for blocks of rows, as in Kurtic et al. 2023, "ZipLM"
  (arXiv 2302.04089). Units are taken out one after the other, the cheapest first.
- ``taylor``: how far the outputs move, to first order, when the unit is scaled: the squared gradient of a gate on it
  (Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", arXiv 1906.10771). Their loss needs
  labels; random projections of the outputs take its place, so the mean square is that of the outputs' own change. It
  sees what the layers behind the readers make of a unit, where the other kinds end at the readers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from passes.kit.context import Context
from passes.kit.contract import Edit
from passes.kit.model import Model, constant
from passes.kit.reducers import ChannelMoments
from passes.kit.sums import Gram
from passes.prune.follow import Product
from passes.prune.groups import Group, Structure, makers, readers, study
from passes.prune.labels import Array
from passes.prune.rows import fan_in, input_rows, matrix, rows_of_channels, trim, why_not

KINDS = ("obs", "activation", "l1", "l2", "bn", "taylor")

DAMP = 1e-3
"""Share of the mean diagonal that is added to a Gram matrix before it is inverted."""

STEPS = 256
"""In at most so many steps all units are taken out; wide layers lose several at a time."""

PROJECTIONS = 256
"""Calibration samples whose gradients are taken, one projection of the outputs each."""

ROWS = 64
"""Positions that are taken from each calibration sample."""

GRAM_BYTES = 512 * 2**20
"""Gram matrices that are gathered in one look at the data; a reducer holds its sum about four times."""


@dataclass(frozen=True)
class Ranking:
    """Units of a group, the one that matters least first, and what is lost when the first 1, 2, ... are gone (float64
    [units], rising, 1 when all are)."""

    order: tuple[int, ...]
    lost: Array


def rank(
    kind: str, structure: Structure, groups: Sequence[Group], model: Model, context: Context, edit: Edit
) -> dict[str, Ranking]:
    """The ranking of each group by name; groups for which ``kind`` says nothing are skipped with the reason.

    Raises :class:`passes.kit.context.NoData` when ``kind`` needs calibration data, or gradients, and there are none.
    """
    if kind == "obs":
        return _by_surgery(structure, groups, model, context, edit)
    if kind == "activation":
        return _by_energy(structure, groups, model, context, edit)
    if kind == "taylor":
        return _by_gates(structure, groups, model, context, edit)
    found = {}
    for group in groups:
        score = _from_scales(structure, group) if kind == "bn" else _from_weights(structure, group, 1 + (kind == "l2"))
        if score is None:
            edit.skip("importance", group.name, "no BatchNormalization scales these channels, so `bn` says nothing")
        else:
            found[group.name] = ranking(group, score)
    return found


def ranking(group: Group, score: Array) -> Ranking:
    """Units by a score that adds up, least first. What is not finite matters most."""
    score = np.where(np.isfinite(score), np.maximum(score, 0.0), np.inf)
    order = np.argsort(score, kind="stable")
    steps = np.cumsum(np.where(np.isfinite(score), score, 0.0)[order])
    return Ranking(tuple(group.units[int(i)] for i in order), steps / max(float(steps[-1]), 1e-300))


def _from_weights(structure: Structure, group: Group, power: int) -> Array:
    total = np.zeros(group.size)
    for product in makers(structure, group):
        array = constant(product.weight)
        assert array is not None
        along = np.moveaxis(np.asarray(array, np.float64), product.outputs, 0)
        each = (np.abs(along) ** power).reshape(len(along), -1).sum(axis=1)
        places = group.slots[(str(product.weight.name), product.outputs)]
        total += np.array([each[p].sum() for p in places]) / max(each.sum(), 1e-300)
    return total


def _from_scales(structure: Structure, group: Group) -> Array | None:
    total = np.zeros(group.size)
    known = False
    for value in structure.trail.scales:
        places, array = group.slots.get((str(value.name), 0)), constant(value)
        if places is not None and array is not None:
            total += np.array([np.abs(array[p]).sum() for p in places])
            known = True
    return total if known else None


def _by_energy(
    structure: Structure, groups: Sequence[Group], model: Model, context: Context, edit: Edit
) -> dict[str, Ranking]:
    reading = _read(structure, groups, edit)
    axes = {str(p.data.name): 1 if "Conv" in p.node.op_type else -1 for ps in reading.values() for p in ps}
    seen = context.stats(model, {name: ChannelMoments(axis) for name, axis in axes.items()}) if axes else {}
    found = {}
    for group in (g for g in groups if reading[g.name]):
        total = np.zeros(group.size)
        for product in reading[group.name]:
            moments = seen[str(product.data.name)]
            assert isinstance(moments, ChannelMoments) and product.inputs is not None
            weight = np.moveaxis(np.asarray(constant(product.weight), np.float64), product.inputs, 0)
            each = (weight**2).reshape(len(weight), -1).sum(axis=1) * moments.mean_square()
            places = group.slots[(str(product.weight.name), product.inputs)]
            total += np.array([each[p].sum() for p in places]) / max(float(np.nansum(each)), 1e-300)
        found[group.name] = ranking(group, total)
    return found


def _read(structure: Structure, groups: Sequence[Group], edit: Edit) -> dict[str, list[Product]]:
    """The layers that read each group; a group that none reads is skipped with the reason."""
    found = {g.name: readers(structure, g) for g in groups}
    for name in (n for n, reading in found.items() if not reading):
        edit.skip("importance", name, "no layer with constant weights reads these channels")
    return found


# -- first order -------------------------------------------------------------------------------------------------------
def _by_gates(
    structure: Structure, groups: Sequence[Group], model: Model, context: Context, edit: Edit
) -> dict[str, Ranking]:
    reading = _read(structure, groups, edit)
    fork = model.fork()
    helper = Edit(fork)
    again = {p.node.outputs[0].name: p for p in study(fork).trail.products}
    wanted = dict.fromkeys(str(p.node.outputs[0].name) for products in reading.values() for p in products)
    gates = {name: _gate(again[name], fork.graph, helper) for name in wanted}
    fork.forget_digest()
    seen = context.gradients(fork, context.sampled(PROJECTIONS), list(gates.values())) if gates else []
    found = {}
    for group in (g for g in groups if reading[g.name]):
        moved = np.zeros((len(seen), group.size))
        for product in reading[group.name]:
            gate = gates[str(product.node.outputs[0].name)]
            each = np.stack([np.asarray(s[gate], np.float64).reshape(-1) for s in seen])
            places = group.slots[(str(product.weight.name), product.inputs or 0)]
            moved += np.stack([each[:, p].sum(axis=1) for p in places], axis=1)
        found[group.name] = ranking(group, (moved**2).mean(axis=0))
    return found


def _gate(product: Product, graph: ir.Graph, edit: Edit) -> str:
    """Multiply what a layer's weights read of each input channel by a constant of ones; its name."""
    weight = constant(product.weight)
    assert weight is not None and product.inputs is not None
    shape = [n if axis == product.inputs else 1 for axis, n in enumerate(weight.shape)]
    gate = edit.initializer(graph, f"{product.weight.name}_gate", np.ones(shape, weight.dtype))
    node = ir.node("Mul", [product.weight, gate], name=edit.fresh(f"{product.weight.name}_gated"))
    node.outputs[0].name = edit.fresh(f"{product.weight.name}_gated")
    graph.insert_before(product.node, node)
    product.node.replace_input_with(1, node.outputs[0])
    return str(gate.name)


# -- second order ------------------------------------------------------------------------------------------------------
def _by_surgery(
    structure: Structure, groups: Sequence[Group], model: Model, context: Context, edit: Edit
) -> dict[str, Ranking]:
    reading = {g.name: readers(structure, g) for g in groups}
    refused = {p.node: why_not(p) for ps in reading.values() for p in ps}
    able = [g for g in groups if reading[g.name] and not any(refused[p.node] for p in reading[g.name])]
    rest = [g for g in groups if g not in able]
    wanted = {p.node.outputs[0].name: p for g in able for p in reading[g.name]}
    grams = second_moments(model, list(wanted.values()), context)
    found = _by_energy(structure, rest, model, context, edit) if rest else {}
    for group in able:
        if all(np.isfinite(grams[str(p.node.outputs[0].name)]).all() for p in reading[group.name]):
            found[group.name] = _surgery(group, reading[group.name], grams)
        else:
            edit.skip("importance", group.name, "what the layers behind it read is not finite")
    return found


def second_moments(model: Model, products: Sequence[Product], context: Context) -> dict[str, Array]:
    """``X^T X`` of what each layer multiplies its weights with, float64 [inputs, inputs], by the name of its result."""
    found: dict[str, Array] = {}
    for batch in looks(products):
        fork = model.fork()
        edit = Edit(fork)
        again = {p.node.outputs[0].name: p for p in study(fork).trail.products}
        values = {}
        for product in batch:
            name = str(product.node.outputs[0].name)
            values[name] = input_rows(again[name], fork.graph, edit)
        trim_to = list(dict.fromkeys(v for v in values.values() if not v.is_graph_input()))
        trim(fork.graph, trim_to or list(fork.graph.outputs))
        seen = context.stats(fork, {str(v.name): Gram(most=ROWS) for v in values.values()})
        for name, value in values.items():
            gram = seen[str(value.name)]
            assert isinstance(gram, Gram)
            found[name] = gram.total()
    return found


def looks(products: Sequence[Product]) -> list[list[Product]]:
    """Layers in parts whose Gram matrices fit into the budget together."""
    parts: list[list[Product]] = []
    room = 0
    for product in products:
        each = 4 * 8 * fan_in(product) ** 2
        if not parts or each > room:
            parts.append([])
            room = GRAM_BYTES
        parts[-1].append(product)
        room -= each
    return parts


def _surgery(group: Group, products: Sequence[Product], grams: Mapping[str, Array]) -> Ranking:
    states = []
    for product in products:
        weight, gram = constant(product.weight), grams[str(product.node.outputs[0].name)]
        assert weight is not None and product.inputs is not None
        places = group.slots[(str(product.weight.name), product.inputs)]
        states.append(_State(gram, matrix(product, weight), [rows_of_channels(product, p) for p in places]))
    left = list(range(group.size))
    order: list[int] = []
    lost: list[float] = []
    at_once = -(-group.size // STEPS)
    while left:
        costs = sum((s.costs(left) for s in states), np.zeros(len(left)))
        for index in np.argsort(costs, kind="stable")[:at_once]:
            lost.append((lost[-1] if lost else 0.0) + float(costs[index]))
            order.append(left[int(index)])
        gone = order[-min(at_once, len(left)) :]
        left = [u for u in left if u not in set(gone)]
        for state in states:
            state.remove(gone)
    total = np.array(lost)
    return Ranking(tuple(group.units[i] for i in order), total / max(float(total[-1]), 1e-300))


class _State:
    """One reading layer while units go: the inverse of its damped Gram matrix, and its weights fitted anew."""

    def __init__(self, gram: Array, weight: Array, rows: Sequence[Array]) -> None:
        size = len(gram)
        energy = float(np.einsum("ko,kl,lo->", weight, gram, weight, optimize=True))
        self._scale = 1.0 / max(energy, 1e-300)
        damp = DAMP * max(float(np.trace(gram)) / max(1, size), 1e-12)
        self._inverse = np.linalg.inv(gram + damp * np.eye(size))
        self._weight = weight.copy()
        self._rows = np.stack(rows)  # [units, rows]

    def costs(self, units: Sequence[int]) -> Array:
        """tr(W_R' (H^-1_RR)^-1 W_R) of each unit, as a share of the energy of the layer's results."""
        rows = self._rows[units]
        weight = self._weight[rows]  # [units, rows, outputs]
        blocks = self._inverse[rows[:, :, None], rows[:, None, :]]
        return np.asarray((weight * np.linalg.solve(blocks, weight)).sum(axis=(1, 2)) * self._scale)

    def remove(self, units: Sequence[int]) -> None:
        """The others make up for what goes."""
        rows = self._rows[units].reshape(-1)
        column = self._inverse[:, rows]
        block = np.linalg.solve(self._inverse[np.ix_(rows, rows)], np.concatenate([self._weight[rows], column.T], 1))
        outputs = self._weight.shape[1]
        self._weight -= column @ block[:, :outputs]
        self._inverse -= column @ block[:, outputs:]
        self._inverse[rows, :] = self._inverse[:, rows] = 0.0
        self._inverse[rows, rows] = 1.0
        self._weight[rows] = 0.0
