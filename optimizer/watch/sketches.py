"""Rows of samples, poured into quantile sketches: one for each place of a row. Memory does not grow with the data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from optimizer.faults import Fault, cannot
from passes.kit.summaries import Layout

Array = np.ndarray[Any, Any]

K = 768
"""Accuracy of a sketch: up to so many samples it keeps every number, beyond that ranks are right to 0.5 %."""

MOST_CLASSES = 1024
"""Classes that are counted one by one beside those known before; all others count as :data:`OTHER`."""

OTHER = -1


@dataclass(frozen=True, eq=False)
class Seen:
    """The distribution of each statistic over ``count`` samples: how much weight its values have.

    ``items`` float32 [statistics, r], rows ascending; ``weights`` int64 of the same shape, 0 where a row is shorter;
    ``means`` float64 [statistics]; ``classes`` counts of classes (empty: there are none); ``error`` how far off a rank
    may be, as a share of the samples (99 % of the time; 0: every number is there).
    """

    layout: Layout
    count: int
    items: Array
    weights: Array
    means: Array
    classes: Mapping[int, int] = field(default_factory=dict)
    error: float = 0.0

    def column(self, place: int) -> tuple[Array, Array]:
        """(values ascending, weights) of the statistic at ``place`` of a row."""
        kept = self.weights[place] > 0
        return self.items[place][kept], self.weights[place][kept]


class Pile:
    """A sketch for each statistic of one tensor. Piles of the same layout merge, whoever filled them."""

    def __init__(self, layout: Layout, known: Collection[int] = ()) -> None:
        """``known`` classes are counted one by one however many others come."""
        kll = _kll()
        self.layout = layout
        self._known = frozenset(known)
        self.count = 0
        self.classes: Counter[int] = Counter()
        self._sketches = [kll(K) for _ in layout.names()]
        self._sums = np.zeros(len(self._sketches))

    def add(self, rows: Array, classes: Array | None = None) -> None:
        """Pour in rows (float32 [samples, statistics]) and the classes of the samples, where they have one."""
        for sketch, column in zip(self._sketches, rows.T, strict=True):
            sketch.update(np.ascontiguousarray(column, np.float32))
        self._sums = self._sums + rows.sum(axis=0, dtype=np.float64)
        self.count += len(rows)
        if classes is not None and len(classes):
            self._count_classes(Counter(classes.tolist()))

    def merge(self, other: Pile) -> None:
        """Take in what ``other`` holds. Raises ``ValueError`` when it is laid out otherwise."""
        if other.layout != self.layout:
            raise ValueError("piles of different layouts cannot be merged")
        for mine, theirs in zip(self._sketches, other._sketches, strict=True):
            mine.merge(theirs)
        self._sums = self._sums + other._sums
        self.count += other.count
        self._count_classes(other.classes)

    def _count_classes(self, more: Mapping[int, int]) -> None:
        for name, count in sorted(more.items()):
            room = len(self.classes) < MOST_CLASSES + len(self._known)
            self.classes[name if room or name in self.classes or name in self._known else OTHER] += count

    def seen(self) -> Seen:
        """What is in the pile."""
        columns = [_content(s) for s in self._sketches]
        width = max((len(values) for values, _ in columns), default=0)
        items, weights = np.zeros((len(columns), width), np.float32), np.zeros((len(columns), width), np.int64)
        for i, (values, weight) in enumerate(columns):
            items[i, : len(values)], weights[i, : len(values)] = values, weight
        estimated = [s for s in self._sketches if s.is_estimation_mode()]
        error = max((float(s.normalized_rank_error(True)) for s in estimated), default=0.0)
        means = self._sums / max(1, self.count)
        return Seen(self.layout, self.count, items, weights, means, dict(self.classes), error)

    def state(self) -> dict[str, Any]:
        """Everything, as arrays and plain data, for :meth:`of_state`."""
        return {
            "layout": self.layout.plain(),
            "count": self.count,
            "classes": sorted(self.classes.items()),
            "known": sorted(self._known),
            "sums": self._sums,
            "sketches": [np.frombuffer(s.serialize(), np.uint8) for s in self._sketches],
        }

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> Pile:
        """The pile that :meth:`state` told. Only for states that your own processes wrote."""
        pile = cls(Layout.of_plain(state["layout"]), [int(name) for name in state["known"]])
        kll = _kll()
        pile._sketches = [kll.deserialize(np.asarray(s).tobytes()) for s in state["sketches"]]
        pile._sums, pile.count = np.asarray(state["sums"], np.float64), int(state["count"])
        pile.classes = Counter({int(name): int(count) for name, count in state["classes"]})
        return pile


def fits(budget: int, names: Sequence[str]) -> int:
    """How many samples of so many statistics keep within ``budget`` bytes as exact sketches, at most :data:`K`."""
    return min(K, budget // (4 * max(1, len(names))))


def missing() -> Fault | None:
    """The fault to raise, or to warn of, where the library of sketches is not installed."""
    try:
        _kll()
    except Fault as fault:
        return fault
    return None


def _kll() -> Any:
    try:
        from datasketches import kll_floats_sketch
    except ImportError:
        raise cannot(
            "sketches of the data need datasketches", hint="Run: pip install datasketches", code="missing-package"
        ) from None
    return kll_floats_sketch


def _content(sketch: Any) -> tuple[Array, Array]:
    pairs = list(sketch)
    values = np.array([value for value, _ in pairs], np.float32)
    weights = np.array([weight for _, weight in pairs], np.int64)
    order = np.argsort(values, kind="stable")
    return values[order], weights[order]
