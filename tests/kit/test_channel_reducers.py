"""Reducers of channels and of patches: exact whatever the order, and right."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from passes.kit.reducers import ChannelMoments, PatchGram, Reducer, build
from tests.support.runtime import Array, model, run

VALUES = npst.arrays(np.float32, (7, 4, 5, 3), elements=st.floats(-1e4, 1e4, width=32))
EMPTY: list[Reducer] = [
    ChannelMoments(1),
    ChannelMoments(-1),
    PatchGram(-3),
    PatchGram(-3, (3, 2), (2, 1), (1, 2), (1, 0, 1, 2), 2, 5),
]


def fold(empty: Reducer, batches: list[Array]) -> Reducer:
    reducer = build(empty.spec())
    for batch in batches:
        if len(batch):
            reducer.fold(batch)
    return reducer


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(EMPTY), VALUES, st.lists(st.integers(1, 6), max_size=4), st.integers(0, 7), st.booleans())
def test_neither_batches_nor_shards_nor_their_order_show(
    empty: Reducer, values: Array, edges: list[int], cut: int, swap: bool
) -> None:
    whole = fold(empty, [values])
    batches = np.split(values, sorted(set(edges)))
    assert same(fold(empty, batches), whole)
    first, second = fold(empty, [values[:cut]]), fold(empty, [values[cut:]])
    if swap:
        first, second = second, first
    first.merge(second)
    assert same(first, whole)


def same(left: Reducer, right: Reducer) -> bool:
    return left.arrays.keys() == right.arrays.keys() and all(
        value.dtype == right.arrays[key].dtype and value.tobytes() == right.arrays[key].tobytes()
        for key, value in left.arrays.items()
    )


@pytest.mark.parametrize("axis", [1, 3, -1, -3])
def test_moments_are_those_of_the_channels(axis: int) -> None:
    values = np.random.default_rng(0).normal(3, 2, (5, 4, 6, 4)).astype(np.float32)
    found = fold(ChannelMoments(axis), [values[:2], values[2:]])
    assert isinstance(found, ChannelMoments)
    flat = np.moveaxis(values, axis, 0).reshape(4, -1).astype(np.float64)
    np.testing.assert_allclose(found.mean(), flat.mean(axis=1), rtol=1e-10)
    np.testing.assert_allclose(found.mean_square(), np.square(flat).mean(axis=1), rtol=1e-10)
    np.testing.assert_array_equal(found.arrays["low"], flat.min(axis=1))
    np.testing.assert_array_equal(found.arrays["high"], flat.max(axis=1))


def test_patches_are_what_a_convolution_multiplies() -> None:
    """For every weight w the mean square of the convolution's results is w G w, and their mean is w m."""
    rng = np.random.default_rng(1)
    x, weight = rng.normal(size=(3, 4, 7, 6)).astype(np.float32), rng.normal(size=(6, 2, 3, 2)).astype(np.float32)
    x = np.round(x * 64) / 64  # on the reducer's grid, so that nothing is rounded
    subject = model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[3,4,7,6] x) => (float[3,6,h,v] y) {
            y = Conv<group=2, strides=[2,1], dilations=[1,2], pads=[1,0,1,2]>(x, w) }""",
        w=weight,
    )
    wanted = run(subject, {"x": x})["y"].astype(np.float64)
    found = fold(PatchGram(-6, (3, 2), (2, 1), (1, 2), (1, 0, 1, 2), 2, 1000), [x])
    assert isinstance(found, PatchGram)
    second, mean = found.moments()
    rows = weight.astype(np.float64).reshape(2, 3, -1)
    squares = np.einsum("gmk,gkl,gml->gm", rows, second, rows).reshape(-1)
    np.testing.assert_allclose(squares, np.square(wanted).mean(axis=(0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(np.einsum("gmk,gk->gm", rows, mean).reshape(-1), wanted.mean(axis=(0, 2, 3)), atol=1e-5)


def test_matrices_are_taken_by_their_rows() -> None:
    x = np.random.default_rng(2).normal(size=(4, 9, 3)).astype(np.float32)
    found = fold(PatchGram(-9, most=100), [x])
    assert isinstance(found, PatchGram)
    second, mean = found.moments()
    flat = x.reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(second[0], flat.T @ flat / 36, atol=2e-2)
    np.testing.assert_allclose(mean[0], flat.mean(axis=0), atol=2e-3)


def test_no_more_rows_than_asked_for_are_taken() -> None:
    found = fold(PatchGram(-9, most=4), [np.ones((2, 9, 3), np.float32)])
    assert found.arrays["gram"][0, -1, -1] == 2 * 4
