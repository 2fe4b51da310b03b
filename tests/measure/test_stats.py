"""Intervals: they hold what they promise, are never falsely sure, and say when they know nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as sp

from optimizer.data.metrics import METRICS, user_metric
from optimizer.measure.exact import drop_upper, proportion
from optimizer.measure.resample import Resampled
from optimizer.measure.stats import (
    DropEstimate,
    corrected_alpha,
    detectable,
    exact_drop,
    median_interval,
    paired_drop,
    quality_interval,
    ratio_interval,
    resolution,
    samples_needed,
    tail,
    tail_interval,
)
from optimizer.records import Interval

TOP1, PERPLEXITY, MSE = METRICS["top1"], METRICS["perplexity"], METRICS["mse"]
WRONG_MOST = 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)
"""Three standard errors above 5 % in 300 trials."""


def outcomes(lost: int, won: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    base, mine = np.ones((n, 1)), np.ones((n, 1))
    mine[:lost] = 0
    base[lost : lost + won] = 0
    return base, mine


# -- 0/1 outcomes --------------------------------------------------------------------------------------------------
def plain_tail(lost: int, won: int, n: int, drop: float, share: float) -> float:
    """P(T <= observed) by summing the trinomial over every possible pair of counts: slow and plain."""
    b, c = np.meshgrid(np.arange(n + 1), np.arange(n + 1), indexing="ij")
    kept = b + c <= n

    def statistic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        variance = np.maximum(np.maximum(x + y, n * abs(drop)), 1) - n * drop**2
        return (x - y - n * drop) / np.sqrt(np.maximum(variance, 1e-9))

    p = np.array([(share + drop) / 2, (share - drop) / 2, 1 - share])
    counts = np.stack([b, c, n - b - c], axis=-1)
    mass = sp.multinomial.pmf(counts[kept], n, np.clip(p, 0, 1))
    extreme = statistic(b, c)[kept] <= statistic(np.array(lost), np.array(won)) + 1e-9
    return float(mass[extreme].sum())


@pytest.mark.parametrize(("lost", "won", "n"), [(0, 0, 20), (3, 1, 25), (1, 4, 30), (6, 6, 30), (10, 0, 10)])
def test_the_exact_bound_is_where_the_tail_falls_below_alpha(lost: int, won: int, n: int) -> None:
    bound = drop_upper(lost, won, n, 0.05)
    most = 1.0 if lost + won == n else float(sp.beta.ppf(0.995, lost + won + 1, n - lost - won))

    def highest(drop: float) -> float:
        return max(plain_tail(lost, won, n, drop, s) for s in np.linspace(max(abs(drop), 1e-9), most, 40))

    for further in np.linspace(1e-3, most - bound, 5) if bound < most - 1e-2 else []:
        assert highest(bound + further) <= 0.045 + 2e-3
    assert highest(bound - 1e-3) >= 0.045 - 2e-3


def test_the_exact_bound_is_never_wrong_more_often_than_it_says() -> None:
    """No simulation: every outcome of 8 samples, weighed by its chance under many truths."""
    n = 8
    pairs = [(b, c) for b in range(n + 1) for c in range(n + 1 - b)]
    bounds = np.array([drop_upper(b, c, n, 0.05) for b, c in pairs])
    counts = np.array([(b, c, n - b - c) for b, c in pairs])
    worst = 0.0
    for p in np.linspace(0, 1, 26):
        for q in np.linspace(0, 1 - p, 26):
            mass = sp.multinomial.pmf(counts, n, [p, q, max(0.0, 1 - p - q)])
            worst = max(worst, float(np.nansum(mass[p - q > bounds + 1e-9])))
    assert 0.02 < worst <= 0.05


def test_the_whole_estimate_reads_pairs() -> None:
    found = paired_drop(TOP1, *outcomes(12, 5, 400), seed=0)
    assert found == exact_drop(12, 5, 400)
    assert found.value == pytest.approx(7 / 400)
    assert found.low < found.lower_one_sided < found.value < found.upper_one_sided < found.high
    assert (found.discordant, found.n) == ((12, 5), 400)
    mirrored = paired_drop(TOP1, *outcomes(5, 12, 400), seed=0)
    assert (mirrored.low, mirrored.upper_one_sided) == (-found.high, -found.lower_one_sided)
    assert found.interval.low == found.low


def test_identical_outcomes_are_no_proof_of_zero() -> None:
    for n in (10, 100, 1000):
        found = paired_drop(TOP1, *outcomes(0, 0, n), seed=0)
        assert found.value == 0 and found.low < 0
        assert 3 / n <= found.upper_one_sided <= 6 / n or n == 10
        assert not found.degenerate
    assert exact_drop(0, 0, 1).high > 0.97


def test_the_exact_bound_agrees_with_the_score_interval_for_many_samples() -> None:
    """Tango 1998 is the large-sample form of the same question."""
    lost, won, n = 900, 800, 20_000
    found, d = exact_drop(lost, won, n), 100 / 20_000

    def z(delta: float) -> float:
        a, b = 2 * n, -lost - won + (2 * n - lost + won) * delta
        root = (math.sqrt(b * b - 4 * a * (-won * delta * (1 - delta))) - b) / (2 * a)
        return float((lost - won - n * delta) / math.sqrt(n * (2 * root + delta * (1 - delta))))

    low, high = d, 0.05
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if z(middle) > -1.96 else (low, middle)
    assert found.high == pytest.approx(low, rel=0.06)
    assert found.high >= low


@pytest.mark.parametrize(("n", "lost", "won"), [(60, 0.05, 0.02), (150, 0.03, 0.02), (150, 0.02, 0.0)])
def test_exact_bounds_are_wrong_at_most_as_often_as_they_say(n: int, lost: float, won: float) -> None:
    rng, wrong, truth = np.random.default_rng(1), np.zeros(3), lost - won
    known: dict[tuple[int, int], DropEstimate] = {}
    for b, c, _ in rng.multinomial(n, [lost, won, 1 - lost - won], 300):
        found = known.setdefault((b, c), known.get((b, c)) or exact_drop(b, c, n))
        wrong += [truth > found.upper_one_sided, truth < found.lower_one_sided, not found.low <= truth <= found.high]
    assert (wrong / 300 <= WRONG_MOST).all()


def test_proportion_is_clopper_pearson() -> None:
    for k, n in ((0, 10), (3, 10), (10, 10), (800, 1000)):
        exact = sp.binomtest(k, n).proportion_ci(0.95, "exact")
        assert proportion(k, n, 0.05) == pytest.approx((exact.low, exact.high))


# -- everything else -------------------------------------------------------------------------------------------------
def texts(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Token losses of a baseline and a worse candidate, skewed, of different lengths; and the true drop."""
    loss, extra, tokens = rng.gamma(2, 1, n), 0.02 * rng.gamma(1, 1, n), rng.integers(5, 30, n).astype(float)
    base = np.stack([loss * tokens, tokens], axis=1)
    return base, np.stack([(loss + extra) * tokens, tokens], axis=1), math.exp(2.02) - math.exp(2)


