"""Laws of the grids that 8-bit integers live on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from passes.quantize.grid import (
    LARGEST_BIAS,
    LIMITS,
    Grid,
    activation_grid,
    bias_grid,
    weight_grid,
    widen_for_bias,
)

Array = np.ndarray[Any, Any]
REAL = st.floats(-1e6, 1e6, width=32)
EIGHT = st.sampled_from(["uint8", "int8"])
FEW = settings(max_examples=60, deadline=None)


@st.composite
def ranges(draw: st.DrawFn) -> tuple[float, float]:
    low, high = sorted((draw(REAL), draw(REAL)))
    return low, high


@FEW
@given(ranges(), EIGHT, st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_inside_the_range_half_a_step_is_the_largest_error(
    ends: tuple[float, float], dtype: str, places: list[float]
) -> None:
    grid = activation_grid(*ends, dtype)
    low, high = min(ends[0], 0.0), max(ends[1], 0.0)
    x = np.asarray([low + p * (high - low) for p in places], np.float64)
    error = np.abs(grid.dequantize(grid.quantize(x)).astype(np.float64) - x)
    # Rounding zero shifts the grid by up to half a step, so the ends of the range may lie that far outside it.
    inside = (x >= (LIMITS[dtype][0] - float(grid.zero)) * float(grid.scale)) & (
        x <= (LIMITS[dtype][1] - float(grid.zero)) * float(grid.scale)
    )
    step = float(grid.scale)
    slack = 1e-5 * max(abs(low), abs(high))  # scale and values are rounded to float32
    assert (error[inside] <= step / 2 + slack).all()
    assert (error <= step + slack).all()


@FEW
@given(ranges(), EIGHT)
def test_zero_is_exact(ends: tuple[float, float], dtype: str) -> None:
    grid = activation_grid(*ends, dtype)
    assert grid.dequantize(grid.quantize(np.zeros(1))) == 0.0
    assert LIMITS[dtype][0] <= int(grid.zero) <= LIMITS[dtype][1]


@FEW
@given(ranges(), EIGHT, hnp.arrays(np.float32, 30, elements=REAL))
def test_order_is_kept(ends: tuple[float, float], dtype: str, x: Array) -> None:
    integers = activation_grid(*ends, dtype).quantize(np.sort(x)).astype(np.int64)
    assert (np.diff(integers) >= 0).all()


@FEW
@given(ranges(), EIGHT)
def test_integers_come_back_as_they_were(ends: tuple[float, float], dtype: str) -> None:
    grid = activation_grid(*ends, dtype)
    every = np.arange(LIMITS[dtype][0], LIMITS[dtype][1] + 1).astype(dtype)
    np.testing.assert_array_equal(grid.quantize(grid.dequantize(every)), every)


@pytest.mark.parametrize(
    ("low", "high", "dtype", "zero"),
    [(0, 5, "uint8", 0), (0, 5, "int8", -128), (-5, 0, "uint8", 255), (3, 5, "uint8", 0)],
)
def test_one_sided_ranges_end_at_zero(low: float, high: float, dtype: str, zero: int) -> None:
    grid = activation_grid(low, high, dtype)
    assert int(grid.zero) == zero
    assert float(grid.scale) == np.float32(5 / 255)


def test_degenerate_ranges() -> None:
    assert float(activation_grid(0, 0, "uint8").scale) == 1.0
    tiny = activation_grid(0, 1e-44, "uint8")
    assert np.isfinite(1 / tiny.scale) and tiny.scale >= np.finfo(np.float32).tiny
    huge = activation_grid(-3e38, 3e38, "uint8")
    assert np.isfinite(huge.scale) and np.isfinite(huge.dequantize(np.array([0, 255], np.uint8))).all()
    for ends in ((1.0, 0.0), (float("nan"), 1.0), (0.0, float("inf"))):
        with pytest.raises(ValueError, match="not a range"):
            activation_grid(*ends, "uint8")


WEIGHTS = hnp.arrays(np.float32, (4, 6), elements=REAL)


@FEW
@given(WEIGHTS, st.sampled_from([None, 0, 1]), EIGHT, st.sampled_from([64, 127]))
def test_weights_are_symmetric_and_within_reach(w: Array, axis: int | None, dtype: str, reach: int) -> None:
    grid = weight_grid(w, axis, dtype, reach)
    steps = grid.quantize(w).astype(np.int64) - int(grid.zero.reshape(-1)[0])
    assert np.abs(steps).max() <= reach
    np.testing.assert_array_equal(grid.quantize(-w).astype(np.int64) - int(grid.zero.reshape(-1)[0]), -steps)
    step = grid.scale if axis is None else np.expand_dims(grid.scale, 1 - axis)
    error = np.abs(grid.dequantize(grid.quantize(w)).astype(np.float64) - w)
    assert (error <= step * (0.5 + 1e-4)).all()


@FEW
@given(WEIGHTS, hnp.arrays(np.float32, 4, elements=REAL), st.floats(1e-20, 1e3), st.sampled_from([None, 0]))
def test_the_bias_never_overflows_and_stays_exact_to_half_a_step(
    w: Array, b: Array, input_scale: float, axis: int | None
) -> None:
    narrow = weight_grid(w, axis, "int8", 127)
    wide = widen_for_bias(narrow, b, input_scale)
    assert (wide.scale >= narrow.scale).all()
    grid = bias_grid(wide, input_scale, 4)
    assert (grid.scale >= np.finfo(np.float32).tiny).all()
    integers = grid.quantize(b).astype(np.float64)
    assert (np.abs(integers) <= LARGEST_BIAS * (1 + 1e-6)).all()
    error = np.abs(integers * grid.scale.astype(np.float64) - b)
    assert (error <= grid.scale.astype(np.float64) * 0.5 + np.abs(b) * 1e-6).all()


@FEW
@given(WEIGHTS, hnp.arrays(np.float32, 4, elements=st.floats(-10, 10, width=32)))
def test_ordinary_weights_are_not_widened(w: Array, b: Array) -> None:
    w = np.where(np.abs(w) < 1e-2, np.float32(1.0), w)
    narrow = weight_grid(w, 0, "int8", 127)
    np.testing.assert_array_equal(widen_for_bias(narrow, b, 0.01).scale, narrow.scale)


def test_an_all_zero_channel_keeps_its_bias() -> None:
    w = np.zeros((2, 3), np.float32)
    w[1] = 1.0
    grid = bias_grid(widen_for_bias(weight_grid(w, 0, "int8", 127), np.float32([0.7, 0.7]), 0.02), 0.02, 2)
    np.testing.assert_allclose(grid.dequantize(grid.quantize(np.float32([0.7, 0.7]))), 0.7, atol=1e-4)


def test_a_grid_along_an_axis_scales_that_axis() -> None:
    grid = Grid(np.float32([1, 2]), np.zeros(2, np.int8), "int8", 1)
    np.testing.assert_array_equal(grid.quantize(np.float32([[2, 2], [4, 8]])), [[2, 1], [4, 4]])
