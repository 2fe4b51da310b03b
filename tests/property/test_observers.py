"""Observers: what each promises of its range, on distributions that hypothesis draws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from passes.kit.reducers import Distribution, MinMax
from passes.quantize.observers import (
    LEAST_MASS,
    OBSERVERS,
    Cells,
    Observer,
    clip_tails,
    least_divergence,
    least_error,
    squared_error,
)
from tests.support.runtime import Array

VALUES = npst.arrays(np.float32, st.integers(1, 300), elements=st.floats(-1e4, 1e4, width=32))


def seen(*batches: Array) -> Distribution:
    found = Distribution()
    for batch in batches:
        found.fold(batch)
    return found


def folded(observer: Observer, samples: list[Array]) -> MinMax:
    found = observer.reducer()
    for sample in samples:
        found.fold(sample)
    return found


def normal(count: int = 200_000, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=count).astype(np.float32)


@settings(deadline=None, max_examples=40)
@given(VALUES, st.sampled_from(OBSERVERS), st.booleans())
def test_a_range_lies_inside_what_was_seen_widened_to_zero(values: Array, name: str, symmetric: bool) -> None:
    found = Observer(name, symmetric=symmetric).choose(folded(Observer(name), [values]))
    assert not found.trouble
    assert min(values.min(), 0.0) <= found.low <= found.high <= max(values.max(), 0.0)


@settings(deadline=None, max_examples=40)
@given(st.lists(VALUES, min_size=1, max_size=5), st.sampled_from(OBSERVERS), st.randoms())
def test_the_range_depends_on_the_samples_alone(samples: list[Array], name: str, order: object) -> None:
    observer = Observer(name)
    shuffled = list(samples)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    assert observer.choose(folded(observer, samples)) == observer.choose(folded(observer, shuffled))
    parts = folded(observer, samples[:1])
    parts.merge(folded(observer, samples[1:]))
    assert observer.choose(parts) == observer.choose(folded(observer, samples))


@settings(deadline=None, max_examples=40)
@given(VALUES, st.floats(90.0, 99.9))
def test_a_percentile_keeps_its_share_and_no_more_than_a_cell_beyond(values: Array, percentile: float) -> None:
    found = seen(values)
    low, high = clip_tails(found, percentile)
    spare = values.size * (1 - percentile / 100)
    assert (values > high).sum() <= spare + 1e-6
    assert (values < low).sum() <= spare + 1e-6
    width = float(np.ldexp(1.0, found.reach)) / 4096
    assert (values > high - 2 * width).sum() > spare - 1e-6 or high == found.low


@settings(deadline=None, max_examples=30)
@given(VALUES, st.booleans())
def test_the_least_error_is_not_above_the_whole_ranges(values: Array, symmetric: bool) -> None:
    found = seen(values)
    if found.low == found.high:
        return
    low, high = least_error(found, 256, symmetric)
    cells = Cells.of(found)
    whole = squared_error(cells, found.low, found.high, 256, symmetric)
    assert squared_error(cells, low, high, 256, symmetric) <= whole * (1 + 1e-9)


@settings(deadline=None, max_examples=30)
@given(VALUES)
def test_entropy_keeps_nearly_all_values_that_are_not_zero(values: Array) -> None:
    found = seen(values)
    low, high = least_divergence(found, 256)
    width = float(np.ldexp(1.0, found.reach)) / 4096
    there = values[np.abs(values) >= width]
    kept = (there >= low - width) & (there <= high + width)
    assert kept.sum() >= LEAST_MASS * there.size - 1e-9


def test_the_histograms_error_is_the_quantizers_own() -> None:
    """Against a plain quantizer over every value, clipped ones counted four times."""
    values = normal(50_000)
    low, high, levels = -2.0, 1.5, 256
    step = (high - low) / (levels - 1)
    zero = np.rint(low / step)
    nearest = np.rint(values / step)
    integers = np.clip(nearest, zero, zero + levels - 1)
    squares = (integers * step - values.astype(float)) ** 2
    wanted = squares.sum() + 3.0 * squares[nearest != integers].sum()
    got = squared_error(Cells.of(seen(values)), low, high, levels, clip_weight=4.0)
    assert got == pytest.approx(wanted, rel=0.01)


def test_the_best_clip_of_four_bits_is_the_known_one() -> None:
    """Banner et al. 2019 (arXiv 1810.05723): a normal tensor in 4 bits is best clipped near 2.55 deviations."""
    low, high = least_error(seen(normal()), 16)
    assert high == pytest.approx(2.55, rel=0.12)
    assert low == pytest.approx(-2.55, rel=0.12)


def test_an_outlier_is_clipped_by_all_that_clip_and_kept_by_the_whole_range() -> None:
    values = [normal(100_000), np.array([400.0], np.float32)]
    ends = {name: Observer(name).choose(folded(Observer(name), values)).high for name in OBSERVERS}
    assert ends["minmax"] == 400.0
    assert ends["percentile"] < 6.0
    assert ends["entropy"] < 40.0
    assert ends["moving-average"] == pytest.approx((400.0 + float(values[0].max())) / 2)


def test_auto_clips_what_pays_and_leaves_the_rest_whole() -> None:
    even = np.random.default_rng(0).uniform(-1, 1, 100_000).astype(np.float32)
    kept = Observer("auto").choose(folded(Observer("auto"), [even]))
    assert (kept.observer, kept.low, kept.high) == ("minmax", even.min(), even.max())
    # A long thin tail: most of the rounding error is paid for a few values.
    tail = np.random.default_rng(0).laplace(size=2_000_000).astype(np.float32)
    cut = Observer("auto").choose(folded(Observer("auto"), [tail]))
    assert cut.observer != "minmax"
    assert cut.high < tail.max()


def test_entropy_does_not_throw_a_second_mode_away() -> None:
    """Three values in a hundred lie far out: a divergence would like to lose them, but they are no outliers."""
    far = np.random.default_rng(0).normal(40.0, 0.1, 6_000).astype(np.float32)
    _, high = least_divergence(seen(normal(), far), 256)
    assert high > 39


def test_entropy_leaves_the_spike_of_a_relu_alone() -> None:
    """Half of the values are exactly zero: that must not pull the threshold towards zero."""
    rectified = np.maximum(normal(), 0)
    _, high = least_divergence(seen(rectified), 256)
    assert 2.5 < high <= rectified.max()


def test_what_is_broken_or_never_seen_is_trouble() -> None:
    for name in OBSERVERS:
        observer = Observer(name)
        assert "not finite" in observer.choose(folded(observer, [np.array([1.0, np.nan], np.float32)])).trouble
        assert "no values" in observer.choose(observer.reducer()).trouble