@pytest.mark.parametrize("n", [40, 100])
def test_bootstrap_bounds_are_wrong_about_as_often_as_they_say(n: int) -> None:
    rng, wrong = np.random.default_rng(3), np.zeros(2)
    for seed in range(300):
        base, mine, truth = texts(rng, n)
        found = paired_drop(PERPLEXITY, base, mine, seed)
        wrong += [truth > found.upper_one_sided, truth < found.lower_one_sided]
    # The bootstrap is right only in the limit: two points are left to small, skewed samples.
    assert (wrong / 300 <= WRONG_MOST + 0.02).all()
    assert (wrong > 0).all()


def test_few_skewed_errors_pass_no_more_often_than_they_say() -> None:
    # What few exponential errors do not show of their tail: BCa alone passes here 8 times in a hundred.
    rng, passed, n = np.random.default_rng(8), 0, 20
    for seed in range(600):
        grown = rng.exponential(size=(n, 1))
        passed += paired_drop(METRICS["mse"], np.zeros((n, 1)), grown, seed).upper_one_sided < 1
    assert 0 < passed / 600 <= 0.065


@pytest.mark.parametrize("n", [5, 60])
def test_a_p_value_of_a_bootstrap_and_its_level_agree(n: int) -> None:
    found = Resampled(1.0, np.linspace(0, 2, 999), 0.0, n)
    assert found.level(0.05) < 0.05 and Resampled(1.0, found.draws, 0.0, 10**6).level(0.05) == pytest.approx(
        0.05, rel=1e-3
    )
    edge = float(found.draws[round(found.level(0.05) * 1000) - 1])
    assert found.p_at_most(edge - 1e-9) <= 0.05 < found.p_at_most(edge + 0.003)
    assert found.p_at_most(3.0) == 1.0


def test_bootstrap_is_seeded_signed_and_narrower_with_more() -> None:
    rng = np.random.default_rng(5)
    base, mine, _ = texts(rng, 400)
    found = paired_drop(PERPLEXITY, base, mine, 1)
    assert found == paired_drop(PERPLEXITY, base, mine, 1)
    assert found != paired_drop(PERPLEXITY, base, mine, 2)
    assert found.value == pytest.approx(PERPLEXITY.score(mine) - PERPLEXITY.score(base)) and found.value > 0
    back = paired_drop(PERPLEXITY, mine, base, 1)
    assert back.value == -found.value and back.high == pytest.approx(-found.low, rel=0.05)
    few = paired_drop(PERPLEXITY, base[:50], mine[:50], 1)
    assert few.high - few.low > 1.5 * (found.high - found.low)
    strict = paired_drop(PERPLEXITY, base, mine, 1, alpha=0.01)
    assert strict.upper_one_sided > found.upper_one_sided


