"""Intervals: how sure a drop, a quality or a speed-up is. Pure functions of what was measured.

Sources: Berger & Boos 1994 (p-values maximized over a confidence set for the nuisance parameter); Clopper & Pearson
1934; Efron 1987 (BCa); Hesterberg 2015 (expanded percentiles for small samples); Shao & Tu 1995, ch. 2 (delete-a-group
jackknife); Kalibera & Jones 2013 (hierarchical resampling of benchmarks); Satterthwaite 1946 (degrees of freedom).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from optimizer.data.metrics import Metric
from optimizer.measure.exact import drop_upper, proportion
from optimizer.measure.resample import Resampled, resample
from optimizer.records import Interval

Array = np.ndarray[Any, Any]

CONFIDENCE = 0.95
MOST_SAMPLES = 10_000_000
"""Above this :func:`samples_needed` says that no realistic number of samples decides."""


@dataclass(frozen=True)
class DropEstimate:
    """How much worse the candidate is, in the metric's unit; worse is positive.

    Attributes:
        value: The drop on these samples.
        low, high: Two-sided interval at confidence 1 - alpha.
        upper_one_sided, lower_one_sided: One-sided bounds, each at confidence 1 - alpha.
        n: Number of rows (samples; groups for a user's one-number function).
        method: How the interval was made, in words.
        degenerate: The rows say nothing about spread (all equal, or a single one); the interval is then the value alone
            (all equal) or everything (a single row).
        discordant: For 0/1 outcomes: (baseline right and candidate wrong, the reverse).
        alpha: One minus the confidence.
    """

    value: float
    low: float
    high: float
    upper_one_sided: float
    lower_one_sided: float
    n: int
    method: str
    degenerate: bool = False
    discordant: tuple[int, int] | None = None
    alpha: float = 0.05

    @property
    def interval(self) -> Interval:
        """Value with its two-sided interval, as records hold it."""
        return Interval(self.value, self.low, self.high)

    @classmethod
    def of_numbers(cls, baseline: float, candidate: float, higher_is_better: bool = True) -> DropEstimate:
        """The drop between two bare numbers, as a user's own evaluation gives: nothing is known about its spread."""
        value, inf = (baseline - candidate) * (1.0 if higher_is_better else -1.0), math.inf
        value = inf if math.isnan(value) else value
        return cls(value, -inf, inf, inf, -inf, 1, "one number each: no interval", True)


def paired_drop(
    metric: Metric, baseline_rows: Array, candidate_rows: Array, seed: int, alpha: float = 0.05
) -> DropEstimate:
    """The drop from baseline to candidate on the same samples, with its interval.

    0/1 outcomes: exact unconditional bounds. With B samples that only the baseline gets right and C that only the
    candidate does, the bound is the largest drop for which P(B - C <= observed) still exceeds alpha - gamma for some
    share of discordant samples in its 1 - gamma confidence set (gamma = alpha / 10). It stays honest when B = C = 0.

    Everything else: paired bootstrap of rows (BCa, wider for small samples). When no resample differs, the interval
    is the value alone and ``degenerate`` is set: there is no floor that data without spread could justify.
    A user's one-number function: delete-a-group jackknife with Student's t.

    Args:
        metric: The metric that made the rows.
        baseline_rows, candidate_rows: float64 [n, k], row i from the same sample.
        seed: For the bootstrap.
        alpha: One minus the confidence.

    Raises ``ValueError`` when the rows are not paired or there are none.
    """
    if baseline_rows.shape != candidate_rows.shape or not len(baseline_rows):
        raise ValueError(f"rows are not paired: {baseline_rows.shape} and {candidate_rows.shape}")
    n = len(baseline_rows)
    if metric.outcomes(baseline_rows, candidate_rows):
        right, still = baseline_rows[:, 0] == 1, candidate_rows[:, 0] == 1
        return exact_drop(int((right & ~still).sum()), int((~right & still).sum()), n, alpha)
    sign = 1.0 if metric.higher_is_better else -1.0
    value = sign * (metric.score(baseline_rows) - metric.score(candidate_rows))
    if math.isnan(value):
        worst = math.inf
        return DropEstimate(worst, -worst, worst, worst, -worst, n, "a score is not a number", True, None, alpha)
    if metric.grouped(baseline_rows):
        return _jackknifed_drop(sign * (baseline_rows[:, 1] - candidate_rows[:, 1]), value, alpha)

    return _bootstrapped_drop(resampled_drop(metric, baseline_rows, candidate_rows, seed), n, alpha)


def resampled_drop(metric: Metric, baseline_rows: Array, candidate_rows: Array, seed: int) -> Resampled:
    """Drops of bootstrap resamples of paired rows float64 [n, k]; worse is positive."""
    sign = 1.0 if metric.higher_is_better else -1.0
    value = sign * (metric.score(baseline_rows) - metric.score(candidate_rows))

    def drops(weights: Array) -> Array:
        return sign * (metric.weighted(baseline_rows, weights) - metric.weighted(candidate_rows, weights))

    return resample(drops, value, len(baseline_rows), seed)


def exact_drop(lost: int, won: int, n: int, alpha: float = 0.05) -> DropEstimate:
    """The exact estimate from counts: ``lost`` only the baseline gets right, ``won`` only the candidate, of ``n``."""
    high, upper = (drop_upper(lost, won, n, a) for a in (alpha / 2, alpha))
    low, lower = (-drop_upper(won, lost, n, a) for a in (alpha / 2, alpha))
    method = "exact paired (unconditional, Berger-Boos)"
    return DropEstimate((lost - won) / n, low, high, upper, lower, n, method, False, (lost, won), alpha)


def _bootstrapped_drop(found: Resampled, n: int, alpha: float) -> DropEstimate:
    value = found.value
    if n == 1:
        bounds, method = [-math.inf, math.inf, math.inf, -math.inf], "a single sample has no interval"
    elif found.constant:
        bounds, method = [value] * 4, "paired bootstrap (no spread: samples do not differ)"
    else:
        one, two = found.level(alpha), found.level(alpha / 2)
        bounds = found.quantiles([two, 1 - two, 1 - one, one])
        method = f"paired bootstrap (BCa, {len(found.draws)} resamples)"
    low, high, upper, lower = bounds
    degenerate = n == 1 or found.constant
    return DropEstimate(value, min(low, value), max(high, value), upper, lower, n, method, degenerate, None, alpha)


def _jackknifed_drop(without: Array, value: float, alpha: float) -> DropEstimate:
    groups = len(without)
    if groups < 2:
        inf = math.inf
        return DropEstimate(value, -inf, inf, inf, -inf, groups, "a single sample has no interval", True, None, alpha)
    error, degrees = _jackknife_error(without), groups - 1
    two, one = (student(1 - a, degrees) * error for a in (alpha / 2, alpha))
    method = f"jackknife over {groups} groups"
    bounds = (value - two, value + two, value + one, value - one)
    return DropEstimate(value, *bounds, groups, method, error == 0, None, alpha)


def _jackknife_error(without: Array) -> float:
    groups = len(without)
    return math.sqrt((groups - 1) / groups * float(((without - without.mean()) ** 2).sum()))


def quality_interval(metric: Metric, rows: Array, seed: int = 0) -> Interval:
    """The score over ``rows`` [n, k] with a two-sided 95 % interval: Clopper-Pearson for 0/1 outcomes, else bootstrap.

    A single row that is no 0/1 outcome gives an unbounded interval.
    """
    n, value = len(rows), metric.score(rows)
    if metric.outcomes(rows):
        return Interval(value, *proportion(int(rows[:, 0].sum()), n, 1 - CONFIDENCE))
    if n == 1 or math.isnan(value):
        return Interval(value, -math.inf, math.inf)
    if metric.grouped(rows):
        margin = student(0.5 + CONFIDENCE / 2, n - 1) * _jackknife_error(rows[:, 1])
        return Interval(value, value - margin, value + margin)
    found = resample(lambda weights: metric.weighted(rows, weights), value, n, seed)
    if found.constant:
        return Interval(value, value, value)
    edge = found.level(0.5 - CONFIDENCE / 2)
    low, high = found.quantiles([edge, 1 - edge])
    return Interval(value, min(low, value), max(high, value))


# -- planning --------------------------------------------------------------------------------------------------------
def samples_needed(estimate: DropEstimate, margin: float) -> int | None:
    """How many more samples would probably decide whether the drop is within ``margin``, if it stays as estimated.

    0 when it is decided already; None when more samples of this kind are not expected to decide (the estimate lies on
    the margin, or more than ten million would be needed). 0/1 outcomes repeat the exact bound with counts scaled up;
    otherwise the distance of the one-sided bound shrinks with the square root of n.
    """
    if estimate.upper_one_sided <= margin or estimate.lower_one_sided > margin:
        return 0
    gap = abs(margin - estimate.value)
    if gap == 0 or not math.isfinite(gap) or estimate.n < 2:
        return None
    within = estimate.value < margin
    reach = abs((estimate.upper_one_sided if within else estimate.lower_one_sided) - estimate.value)
    if not math.isfinite(reach):
        return None
    total = estimate.n * (reach / gap) ** 2
    if estimate.discordant is not None and total <= MOST_SAMPLES:
        total = _exact_total(estimate, margin, within)
    return max(1, math.ceil(total) - estimate.n) if total <= MOST_SAMPLES else None


def _exact_total(estimate: DropEstimate, margin: float, within: bool) -> float:
    """Smallest n (to 2 %) at which the exact bound decides when both kinds of discordance keep their shares."""
    lost, won = estimate.discordant or (0, 0)

    def decided(n: int) -> bool:
        scale = n / estimate.n
        b, c = round(lost * scale), round(won * scale)
        if within:
            return drop_upper(b, c, n, estimate.alpha) <= margin
        return -drop_upper(c, b, n, estimate.alpha) > margin

    low, high = estimate.n, estimate.n * 2
    while not decided(high):
        low, high = high, high * 2
        if high > MOST_SAMPLES:
            return math.inf
    while high - low > max(1, low // 50):
        middle = (low + high) // 2
        low, high = (low, middle) if decided(middle) else (middle, high)
    return high


def detectable(n: int, p: float, alpha: float = 0.05, power: float = 0.8) -> float:
    """The smallest margin that ``n`` samples can prove for a candidate that in truth loses nothing, with this power.

    ``p`` is the share of samples on which candidate and baseline differ (2 to 5 % is usual for int8). Normal
    approximation (z_alpha + z_power) sqrt(p / n), but never under -ln(alpha) / n, which is what n samples
    without a single difference prove.
    """
    if n < 1:
        return math.inf
    z = normal(1 - alpha) + normal(power)
    return min(1.0, max(z * math.sqrt(max(p, 0.0) / n), -math.log(alpha) / n))


USUAL_SHARE = 0.02
"""Share of samples whose outcome another rounding changes, before anything is known: 1 to 3 % are usual for int8."""


def detectable_by(estimate: DropEstimate, power: float = 0.8) -> float | None:
    """The smallest drop that as many samples of the kind of ``estimate`` show with this power; ``None`` without spread.

    0/1 outcomes: :func:`detectable` with the share that was seen to differ. Otherwise z_alpha + z_power standard
    errors, one being what lies between the value and its one-sided bound, over z_alpha.
    """
    if estimate.discordant is not None:
        return detectable(estimate.n, sum(estimate.discordant) / estimate.n, estimate.alpha, power)
    reach = estimate.upper_one_sided - estimate.value
    if estimate.degenerate or not math.isfinite(reach):
        return None
    z = normal(1 - estimate.alpha)
    return reach / z * (z + normal(power))


def samples_for(margin: float, share: float = USUAL_SHARE, alpha: float = 0.05, power: float = 0.8) -> int | None:
    """How many samples :func:`detectable` asks for to show a drop of ``margin``; ``None`` beyond ten million."""
    if margin <= 0:
        return None
    wanted = max(share * ((normal(1 - alpha) + normal(power)) / margin) ** 2, -math.log(alpha) / margin)
    return math.ceil(wanted - 1e-9) if wanted <= MOST_SAMPLES else None


def corrected_alpha(alpha: float, looks: int) -> float:
    """Bonferroni: the level for each of ``looks`` candidates so that all claims hold together at ``alpha``."""
    if looks < 1:
        raise ValueError("there is at least one look")
    return alpha / looks


# -- latency -----------------------------------------------------------------------------------------------------------
Blocks = Sequence[Sequence[float]] | Array
"""[restarts][blocks] of block medians; restarts may differ in length."""


def median_interval(values_by_block: Blocks) -> Interval:
    """Typical latency in the unit of the values, with a 95 % interval over restarts and blocks. All values > 0.

    The location is the geometric mean over restarts of each restart's median; see :func:`ratio_interval`.
    """
    return _hierarchical([np.log(np.asarray(b, np.float64)) for b in values_by_block])


def ratio_interval(baseline_blocks: Blocks, candidate_blocks: Blocks, seed: int = 0) -> Interval:
    """Speed-up, baseline over candidate, with a 95 % interval. Block j of restart i was measured side by side in both.

    Ratios are taken block by block, which cancels what slows both (frequency, neighbours); a restart counts as its
    median log ratio; restarts are averaged.

    The interval: variance between restarts from their spread, variance within from a bootstrap of each restart's
    median, and Student's t with Satterthwaite's degrees of freedom. Plain percentiles of a two-level bootstrap would be
    far too narrow for the three to five restarts that a measurement can afford.

    Raises ``ValueError`` when blocks are not paired, missing or not positive.
    """
    ratios: list[Array] = []
    for baseline, candidate in zip(baseline_blocks, candidate_blocks, strict=True):
        b, c = np.asarray(baseline, np.float64), np.asarray(candidate, np.float64)
        if b.shape != c.shape or not b.size or not ((b > 0).all() and (c > 0).all()):
            raise ValueError("blocks must be paired, present and positive")
        ratios.append(np.log(b / c))
    return _hierarchical(ratios, seed)


BLOCK_DRAWS = 1000


def _hierarchical(logs: list[Array], seed: int = 0) -> Interval:
    if not logs or any(not len(block) or not np.isfinite(block).all() for block in logs):
        raise ValueError("every restart needs at least one block of positive values")
    medians = np.array([np.median(block) for block in logs])
    value, restarts = float(medians.mean()), len(logs)
    rng = np.random.default_rng(seed)
    within = float(np.mean([_median_variance(block, rng) for block in logs])) / restarts
    total, degrees = within, float(sum(len(block) - 1 for block in logs))
    if restarts > 1:
        between = float(medians.var(ddof=1)) / restarts
        if between > within:
            extra = between - within
            total = between
            degrees = total**2 / (extra**2 / (restarts - 1) + within**2 / max(1.0, degrees))
    if degrees < 1:
        return Interval(math.exp(value), 0.0, math.inf)
    reach = student(0.5 + CONFIDENCE / 2, degrees) * math.sqrt(total)
    return Interval(math.exp(value), math.exp(value - reach), math.exp(value + reach))


def _median_variance(block: Array, rng: np.random.Generator) -> float:
    """Bootstrap variance of the median, with the n / (n - 1) that resampling leaves out."""
    n = len(block)
    if n < 2:
        return 0.0
    draws = np.median(block[rng.integers(0, n, (BLOCK_DRAWS, n))], axis=1)
    return float(draws.var()) * n / (n - 1)


def tail(values: Sequence[float] | Array, q: float) -> float | None:
    """The ``q`` quantile (0.9, 0.99) when at least five values lie beyond it (50 for p90, 500 for p99), else None."""
    found = np.asarray(values, np.float64)
    enough = len(found) * (1 - q) >= 5 - 1e-9
    return float(np.quantile(found, q)) if enough else None


TAIL_DRAWS = 500


def tail_interval(blocks: Sequence[Sequence[Array]], q: float, seed: int = 0) -> Interval | None:
    """The ``q`` quantile of all runs with a 95 % interval: ``blocks[r][b]`` holds the runs of block b after restart r.

    Restarts are drawn with replacement, then blocks within each; the levels are widened for few restarts as Hesterberg
    does. ``None`` when :func:`tail` has not enough runs, or there are fewer than three restarts.
    """
    runs = [block for restart in blocks for block in restart]
    value = tail(np.concatenate(runs), q) if runs else None
    if value is None or len(blocks) < 3:
        return None
    rng, draws = np.random.default_rng(seed), np.empty(TAIL_DRAWS)
    for i in range(TAIL_DRAWS):
        picked = [blocks[r] for r in rng.integers(0, len(blocks), len(blocks))]
        parts = [restart[b] for restart in picked for b in rng.integers(0, len(restart), len(restart))]
        draws[i] = np.quantile(np.concatenate(parts), q)
    found = Resampled(value, np.sort(draws), 0.0, len(blocks))
    low, high = found.quantiles([0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
    return Interval(value, min(low, value), max(high, value))


def resolution(same: Interval) -> float:
    """The relative difference that a ratio must exceed to mean anything, by what a model against itself came to: the
    farther end of its interval from 1."""
    return max(same.high, 1 / same.low if same.low > 0 else math.inf) - 1


def student(p: float, degrees: float) -> float:
    """Quantile of Student's t."""
    from scipy import special

    return float(special.stdtrit(degrees, p))


def normal(p: float) -> float:
    """Quantile of the normal distribution."""
    from scipy import special

    return float(special.ndtri(p))
