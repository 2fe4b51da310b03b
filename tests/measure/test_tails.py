"""How many queries a tail takes: the numbers that MLPerf's rules print, and intervals that hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as sp

from optimizer.measure.tails import least_queries, most_late, quantile_interval


def test_the_fewest_queries_are_those_of_mlperf() -> None:
    """662 queries and 459 more after a failed run, as loadgen 6.0 prints them for a 99th percentile; 64 for a 90th."""
    assert [least_queries(0.99, 1), least_queries(0.99, 0), least_queries(0.90, 1)] == [662, 459, 64]


@pytest.mark.parametrize(("queries", "q"), [(459, 0.99), (1000, 0.99), (24_576, 0.99), (64, 0.9), (500, 0.97)])
def test_most_late_is_where_the_binomial_test_changes_its_mind(queries: int, q: float) -> None:
    late = most_late(queries, q)
    assert sp.binomtest(late, queries, 1 - q, alternative="less").pvalue <= 0.01
    assert sp.binomtest(late + 1, queries, 1 - q, alternative="less").pvalue > 0.01


def test_too_few_queries_show_nothing() -> None:
    assert most_late(458, 0.99) == -1 and most_late(0, 0.99) == -1


def test_the_interval_of_a_quantile_holds_it_as_often_as_it_says() -> None:
    truth, hits = float(sp.expon.ppf(0.9)), 0
    for seed in range(400):
        found = quantile_interval(np.random.default_rng(seed).exponential(size=150), 0.9)
        hits += found.low <= truth <= found.high
    assert hits >= 0.93 * 400


def test_a_bound_that_the_values_do_not_reach_is_infinite() -> None:
    assert quantile_interval(np.arange(20), 0.99).high == math.inf
    with pytest.raises(ValueError, match="needs values"):
        quantile_interval([], 0.5)
