"""GPTQ: round one input after the other, and let the inputs that are still to come make up for the error.

Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (arXiv
2210.17323), after the optimal brain surgeon. With ``G = X^T X`` of a layer's inputs the cost of an error ``E`` in its
weights [outputs, inputs] is ``tr(E G E^T)``. Let ``U`` be the upper Cholesky factor of ``(G + d I)^-1``: after input
``i`` was rounded with error ``e``, every later input ``j`` moves by ``-e U[i, j] / U[i, i]``.

Inputs are taken in order of falling ``G[i, i]`` (the authors' ``act-order``). The grids of all blocks are settled
before the first input is rounded, so the order costs no index at run time; each is the one that clips its block at
least squared error, weighted by ``G[i, i]``.
"""

from __future__ import annotations

import numpy as np

from passes.quantize.blocks import Array, Form, Grids, Quantized, by_rows, search, split

BATCH = 128
"""Inputs that are rounded before the rest of the matrix is brought up to date."""


class NotPositive(ValueError):
    """The Gram matrix has no inverse, however much is added to its diagonal."""


def gptq(matrix: Array, gram: Array, form: Form, damping: float = 0.01) -> Quantized:
    """Codes for ``matrix`` (float32 [outputs, inputs]) that spend little of ``tr(E G E^T)``.

    ``gram`` is float64 [inputs, inputs], up to a factor; ``damping`` times its mean diagonal is added to the diagonal.
    An input that was always zero is rounded to nearest. Raises :class:`NotPositive`.
    """
    damped = _damped(gram, damping)
    order = np.argsort(-np.diag(damped), kind="stable")
    upper = _inverse_factor(damped[np.ix_(order, order)])
    weight = np.zeros(form.count(matrix.shape[1]) * form.size)
    weight[: len(damped)] = np.diag(damped)
    importance = weight.reshape(-1, form.size)

    def rows(part: Array) -> tuple[Array, Grids]:
        blocks = split(part, form.size)
        grids = search(blocks, form, lambda error: np.einsum("nbs,bs->nb", error * error, importance))
        return _round(part, grids, form, order, upper), grids

    return by_rows(matrix, form, rows)


def _damped(gram: Array, damping: float) -> Array:
    damped = np.array(gram, np.float64)
    diagonal = np.diag(damped).copy()
    dead = diagonal <= 0
    mean = float(diagonal.mean()) or 1.0
    damped[np.diag_indices_from(damped)] = np.where(dead, mean, diagonal) + damping * mean
    return damped


def _inverse_factor(gram: Array) -> Array:
    """Upper ``U`` with ``U^T U = gram^-1``. The diagonal is raised tenfold at a time while rounding spoils it."""
    import scipy.linalg

    lift = 0.0
    mean = float(np.diag(gram).mean())
    for _ in range(8):
        try:
            factor = scipy.linalg.cholesky(gram + lift * np.eye(len(gram)), lower=True)
            inverse, info = scipy.linalg.lapack.dpotri(factor, lower=1)
            if info == 0:
                inverse = np.tril(inverse) + np.tril(inverse, -1).T
                return np.asarray(scipy.linalg.cholesky(inverse, lower=False))
        except scipy.linalg.LinAlgError:
            pass
        lift = lift * 10 if lift else 1e-3 * mean
    raise NotPositive("the Gram matrix of its inputs has no inverse")


def _round(part: Array, grids: Grids, form: Form, order: Array, upper: Array) -> Array:
    """Codes [rows, blocks, size] of ``part`` [rows, inputs], one input after the other in ``order``."""
    inputs = part.shape[1]
    left = np.array(part[:, order], np.float64)
    codes = np.zeros((len(part), form.count(inputs) * form.size), np.uint8)
    codes[:, inputs:] = grids.zero[:, -1:]
    for start in range(0, inputs, BATCH):
        end = min(start + BATCH, inputs)
        errors = np.empty((len(part), end - start))
        for i in range(start, end):
            block = order[i] // form.size
            scale, zero = grids.scale[:, block], grids.zero[:, block]
            code = np.clip(np.rint(left[:, i] / scale) + zero, 0, form.last)
            codes[:, order[i]] = code
            error = (left[:, i] - (code - zero) * scale) / upper[i, i]
            errors[:, i - start] = error
            left[:, i + 1 : end] -= np.outer(error, upper[i, i + 1 : end])
        left[:, end:] -= errors @ upper[start:end, end:]
    return codes.reshape(len(part), -1, form.size)
