"""The pass ``smooth``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from passes.kit.context import Context
from passes.kit.contract import Edit, Exactness, Pass, PassResult
from passes.kit.match import allow_unlisted_initializers, attribute
from passes.kit.model import Model
from passes.kit.options import option
from passes.kit.reducers import ChannelMoments
from passes.kit.shapes import Shapes
from passes.kit.target import Target
from passes.quantize.layers import Array
from passes.quantize.scaling import LAYERS, Part, Site, View, apply, fits, usable
from passes.quantize.sites import sites

ALPHAS = tuple(i / 20 for i in range(21))
"""The strengths that a search looks at."""

WORTH = 0.95
"""A site is scaled when the error that is expected falls at least to this share."""

PARTS = 8
"""Factors are whole powers of 2**(1 / PARTS), so that what was smoothed once asks for no second time."""

MOST_ROUNDS = 8
"""Tensors whose factors depend on each other (a residual) are looked at again, at most this often."""

LARGEST = 2.0**13
"""No factor goes beyond this or its inverse."""


@dataclass(frozen=True)
class Smooth(Pass):
    """Move outliers of activations into the weights that read them, so that both fit on 8-bit grids.

    What it does
        SmoothQuant (Xiao et al. 2022, arXiv 2211.10438, section 4): channel i of a layer's input is divided and its
        weights multiplied by ``s_i = max|x_i|^alpha / max|w_i|^(1 - alpha)``. The division goes into what gives the
        channels: the gain of a normalization, a constant factor, a layer (through Relu, pools, additions, and through
        a product such as SwiGLU's). Without ``alpha`` the strength is searched for each tensor: for a candidate the
        error of the layers behind it is estimated from the statistics alone, as the noise of both grids,
        ``d_x^2 / 12 sum (w_i s_i)^2 + sum_o d_o^2 / 12 sum E[x_i^2] / s_i^2`` with the grid steps ``d`` that the
        ranges and weights would have. Tensors are taken from the output to the input.

    When it applies
        To float Conv, Gemm and MatMul with constant weights, behind LayerNormalization, RMSNormalization (whole or
        decomposed), Mul with a constant or other such layers. It wants calibration data and fused normalization.

    When it refuses
        Tensors that callers see or that operators read which let no factor through, shared parameters, a Clip with
        an upper limit, and tensors where no strength promises an error at least 5 % smaller.

    Exactness
        NUMERIC. The same algebra with one rounding of weights, gains and biases.
    """

    name: ClassVar[str] = "smooth"
    exactness: ClassVar[Exactness] = Exactness.NUMERIC

    alpha: float = option(-1.0, "share of the outliers that goes into the weights (-1: searched)", low=-1, high=1)
    givers: str = option(
        "all", "which tensors: behind normalizations and products, or layers too", choices=("all", "norms")
    )

    def apply(self, model: Model, context: Context) -> PassResult:
        fork = model.fork()
        edit, shapes = Edit(fork), Shapes(fork)
        free = list(usable(sites(fork.graph, shapes), edit, "smooth", self._refuse))
        noises = _observed(free, model, context, edit)
        total = self._settle(noises, fork.graph, edit)
        for site in noises:
            if site.where not in total:
                edit.skip("smooth", site.where, f"no strength promises an error below {WORTH:g} of what it is")
            else:
                low, high = total[site.where].min(), total[site.where].max()
                edit.change("smooth", site.where, f"factors from {low:.3g} to {high:.3g}")
        if edit.changes:
            allow_unlisted_initializers(fork)
        return PassResult(fork if edit.changes else model, tuple(edit.changes), tuple(edit.skips))

    def _settle(self, noises: dict[Site, _Noise], graph: ir.Graph, edit: Edit) -> dict[str, Array]:
        """Scale the sites from the output to the input, because a factor behind a layer also changes its weights, until
        nothing is worth it any more; the product of the factors of each site that was scaled, by its place."""
        total: dict[str, Array] = {}
        for _ in range(MOST_ROUNDS):
            moved = False
            for site, noise in reversed(noises.items()):
                factors = self._factors(noise)
                if factors is None or not fits(site, factors):
                    continue
                apply(site, factors, graph, edit)
                noise.scale(factors)
                total[site.where] = total.get(site.where, np.ones(site.channels)) * factors
                moved = True
            if not moved:
                break
        return total

    def _refuse(self, site: Site) -> str:
        if self.givers == "norms" and all(part.node.op_type in LAYERS for part in site.givers):
            return "layers give its channels, and only normalizations and products were asked for"
        return ""

    def _factors(self, noise: _Noise) -> Array | None:
        """Factors, float64 [channels], or ``None`` when nothing is worth it."""
        alphas = ALPHAS if self.alpha < 0 else (self.alpha,)
        found = min((noise.factors(alpha) for alpha in alphas), key=noise.of)
        return found if (found != 1).any() and noise.of(found) < WORTH * noise.of(np.ones_like(found)) else None


def _observed(free: list[Site], model: Model, context: Context, edit: Edit) -> dict[Site, _Noise]:
    """Each site with the noise that follows from what was seen of the values that its layers read."""
    wanted: dict[str, ChannelMoments] = {}
    for site in free:
        for value, view in _read_values(site).items():
            wanted[value.name or ""] = ChannelMoments(view.axis)
    seen: Mapping[str, object] = context.stats(model, wanted) if wanted else {}
    noises = {}
    for site in free:
        found = [m for v in _read_values(site) if isinstance(m := seen[v.name or ""], ChannelMoments)]
        if all(m.arrays and np.isfinite([m.arrays["low"], m.arrays["high"]]).all() for m in found):
            noises[site] = _Noise(site, found, context.target)
        else:
            edit.skip("smooth", site.where, "its values were never seen, or are not finite")
    return noises


def _read_values(site: Site) -> dict[ir.Value, View]:
    """The values that the layers of a site read, and where their channels lie."""
    found = [part.node.inputs[0] for part in site.takers]
    return {value: site.views[value] for value in found if value is not None}


class _Noise:
    """The error that 8-bit grids would make in the layers of a site, for given factors."""

    def __init__(self, site: Site, seen: list[ChannelMoments], target: Target) -> None:
        self._site, self._target = site, target
        fold = [_folded(m, site.channels) for m in seen]
        self._low = np.minimum(np.min([low for low, _, _ in fold], axis=0), 0.0)
        self._high = np.maximum(np.max([high for _, high, _ in fold], axis=0), 0.0)
        self._power = np.max([power for _, _, power in fold], axis=0)

    def scale(self, factors: Array) -> None:
        """The channels were divided by ``factors``."""
        self._low, self._high = self._low / factors, self._high / factors
        self._power = self._power / factors**2

    @property
    def _weights(self) -> list[Array]:
        return [_matrix(part, self._site.channels) for part in self._site.takers]

    def factors(self, alpha: float) -> Array:
        """SmoothQuant's factors for a strength: 1 on average, and for channels that are zero on either side."""
        x = np.maximum(-self._low, self._high)
        w = np.max([np.abs(m).max(axis=(2, 3), initial=0.0).reshape(-1) for m in self._weights], axis=0)
        dead = (x == 0) | (w == 0)
        x, w = np.where(dead, 1.0, x), np.where(dead, 1.0, w)
        log = alpha * np.log2(x) - (1 - alpha) * np.log2(w)
        log = np.where(dead, 0.0, log - log[~dead].mean() if (~dead).any() else 0.0)
        return np.asarray(np.exp2(np.clip(np.rint(log * PARTS) / PARTS, -np.log2(LARGEST), np.log2(LARGEST))))

    def of(self, factors: Array) -> float:
        """Expected squared error per output position, summed over the layers of the site."""
        reach = self._target.weight_range
        width = float((self._high / factors).max(initial=0.0) - (self._low / factors).min(initial=0.0))
        step = width / 255.0
        total = 0.0
        for matrix in self._weights:
            grouped = (len(matrix), -1)
            scaled = matrix * factors.reshape(*grouped, 1, 1)
            largest = np.abs(scaled).max(axis=(1, 3), initial=0.0)
            if not self._target.per_channel:
                largest = np.full_like(largest, largest.max(initial=0.0))
            power = (self._power / factors**2).reshape(grouped).sum(axis=1)
            total += step**2 / 12 * float(np.square(scaled).sum())
            total += matrix.shape[3] / 12 * float((np.square(largest / reach).sum(axis=1) * power).sum())
        return total


def _folded(moments: ChannelMoments, channels: int) -> tuple[Array, Array, Array]:
    """Lowest, highest and mean square of each channel of the site; an image laid flat has each of them repeatedly."""
    shape = (channels, -1)
    low, high = (moments.arrays[k].reshape(shape) for k in ("low", "high"))
    return low.min(axis=1), high.max(axis=1), moments.mean_square().reshape(shape).sum(axis=1)


def _matrix(part: Part, channels: int) -> Array:
    """A layer's weight as float64 [groups, channels / groups, outputs / groups, taps]."""
    array = np.asarray(part.array(), np.float64)
    by_channel = part.by_channel(array, channels)
    groups = int(attribute(part.node, "group", 1))
    if array.ndim > 2:
        return by_channel.reshape(groups, channels // groups, -1, int(np.prod(array.shape[2:])))
    return by_channel.reshape(1, channels, part.repeat, -1).transpose(0, 1, 3, 2)
