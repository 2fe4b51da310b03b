"""HQQ: grids that bear outliers, found from the weights alone.

Badri & Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models". The zero point of each block is the
one that minimises ``sum |W - s (q - z)|**p`` with ``p < 1``, which forgives the few large errors and presses on the
many small ones. Splitting off the error ``E`` gives two closed steps that alternate while ``beta`` grows by ``kappa``:
``E <- shrink(W - s (q - z))`` with the generalized soft threshold ``sign(x) max(|x| - |x|**(p-1) / beta, 0)``, then
``z <- mean(q - (W - E) / s)``.

The authors keep fractional zero points. Kernels with whole ones are 25 times faster on the CPU provider, so ``z`` is
rounded at the end. That alone would undo most of the gain; so the alternation starts from several shares of the range,
and each block takes the grid of least squared error among its results.
"""

from __future__ import annotations

import numpy as np

from passes.quantize.blocks import Array, Form, Grids, Quantized, by_rows, fit, split

POWER = 0.7
BETA = 10.0
KAPPA = 1.01
ITERATIONS = 10
SHARES = (1.0, 0.92, 0.84, 0.76)


def hqq(matrix: Array, form: Form) -> Quantized:
    """Codes for ``matrix`` (float32 [outputs, inputs]); no data is needed."""

    def rows(part: Array) -> tuple[Array, Grids]:
        blocks = split(part, form.size)
        best = fit(blocks, form)
        least = _spent(best, blocks, form)
        for share in SHARES:
            grids = _settled(fit(blocks, form, share), blocks, form)
            spent = _spent(grids, blocks, form)
            better = spent < least
            least = np.where(better, spent, least)
            best = Grids(np.where(better, grids.scale, best.scale), np.where(better, grids.zero, best.zero))
        return best.codes(blocks, form), best

    return by_rows(matrix, form, rows)


def _settled(grids: Grids, blocks: Array, form: Form) -> Grids:
    """``grids`` with the zero points that the alternation ends at, rounded; those of a symmetric form stay."""
    if form.symmetric:
        return grids
    scale, zero, beta = grids.scale, grids.zero, BETA
    # The thresholds are the authors' for weights of a network; a block's own size makes them hold for any.
    unit = np.abs(blocks).max(axis=-1, keepdims=True, initial=2.0**-100)
    for _ in range(ITERATIONS):
        steps = np.clip(np.rint(blocks / scale[..., None] + zero[..., None]), 0, form.last)
        error = _shrink((blocks - (steps - zero[..., None]) * scale[..., None]) / unit, beta) * unit
        zero = np.mean(steps - (blocks - error) / scale[..., None], axis=-1)
        beta *= KAPPA
    return Grids(scale, np.clip(np.rint(zero), 0, form.last))


def _shrink(x: Array, beta: float) -> Array:
    size = np.abs(x)
    with np.errstate(divide="ignore"):
        return np.asarray(np.sign(x) * np.maximum(size - size ** (POWER - 1) / beta, 0.0))


def _spent(grids: Grids, blocks: Array, form: Form) -> Array:
    return np.asarray(np.square(grids.rounded(blocks, form) - blocks).sum(axis=-1))
