"""The pass ``equalize``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from passes.kit.context import Context
from passes.kit.contract import Edit, Exactness, Pass, PassResult
from passes.kit.match import allow_unlisted_initializers, compute, given
from passes.kit.model import Model
from passes.kit.options import option
from passes.kit.shapes import Shapes
from passes.quantize.layers import Array
from passes.quantize.scaling import LAYERS, Site, apply, fits, usable
from passes.quantize.sites import clip_limits, sites

MOST_ROUNDS = 64
"""A chain of layers settles in about as many rounds as it is long; what has not settled by then is close."""


@dataclass(frozen=True)
class Equalize(Pass):
    """Even out the channels of neighbouring layers, so that one scale per tensor fits all of them.

    What it does
        Cross-layer equalization (Nagel et al. 2019, arXiv 1906.04721, section 4.1): between two layers that only
        positively homogeneous operators part, output channel i of the first is divided and input channel i of the
        second multiplied by ``s_i = sqrt(r1_i / r2_i)``, where r are the largest magnitudes of the channel in either
        weight: both are ``sqrt(r1_i r2_i)`` afterwards. Depthwise layers pass the evening on; rounds repeat until
        nothing moves. Where an addition joins several layers they share one factor. Factors are powers of two, so
        the model computes the same bits as before, at most a factor of sqrt(2) from the optimum.

    When it applies
        To Conv, ConvTranspose, Gemm and MatMul with constant weights, joined by Relu, LeakyRelu, PRelu, pools, Pad with
        zeros, additions, Transpose, Flatten and the like. It wants BatchNormalization folded.

    When it refuses
        Tensors that callers see, or that other operators read; weights that are shared; channels that a normalization
        gives (see ``smooth``). A Clip such as ReLU6 holds all channels to one limit: with ``clip=min`` it becomes a
        Relu and a Min with one limit per channel, exact but without an integer kernel. Dead channels count as
        ``1 / limit`` of the largest one, so that no factor grows beyond it.

    Exactness
        NUMERIC, and bit-equal unless numbers leave the normal range.
    """

    name: ClassVar[str] = "equalize"
    exactness: ClassVar[Exactness] = Exactness.NUMERIC

    limit: float = option(1024.0, "how far below the largest channel a smaller one still counts", low=1, high=1e6)
    clip: str = option("keep", "what becomes of a Clip with an upper limit", choices=("keep", "min"))

    def apply(self, model: Model, context: Context) -> PassResult:
        fork = model.fork()
        edit = Edit(fork)
        shapes = Shapes(fork)
        for graph in list(fork.graphs()):
            found = sites(graph, shapes, clips=self.clip == "min")
            self._even_out(list(usable(found, edit, "equalize", _between_layers)), graph, edit)
        if edit.changes:
            allow_unlisted_initializers(fork)
        return PassResult(fork if edit.changes else model, tuple(edit.changes), tuple(edit.skips))

    def _even_out(self, free: list[Site], graph: ir.Graph, edit: Edit) -> None:
        total = {site.where: np.ones(site.channels) for site in free}
        for _ in range(MOST_ROUNDS):
            moved = False
            for site in free:
                factors = self._factors(site)
                if (factors != 1).any() and fits(site, factors):
                    apply(site, factors, graph, edit)
                    total[site.where] *= factors
                    moved = True
            if not moved:
                break
        for site in free:
            factors = total[site.where]
            if (factors != 1).any():
                for clip, behind in site.clips.items():
                    _open(clip, factors, behind, graph, edit)
                edit.change("equalize", site.where, f"factors from {factors.min():g} to {factors.max():g}")

    def _factors(self, site: Site) -> Array:
        """Powers of two near ``sqrt(r1 / r2)``, float64 [channels]; 1 for a channel that is zero on either side."""
        gives = np.max([part.ranges(site.channels) for part in site.givers], axis=0)
        takes = np.max([part.ranges(site.channels) for part in site.takers], axis=0)
        dead = (gives == 0) | (takes == 0)
        floors = [np.maximum(r, r.max(initial=0.0) / self.limit) for r in (gives, takes)]
        ratio = np.where(dead, 1.0, floors[0] / np.where(dead, 1.0, floors[1]))
        return np.asarray(np.exp2(np.rint(0.5 * np.log2(ratio))))


def _between_layers(site: Site) -> str:
    """Why a site is not this pass's, or an empty text."""
    if any(part.node.op_type not in LAYERS for part in site.givers):
        return "a normalization or a product gives its channels"
    return ""


def _open(clip: ir.Node, factors: Array, behind: int, graph: ir.Graph, edit: Edit) -> None:
    """``Clip(x, 0, h)`` of channels divided by s becomes ``Min(Relu(x), h / s)``; ``behind`` axes follow channels."""
    high = clip_limits(clip)[1]
    assert high is not None
    limits = (high / factors).astype(np.float32).reshape([-1, *[1] * behind])
    name = clip.outputs[0].name
    relu = ir.node("Relu", [given(clip, 0)], name=edit.fresh(f"{name}_Relu"))
    relu.outputs[0].name = edit.fresh(f"{name}_positive")
    graph.insert_before(clip, relu)
    compute(edit, clip.outputs[0], "Min", [relu.outputs[0], edit.initializer(graph, f"{name}_limits", limits)])
