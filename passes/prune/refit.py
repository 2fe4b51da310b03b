"""The pass ``refit``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from passes.kit.context import Context
from passes.kit.contract import Edit, Exactness, Pass, PassResult, place
from passes.kit.match import allow_unlisted_initializers
from passes.kit.model import Model, constant
from passes.kit.options import option
from passes.kit.sums import Gram
from passes.prune.follow import Product
from passes.prune.groups import study
from passes.prune.joint import Apart, Joint, join
from passes.prune.labels import Array
from passes.prune.layers import Layer, Target, find_layers, find_target, replace_constant
from passes.prune.names import chosen
from passes.prune.rows import added, channels_last, fan_in, input_rows, matrix, trim, weight_from

RULE = "refit"

ENOUGH = 2.0
"""Rows of data for each input of a layer below which its weights are not fitted: there would be nothing to average."""

MOST_SWEEPS = 32
"""Deeper networks are fitted several layers at a time: each sweep runs the calibration data once."""

GRAM_BYTES = 512 * 2**20
"""Gram matrices of one sweep."""


@dataclass(frozen=True)
class Refit(Pass):
    """Fit the weights that are left to what the original computes, layer by layer, in closed form.

    What it does
        From input to output, each layer's weights W get the change D that minimizes ``|T - (X (W + D) + b)|^2 +
        ridge |D|^2`` over calibration samples, where X is what the layer reads now, with everything before it pruned
        and fitted, and T what the original's layer gives; the bias takes the rest of the mean. Only sums over the
        samples are kept (``X'X`` and ``X'(T - XW)``), so any number of samples fits into memory, and no gradients are
        needed: He et al. 2017, "Channel Pruning for Accelerating Very Deep Neural Networks" (arXiv 1707.06168), and Luo
        et al. 2017, "ThiNet" (arXiv 1707.06342), for every layer at once. Where the result is added to a shortcut, T is
        the original's sum less the shortcut as it is now, so a branch makes up for what its shortcut lost.
        The original is the model that the recipe started from.

    When it applies
        To convolutions without groups, Gemm and MatMul by a constant, that lie behind something that was pruned (or
        quantized, or otherwise moved) and whose results are found by name in the original. Grouped, transposed and
        very wide layers get their bias corrected (Nagel et al. 2019, arXiv 1906.04721, section 4.2).

    When it refuses
        Shared weights, results that the original does not have or that have lost positions nobody wrote down, and
        layers with more inputs than half of the rows that the calibration samples give: it says how many
        times as many samples would do.

    Exactness
        LOSSY. It moves weights so that the outputs come nearer to the original's.
    """

    name: ClassVar[str] = RULE
    exactness: ClassVar[Exactness] = Exactness.LOSSY

    ridge: float = option(1e-3, "penalty on changes, as a share of the mean square of an input", low=0, high=100)
    rows: int = option(128, "positions that are taken from each calibration sample", low=64, high=65536)
    only: tuple[str, ...] = option((), "names or patterns of the layers to fit (none: all)")
    exclude: tuple[str, ...] = option((), "names or patterns of layers to leave as they are")

    def apply(self, model: Model, context: Context) -> PassResult:
        original = context.original
        fork = model.fork()
        edit = Edit(fork)
        if original is None or original.digest() == model.digest():
            edit.skip(RULE, "graph", "nothing was changed before it, so there is nothing to make up for")
            return PassResult(model, (), tuple(edit.skips))
        layers = [y for y in find_layers(study(fork), fork) if chosen(place(y.node), self.only, self.exclude)]
        for sweep in sweeps(layers):
            try:
                joint = join(fork, original)
            except Apart as error:
                edit.skip(RULE, "graph", str(error))
                break
            self._sweep(joint, sweep, fork, context, edit)
            fork.forget_digest()
        if edit.changes:
            allow_unlisted_initializers(fork)
        return PassResult(fork if edit.changes else model, tuple(edit.changes), tuple(edit.skips))

    def _sweep(self, joint: Joint, layers: Sequence[Layer], fork: Model, context: Context, edit: Edit) -> None:
        """Fit layers that do not read each other's results."""
        helper = Edit(joint.model)
        theirs = {n.outputs[0].name: n for n in joint.model.graph if n.outputs}
        wanted: dict[str, tuple[Layer, ir.Value]] = {}
        taken: set[ir.Value] = set()
        for layer in layers:
            target = find_target(layer, joint, fork, taken)
            if isinstance(target, str):
                edit.skip(RULE, layer.node, target)
                continue
            taken.add(target.now)
            rows = _rows(
                _twin(layer.product, theirs[layer.node.outputs[0].name]), layer, target, joint.model.graph, helper
            )
            wanted[str(rows.name)] = (layer, rows)
        if not wanted:
            return
        trim(joint.model.graph, [rows for _, rows in wanted.values()])
        seen = context.stats(joint.model, {name: Gram(self.rows, True) for name in wanted})
        for name, (layer, _) in wanted.items():
            gram = seen[name]
            assert isinstance(gram, Gram)
            self._fit(layer, gram.total(), fork.graph, edit)

    def _fit(self, layer: Layer, gram: Array, graph: ir.Graph, edit: Edit) -> None:
        inputs = 0 if layer.weightless else fan_in(layer.product)
        rows = float(gram[-1, -1])
        if not np.isfinite(gram).all() or rows <= 0:
            edit.skip(RULE, layer.node, "what it reads or gives is not finite")
            return
        if inputs and rows < ENOUGH * inputs:
            need = ENOUGH * inputs / rows
            text = f"{rows:.0f} rows of data are too few for {inputs} inputs"
            edit.skip(RULE, layer.node, f"{text}: {need:.1f} times as many calibration samples are needed")
            return
        change, shift = solve(gram, inputs, self.ridge, layer.bias is not None)
        moved = _moved(layer, change, shift, graph, edit)
        if moved:
            before, after = _errors(gram, inputs, change, shift)
            edit.change(RULE, layer.node, f"squared error {after / max(before, 1e-300):.0%} of what it was")