@pytest.mark.parametrize("name", ["f1", "auroc", "spearman", "pearson", "cosine", "sqnr", "mae"])
def test_every_metric_has_an_interval(name: str) -> None:
    rng, metric, n = np.random.default_rng(2), METRICS[name], 150
    logits, labels = rng.normal(size=(n, 3)), rng.integers(0, 3, n)
    logits[np.arange(n), labels] += 1
    worse = logits + rng.normal(size=(n, 3))
    y = labels if name in ("f1", "auroc") else logits + rng.normal(size=(n, 3)) * 0.1
    base, mine = (
        metric.rows({"o": o}, {"y": y}, {"o": y}) for o in (logits.astype(np.float32), worse.astype(np.float32))
    )
    found = paired_drop(metric, base, mine, 0)
    assert found.low < found.value < found.high and found.value > 0
    assert found.low > 0 or name == "f1"
    kept = quality_interval(metric, base)
    assert kept.low < kept.value < kept.high
    assert kept.value == metric.score(base)


def test_rows_without_spread_are_flagged() -> None:
    base, _, _ = texts(np.random.default_rng(0), 30)
    same = paired_drop(PERPLEXITY, base, base.copy(), 0)
    assert (same.value, same.low, same.high, same.degenerate) == (0, 0, 0, True)
    assert "no spread" in same.method
    single = paired_drop(PERPLEXITY, base[:1], base[:1] * 1.1, 0)
    assert single.degenerate and single.upper_one_sided == math.inf
    assert quality_interval(PERPLEXITY, base[:1]).high == math.inf


def test_a_candidate_without_a_score_is_infinitely_worse() -> None:
    base, mine, _ = texts(np.random.default_rng(0), 30)
    mine[3, 0] = np.nan
    found = paired_drop(PERPLEXITY, base, mine, 0)
    assert found.value == math.inf and found.upper_one_sided == math.inf


def test_rows_must_be_paired() -> None:
    with pytest.raises(ValueError, match="not paired"):
        paired_drop(TOP1, np.ones((3, 1)), np.ones((4, 1)), 0)


def test_a_users_one_number_has_a_jackknife_interval() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=400)
    metric = user_metric("m:f", lambda o, labels: float(np.abs(o["o"] - labels["y"]).mean()), higher_is_better=False)
    base, mine = (metric.rows({"o": y + rng.normal(size=400) * s}, {"y": y}) for s in (0.1, 0.2))
    found = paired_drop(metric, base, mine, 0)
    assert "jackknife" in found.method
    assert found.value == pytest.approx(0.08, abs=0.02)
    assert 0 < found.low < found.value < found.high < 0.12
    kept = quality_interval(metric, base)
    exact = 1.96 * 0.1 * math.sqrt(1 - 2 / math.pi) / 20
    assert (kept.high - kept.low) / 2 == pytest.approx(exact, rel=0.5)


def test_a_bare_number_proves_nothing() -> None:
    found = DropEstimate.of_numbers(0.9, 0.8)
    assert found.value == pytest.approx(0.1) and (found.low, found.high) == (-math.inf, math.inf)
    assert DropEstimate.of_numbers(2.0, 2.5, higher_is_better=False).value == 0.5
    assert DropEstimate.of_numbers(0.9, math.nan).value == math.inf, "an evaluation that fails is no gain"
    assert samples_needed(found, 0.2) is None


# -- planning --------------------------------------------------------------------------------------------------------
def test_samples_needed_decides() -> None:
    found = exact_drop(4, 3, 500)
    assert found.upper_one_sided > 0.01 > found.value
    more = samples_needed(found, 0.01)
    assert more is not None
    scale = (500 + more) / 500
    assert exact_drop(round(4 * scale), round(3 * scale), 500 + more).upper_one_sided <= 0.01
    scale = (500 + more * 0.9) / 500
    assert exact_drop(round(4 * scale), round(3 * scale), round(500 * scale)).upper_one_sided > 0.01
    assert samples_needed(found, 0.5) == 0
    assert samples_needed(found, found.value) is None
    worse = exact_drop(20, 2, 1000)
    assert worse.lower_one_sided < 0.015 < worse.value
    assert (samples_needed(worse, 0.015) or 0) > 100


