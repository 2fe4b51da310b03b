"""Verdicts: pure functions from readings to words. Nothing here measures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from optimizer.decide.budget import Budget, Limit
from optimizer.measure.scales import QualityReading, SpeedReading
from optimizer.measure.stats import DropEstimate, samples_needed
from optimizer.records import Interval, Judgement, PassNote, Step, Verdict

PAYS_POINT = 1.02
"""Point estimate of the speed-up from which a recipe is worth confirming; there the whole interval must lie above 1."""

SizePair = tuple[int, int]
"""Bytes of a candidate and of the source."""

LOSSLESS_LABEL = "lossless"

OVER_QUALITY, OVER_LIMIT = "quality: ", "limit: "
"""How the reason of a verdict begins when the budget was not met."""

CONFIRM_AT_MOST = 3
"""Candidates that go to confirm; they share the error that is allowed."""

NOT_SLOWER = 0.98
"""Lower bound of the speed-up that a lossless model must reach, together with a point estimate of at least
:data:`NOT_SLOWER_POINT`: two builds of the same model differ by that much on a busy machine."""

NOT_SLOWER_POINT = 0.995


@dataclass(frozen=True)
class Stakes:
    """What a candidate is held to: the budget, the goal, and what the lossless model gives already, for nothing."""

    budget: Budget
    goal: str = "latency"
    free_speedup: float = 1.0
    free_bytes: int | None = None

    @property
    def for_speed(self) -> bool:
        """Whether quality is spent to be faster; otherwise to be smaller, at no less speed."""
        return self.goal in ("latency", "throughput")


def on_select(
    lossy: bool, quality: QualityReading | None, speed: SpeedReading, sizes: SizePair, stakes: Stakes
) -> Verdict:
    """The word on a candidate during the search: point estimates of quality, then whether it pays."""
    if lossy and (reason := too_costly(quality, stakes.budget)):
        return Verdict(Judgement.REJECTED, reason)
    if lossy and (reason := paid_for_nothing(speed.speedup, sizes, stakes)):
        return Verdict(Judgement.REJECTED, reason)
    if not lossy and speed.speedup.high < 1.0:
        return Verdict(Judgement.REJECTED, why_slower(speed.speedup))
    missed = unmet(stakes.budget.limits(), speed, sizes)
    if missed:
        return Verdict(Judgement.REJECTED, f"{OVER_LIMIT}{missed[0]}")
    return Verdict(Judgement.ACCEPTED, speed_text(speed.speedup))


def too_costly(quality: QualityReading | None, budget: Budget) -> str:
    """Why the point estimate of a drop is beyond the budget; empty when it is not, or when nothing is asked for."""
    margin = budget.quality_margin(quality.baseline.value) if quality is not None else None
    if quality is None or margin is None or not beyond(quality.drop.value, margin):
        return ""
    return f"{OVER_QUALITY}{drop_text(quality.drop, margin)}"


def paid_for_nothing(speedup: Interval, sizes: SizePair, stakes: Stakes) -> str:
    """Why spending quality buys nothing that the lossless model does not give; empty when it does buy something."""
    if stakes.for_speed and speedup.value < PAYS_POINT:
        return f"paid for nothing: {speed_text(speedup)}"
    if stakes.for_speed and speedup.value < PAYS_POINT * stakes.free_speedup:
        return f"paid for nothing: {speed_text(speedup)}, where the lossless model gives {stakes.free_speedup:.2f}x"
    if not stakes.for_speed and speedup.value < NOT_SLOWER_POINT:
        return f"slower: {speed_text(speedup)}"
    free = stakes.free_bytes or sizes[1]
    if not stakes.for_speed and sizes[0] * PAYS_POINT > free:
        return f"paid for nothing: {sizes[0]:,} bytes, where the lossless model has {free:,}"
    return ""


def at_confirm(quality: QualityReading | None, speed: SpeedReading, sizes: SizePair, stakes: Stakes) -> Verdict:
    """The last word: proven by the one-sided bounds of the drop, undecided, or rejected."""
    missed = unmet(stakes.budget.limits(), speed, sizes)
    if missed:
        return Verdict(Judgement.REJECTED, f"{OVER_LIMIT}{missed[0]}")
    if not (pays(speed.speedup) if stakes.for_speed else not_slower(speed.speedup)):
        return Verdict(Judgement.REJECTED, f"paid for nothing: {speed_text(speed.speedup)}")
    margin = stakes.budget.quality_margin(quality.baseline.value) if quality is not None else None
    if quality is None or margin is None:
        return Verdict(Judgement.ACCEPTED, speed_text(speed.speedup))
    said = drop_text(quality.drop, margin)
    if quality.drop.upper_one_sided <= margin:
        return Verdict(Judgement.ACCEPTED, said)
    if quality.drop.lower_one_sided > margin or beyond(quality.drop.value, margin):
        return Verdict(Judgement.REJECTED, f"{OVER_QUALITY}{said}")
    return Verdict(Judgement.UNDECIDED, said, need_text(quality.drop, margin))


def within_budget(verdict: Verdict) -> bool:
    """Whether the budget was met, though something else may have been held against the candidate."""
    rejected = verdict.judgement is Judgement.REJECTED
    return not (rejected and verdict.reason.startswith((OVER_QUALITY, OVER_LIMIT)))


def beyond(drop: float, margin: float) -> bool:
    """Whether a drop is more than what is allowed: 1 - 0.99 is not more than 0.01, whatever binary fractions say."""
    return drop > margin and not math.isclose(drop, margin, rel_tol=1e-9)


def pays(speedup: Interval) -> bool:
    """Whether a model is faster beyond doubt: the whole interval lies above 1."""
    return speedup.low > 1.0


def not_slower(speedup: Interval) -> bool:
    """Whether a model that costs no quality may ship."""
    return speedup.low >= NOT_SLOWER and speedup.value >= NOT_SLOWER_POINT


def unmet(limits: Sequence[Limit], speed: SpeedReading, sizes: SizePair) -> list[str]:
    """The limits on latency, size and memory that do not hold, in words."""
    reached: dict[str, tuple[float | None, float | None]] = {
        "latency": (speed.candidate.p50, speed.baseline.p50),
        "size": sizes,
        "memory": (speed.memory_bytes, speed.baseline_memory_bytes),
    }
    return [limit.unmet(*reached[limit.subject]) for limit in limits if limit.unmet(*reached[limit.subject])]


def ranked(tried: Sequence[Any], goal: str) -> list[Any]:
    """Accepted entries (anything with a ``step``), best first for the goal; ties go to the faster one."""
    accepted = [t for t in tried if t.step.verdict.judgement is Judgement.ACCEPTED]
    return sorted(accepted, key=lambda t: _rank(t.step, goal))


def contenders(tried: Sequence[Any], goal: str, most: int) -> list[Any]:
    """Who goes to confirm: the best for the goal and, as the last of them, whoever loses least among the others.

    The fastest ones often lose about equally; when the confirm samples are harder, all of them fail together.
    """
    best = ranked(tried, goal)
    if len(best) <= most:
        return best
    rest = [t for t in best[most - 1 :] if t.step.drop is not None] or best[most - 1 :]
    return [*best[: most - 1], min(rest, key=lambda t: t.step.drop.value if t.step.drop else 0.0)]


def _rank(step: Step, goal: str) -> tuple[float, float]:
    spent = {"size": step.size_bytes, "memory": step.memory_bytes}.get(goal) or 0
    return float(spent), -(step.speedup.value if step.speedup else 0.0)


def nothing_new(other: str, notes: Sequence[PassNote]) -> str:
    """Why a recipe needs no measurement: it made the same model as the source or as another recipe."""
    last = notes[-1] if notes else None
    because = f": {last.name} says {last.skips[0]}" if last is not None and last.skips and not last.changes else ""
    fault = f": {last.name} was left out, {last.fault}" if last is not None and last.fault else ""
    same = "changes nothing" if other == "source" else f"gives the same model as '{other}'"
    return f"{same}{because}{fault}"


def no_faster(other: str) -> str:
    """Why a model that spends quality needs no clock: it does the same work as one that spends none."""
    return (
        f"no faster here: the same operators on the same sizes as '{other}', and no kernel of this target skips zeros"
    )


def why_lossless(steps: Sequence[Step], hindrance: str = "") -> str:
    """One line that says why nothing lossy ships; ``hindrance`` is why nothing lossy could be tried."""
    lossy = [s for s in steps if s.label != LOSSLESS_LABEL]
    if not lossy:
        return "nothing that spends quality was tried" + (f": {hindrance}" if hindrance else "")
    briefly = (f"{s.label} ({s.verdict.reason.removeprefix('at confirm: ').split(':')[0]})" for s in lossy)
    return "what spends quality was let go: " + ", ".join(briefly)


def why_slower(speedup: Interval) -> str:
    """A lossless model that is not shipped."""
    return f"not faster: {speed_text(speedup)}"


def speed_text(speedup: Interval) -> str:
    """``1.52x [1.49, 1.55]``."""
    return f"{speedup.value:.2f}x [{speedup.low:.2f}, {speedup.high:.2f}]"


def drop_text(drop: DropEstimate, margin: float) -> str:
    """The drop with its interval and the one-sided bound that decides, beside what is allowed, in the metric's unit."""
    bound = drop.upper_one_sided
    shown = f"at most {bound:.4g} at {1 - drop.alpha:.1%}, " if math.isfinite(bound) else ""
    return f"drop {drop.value:.4g} [{drop.low:.4g}, {drop.high:.4g}], {shown}allowed {margin:.4g}"


def need_text(drop: DropEstimate, margin: float) -> str:
    """What would decide an undecided drop."""
    if drop.n == 1:
        return "a metric with one value per sample (--metric): one number has no error bar"
    more = samples_needed(drop, margin)
    return f"{more:,} more samples" if more else "more samples than can be estimated"
