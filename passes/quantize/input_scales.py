"""Looking at what layers read, and moving AWQ's scales from their weights into what makes the value."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from passes.kit.context import Context
from passes.kit.contract import Edit
from passes.kit.model import Model
from passes.kit.shapes import Shapes
from passes.kit.sums import ChannelMeanAbs, Gram
from passes.quantize import awq
from passes.quantize.blocks import Array, Form, Quantized
from passes.quantize.layers import settled
from passes.quantize.scaling import Site, apply, fits, replace_constant
from passes.quantize.sites import sites
from passes.quantize.weight_units import Unit

GRAM_BYTES = 2**30
"""Gram matrices that are held at once; more values are observed in several looks at the data."""

COPIES = 4
"""A Gram reducer holds its sum this many times."""

SCALES_PAY = 0.98
"""Scales that cost nothing at run time must bring the squared output error below this share."""

NODE_PAYS = 0.8
"""Scales that need a multiplication in front of their layers must bring it below this share."""

Codes = Callable[[Array, Array], Quantized]
"""How a matrix is quantized, given the Gram matrix of its inputs."""


def looks(found: Sequence[Unit]) -> list[list[Unit]]:
    """``found`` in parts whose Gram matrices fit into ``GRAM_BYTES`` together (a part has at least one unit)."""
    parts: list[list[Unit]] = []
    held: set[str] = set()
    room = 0
    for unit in found:
        each = COPIES * 8 * unit.inputs**2
        needed = each * len([n for n in unit.data if n not in held])
        if not parts or needed > room:
            parts.append([])
            held, room, needed = set(), GRAM_BYTES, each * len(unit.data)
        parts[-1].append(unit)
        held.update(unit.data)
        room -= needed
    return parts


class Observed:
    """Gram matrices of values of ``model``, those of one look at a time."""

    def __init__(self, model: Model, context: Context) -> None:
        self._model, self._context = model, context
        self._grams: dict[str, Array | str] = {}

    def grams(self, part: Sequence[Unit], source: Callable[[str], str] = str) -> dict[str, Array]:
        """Look at what the units of ``part`` read: mean ``X^T X`` by name, those that can be used.

        ``source`` names the value of the observed model behind one that a unit reads.
        """
        names = list(dict.fromkeys(source(name) for unit in part for name in unit.data))
        if set(names) - set(self._grams):
            seen = self._context.stats(self._model, {n: Gram() for n in names})
            self._grams = {name: _usable(reducer) for name, reducer in seen.items()}
        return {n: g for n in names if not isinstance(g := self._grams[n], str)}

    def gram(self, name: str) -> Array | str:
        """The Gram matrix of one value of the last look, or why it cannot be used."""
        return self._grams[name]

    def magnitudes(self, names: Sequence[str]) -> dict[str, Array]:
        """Mean absolute value of each index of the last axis of the named values, float64 [inputs]."""
        if not names:
            return {}
        seen = self._context.stats(self._model, {name: ChannelMeanAbs() for name in names})
        return {name: reducer.mean() for name, reducer in seen.items() if isinstance(reducer, ChannelMeanAbs)}


class InputScales:
    """Settles AWQ's scales for one value after the other, and keeps what was divided by what."""

    def __init__(self, fork: Model, form: Form, edit: Edit, codes: Codes) -> None:
        self._fork, self._form, self._edit, self._codes = fork, form, edit, codes
        self._factors: dict[str, Array] = {}
        self._sources: dict[str, str] = {}
        self._sites: list[Site] | None = None

    def source(self, name: str) -> str:
        """The value of the original model that ``name`` is, up to its factors."""
        return self._sources.get(name, name)

    def divided(self, name: str, gram: Array) -> Array:
        """``gram`` of the original value as it is after the division."""
        factors = self._factors.get(name)
        return gram if factors is None else gram / np.outer(factors, factors)

    def settle(self, name: str, readers: Sequence[Unit], gram: Array, magnitude: Array) -> None:
        """Divide the value by the best scales and multiply its readers' weights, where that pays."""
        nodes = {layer.node for unit in readers for layer in unit.layers}
        if any(unit.data != (name,) or not _only(unit, nodes) for unit in readers):
            return
        found = awq.search_scales([u.matrix for u in readers], gram, magnitude, self._form)
        gain = self._gain(readers, gram, found)
        site = self._site(name, nodes, found.scale)
        if site is not None and gain <= SCALES_PAY:
            apply(site, found.scale, self._fork.graph, self._edit)
            self._factors[name] = found.scale
        elif site is None and gain <= NODE_PAYS:
            name = self._divide(readers, found.scale)
            self._factors[name] = found.scale
        else:
            return
        self._edit.change("scale", name, f"squared output error {gain:.2f} of what it was")

    def _gain(self, readers: Sequence[Unit], gram: Array, found: awq.Scales) -> float:
        """Squared output error with the scales over that without, quantized as it will be."""
        scale, spent = found.scale, [0.0, 0.0]
        if found.error >= found.plain:
            return 1.0
        for unit in readers:
            matrix = np.asarray(unit.matrix, np.float64)
            scaled = self._codes((matrix * scale).astype(np.float32), gram / np.outer(scale, scale)).real() / scale
            spent[0] += awq.output_error(scaled - matrix, gram)
            spent[1] += awq.output_error(self._codes(unit.matrix, gram).real() - matrix, gram)
        return spent[0] / spent[1] if spent[1] > 0 else 1.0

    def _site(self, name: str, nodes: set[ir.Node], factors: Array) -> Site | None:
        """What makes the value, where it can take the factors and ``nodes`` alone read it."""
        if self._sites is None:
            self._sites = sites(self._fork.graph, Shapes(self._fork))
        for site in self._sites:
            if site.trouble or site.channels != len(factors) or name not in {v.name for v in site.views}:
                continue
            if {part.node for part in site.takers} == nodes and fits(site, factors):
                return site
        return None

    def _divide(self, readers: Sequence[Unit], factors: Array) -> str:
        """Put a multiplication by ``1 / factors`` in front of the readers; the name of its result."""
        graph, data = self._fork.graph, readers[0].layers[0].reads
        by = self._edit.initializer(graph, f"{data.name}_divisor", (1.0 / factors).astype(np.float32))
        node = ir.node("Mul", [data, by], name=self._edit.fresh(f"{data.name}_scaled"))
        maker = data.producer()
        if maker is not None:
            graph.insert_after(maker, node)
        else:
            graph.insert_before(graph[0], node)
        result = node.outputs[0]
        result.name = self._edit.fresh(f"{data.name}_scaled")
        result.type = ir.TensorType(ir.DataType.FLOAT)
        for unit in readers:
            for layer in unit.layers:
                weight = np.asarray(settled(layer.node.inputs[1]))
                along = factors if layer.axis == 0 else factors[:, None]
                replace_constant(layer.node, 1, (weight * along).astype(np.float32), graph, self._edit)
                layer.node.replace_input_with(0, result)
        self._sources[result.name] = self.source(data.name or "")
        return result.name


def _only(unit: Unit, nodes: set[ir.Node]) -> bool:
    """Whether nobody but ``nodes`` reads the unit's weight."""
    return all(reader in nodes for reader, _ in unit.layers[0].weight_value.uses())


def _usable(reducer: object) -> Array | str:
    assert isinstance(reducer, Gram)
    if not reducer.rows:
        return "no values of its input were seen in the calibration data"
    total = reducer.total() / reducer.rows
    return total if np.isfinite(total).all() else "its input has values that are not finite"
