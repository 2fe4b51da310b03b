"""The pass ``absorb-bias``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from passes.kit.context import Context
from passes.kit.contract import Edit, Exactness, Pass, PassResult
from passes.kit.match import allow_unlisted_initializers, attribute, given
from passes.kit.model import Model, constant
from passes.kit.options import option
from passes.kit.reducers import ChannelMoments
from passes.kit.shapes import Shapes
from passes.quantize.layers import Array
from passes.quantize.scaling import Part, Site, replace_constant, usable
from passes.quantize.sites import sites

RULE = "absorb-bias"

SHIFTED: tuple[str, ...] = (
    "Relu",
    "LeakyRelu",
    "PRelu",
    "Identity",
    "Dropout",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
)
SHIFTED += ("GlobalMaxPool", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Reshape")
"""Operators with f(x - c) = f(x) - c for x >= c >= 0."""


@dataclass(frozen=True)
class AbsorbBias(Pass):
    """Move what a channel never falls below into the bias of the next layer, so that its range shrinks.

    What it does
        High-bias absorption (Nagel et al. 2019, arXiv 1906.04721, section 4.1.3): where channel i of a layer's result
        never falls below ``c_i > 0``, ``Relu(x - c) = Relu(x) - c``; so the layer's bias drops by c and that of each
        layer behind it rises by ``sum_i w_i c_i``. The paper takes c as three standard deviations below the mean that
        BatchNormalization knows; here it is the least value that the calibration data show, less ``margin`` of the
        channel's spread.

    When it applies
        To Conv and Gemm with constant biases, joined by Relu, pools and shape operators. Run it after ``equalize``,
        which makes biases high.

    When it refuses
        Layers behind it that pad with zeros (the border would not get the shift) or have no bias of their own to raise
        and are no Conv or Gemm; additions, products and limits between the layers; shared parameters.

    Exactness
        LOSSY. Equal on values that stay above c, as all calibration data do; other data may fall below.
    """

    name: ClassVar[str] = "absorb-bias"
    exactness: ClassVar[Exactness] = Exactness.LOSSY

    margin: float = option(
        0.05, "share of a channel's spread that is kept as reserve below its least value", low=0, high=1
    )

    def apply(self, model: Model, context: Context) -> PassResult:
        fork = model.fork()
        edit, shapes = Edit(fork), Shapes(fork)
        free = list(usable(sites(fork.graph, shapes), edit, RULE, _refuse))
        results = {_giver(site).node.outputs[0].name or "": ChannelMoments(1) for site in free}
        seen = context.stats(model, results) if results else {}
        for site in free:
            found = seen[_giver(site).node.outputs[0].name or ""]
            assert isinstance(found, ChannelMoments)
            if not found.arrays or not np.isfinite([found.arrays["low"], found.arrays["high"]]).all():
                edit.skip(RULE, site.where, "its values were never seen, or are not finite")
                continue
            low, high = found.arrays["low"], found.arrays["high"]
            rest = np.asarray(np.maximum(low - self.margin * (high - low), 0.0))
            if not _worth(rest, high):
                edit.skip(RULE, site.where, "no channel stays far enough above zero to shrink the range")
                continue
            _absorb(site, rest, fork.graph, edit)
            edit.change(RULE, site.where, f"{int((rest > 0).sum())} channels by up to {rest.max():.3g}")
        if edit.changes:
            allow_unlisted_initializers(fork)
        return PassResult(fork if edit.changes else model, tuple(edit.changes), tuple(edit.skips))


def _worth(rest: Array, high: Array) -> bool:
    """Whether the range that all channels share shrinks by at least one step of 8 bits."""
    return float((high - rest).max()) <= float(high.max()) * (1 - 1 / 255)


def _giver(site: Site) -> Part:
    return site.givers[0]


def _refuse(site: Site) -> str:
    if len(site.givers) != 1 or _giver(site).node.op_type not in ("Conv", "Gemm"):
        return "it is not one Conv or Gemm that gives its channels"
    if len(site.shifts) != 1 or site.shifts[0].node is not _giver(site).node:
        return "the layer that gives its channels has no constant bias"
    if not all(_factor(part.node) for part in (*site.shifts, *site.takers)):
        return "a Gemm multiplies its bias with zero"
    wrong = [n.op_type for n in site.path if n.op_type not in SHIFTED or _pads(n)]
    if wrong:
        return f"{wrong[0]} does not let a shift through"
    for part in site.takers:
        if part.node.op_type not in ("Conv", "Gemm") or part.repeat > 1:
            return f"{part.node.op_type} reads it and has no bias"
        if part.node.op_type == "Conv" and _pads(part.node):
            return "a layer that reads it pads with zeros"
        bias = given(part.node, 2)
        if bias is not None and (constant(bias) is None or len(bias.uses()) != 1):
            return "the bias of a layer that reads it is shared or computed"
    return ""


def _pads(node: ir.Node) -> bool:
    """Whether an operator mixes its border with zeros."""
    if node.op_type not in ("Conv", "AveragePool"):
        return False
    if node.op_type == "AveragePool" and not attribute(node, "count_include_pad", 0):
        return False
    automatic = attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID", "")
    return automatic or any(attribute(node, "pads", ()))


def _absorb(site: Site, rest: Array, graph: ir.Graph, edit: Edit) -> None:
    bias = site.shifts[0]
    lowered = bias.array().astype(np.float64) - (rest / _factor(bias.node)).reshape(bias.array().shape)
    replace_constant(bias.node, bias.index, lowered.astype(bias.array().dtype), graph, edit)
    for part in site.takers:
        _raise(part, rest, graph, edit)


def _raise(part: Part, rest: Array, graph: ir.Graph, edit: Edit) -> None:
    """Add what the shift of its inputs takes from a layer's results to its bias."""
    node, weight = part.node, part.array().astype(np.float64)
    if node.op_type == "Conv":
        groups = int(attribute(node, "group", 1))
        taps = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1).sum(axis=3)
        more = np.einsum("goc,gc->go", taps, rest.reshape(groups, -1)).reshape(-1)
    else:
        alpha = float(attribute(node, "alpha", 1.0))
        more = alpha / _factor(node) * ((weight if part.axis else weight.T) @ rest)
    old = given(node, 2)
    if old is None:
        if len(node.inputs) < 3:
            node.resize_inputs(3)
        name = f"{node.name or node.outputs[0].name}_bias"
        node.replace_input_with(2, edit.initializer(graph, name, more.astype(part.array().dtype)))
        return
    held = constant(old)
    assert held is not None
    replace_constant(node, 2, (held.astype(np.float64) + more).astype(held.dtype), graph, edit)


def _factor(node: ir.Node) -> float:
    """What a Gemm multiplies its bias with; a Conv takes it as it is."""
    return float(attribute(node, "beta", 1.0)) if node.op_type == "Gemm" else 1.0
