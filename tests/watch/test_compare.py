"""The tests of drift agree with scipy's, hold what they promise, and lose no validity to sketches."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from optimizer.watch.compare import class_test, column_tests, detectable, holm, samples_for
from optimizer.watch.sketches import Array, Pile
from passes.kit.summaries import Layout

ONE = Layout("numbers", columns=1)


def column(values: Array) -> tuple[Array, Array]:
    return np.sort(values.astype(np.float32)), np.ones(len(values), np.int64)


def drawn(seed: int, m: int = 300, n: int = 150, shift: float = 0.0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal(m).astype(np.float32), (rng.standard_normal(n) + shift).astype(np.float32)


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_both_rank_tests_give_what_scipy_gives(shift: float) -> None:
    a, b = drawn(1, shift=shift)
    a, b = np.round(a, 1), np.round(b, 1)  # with ties
    found = dict(column_tests(column(a), column(b), 0.0))
    assert found["ranks"] == pytest.approx(stats.mannwhitneyu(a, b, method="asymptotic").pvalue, rel=1e-4)
    assert found["distribution"] == pytest.approx(stats.ks_2samp(a, b, method="asymp").pvalue, rel=1e-4)
    few = dict(column_tests(column(a[:40]), column(b[:9]), 0.0))
    assert set(few) == {"distribution"}
    assert few["distribution"] == pytest.approx(stats.ks_2samp(a[:40], b[:9], method="exact").pvalue)


def test_a_value_that_most_samples_have_is_tested_by_counting_the_others() -> None:
    a, b = np.zeros(400), np.zeros(100)
    b[:9] = 1.0
    found = dict(column_tests(column(a), column(b), 0.0))
    assert found["departures"] == pytest.approx(2 * stats.hypergeom.sf(8, 500, 9, 100))
    assert column_tests(column(a), column(b[9:]), 0.0) == []


def continuous(rng: np.random.Generator, count: int) -> Array:
    return np.asarray(rng.standard_normal(count))


def rare(rng: np.random.Generator, count: int) -> Array:
    return np.asarray((rng.random(count) < 0.01).astype(float))


def coarse(rng: np.random.Generator, count: int) -> Array:
    return np.asarray(rng.integers(0, 4, count).astype(float))


@pytest.mark.parametrize("draw", [continuous, rare, coarse])
def test_unchanged_data_gets_small_p_values_no_more_often_than_they_say(
    draw: Callable[[np.random.Generator, int], Array],
) -> None:
    rng = np.random.default_rng(3)
    trials, level = 400, 0.05
    low = [min(p for _, p in [("", 1.0), *column_tests(column(draw(rng, 200)), column(draw(rng, 60)), 0.0)])
           for _ in range(trials)]  # fmt: skip
    allowed = trials * 2 * level  # two tests each
    assert sum(p <= level for p in low) < allowed + 3 * np.sqrt(allowed)


def test_a_sketch_is_never_surer_than_the_samples_and_still_finds_a_shift() -> None:
    a, b = drawn(5, m=700, n=30_000, shift=0.25)
    pile = Pile(ONE)
    pile.add(b[:, None])
    seen = pile.seen()
    assert 0 < seen.error < 0.01
    whole, sketched = (dict(column_tests(column(a), side, error)) for side, error in
                       ((column(b), 0.0), (seen.column(0), seen.error)))  # fmt: skip
    assert all(whole[test] <= sketched[test] < 1e-4 for test in whole)


def test_classes_are_told_by_the_one_that_changed_most() -> None:
    before = {0: 100, 1: 100, 2: 100}
    p, worst = class_test(before, {0: 60, 1: 5, 2: 55})
    assert worst == 1 and p < 1e-4
    assert class_test(before, {0: 30, 1: 33, 2: 37})[0] > 0.5


def test_holm_adjusts_like_the_textbook() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_the_shift_that_is_promised_is_found_as_often_as_promised() -> None:
    m, n, alpha = 400, 200, 1e-4
    shift = detectable(m, n, alpha)
    hits = sum(
        dict(column_tests(*(column(side) for side in drawn(seed, m, n, shift)), 0.0))["ranks"] <= alpha
        for seed in range(200)
    )
    assert hits / 200 > 0.90
    needed = samples_for(shift, m, alpha)
    assert needed is not None and abs(needed - n) <= 1
    assert samples_for(0.1, m, alpha) is None
