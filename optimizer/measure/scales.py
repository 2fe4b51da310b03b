"""The scales of one compile: what a model weighs in quality, time, memory and bytes, always beside the baseline."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.data.metrics import Metric
from optimizer.data.samples import Samples
from optimizer.faults import bad_input
from optimizer.measure.latency import Effort, Timing, compare, speedup
from optimizer.measure.quality import Judge, quality_of
from optimizer.measure.stats import DropEstimate, paired_drop
from optimizer.records import Interval, Latency, Quality
from optimizer.runtime.sessions import Site
from optimizer.store.store import Store, key_of

Array = np.ndarray[Any, Any]
Evaluator = Callable[[Path], float]

EVALUATOR = "evaluator"

QUANTILES = 40
"""Into how many equal shares a record divides the runs of a latency."""


@dataclass(frozen=True)
class Weighed:
    """A model that can be put on the scales: where it lies, its digest and its size."""

    path: Path
    digest: str
    size_bytes: int


@dataclass(frozen=True)
class QualityReading:
    """Quality of the baseline and of a candidate on the same samples, and the paired drop (worse is positive)."""

    baseline: Quality
    candidate: Quality
    drop: DropEstimate


@dataclass(frozen=True)
class SpeedReading:
    """Latency of the baseline and of a candidate measured side by side; ``speedup`` is baseline over candidate."""

    baseline: Latency
    candidate: Latency
    speedup: Interval
    memory_bytes: int
    baseline_memory_bytes: int
    load_ms: float
    first_ms: float | None = None
    baseline_load_ms: float | None = None
    baseline_first_ms: float | None = None


@dataclass
class Scales:
    """Weighs models against one baseline. ``journal`` names this compile: latencies are reused only within it."""

    baseline: Weighed
    site: Site
    store: Store
    feed: dict[str, Array]
    seed: int
    journal: str
    metric: Metric | None = None
    evaluator: Evaluator | None = None
    _kept: list[str] = field(default_factory=list)

    def quality(self, model: Weighed, samples: Samples, alpha: float = 0.05) -> QualityReading:
        """Measure ``model`` and the baseline on ``samples``; ``alpha`` is the error allowed to each one-sided bound."""
        if self.evaluator is not None:
            return self._evaluated(model)
        assert self.metric is not None
        judge = Judge(self.metric, samples, self.site, self.store, self.baseline.path)
        base = judge.rows(self.baseline.path, self.baseline.digest)
        rows = judge.rows(model.path, model.digest) if model.digest != self.baseline.digest else base
        drop = paired_drop(self.metric, base, rows, self.seed, alpha)
        return QualityReading(_scored(quality_of(self.metric, base)), quality_of(self.metric, rows), drop)

    def _evaluated(self, model: Weighed) -> QualityReading:
        """One number from the user's own evaluation: there is no interval, so nothing can be proven with it."""
        assert self.evaluator is not None
        base, value = self.evaluator(self.baseline.path), self.evaluator(model.path)
        both = [Quality(EVALUATOR, v, v, v, True, 1) for v in (base, value)]
        return QualityReading(_scored(both[0]), both[1], DropEstimate.of_numbers(base, value))

    def speed(self, model: Weighed, effort: Effort) -> SpeedReading:
        """Time ``model`` and the baseline side by side."""
        key = key_of("latency", self.journal, self.baseline.digest, model.digest, effort.restarts, effort.seconds)
        kept = self.store.get_answer(key)
        if kept is not None:
            base, mine = (_timing(plain) for plain in kept)
        else:
            base, mine = compare([self.baseline.path, model.path], [self.feed, self.feed], self.site, effort)
            self.store.put_answer(key, [_plain(base), _plain(mine)])
        self._kept.append(key)
        return SpeedReading(
            spread(base),
            spread(mine),
            speedup(base, mine, self.seed),
            mine.memory_bytes,
            base.memory_bytes,
            mine.load_ms,
            mine.first_ms,
            base.load_ms,
            base.first_ms,
        )

    def forget_journal(self) -> None:
        """Drop the latencies of this compile: another day's machine is another machine."""
        for key in self._kept:
            self.store.drop_answer(key)


def spread(timing: Timing) -> Latency:
    """The latency with the shape of its distribution."""
    runs = np.concatenate([block for restart in timing.blocks for block in restart])
    shares = (np.arange(QUANTILES) + 0.5) / QUANTILES
    return replace(timing.latency(), quantiles=tuple(float(f"{q:.5g}") for q in np.quantile(runs, shares)))


def _scored(source: Quality) -> Quality:
    """The quality of the source, which must be a number: without one nothing can be judged."""
    if not math.isfinite(source.value):
        hint = "Look at the outputs and the labels of these samples, or choose another --metric"
        text = f"the metric '{source.metric}' gives {source.value} for the source model"
        raise bad_input(text, hint=hint, code="metric-not-finite")
    return source


def _plain(timing: Timing) -> dict[str, Any]:
    return {**vars(timing), "blocks": [list(restart) for restart in timing.blocks]}


def _timing(plain: dict[str, Any]) -> Timing:
    blocks = tuple(tuple(np.asarray(b) for b in restart) for restart in plain["blocks"])
    kept = {name: tuple(plain[name]) for name in ("memories", "others")}
    return Timing(**{**plain, **kept, "blocks": blocks})
