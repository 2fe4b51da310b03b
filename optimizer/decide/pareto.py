"""The frontier: what was measured and is beaten by nothing else in quality, speed and size together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from optimizer.records import FrontierPoint, Interval, Judgement, Measured, Step

SAME = Interval(1.0, 1.0, 1.0)


def frontier(steps: Iterable[Step], baseline: Measured | None) -> tuple[FrontierPoint, ...]:
    """The source and every step that was measured in full, less those that another one beats; fastest first.

    A drop below zero counts as none: samples that a rounded model happens to get right are luck.
    """
    found = [point for step in steps if (point := _of(step)) is not None]
    if baseline is not None and baseline.latency_ms is not None:
        found.append(FrontierPoint("source", "", SAME, baseline.latency_ms.p50, None, baseline.size_bytes, True))
    kept = [p for i, p in enumerate(found) if not any(_beats(q, p, j < i) for j, q in enumerate(found) if j != i)]
    return tuple(sorted(kept, key=lambda p: (-p.speedup.value, p.size_bytes, p.label)))


def _of(step: Step) -> FrontierPoint | None:
    if step.speedup is None or step.latency_ms is None or step.size_bytes is None:
        return None
    accepted = step.verdict.judgement in (Judgement.ACCEPTED, Judgement.UNDECIDED)
    return FrontierPoint(
        step.label, step.recipe, step.speedup, step.latency_ms.p50, step.drop, step.size_bytes, accepted
    )


def _beats(mine: FrontierPoint, other: FrontierPoint, earlier: bool) -> bool:
    """Whether ``mine`` is nowhere worse and somewhere better, or the same and found earlier."""
    pairs: Sequence[tuple[float, float]] = [
        (lost(mine), lost(other)),
        (-mine.speedup.value, -other.speedup.value),
        (mine.size_bytes, other.size_bytes),
    ]
    if any(a > b for a, b in pairs):
        return False
    return any(a < b for a, b in pairs) or earlier


def lost(point: FrontierPoint) -> float:
    """The quality that a point costs, in the metric's unit; nothing where it is better than the source."""
    return max(0.0, point.drop.value) if point.drop is not None else 0.0
