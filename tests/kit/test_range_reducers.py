"""Reducers that ranges come from: what they hold is exact, and parts merge to the whole bit by bit."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from passes.kit.reducers import CELLS, Distribution, MinMax, Outside, Reducer, SampleExtremes
from tests.kit.test_reducers import fold, same
from tests.support.runtime import Array

ANY = npst.arrays(np.float32, st.integers(0, 12), elements=st.floats(width=32))
FINITE = npst.arrays(
    np.float32, st.integers(1, 12), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
)
EMPTY: list[Reducer] = [MinMax(), Distribution(), SampleExtremes(), Outside(-1.0, 2.0)]


@settings(deadline=None)
@given(st.sampled_from(EMPTY), st.lists(ANY, max_size=6), st.integers(0, 6), st.booleans())
def test_parts_merge_to_the_whole_in_any_order(empty: Reducer, batches: list[Array], cut: int, swap: bool) -> None:
    parts = [fold(empty, batches[:cut]), fold(empty, batches[cut:])]
    first, second = reversed(parts) if swap else parts
    untouched = copy.deepcopy(second)
    first.merge(second)
    assert same(first, fold(empty, batches))
    assert same(second, untouched)
    assert same(fold(empty, batches[::-1]), fold(empty, batches))


@settings(deadline=None)
@given(st.lists(FINITE, min_size=1, max_size=4), st.integers(1, 5))
def test_how_values_are_shared_out_does_not_matter_to_a_distribution(batches: list[Array], pieces: int) -> None:
    together = np.concatenate(batches)
    assert same(fold(Distribution(), batches), fold(Distribution(), np.array_split(together, pieces)))


@settings(deadline=None)
@given(st.lists(FINITE, min_size=1, max_size=4))
def test_every_value_lies_in_the_cell_that_counts_it(batches: list[Array]) -> None:
    found = fold(Distribution(), batches)
    assert isinstance(found, Distribution)
    values = np.concatenate(batches).astype(np.float64)
    width = np.ldexp(1.0, found.reach) / CELLS
    wanted = np.bincount(np.trunc(values / width).astype(int) + CELLS - 1, minlength=2 * CELLS - 1)
    assert np.array_equal(found.arrays["counts"], wanted)
    largest = np.abs(values).max()
    assert largest < np.ldexp(1.0, found.reach)
    assert largest >= np.ldexp(1.0, found.reach - 1) or found.reach == -96
    edges, counts = found.seen()
    assert counts.sum() == values.size
    assert (edges[0], edges[-1]) == (values.min(), values.max())
    assert (np.diff(edges) >= 0).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8, np.int64, np.bool_])
def test_other_types_are_counted_too(dtype: type) -> None:
    values: Array = np.array([0, 1, 1, 5, 7]).astype(dtype)
    found = fold(Distribution(), [values])
    assert isinstance(found, Distribution)
    assert found.arrays["counts"].sum() == 5
    assert (found.low, found.high) == (float(values.min()), float(values.max()))


@pytest.mark.parametrize("empty", EMPTY, ids=lambda r: r.kind)
def test_the_order_of_signed_zeros_does_not_matter(empty: Reducer) -> None:
    zeros = [np.array([z], np.float32) for z in (0.0, -0.0)]
    assert same(fold(empty, zeros), fold(empty, zeros[::-1]))


def test_means_of_extremes_are_exact() -> None:
    """A float64 sum would lose the small ones."""
    found = fold(SampleExtremes(), [np.array([v], np.float32) for v in (1e30, 1.0, -1e30, 2.0)])
    assert isinstance(found, SampleExtremes)
    assert found.means() == (0.75, 0.75)
    broken = fold(SampleExtremes(), [np.array([1.0, np.nan], np.float32)])
    assert isinstance(broken, SampleExtremes)
    assert int(broken.arrays["broken"]) == 1
    with pytest.raises(ValueError, match="no sample"):
        broken.means()


@settings(deadline=None)
@given(st.lists(ANY, min_size=1, max_size=4))
def test_what_lies_outside_is_counted_on_either_side(batches: list[Array]) -> None:
    found = fold(Outside(-1.0, 2.0), batches)
    values = np.concatenate(batches)
    good = values[np.isfinite(values)]
    assert int(found.arrays["below"]) == (good < -1.0).sum()
    assert int(found.arrays["above"]) == (good > 2.0).sum()
    assert int(found.arrays["count"]) == values.size