def test_samples_needed_for_a_bootstrap_scales_with_the_square() -> None:
    found = DropEstimate(0.1, 0, 0.2, 0.18, 0.02, 100, "")
    assert samples_needed(found, 0.14) == 300
    assert samples_needed(DropEstimate(0.1, 0, 0.2, 0.18, 0.02, 100, ""), 0.1 + 1e-9) is None


def test_detectable_is_what_the_exact_test_detects() -> None:
    n, p = 1000, 0.02
    margin, rng = detectable(n, p), np.random.default_rng(0)
    counts = rng.multinomial(n, [p / 2, p / 2, 1 - p], 100)
    proven = np.mean([drop_upper(b, c, n, 0.05) <= margin for b, c, _ in counts])
    assert 0.62 < proven < 0.92
    assert detectable(100, 0) == pytest.approx(0.03, rel=0.01)
    assert detectable(0, 0.1) == math.inf


def test_looking_more_often_costs() -> None:
    assert corrected_alpha(0.05, 1) == 0.05
    assert corrected_alpha(0.05, 3) == pytest.approx(0.05 / 3)
    with pytest.raises(ValueError):
        corrected_alpha(0.05, 0)


# -- latency ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("restarts", "blocks", "between"), [(1, 12, 0.0), (3, 10, 0.0), (3, 10, 0.02), (5, 8, 0.03)])
def test_speedup_intervals_hold_the_truth(restarts: int, blocks: int, between: float) -> None:
    rng, wrong, trials = np.random.default_rng(4), 0, 300
    for seed in range(trials):
        shared = 1 + 0.2 * rng.random((restarts, blocks))  # the machine: both see it
        noise = rng.normal(0, 0.02, (2, restarts, blocks))
        candidate = 5 * shared * np.exp(noise[0])
        baseline = 10 * shared * np.exp(noise[1] + rng.normal(0, between, (restarts, 1)))
        found = ratio_interval(baseline, candidate, seed)
        assert found.low < found.value < found.high
        wrong += not found.low <= 2 <= found.high
    assert wrong / trials <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials) + 0.02


def test_latency_medians_shrug_off_a_disturbed_block() -> None:
    calm = [[10.0, 10.1, 9.9, 10.05, 9.95]] * 3
    disturbed = [[10.0, 10.1, 9.9, 10.05, 50.0], *calm[1:]]
    assert median_interval(disturbed).value == pytest.approx(median_interval(calm).value, rel=0.01)
    assert median_interval(calm).low < 10 < median_interval(calm).high
    assert ratio_interval(calm, calm).value == 1
    lone = median_interval([[10.0]])
    assert (lone.low, lone.high) == (0, math.inf)


def test_latency_blocks_must_be_paired_and_positive() -> None:
    for baseline, candidate in (([[1.0, 2.0]], [[1.0]]), ([[1.0]], [[0.0]]), ([[]], [[]])):
        with pytest.raises(ValueError):
            ratio_interval(baseline, candidate)


def test_tails_need_enough_values() -> None:
    values = np.arange(1.0, 501)
    assert tail(values[:49], 0.9) is None
    assert tail(values[:50], 0.9) == pytest.approx(45.1)
    assert tail(values[:499], 0.99) is None
    assert tail(values, 0.99) == pytest.approx(495.01)


def restarts(rng: np.random.Generator, count: int = 5, blocks: int = 8) -> list[list[np.ndarray]]:
    """Runs with a long tail; a restart as a whole is off by a percent or two."""
    return [[np.exp(rng.normal(0, 0.02) + rng.exponential(0.1, 20)) for _ in range(blocks)] for _ in range(count)]


def test_a_tail_has_an_interval_that_covers_it() -> None:
    rng, truth = np.random.default_rng(5), math.exp(-0.1 * math.log(0.1))
    found = [tail_interval(restarts(rng), 0.9) for _ in range(40)]
    assert all(f is not None and f.low < f.value < f.high for f in found)
    held = sum(f.low <= truth <= f.high for f in found if f)
    assert held >= 36, held
    assert np.median([f.high / f.low for f in found if f]) < 1.15


def test_a_tail_needs_runs_and_restarts() -> None:
    rng = np.random.default_rng(5)
    assert tail_interval(restarts(rng), 0.99) is not None, "800 runs: eight lie beyond p99"
    assert tail_interval(restarts(rng, 5, 4), 0.99) is None, "400 runs: four do"
    assert tail_interval(restarts(rng, 2, 20), 0.9) is None
    assert tail_interval([], 0.9) is None


def test_a_machine_resolves_what_its_noise_leaves() -> None:
    assert resolution(Interval(1.0, 0.98, 1.01)) == pytest.approx(1 / 0.98 - 1)
    assert resolution(Interval(1.05, 1.02, 1.08)) == pytest.approx(0.08)
    assert resolution(Interval(1.0, 0.0, math.inf)) == math.inf
