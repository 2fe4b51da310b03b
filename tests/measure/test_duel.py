"""The decision about a ratio: errors as rare as promised on noise made up, and the statistics agree with scipy."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy import stats as sp

from optimizer.measure import duel
from optimizer.measure.duel import LOOKS, Looks, decide, fight, look
from optimizer.measure.exact import middle, proportion
from optimizer.measure.stats import exact_drop
from optimizer.records import Ruling
from optimizer.runtime import hardware
from optimizer.runtime.sessions import Site
from tests.support import models, noise

MARGIN, BUDGET = 1.025, 12.0
SITE = Site("CPUExecutionProvider", 1, "test")
DEPRESSION = np.array([1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30]) - np.array(
    [0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29]
)
"""Hamilton depression scale factor before and after, Hollander & Wolfe 1973, p. 29."""


def verdicts(slower: float, count: int) -> Counter[Ruling]:
    found = (decide(noise.restarts(slower, seed), MARGIN, BUDGET) for seed in range(count))
    return Counter(reading.ruling for reading in found)


# -- the rule --------------------------------------------------------------------------------------
def test_the_same_model_hardly_ever_fails_and_is_seldom_undecided() -> None:
    found = verdicts(1.0, 400)
    assert found[Ruling.FAIL] <= 4 and found[Ruling.UNDECIDED] <= 40, found


def test_a_slowdown_is_found() -> None:
    five, ten = verdicts(1.05, 200), verdicts(1.10, 200)
    assert five[Ruling.FAIL] >= 190 and ten[Ruling.FAIL] >= 198, (five, ten)
    assert not five[Ruling.PASS] and not ten[Ruling.PASS]


def test_on_the_margin_it_passes_at_most_as_often_as_promised_and_fails_less() -> None:
    count = 600
    found = verdicts(MARGIN, count)
    allowed = [a * count + 3 * math.sqrt(a * (1 - a) * count) for a in (duel.PASS_ALPHA, duel.FAIL_ALPHA)]
    assert found[Ruling.PASS] <= allowed[0] and found[Ruling.FAIL] <= allowed[1], found


def test_each_look_is_taken_once_and_the_last_at_the_end() -> None:
    looks = Looks(10.0)
    taken = [t for t in (1.0, 4.1, 4.5, 7.0, 8.1, 9.9, 10.0, 11.0) if looks.due(t)]
    assert taken == [4.1, 7.0, 8.1, 10.0] and looks.over and len(taken) == len(LOOKS)


def test_it_stops_as_soon_as_it_is_clear_and_goes_on_while_it_is_not() -> None:
    clear = decide(noise.restarts(2.0, 1), MARGIN, BUDGET)
    tried = (decide(noise.restarts(MARGIN, seed), MARGIN, BUDGET) for seed in range(9))
    close = next(reading for reading in tried if reading.ruling is Ruling.UNDECIDED)
    assert clear.ruling is Ruling.FAIL and clear.seconds < 0.8 * BUDGET
    assert close.ruling is Ruling.UNDECIDED and close.seconds >= BUDGET


def test_what_looks_with_too_few_restarts_cannot_spend_the_last_one_has() -> None:
    """Seven restarts are too few for a quarter of the alpha, which takes nine, and enough for the whole of it."""
    purse = duel.Purse(0.01)
    assert [purse.take(n) for n in (2, 4, 5, 7)] == pytest.approx([0.0025, 0.005, 0.0075, 0.01])
    assert purse.take(9) == pytest.approx(0.0025), "what was spent is gone"
    slow = [(0.1 + 0.001 * i, 12 / 7 * (i + 1)) for i in range(7)]
    assert decide(iter(slow), MARGIN, BUDGET).ruling is Ruling.FAIL


@pytest.mark.parametrize("restarts", [5, 8, 12])
def test_slow_restarts_are_wrong_no_more_often_than_promised(restarts: int) -> None:
    rng, count = np.random.default_rng(restarts), 600
    times, found = np.linspace(0, BUDGET, restarts + 1)[1:], Counter[Ruling]()
    for ratios in rng.normal(math.log(MARGIN), 0.02, (count, restarts)):
        found[decide(zip(ratios, times, strict=True), MARGIN, BUDGET).ruling] += 1
    allowed = [a * count + 3 * math.sqrt(a * (1 - a) * count) for a in (duel.PASS_ALPHA, duel.FAIL_ALPHA)]
    assert found[Ruling.PASS] <= allowed[0] and found[Ruling.FAIL] <= allowed[1], found


def test_too_few_restarts_are_undecided_and_say_how_long_it_takes() -> None:
    found = look([0.001, -0.002, 0.003], MARGIN, 30.0)
    assert found.ruling is Ruling.UNDECIDED and found.high == math.inf and found.low == 0.0
    assert found.more_minutes == pytest.approx(2 / 3)
    assert look([0.0], MARGIN, 6.0).more_minutes == pytest.approx(0.6), "one restart has no spread, but a pace"
    assert look([0.0, 0.2, -0.2, 0.1, -0.1], 1.0, 5.0).more_minutes is None, "no time decides a ratio on the margin"


# -- the middle --------------------------------------------------------------------------------------
def test_the_published_example_of_the_signed_rank_test() -> None:
    assert sp.wilcoxon(DEPRESSION, alternative="greater").pvalue == pytest.approx(0.01953, abs=1e-5)
    assert middle(DEPRESSION, 0.01953125).low > 0 >= middle(DEPRESSION, 0.0195).low
    two_sided = middle(DEPRESSION, 0.025)
    assert two_sided.value == pytest.approx(0.46) and two_sided.low == pytest.approx(0.01)
    assert two_sided.high == pytest.approx(0.786)


@pytest.mark.parametrize("count", [6, 9, 14, 30])
def test_a_bound_is_where_scipys_exact_test_changes_its_mind(count: int) -> None:
    values = np.random.default_rng(count).normal(size=count)
    alpha, found = 0.05, middle(values, 0.05)
    for shift, rejects in ((found.low - 1e-9, True), (found.low + 1e-9, False)):
        test = sp.wilcoxon(values - shift, alternative="greater", method="exact")
        assert bool(test.pvalue <= alpha) == rejects
    turned = middle(-values, alpha)
    assert (turned.value, turned.low, turned.high) == pytest.approx((-found.value, -found.high, -found.low))


def test_one_wild_value_hardly_moves_it() -> None:
    calm = list(np.linspace(-0.01, 0.01, 21))
    wild = middle([*calm, 5.0], 0.05)
    assert abs(wild.value) < 0.002 and wild.high < 0.01
    with pytest.raises(ValueError, match="finite"):
        middle([0.0, math.nan], 0.05)


# -- quality: published examples --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(81, 263, 0.2527, 0.3676), (15, 148, 0.0578, 0.1617), (0, 20, 0.0, 0.1684), (1, 29, 0.0009, 0.1776)],
)
def test_shares_as_newcombe_1998_prints_them(right: int, n: int, low: float, high: float) -> None:
    found = proportion(right, n, 0.05)
    assert found == pytest.approx((low, high), abs=5.1e-5)
    assert found == pytest.approx(tuple(sp.binomtest(right, n).proportion_ci(method="exact")), abs=1e-9)


@pytest.mark.parametrize(("lost", "won", "n"), [(150, 86, 1600), (86, 150, 1600), (10, 2, 60), (3, 1, 40), (5, 5, 100)])
def test_a_drop_is_shown_where_mcnemars_exact_test_shows_one(lost: int, won: int, n: int) -> None:
    """150 and 86 of 1600: approval of a prime minister, Agresti 2002, table 10.1."""
    p = sp.binomtest(lost, lost + won, alternative="greater").pvalue
    assert (exact_drop(lost, won, n).lower_one_sided > 0) == (p < 0.05)


# -- for real --------------------------------------------------------------------------------------
def test_models_are_told_apart_on_this_machine(tmp_path: Path) -> None:
    narrow, wide = models.cnn(tmp_path / "narrow.onnx", width=8), models.cnn(tmp_path / "wide.onnx", width=64)
    feed, told = {"x": np.zeros((1, 3, 16, 16), np.float32)}, []
    found = fight(wide, narrow, feed, SITE, 4.0, MARGIN, lambda done, total: told.append((done, total)))
    assert found.reading is not None and found.reading.value > 1.5 and found.reading.ruling is not Ruling.PASS
    assert found.reading.ruling is Ruling.FAIL or found.reading.restarts < duel.LEAST_RESTARTS, "a very busy machine"
    assert told and all(0 < done <= total for done, total in told) and found.baseline is not None
    alone = fight(narrow, None, feed, SITE, 0.1, None)
    assert alone.reading is None and alone.baseline is None and alone.candidate.p50 > 0


def test_the_idlest_core_is_one_that_may_be_used() -> None:
    import os

    core = hardware.idlest_core()
    assert core is None or core in os.sched_getaffinity(0)
