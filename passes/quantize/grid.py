"""Grids: how real numbers map to 8-bit integers, ``real = scale * (integer - zero)``.

The affine scheme, the integer bias with ``scale_bias = scale_input * scale_weight`` and the rule that zero must be
exactly representable (padding and ReLU rely on it) are those of Jacob et al. 2018, "Quantization and Training of
Neural Networks for Efficient Integer-Arithmetic-Only Inference" (arXiv 1712.05877); symmetric weights with one scale
per output channel follow Krishnamoorthi 2018, "Quantizing deep convolutional networks for efficient inference" (arXiv
1806.08342).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

LIMITS = {
    "uint8": (0, 255),
    "int8": (-128, 127),
    "uint16": (0, 65535),
    "int16": (-(2**15), 2**15 - 1),
    "int32": (-(2**31), 2**31 - 1),
}
"""Smallest and largest integer of each type."""

LARGEST_BIAS = 2**30
"""Largest absolute integer bias: half of int32, so that the sum of products that it starts cannot overflow."""

SMALLEST_SCALE = 2.0**-100
"""Scales stay well inside float32's normal numbers (2**-126), so that their products with others can too."""


@dataclass(frozen=True)
class Grid:
    """One grid: float32 ``scale`` and integer ``zero``, both 0-d (per tensor) or [channels] (along ``axis``)."""

    scale: Array
    zero: Array
    dtype: str
    axis: int | None = None

    def quantize(self, real: Array) -> Array:
        """Integers of type ``dtype`` for ``real`` (float, any shape): round half to even, saturate."""
        low, high = LIMITS[self.dtype]
        scale, zero = self._along(real.ndim)
        steps = np.rint(real.astype(np.float64) / scale) + zero
        return np.asarray(np.clip(steps, low, high)).astype(self.dtype)

    def dequantize(self, integers: Array) -> Array:
        """float32 values that ``integers`` stand for."""
        scale, zero = self._along(integers.ndim)
        return np.asarray((integers.astype(np.float64) - zero) * scale).astype(np.float32)

    def _along(self, rank: int) -> tuple[Array, Array]:
        scale, zero = self.scale.astype(np.float64), self.zero.astype(np.float64)
        if self.axis is None:
            return scale, zero
        shape = [1] * rank
        shape[self.axis] = -1
        return scale.reshape(shape), zero.reshape(shape)


def activation_grid(low: float, high: float, dtype: str) -> Grid:
    """The grid of a tensor whose values lie in [low, high], which is widened to hold zero.

    ``scale = (high - low) / (qmax - qmin)`` and ``zero = round(qmin - low / scale)`` (arXiv 1712.05877, sections 2
    and 3); a tensor that is all zero gets scale 1. Raises ``ValueError`` when the range is empty or not finite.
    """
    if not (np.isfinite(low) and np.isfinite(high) and low <= high):
        raise ValueError(f"[{low}, {high}] is not a range")
    qmin, qmax = LIMITS[dtype]
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    width = high - low
    scale = np.float32(1.0 if width == 0 else max(width / (qmax - qmin), SMALLEST_SCALE))
    zero = np.clip(np.rint(qmin - low / float(scale)), qmin, qmax)
    return Grid(np.asarray(scale), np.asarray(zero, dtype), dtype)


def symmetric_grid(low: float, high: float, dtype: str) -> Grid:
    """The grid of a tensor whose values lie in [low, high], as wide below zero as above it: zero is the middle integer.

    ``scale = max(|low|, |high|) / 127`` for 8 bits; TensorRT takes no other. Raises ``ValueError`` when the range is
    empty or not finite.
    """
    if not (np.isfinite(low) and np.isfinite(high) and low <= high):
        raise ValueError(f"[{low}, {high}] is not a range")
    qmin, qmax = LIMITS[dtype]
    middle = (qmin + qmax + 1) // 2
    largest = max(-float(low), float(high), 0.0)
    scale = np.float32(1.0 if largest == 0 else max(largest / (qmax - middle), SMALLEST_SCALE))
    return Grid(np.asarray(scale), np.asarray(middle, dtype), dtype)


def weight_grid(weight: Array, axis: int | None, dtype: str, reach: int) -> Grid:
    """The symmetric grid of a weight: ``scale = max|w| / reach``, per index of ``axis`` or per tensor (``None``).

    The integers reach from -``reach`` to ``reach`` around the zero (0 for int8, 128 for uint8), so the grid is the same
    on both sides (arXiv 1806.08342, section 2.2). An all-zero channel gets the smallest scale: its bias stays exact.
    """
    others = None if axis is None else tuple(i for i in range(weight.ndim) if i != axis)
    largest = np.abs(weight.astype(np.float64)).max(axis=others, initial=0.0)
    scale = np.maximum(largest / reach, SMALLEST_SCALE).astype(np.float32)
    zero = np.full(scale.shape, 128 if dtype == "uint8" else 0, dtype)
    return Grid(np.asarray(scale), zero, dtype, axis)


def widen_for_bias(weight: Grid, bias: Array, input_scale: float) -> Grid:
    """``weight`` with scales raised until ``bias`` ([channels]) fits into LARGEST_BIAS steps of both scales' product.

    A channel whose weights are tiny beside its bias would overflow the int32 bias; coarser weights cost nothing there.
    Scales are raised too where ``scale_input * scale_weight`` would leave float32's normal range.
    """
    needed = np.abs(bias.astype(np.float64)) / (LARGEST_BIAS * float(input_scale))
    needed = np.maximum(needed, SMALLEST_SCALE / float(input_scale))
    if weight.axis is None:
        needed = needed.max(initial=0.0)
    # One part in a million more than needed, so that rounding to float32 cannot fall short.
    raised = (needed * (1 + 1e-6)).astype(np.float32)
    return Grid(np.maximum(weight.scale, raised), weight.zero, weight.dtype, weight.axis)


def bias_grid(weight: Grid, input_scale: float, channels: int) -> Grid:
    """The int32 grid of a bias: the product of both scales, zero 0 (arXiv 1712.05877, section 2.4).

    Per channel, or one for the tensor where the weight has one: below opset 13 nothing else can be said.
    """
    shape = () if weight.axis is None else (channels,)
    scale = np.broadcast_to(weight.scale * np.float32(input_scale), shape)
    return Grid(np.asarray(scale, np.float32), np.zeros(shape, np.int32), "int32", None if weight.axis is None else 0)
