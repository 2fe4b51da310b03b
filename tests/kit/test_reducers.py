"""Reducers: merged parts are bit-identical with the whole."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from passes.kit.reducers import REDUCERS, ChannelMaxAbs, Histogram, MinMax, Reducer, build
from tests.support.runtime import Array

ANY = npst.arrays(
    np.float32, st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(0, 4)), elements=st.floats(width=32)
)
FINITE = npst.arrays(
    np.float32, st.tuples(st.integers(1, 4), st.just(3), st.integers(1, 4)), elements=st.floats(-1e6, 1e6, width=32)
)
EMPTY: list[Reducer] = [MinMax(), Histogram(-2.0, 3.0, bins=16), ChannelMaxAbs(1), ChannelMaxAbs(-1)]


def fold(empty: Reducer, batches: list[Array]) -> Reducer:
    reducer = build(empty.spec())
    for batch in batches:
        reducer.fold(batch)
    return reducer


def same(left: Reducer, right: Reducer) -> bool:
    return (
        left.spec() == right.spec()
        and left.arrays.keys() == right.arrays.keys()
        and all(
            value.dtype == right.arrays[key].dtype and value.tobytes() == right.arrays[key].tobytes()
            for key, value in left.arrays.items()
        )
    )


@settings(deadline=None)
@given(st.sampled_from(EMPTY[:3]), st.lists(FINITE, max_size=5), st.integers(0, 5), st.booleans())
def test_parts_merge_to_the_whole(empty: Reducer, batches: list[Array], cut: int, swap: bool) -> None:
    parts = [fold(empty, batches[:cut]), fold(empty, batches[cut:])]
    first, second = reversed(parts) if swap else parts
    untouched = copy.deepcopy(second)
    first.merge(second)
    assert same(first, fold(empty, batches))
    assert same(second, untouched)


@settings(deadline=None)
@given(st.lists(ANY, min_size=1, max_size=4))
def test_min_max_counts_what_is_not_finite_apart(batches: list[Array]) -> None:
    reducer = MinMax()
    for batch in batches:
        reducer.fold(batch)
    values = np.concatenate([b.reshape(-1) for b in batches])
    good = values[np.isfinite(values)]
    assert int(reducer.arrays["count"]) == values.size
    assert int(reducer.arrays["broken"]) == values.size - good.size
    assert reducer.low == (good.min() if good.size else np.inf)
    assert reducer.high == (good.max() if good.size else -np.inf)


@settings(deadline=None)
@given(st.lists(ANY, min_size=1, max_size=4))
def test_a_histogram_holds_every_finite_value_once(batches: list[Array]) -> None:
    reducer = Histogram(-2.0, 3.0, bins=16)
    for batch in batches:
        reducer.fold(batch)
    finite = sum(int(np.isfinite(b).sum()) for b in batches)
    assert int(reducer.arrays["counts"].sum()) == finite


def test_values_outside_land_in_the_end_cells() -> None:
    reducer = Histogram(0.0, 4.0, bins=4)
    reducer.fold(np.array([-5, 0, 0.5, 1, 3.99, 4, 9, np.nan]))
    assert reducer.arrays["counts"].tolist() == [3, 1, 0, 3]


@pytest.mark.parametrize(("axis", "wanted"), [(0, [4, 6]), (1, [5, 6, 3]), (-1, [5, 6, 3])])
def test_the_largest_magnitude_of_each_channel(axis: int, wanted: list[float]) -> None:
    reducer = ChannelMaxAbs(axis)
    reducer.fold(np.array([[-1, 2, 3], [0, -6, 1]], np.float32))
    reducer.fold(np.array([[-4, 1, 0], [5, 0, 0]], np.float32))
    assert reducer.arrays["high"].tolist() == wanted


@pytest.mark.parametrize("empty", EMPTY, ids=lambda r: f"{r.kind}-{r.spec().get('axis', '')}")
def test_a_spec_builds_the_same_empty_reducer(empty: Reducer) -> None:
    again = build(empty.spec())
    assert type(again) is type(empty)
    assert same(again, empty)
    assert REDUCERS[empty.kind] is type(empty)
