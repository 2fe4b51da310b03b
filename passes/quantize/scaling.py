"""Sites: tensors whose channels can be scaled without changing what the model computes.

A positive factor per channel moves freely through positively homogeneous operators, f(s x) = s f(x) (Nagel et al.
2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", arXiv 1906.04721, section 4.1): what
*gives* the channels (a layer's output channels, the gain of a normalization, a constant factor) is divided by it, and
what *takes* them (a layer's input channels) is multiplied by it. ``equalize`` and ``smooth`` differ only in the factors
that they choose; :mod:`passes.quantize.sites` finds the sites.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from passes.kit.contract import Edit
from passes.kit.match import attribute
from passes.kit.model import constant
from passes.quantize.layers import Array

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class View:
    """Where the channels of a value lie: along ``axis``, each ``repeat`` times in a row (as in an image laid flat)."""

    axis: int
    repeat: int = 1


@dataclass(eq=False)
class Site:
    """A set of values that are scaled together, and the constants that give and take the channels.

    ``givers`` are (node, input index, axis) of weights and gains, ``shifts`` of additive constants that scale alike,
    ``takers`` of input-channel weights. ``clips`` maps a Clip with an upper limit to the number of axes behind the
    channels. ``trouble`` says why the site is refused.
    """

    channels: int
    views: dict[ir.Value, View] = field(default_factory=dict)
    givers: list[Part] = field(default_factory=list)
    shifts: list[Part] = field(default_factory=list)
    takers: list[Part] = field(default_factory=list)
    clips: dict[ir.Node, int] = field(default_factory=dict)
    path: list[ir.Node] = field(default_factory=list)
    trouble: str = ""
    where: str = ""


@dataclass(frozen=True, eq=False)
class Part:
    """One constant that holds channels of a site: input ``index`` of ``node``. ``axis`` runs over its own channels.

    ``taker`` parts are multiplied by the factors, the others divided; ``repeat`` as in :class:`View`.
    """

    node: ir.Node
    index: int
    axis: int
    repeat: int = 1
    taker: bool = False

    def value(self) -> ir.Value:
        found = self.node.inputs[self.index]
        assert found is not None
        return found

    def array(self) -> Array:
        found = constant(self.value())
        assert found is not None
        return found

    def held(self) -> int:
        """How many channels the constant holds, repeated ones counted as often as they stand there."""
        shape = self.array().shape
        return int(shape[1] * int(attribute(self.node, "group", 1)) if self.grouped() else shape[self.axis])

    def ranges(self, channels: int) -> Array:
        """Largest magnitude of each channel of the site, float64 [channels]."""
        wide = np.abs(np.asarray(self.by_channel(np.asarray(self.array(), np.float64), channels)))
        return np.asarray(wide.max(axis=tuple(range(1, wide.ndim)), initial=0.0))

    def scaled(self, factors: Array) -> Array:
        """The constant with its channels multiplied (takers) or divided by ``factors`` [channels], in its own type."""
        array = self.array()
        wide = self._factors(array, factors if self.taker else 1.0 / factors)
        return np.asarray((array.astype(np.float64) * wide).astype(array.dtype))

    def grouped(self) -> bool:
        """Whether channels are split over groups: those a Conv takes, and those a ConvTranspose gives."""
        kind = self.node.op_type
        return self.index == 1 and ((kind == "Conv" and self.taker) or (kind == "ConvTranspose" and not self.taker))

    def by_channel(self, array: Array, channels: int) -> Array:
        """``array`` with the site's channels as its first axis."""
        if not self.grouped():
            moved = np.moveaxis(array, self.axis, 0)
            return moved.reshape(channels, -1)
        groups = int(attribute(self.node, "group", 1))
        # [M or C_in, K / groups, ...]: rows in groups, columns local to the group.
        split = array.reshape(groups, array.shape[0] // groups, array.shape[1], -1)
        return np.asarray(split.transpose(0, 2, 1, 3).reshape(channels, -1))

    def _factors(self, array: Array, factors: Array) -> Array:
        if not self.grouped():
            spread = np.repeat(factors, self.repeat)
            return spread.reshape([-1 if i == self.axis else 1 for i in range(array.ndim)])
        groups = int(attribute(self.node, "group", 1))
        rows = np.repeat(factors.reshape(groups, -1), array.shape[0] // groups, axis=0)
        return np.asarray(rows.reshape(rows.shape + (1,) * (array.ndim - 2)))


def apply(site: Site, factors: Array, graph: ir.Graph, edit: Edit) -> None:
    """Divide what gives the channels of ``site`` by ``factors`` [channels] and multiply what takes them."""
    for part in (*site.givers, *site.shifts, *site.takers):
        replace_constant(part.node, part.index, part.scaled(factors), graph, edit)


def replace_constant(node: ir.Node, index: int, array: Array, graph: ir.Graph, edit: Edit) -> None:
    """Let input ``index`` of ``node`` be a new initializer under the old one's name where nobody else reads it."""
    old = node.inputs[index]
    assert old is not None
    name, maker = old.name or "weight", old.producer()
    if maker is None and old.name in graph.initializers and len(old.uses()) == 1 and not old.is_graph_output():
        old.const_value = ir.Tensor(np.ascontiguousarray(array), name=name)
        return
    node.replace_input_with(index, edit.initializer(graph, f"{name}_scaled", array))
    if maker is not None and not old.uses() and maker.graph is graph and not old.is_graph_output():
        graph.remove(maker, safe=True)


def fits(site: Site, factors: Array) -> bool:
    """Whether every constant of the site stays finite and normal in its own type when scaled."""
    for part in (*site.givers, *site.shifts, *site.takers):
        info = np.finfo(part.array().dtype)
        with np.errstate(over="ignore"):  # it is what is asked about
            largest = np.abs(part.scaled(factors).astype(np.float64)).max(initial=0.0)
        if not np.isfinite(largest) or largest > info.max / 2**16:
            return False
    return True


def usable(found: Sequence[Site], edit: Edit, rule: str, accept: Callable[[Site], str]) -> Iterator[Site]:
    """The sites that are free and accepted; the others are noted as skips. ``accept`` gives a reason to refuse."""
    for site in found:
        reason = site.trouble or accept(site)
        if reason:
            edit.skip(rule, site.where, reason)
        else:
            yield site
