"""Rounding that minimises the error of a layer's results: coordinate descent on a lattice.

For the weights w of one output (a row), a grid of step s and the second moments G of the inputs, the error of the
result is ``e^T G e`` with ``e = w - s z``. As a function of one integer z_k it is a parabola whose least point is
``z_k + (G e)_k / (s G_kk)``, so the nearest integer to that is the best choice given all others. This is the quadratic
problem of AdaRound (Nagel et al. 2020, arXiv 2004.10568, equation 11) without its restriction to up or down.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from passes.quantize.layers import Array

DAMPING = 0.01
"""Share of the mean diagonal that is added to G: moments from a sample are not believed to the last digit."""


@dataclass(frozen=True, eq=False)
class Rounded:
    """``integers`` [groups, rows, inputs] with the summed error of the results, beside that of rounding to nearest."""

    integers: Array
    error: float
    nearest: float


def round_to_least_error(weight: Array, scale: Array, moments: Array, reach: int, sweeps: int) -> Rounded:
    """Integers from -``reach`` to ``reach`` for ``weight`` that make the results' error small.

    ``weight`` is float64 [groups, rows, inputs], ``scale`` float64 [groups, rows], ``moments`` float64 [groups, inputs,
    inputs]. Integers that reach ``reach`` when rounded to nearest stay: the scale is read off them again. The error
    never exceeds that of rounding to nearest.
    """
    step = scale[:, :, None]
    start = np.clip(np.rint(weight / step), -reach, reach)
    gram = _damped(moments)
    pinned = np.abs(start) >= reach
    integers = start.copy()
    error = weight - step * integers
    for _ in range(sweeps):
        if not _sweep(integers, error, weight, scale, gram, pinned, reach):
            break
    return Rounded(integers, _cost(error, gram), _cost(weight - step * start, gram))


def _damped(moments: Array) -> Array:
    gram = np.array((moments + moments.transpose(0, 2, 1)) / 2)
    inputs = gram.shape[1]
    diagonal = np.einsum("gkk->gk", gram)
    mean = diagonal.mean(axis=1, keepdims=True)
    gram[:, np.arange(inputs), np.arange(inputs)] += np.where(mean > 0, DAMPING * mean, 1.0)
    return gram


def _sweep(integers: Array, error: Array, weight: Array, scale: Array, gram: Array, pinned: Array, reach: int) -> bool:
    """Let every integer take its best value in turn, in place; whether any of them moved."""
    moved = False
    for k in range(weight.shape[2]):
        pull = (error @ gram[:, :, k, None])[:, :, 0]
        wanted = integers[:, :, k] + pull / (scale * gram[:, k, k, None])
        best = np.clip(np.rint(wanted), -reach, reach)
        # A tie, or what rounding makes of one, must not move back and forth.
        better = (np.abs(wanted - best) < np.abs(wanted - integers[:, :, k]) - 1e-9) & ~pinned[:, :, k]
        if better.any():
            integers[:, :, k] = np.where(better, best, integers[:, :, k])
            error[:, :, k] = weight[:, :, k] - scale * integers[:, :, k]
            moved = True
    return moved


def _cost(error: Array, gram: Array) -> float:
    return float(np.einsum("gmk,gmk->", error @ gram, error))