def _twin(product: Product, node: ir.Node) -> Product:
    """The same product at another node."""
    weight, data = node.inputs[1], node.inputs[0]
    assert weight is not None and data is not None
    return replace(product, node=node, weight=weight, data=data)


def solve(gram: Array, inputs: int, ridge: float, biased: bool) -> tuple[Array, Array]:
    """The ridge solution from the sums over rows ``[X, R, 1]`` (``X``: ``inputs`` columns, ``R`` residuals).

    Returns the change of the weights, float64 [inputs, outputs], and of the bias, float64 [outputs], which is zero when
    there is none (``biased``).
    """
    rows = gram[-1, -1]
    xx, xr = gram[:inputs, :inputs] / rows, gram[:inputs, inputs:-1] / rows
    mean_x, mean_r = gram[:inputs, -1] / rows, gram[inputs:-1, -1] / rows
    if biased:
        xx, xr = xx - np.outer(mean_x, mean_x), xr - np.outer(mean_x, mean_r)
    level = float(np.trace(xx)) / max(1, inputs)
    if inputs == 0 or level <= 0:
        return np.zeros((inputs, len(mean_r))), mean_r if biased else np.zeros(len(mean_r))
    change = np.linalg.solve(xx + (ridge + 1e-9) * level * np.eye(inputs), xr)
    return change, mean_r - change.T @ mean_x if biased else np.zeros(len(mean_r))


def _errors(gram: Array, inputs: int, change: Array, shift: Array) -> tuple[float, float]:
    """Sums of squared residuals before and after."""
    before = float(np.trace(gram[inputs:-1, inputs:-1]))
    outputs = len(shift)
    parts = np.concatenate([-change, np.eye(outputs), -shift[None]], axis=0)
    return before, float(np.einsum("ko,kl,lo->", parts, gram, parts, optimize=True))


def _rows(product: Product, layer: Layer, target: Target, graph: ir.Graph, edit: Edit) -> ir.Value:
    """``[X, T - Y]`` with channels last, one row for each position, in the graph that holds both models."""
    now, wanted = target.now, target.wanted
    if target.kept is not None:
        picks = edit.initializer(graph, "kept", np.flatnonzero(target.kept))
        wanted = added(graph, edit, "Gather", [wanted, picks], {"axis": layer.axis})
    rest = added(graph, edit, "Sub", [wanted, now])
    spatial = layer.spatial
    if spatial:
        rest = channels_last(graph, edit, rest, spatial)
    if layer.weightless:
        return rest
    return added(graph, edit, "Concat", [input_rows(product, graph, edit), rest], {"axis": -1})


def _moved(layer: Layer, change: Array, shift: Array, graph: ir.Graph, edit: Edit) -> bool:
    """Write the new weight and bias; False when nothing would change."""
    if not np.isfinite(change).all() or not np.isfinite(shift).all():
        edit.skip(RULE, layer.node, "its fit is not finite")
        return False
    if not change.any() and not shift.any():
        return False
    if change.size:
        weight = constant(layer.product.weight)
        assert weight is not None
        fitted = weight_from(layer.product, matrix(layer.product, weight) + change, weight)
        replace_constant(layer.node, 1, fitted, graph, edit)
    if layer.bias is not None:
        node, index = layer.bias
        held = constant(node.inputs[index]) if index < len(node.inputs) else None
        dtype = constant(layer.node.inputs[1])
        assert dtype is not None
        total = (held.astype(np.float64) if held is not None else 0.0) + shift
        replace_constant(node, index, np.asarray(total).astype(dtype.dtype), graph, edit)
    return True


def sweeps(layers: Sequence[Layer]) -> list[list[Layer]]:
    """Layers that are fitted together, in order: those of equal depth, or of neighbouring ones in deep networks, as
    long as their Gram matrices fit into memory."""
    depths = sorted({y.depth for y in layers})
    parts = np.array_split(np.array(depths), max(1, min(len(depths), MOST_SWEEPS)))
    found: list[list[Layer]] = []
    for part in parts:
        room = 0.0
        for layer in (y for y in layers if y.depth in set(part.tolist())):
            each = 4.0 * 8 * ((0 if layer.weightless else fan_in(layer.product)) + layer.outputs + 1) ** 2
            if room < each or not found or found[-1][0].depth not in part:
                found.append([])
                room = GRAM_BYTES
            found[-1].append(layer)
            room -= each
    return [f for f in found if f]
