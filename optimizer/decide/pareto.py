"""The frontier: what was measured and is beaten by nothing else in quality, speed and size together."""

from __future__ import annotations

from collections.abc import Iterable

from optimizer.decide.judge import within_budget
from optimizer.records import FrontierPoint, Interval, Measured, Step

SAME = Interval(1.0, 1.0, 1.0)

ALIKE = 0.02
"""Speeds and sizes within this share are alike: two timings of the same model differ by as much."""

ALIKE_LOSS = 0.02
"""Losses within this share of the largest one on the frontier are alike."""


def frontier(steps: Iterable[Step], baseline: Measured | None, shipped: str = "") -> tuple[FrontierPoint, ...]:
    """The source and every step that was measured in full, less those that another one beats; fastest first.

    Of points that are alike in everything, what ships (by its recipe) stays, then the source, then what was tried
    first. A drop below zero counts as none: samples that a rounded model happens to get right are luck.
    """
    found = [point for step in steps if (point := _of(step)) is not None]
    if baseline is not None and baseline.latency_ms is not None:
        source = FrontierPoint("source", "", SAME, baseline.latency_ms.p50, None, baseline.size_bytes, True)
        found.insert(0, source)
    found.sort(key=lambda p: p.recipe != shipped)  # stable: the rest keeps its order
    best = [p for p in found if p.recipe == shipped or not any(_beats(q, p) for q in found)]
    slack = ALIKE_LOSS * max((lost(p) for p in best), default=0.0)
    kept: list[FrontierPoint] = []
    for point in best:
        if not any(_covers(q, point, slack) for q in kept):
            kept.append(point)
    return tuple(sorted(kept, key=lambda p: (-p.speedup.value, p.size_bytes, p.label)))


def lost(point: FrontierPoint) -> float:
    """The quality that a point costs, in the metric's unit; nothing where it is better than the source."""
    return max(0.0, point.drop.value) if point.drop is not None else 0.0


def _of(step: Step) -> FrontierPoint | None:
    if step.speedup is None or step.latency_ms is None or step.size_bytes is None:
        return None
    held = step.drop is None or within_budget(step.verdict)
    return FrontierPoint(step.label, step.recipe, step.speedup, step.latency_ms.p50, step.drop, step.size_bytes, held)


def _beats(mine: FrontierPoint, other: FrontierPoint) -> bool:
    """Nowhere worse, and somewhere better."""
    pairs = _pairs(mine, other)
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def _covers(mine: FrontierPoint, other: FrontierPoint, slack: float) -> bool:
    """Nowhere noticeably worse."""
    (loss, loss_other), (slow, slow_other), (size, size_other) = _pairs(mine, other)
    return loss <= loss_other + slack and slow <= slow_other * (1 + ALIKE) and size <= size_other * (1 + ALIKE)


def _pairs(mine: FrontierPoint, other: FrontierPoint) -> list[tuple[float, float]]:
    """Loss, time (as a share of the source's) and size of both; less is better."""
    return [
        (lost(mine), lost(other)),
        (1 / mine.speedup.value, 1 / other.speedup.value),
        (mine.size_bytes, other.size_bytes),
    ]
