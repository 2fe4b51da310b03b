"""Streaming, mergeable folds over activations. Peak memory never grows with the number of samples.

``fold`` takes one batch of one tensor, ``merge`` joins two partial results. Counts, minima, maxima and fixed-grid
histograms merge bit-identically in any order.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import numpy as np

Array = np.ndarray[Any, Any]


class Reducer:
    """Base of all reducers. Parameters are dataclass fields; the folded state lives in ``arrays``."""

    kind: ClassVar[str]
    arrays: dict[str, Array]

    def fold(self, batch: Array) -> None:
        """Take in one array of activations (any shape, float)."""
        raise NotImplementedError

    def merge(self, other: Self) -> None:
        """Take in the state of another reducer with the same parameters."""
        raise NotImplementedError

    def spec(self) -> dict[str, Any]:
        """Kind and parameters, as plain data; :func:`build` turns it back into an empty reducer."""
        return {"kind": self.kind, **{f.name: getattr(self, f.name) for f in fields(self) if f.init}}  # type: ignore[arg-type]


@dataclass
class MinMax(Reducer):
    """Smallest and largest finite value, number of values, and number of non-finite ones."""

    kind: ClassVar[str] = "min-max"

    def __post_init__(self) -> None:
        self.arrays = {
            "low": np.array(np.inf),
            "high": np.array(-np.inf),
            "count": np.array(0, np.int64),
            "broken": np.array(0, np.int64),
        }

    def fold(self, batch: Array) -> None:
        finite = np.isfinite(batch)
        good = batch if finite.all() else batch[finite]
        self.arrays["count"] = self.arrays["count"] + batch.size
        self.arrays["broken"] = self.arrays["broken"] + (batch.size - good.size)
        if good.size:
            self.arrays["low"] = np.minimum(self.arrays["low"], np.float64(good.min()))
            self.arrays["high"] = np.maximum(self.arrays["high"], np.float64(good.max()))

    def merge(self, other: Self) -> None:
        for key in ("count", "broken"):
            self.arrays[key] = self.arrays[key] + other.arrays[key]
        self.arrays["low"] = np.minimum(self.arrays["low"], other.arrays["low"])
        self.arrays["high"] = np.maximum(self.arrays["high"], other.arrays["high"])

    @property
    def low(self) -> float:
        return float(self.arrays["low"])

    @property
    def high(self) -> float:
        return float(self.arrays["high"])


@dataclass
class Histogram(Reducer):
    """Counts over a grid of ``bins`` equal cells from ``low`` to ``high``; what is outside lands in an end cell."""

    low: float
    high: float
    bins: int = 2048
    kind: ClassVar[str] = "histogram"

    def __post_init__(self) -> None:
        self.arrays = {"counts": np.zeros(self.bins, np.int64)}

    def fold(self, batch: Array) -> None:
        flat = np.asarray(batch, np.float64).reshape(-1)
        flat = np.clip(flat[np.isfinite(flat)], self.low, self.high)
        counts, _ = np.histogram(flat, bins=self.bins, range=(self.low, self.high))
        self.arrays["counts"] = self.arrays["counts"] + counts

    def merge(self, other: Self) -> None:
        self.arrays["counts"] = self.arrays["counts"] + other.arrays["counts"]


@dataclass
class ChannelMaxAbs(Reducer):
    """Largest absolute value along each index of ``axis``."""

    axis: int = 1
    kind: ClassVar[str] = "channel-max-abs"

    def __post_init__(self) -> None:
        self.arrays = {}

    def fold(self, batch: Array) -> None:
        others = tuple(i for i in range(batch.ndim) if i != self.axis % batch.ndim)
        found = np.abs(batch).max(axis=others).astype(np.float64)
        self.arrays["high"] = np.maximum(self.arrays["high"], found) if "high" in self.arrays else found

    def merge(self, other: Self) -> None:
        if "high" in other.arrays:
            mine = self.arrays.get("high")
            self.arrays["high"] = other.arrays["high"] if mine is None else np.maximum(mine, other.arrays["high"])


REDUCERS: dict[str, type[Reducer]] = {r.kind: r for r in (MinMax, Histogram, ChannelMaxAbs)}


def build(spec: dict[str, Any]) -> Reducer:
    """An empty reducer from its :meth:`Reducer.spec`."""
    parameters = {k: v for k, v in spec.items() if k != "kind"}
    return REDUCERS[spec["kind"]](**parameters)
