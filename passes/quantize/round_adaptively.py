"""The pass ``round-adaptively``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from passes.kit.context import Context
from passes.kit.contract import Edit, Exactness, Pass, PassResult
from passes.kit.match import allow_unlisted_initializers, attribute
from passes.kit.model import Model
from passes.kit.options import option
from passes.kit.reducers import MinMax, PatchGram
from passes.quantize.grid import weight_grid
from passes.quantize.layers import Array, Layer, choose
from passes.quantize.rounding import round_to_least_error
from passes.quantize.scaling import replace_constant

RULE = "round-adaptively"

GRAM_BYTES = 256 * 2**20
"""Gram matrices that are gathered in one look at the data; larger networks are looked at in several."""


@dataclass(frozen=True)
class RoundAdaptively(Pass):
    """Put weights on their 8-bit grids such that the layers' results change least, not the weights themselves.

    What it does
        Rounding to nearest is not best (Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training
        Quantization", arXiv 2004.10568): the error of a layer's results is ``tr(E G E^T)`` for the error E of its
        weights and the second moments G of its inputs. Starting from the nearest, one weight after the other takes
        the grid point that is best given all others, with the exact solution per coordinate in place of the
        paper's learned relaxation, in sweeps until nothing moves; so the error on the calibration data only falls.
        G comes from patches sampled on calibration data. Where the layer has a bias, the mean shift goes there
        (section 4.2 of arXiv 1906.04721) and G is taken around the mean.
        The weights stay float, but stand on the grid that ``quantize-static`` or ``quantize-dynamic`` will give them:
        the largest weight of each scale is kept, so they find the same scale and the same integers. Run it right
        before, with the same ``per-channel``, ``only`` and ``exclude``.

    When it applies
        To the layers that ``quantize-static`` takes, with at most ``inputs`` inputs per output.

    When it refuses
        Shared weights, layers with more inputs, values that were never seen or are not finite, automatic padding.

    Exactness
        LOSSY. It spends what 8-bit weights cost.
    """

    name: ClassVar[str] = RULE
    exactness: ClassVar[Exactness] = Exactness.LOSSY

    per_channel: str = option("target", "one scale per output channel of a weight", choices=("target", "yes", "no"))
    sweeps: int = option(8, "most times that every weight is looked at", low=1, high=100)
    inputs: int = option(4608, "largest number of inputs per output", low=1, high=16384)
    rows: int = option(64, "positions that are taken from each calibration sample", low=1, high=4096)
    only: tuple[str, ...] = option((), "names or patterns of the nodes to round (none: all)")
    exclude: tuple[str, ...] = option((), "names or patterns of nodes to leave as they are")

    def apply(self, model: Model, context: Context) -> PassResult:
        fork = model.fork()
        edit = Edit(fork)
        layers = list(choose(fork.graph, context.target.static_ops, self.exclude, self.only).layers.values())
        free = [y for y in layers if not self._refused(y, edit)]
        units = _units(free, model, context, edit)
        for batch in self._batches([y for y in free if y.data.name in units]):
            for layer, gram in self._grams(batch, units, model, context):
                self._round(layer, gram, context, fork.graph, edit)
        if edit.changes:
            allow_unlisted_initializers(fork)
        return PassResult(fork if edit.changes else model, tuple(edit.changes), tuple(edit.skips))

    def _refused(self, layer: Layer, edit: Edit) -> bool:
        reason = ""
        if len(layer.weight_value.uses()) != 1 or layer.weight_value.is_graph_output():
            reason = "its weight is shared"
        elif _fan_in(layer) > self.inputs:
            reason = f"it has {_fan_in(layer)} inputs per output"
        elif attribute(layer.node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID", ""):
            reason = "it pads automatically"
        if reason:
            edit.skip(RULE, layer.node, reason)
        return bool(reason)

    def _batches(self, layers: Sequence[Layer]) -> Iterator[list[Layer]]:
        """Layers whose Gram matrices fit into the budget together and that read different values."""
        batch: list[Layer] = []
        for layer in layers:
            spent = sum(_gram_bytes(y) for y in batch) + _gram_bytes(layer)
            if batch and (spent > GRAM_BYTES or any(y.data is layer.data for y in batch)):
                yield batch
                batch = []
            batch.append(layer)
        if batch:
            yield batch

    def _grams(
        self, batch: list[Layer], units: Mapping[str, int], model: Model, context: Context
    ) -> Iterator[tuple[Layer, PatchGram]]:
        wanted = {y.data.name or "": patches(y, units[y.data.name or ""], self.rows) for y in batch}
        seen = context.stats(model, wanted)
        for layer in batch:
            found = seen[layer.data.name or ""]
            assert isinstance(found, PatchGram)
            yield layer, found

    def _round(self, layer: Layer, gram: PatchGram, context: Context, graph: ir.Graph, edit: Edit) -> None:
        target = context.target
        along = target.per_channel if self.per_channel == "target" else self.per_channel == "yes"
        grid = weight_grid(layer.weight, layer.axis if along else None, "int8", target.weight_range)
        matrix = rows_of(layer, layer.weight)
        scale = np.broadcast_to(grid.scale.astype(np.float64).reshape(-1), (layer.channels,))
        second, mean = gram.moments()
        if layer.bias is not None:
            second = second - mean[:, :, None] * mean[:, None, :]
        found = round_to_least_error(matrix, scale.reshape(matrix.shape[:2]), second, target.weight_range, self.sweeps)
        real = found.integers * scale.reshape(*matrix.shape[:2], 1)
        rounded = weight_of(layer, real).astype(np.float32)
        if np.array_equal(rounded, layer.weight):
            return
        replace_constant(layer.node, 1, rounded, graph, edit)
        if layer.bias is not None:
            shift = np.einsum("gmk,gk->gm", matrix - real, mean).reshape(-1)
            replace_constant(layer.node, 2, (layer.bias + shift).astype(np.float32), graph, edit)
        if layer.node.op_type == "Gemm":  # alpha and beta, which may be zero, are in the weight and the bias now
            layer.node.attributes.pop("alpha", None)
            layer.node.attributes.pop("beta", None)
        edit.change(
            RULE, layer.node, f"{found.error / max(found.nearest, 1e-300):.0%} of the error of rounding to nearest"
        )


def patches(layer: Layer, unit: int, most: int) -> PatchGram:
    """An empty reducer for what ``layer`` multiplies its weights with."""
    if layer.node.op_type != "Conv":
        return PatchGram(unit, most=most)
    kernel = layer.weight.shape[2:]
    ones, zeros = (1,) * len(kernel), (0,) * (2 * len(kernel))
    read = {
        name: tuple(int(v) for v in attribute(layer.node, name, plain))
        for name, plain in (("strides", ones), ("dilations", ones), ("pads", zeros))
    }
    groups = int(attribute(layer.node, "group", 1))
    return PatchGram(unit, tuple(kernel), read["strides"], read["dilations"], read["pads"], groups, most)


def rows_of(layer: Layer, weight: Array) -> Array:
    """The weight as float64 [groups, outputs / groups, inputs per output]."""
    if layer.node.op_type == "Conv":
        groups = int(attribute(layer.node, "group", 1))
        return weight.astype(np.float64).reshape(groups, weight.shape[0] // groups, -1)
    return (weight if layer.axis == 0 else weight.T).astype(np.float64)[None]


def weight_of(layer: Layer, rows: Array) -> Array:
    """Back from :func:`rows_of` to the layout of the weight."""
    if layer.node.op_type == "Conv":
        return np.asarray(rows.reshape(layer.weight.shape))
    return np.asarray(rows[0] if layer.axis == 0 else rows[0].T)


def _fan_in(layer: Layer) -> int:
    return layer.weight.size // layer.channels


def _gram_bytes(layer: Layer) -> int:
    groups = int(attribute(layer.node, "group", 1)) if layer.node.op_type == "Conv" else 1
    return groups * (_fan_in(layer) + 1) ** 2 * 8


def _units(layers: Sequence[Layer], model: Model, context: Context, edit: Edit) -> dict[str, int]:
    """For each value that layers read the power of two of which 2**11 reach its largest magnitude."""
    names = dict.fromkeys(y.data.name for y in layers if y.data.name)
    seen = context.stats(model, {name: MinMax() for name in names}) if names else {}
    found = {}
    for name, reducer in seen.items():
        assert isinstance(reducer, MinMax)
        if int(reducer.arrays["broken"]) or not int(reducer.arrays["count"]):
            edit.skip(RULE, name, "its values were never seen, or are not finite")
        else:
            largest = max(abs(reducer.low), abs(reducer.high))
            found[name] = int(np.ceil(np.log2(largest))) - 11 if largest > 0 else 0
    return found
