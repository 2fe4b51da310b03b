"""Blocks: weights as 2-, 4- or 8-bit codes with one scale and one zero point for each run of ``size`` inputs.

``real = scale * (code - zero)`` with ``code`` in [0, 2**bits - 1], the form of onnxruntime's ``MatMulNBits`` (domain
com.microsoft). Matrices are [outputs, inputs] here; inputs are padded with zeros to whole blocks. Every function treats
rows alone, so a large matrix is worked off a few rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

BlockError = Callable[[Array], Array]
"""Errors of blocks, float64 [rows, blocks, size], to what each block costs, float64 [rows, blocks]."""

SMALLEST_SCALE = 2.0**-100
"""Scales stay well inside float32's normal numbers."""

SHRINKS = np.linspace(1.0, 0.5, 26)
"""Shares of a block's range that the clip search tries."""

ROWS_BYTES = 64 * 2**20
"""How much float64 one slice of rows may take."""


@dataclass(frozen=True)
class Form:
    """Bits of a code (2, 4 or 8), inputs in a block (a power of two from 16 on), and whether zero is in the middle."""

    bits: int
    size: int
    symmetric: bool

    @property
    def last(self) -> int:
        """The largest code."""
        return int(2**self.bits - 1)

    @property
    def middle(self) -> int:
        """The zero point of a symmetric block, and the one that ``MatMulNBits`` takes when none is given."""
        return int(2 ** (self.bits - 1))

    def count(self, inputs: int) -> int:
        """Number of blocks in a row of ``inputs`` numbers."""
        return -(-inputs // self.size)

    def packed_bytes(self, outputs: int, inputs: int) -> int:
        """Bytes of codes, scales and zero points."""
        blocks = self.count(inputs)
        zeros = 0 if self.symmetric else -(-blocks * self.bits // 8)
        return outputs * (blocks * (self.size * self.bits // 8 + 4) + zeros)


@dataclass(frozen=True, eq=False)
class Grids:
    """One grid per block: ``scale`` (float64 that float32 holds exactly) and ``zero`` (whole), both [rows, blocks]."""

    scale: Array
    zero: Array

    def codes(self, blocks: Array, form: Form) -> Array:
        """uint8 codes of ``blocks`` (float64 [rows, blocks, size]): round half to even, saturate."""
        steps = np.rint(blocks / self.scale[..., None]) + self.zero[..., None]
        return np.asarray(np.clip(steps, 0, form.last)).astype(np.uint8)

    def values(self, codes: Array) -> Array:
        """float64 numbers that ``codes`` stand for."""
        return np.asarray((codes.astype(np.float64) - self.zero[..., None]) * self.scale[..., None])

    def rounded(self, blocks: Array, form: Form) -> Array:
        """``blocks`` as their codes give them back."""
        steps = np.rint(blocks / self.scale[..., None]) + self.zero[..., None]
        return np.asarray((np.clip(steps, 0, form.last) - self.zero[..., None]) * self.scale[..., None])


@dataclass(frozen=True, eq=False)
class Quantized:
    """A quantized matrix [outputs, inputs]: uint8 ``codes`` [outputs, blocks, size] and float32 ``scale``, uint8
    ``zero``, both [outputs, blocks]."""

    form: Form
    inputs: int
    codes: Array
    scale: Array
    zero: Array

    def real(self) -> Array:
        """The float32 matrix that it stands for."""
        wide = (self.codes.astype(np.float32) - self.zero[..., None].astype(np.float32)) * self.scale[..., None]
        return np.asarray(wide.reshape(len(wide), -1)[:, : self.inputs], order="C")

    def packed(self) -> Array:
        """Codes as uint8 [outputs, blocks, size * bits / 8], the first code in the lowest bits."""
        return pack(self.codes, self.form.bits)

    def packed_zeros(self) -> Array:
        """Zero points as uint8 [outputs, ceil(blocks * bits / 8)]."""
        return pack(self.zero, self.form.bits)


def split(matrix: Array, size: int) -> Array:
    """float64 [rows, blocks, size] of ``matrix`` [rows, inputs], padded with zeros."""
    rows, inputs = matrix.shape
    padded = np.zeros((rows, -(-inputs // size) * size))
    padded[:, :inputs] = matrix
    return padded.reshape(rows, -1, size)


def fit(blocks: Array, form: Form, share: float = 1.0) -> Grids:
    """Grids that reach over ``share`` of each block's range, which is widened to hold zero.

    Asymmetric: ``scale = (high - low) / last`` and ``zero = round(-low / scale)``. Symmetric: the number of largest
    size lies exactly on code 0, the end with one more step, so its scale is negative where that number is positive.
    """
    if form.symmetric:
        where = np.abs(blocks).argmax(axis=-1)[..., None]
        largest = np.take_along_axis(blocks, where, axis=-1)[..., 0] * share
        return Grids(_representable(-largest / form.middle), np.full(largest.shape, float(form.middle)))
    low = np.minimum(blocks.min(axis=-1), 0.0) * share
    high = np.maximum(blocks.max(axis=-1), 0.0) * share
    scale = _representable((high - low) / form.last)
    return Grids(scale, np.clip(np.rint(-low / scale), 0, form.last))


def search(blocks: Array, form: Form, cost: BlockError) -> Grids:
    """The grids of least ``cost`` among those over shares of each block's range (clipping the ends)."""
    best = fit(blocks, form)
    least = cost(best.rounded(blocks, form) - blocks)
    for share in SHRINKS[1:]:
        tried = fit(blocks, form, float(share))
        spent = cost(tried.rounded(blocks, form) - blocks)
        better = spent < least
        least = np.where(better, spent, least)
        best = Grids(np.where(better, tried.scale, best.scale), np.where(better, tried.zero, best.zero))
    return best


def round_to_nearest(matrix: Array, form: Form) -> Quantized:
    """Every number to the nearest code of its block's grid over the whole range. ``matrix`` is [outputs, inputs]."""

    def rows(part: Array) -> tuple[Array, Grids]:
        blocks = split(part, form.size)
        grids = fit(blocks, form)
        return grids.codes(blocks, form), grids

    return by_rows(matrix, form, rows)


def by_rows(matrix: Array, form: Form, work: Callable[[Array], tuple[Array, Grids]]) -> Quantized:
    """``work`` (rows of the matrix to codes and grids) over slices of rows that stay inside ``ROWS_BYTES``."""
    step = max(1, ROWS_BYTES // max(1, 8 * matrix.shape[1]))
    parts = [work(matrix[i : i + step]) for i in range(0, len(matrix), step)]
    scale = np.concatenate([g.scale for _, g in parts]).astype(np.float32)
    zero = np.concatenate([g.zero for _, g in parts]).astype(np.uint8)
    return Quantized(form, matrix.shape[1], np.concatenate([c for c, _ in parts]), scale, zero)


def pack(codes: Array, bits: int) -> Array:
    """uint8 codes joined along the last axis, ``8 / bits`` to a byte, the first in the lowest bits; padded with 0."""
    each = 8 // bits
    if each == 1:
        return codes
    missing = -codes.shape[-1] % each
    padded = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, missing)])
    packed = np.zeros((*padded.shape[:-1], padded.shape[-1] // each), np.uint8)
    for i in range(each):
        packed |= padded[..., i::each] << np.uint8(i * bits)
    return packed


def _representable(scale: Array) -> Array:
    """Scales as float32 holds them; a block of zeros gets scale 1."""
    tiny = np.abs(scale) < SMALLEST_SCALE
    return np.where(tiny, 1.0, scale).astype(np.float32).astype(np.float64)


def unpack(packed: Array, bits: int) -> Array:
    """uint8 codes of uint8 [..., bytes], as :func:`pack` makes them: as many as the bytes hold, padding among them."""
    each = 8 // bits
    codes = [(packed >> np.uint8(i * bits)) & np.uint8(2**bits - 1) for i in range(each)]
    return np.stack(codes, axis=-1).reshape(*packed.shape[:-1], -1)
