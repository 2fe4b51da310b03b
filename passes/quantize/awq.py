"""AWQ: inputs that carry large activations get finer codes, and the activations are divided by what that took.

Lin et al. 2023, "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration" (arXiv 2306.00978):
``Y = X W^T = (X / s) (W s)^T`` with ``s = m**a``, ``m`` the mean size of each input and ``a`` in [0, 1] searched. The
authors rerun the layer for every ``a``; with ``G = X^T X`` its squared output error is ``tr(E G E^T)``, where ``E`` is
the error of the weights, so nothing has to run again. Clipping is searched likewise, block by block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from passes.quantize.blocks import Array, BlockError, Form, Grids, Quantized, by_rows, fit, search, split

EXPONENTS = np.linspace(0.0, 1.0, 21)
ROWS = 2048
"""Rows of a matrix that the search looks at, evenly spaced: more change nothing but the time."""


@dataclass(frozen=True, eq=False)
class Scales:
    """``scale`` float64 [inputs] for all matrices that read one value; squared output errors with and without it."""

    scale: Array
    error: float
    plain: float


def search_scales(matrices: Sequence[Array], gram: Array, magnitude: Array, form: Form) -> Scales:
    """The scales of least squared output error, summed over ``matrices`` ([outputs, inputs] each).

    ``gram`` is float64 [inputs, inputs], ``magnitude`` the mean absolute value of each input [inputs].
    """
    sampled = [m[:: -(-len(m) // ROWS)].astype(np.float64) for m in matrices]
    size = np.maximum(magnitude, 1e-4 * max(float(magnitude.max(initial=0.0)), 1e-30))
    best, plain = Scales(np.ones(len(size)), np.inf, 0.0), 0.0
    for exponent in EXPONENTS:
        scale = size**exponent
        scale = scale / np.sqrt(scale.max() * scale.min())
        error = sum(_output_error(m, gram, scale, form) for m in sampled)
        plain = error if exponent == 0.0 else plain
        if error < best.error:
            best = Scales(scale, error, 0.0)
    return Scales(best.scale, best.error, plain)


def clipped(matrix: Array, gram: Array, form: Form) -> Quantized:
    """Round to nearest on grids that clip each block where that lowers the output error of the block alone."""
    cost = block_cost(gram, form)

    def rows(part: Array) -> tuple[Array, Grids]:
        blocks = split(part, form.size)
        grids = search(blocks, form, cost)
        return grids.codes(blocks, form), grids

    return by_rows(matrix, form, rows)


def block_cost(gram: Array, form: Form) -> BlockError:
    """``e G_b e^T`` of each block's errors ``e``, with ``G_b`` the block's part of the diagonal of ``gram``."""
    count, size = form.count(len(gram)), form.size
    parts = np.zeros((count, size, size))
    for b in range(count):
        piece = gram[b * size : (b + 1) * size, b * size : (b + 1) * size]
        parts[b, : len(piece), : len(piece)] = piece

    def cost(error: Array) -> Array:
        turned = error.transpose(1, 0, 2)
        return np.asarray(((turned @ parts) * turned).sum(axis=-1).T)

    return cost


def output_error(error: Array, gram: Array) -> float:
    """``tr(E G E^T)`` of ``error`` [outputs, inputs]: the squared output error over the data behind ``gram``."""
    return float(((error @ gram) * error).sum())


def _output_error(matrix: Array, gram: Array, scale: Array, form: Form) -> float:
    blocks = split(matrix * scale, form.size)
    rounded = fit(blocks, form).rounded(blocks, form).reshape(len(matrix), -1)[:, : matrix.shape[1]]
    return output_error(rounded / scale - matrix, gram)
