"""Sums over samples that do not depend on how the samples are batched: Gram matrices and mean magnitudes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from passes.kit.fold import Array, Reducer

CHUNK_SAMPLES = 64
"""Samples (indices of the first axis) whose sums are closed together."""


class ChunkedSum(Reducer):
    """Base of float64 sums over samples: the same bits however the samples are batched, or sharded at chunk edges.

    Single rows are gathered and samples of several rows taken one by one, so a batch is never summed as it came; the
    sum of every 64 samples is added to a total of two float64 numbers (Knuth's two-sum), whose 106 bits forget the
    order in which chunks were added. Memory is four times that of the sum, for any number of samples.
    """

    def __post_init__(self) -> None:
        self.arrays = {"rows": np.array(0, np.int64), "samples": np.array(0, np.int64)}

    def part(self, rows: Array) -> Array:
        """The sum over ``rows`` (float64 [rows, channels])."""
        raise NotImplementedError

    def fold(self, batch: Array) -> None:
        if batch.ndim <= 1:
            batch = batch.reshape(1, -1)
        self.arrays["rows"] = self.arrays["rows"] + batch.size // max(1, batch.shape[-1])
        if batch.ndim == 2:
            self._fold_rows(np.asarray(batch, np.float64))
            return
        for sample in batch:
            self._close_rows()
            self._add_open(self.part(np.asarray(sample.reshape(-1, sample.shape[-1]), np.float64)))
            self._count(1)

    def merge(self, other: Self) -> None:
        """Take in what came after the samples of this one."""
        if int(self.arrays["samples"]):
            self._close_chunk()
        if "high" in other.arrays:
            self._add_total(other.arrays["high"])
            self._add_total(other.arrays["low"])
        for key in ("open", "waiting"):
            if key in other.arrays:
                self.arrays[key] = other.arrays[key]
        self.arrays["samples"] = other.arrays["samples"]
        self.arrays["rows"] = self.arrays["rows"] + other.arrays["rows"]

    @property
    def rows(self) -> int:
        """Number of rows that were folded."""
        return int(self.arrays["rows"])

    def total(self) -> Array:
        """The sum over all rows, float64. Raises ``ValueError`` when there were none."""
        state = self.arrays
        parts = [state["high"] + state["low"]] if "high" in state else []
        if "open" in state:
            parts.append(state["open"])
        if "waiting" in state:
            parts.append(self.part(state["waiting"]))
        if not parts:
            raise ValueError("nothing was folded")
        return np.asarray(sum(parts[1:], parts[0]))

    def _fold_rows(self, rows: Array) -> None:
        while len(rows):
            room = CHUNK_SAMPLES - int(self.arrays["samples"])
            taken, rows = rows[:room], rows[room:]
            waiting = self.arrays.get("waiting")
            self.arrays["waiting"] = taken.copy() if waiting is None else np.concatenate([waiting, taken])
            self._count(len(taken))

    def _count(self, samples: int) -> None:
        self.arrays["samples"] = self.arrays["samples"] + samples
        if int(self.arrays["samples"]) == CHUNK_SAMPLES:
            self._close_chunk()

    def _close_rows(self) -> None:
        waiting = self.arrays.pop("waiting", None)
        if waiting is not None:
            self._add_open(self.part(waiting))

    def _close_chunk(self) -> None:
        self._close_rows()
        chunk = self.arrays.pop("open", None)
        if chunk is not None:
            self._add_total(chunk)
        self.arrays["samples"] = np.array(0, np.int64)

    def _add_open(self, part: Array) -> None:
        self.arrays["open"] = self.arrays["open"] + part if "open" in self.arrays else part

    def _add_total(self, part: Array) -> None:
        if "high" not in self.arrays:
            self.arrays["high"], self.arrays["low"] = part, np.zeros_like(part)
            return
        old = self.arrays["high"]
        high = old + part
        moved = high - old
        low = self.arrays["low"] + ((old - (high - moved)) + (part - moved))
        self.arrays["high"], self.arrays["low"] = high, low


@dataclass
class Gram(ChunkedSum):
    """``X^T X`` over all rows of the last axis, float64 [channels, channels]: GPTQ's Hessian up to a factor.

    ``most``: of samples with several rows at most so many are taken, evenly spaced (0: all). ``ones`` appends a one to
    each row, so that the sums of the columns and the number of rows are in the last column.
    """

    most: int = 0
    ones: bool = False
    kind: ClassVar[str] = "gram"

    def part(self, rows: Array) -> Array:
        if self.most and len(rows) > max(self.most, CHUNK_SAMPLES):
            rows = rows[np.linspace(0, len(rows) - 1, max(self.most, CHUNK_SAMPLES)).astype(np.int64)]
        if self.ones:
            rows = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
        return np.asarray(rows.T @ rows)


@dataclass
class ChannelMeanAbs(ChunkedSum):
    """Mean absolute value of each index of the last axis, float64 [channels]."""

    kind: ClassVar[str] = "channel-mean-abs"

    def part(self, rows: Array) -> Array:
        return np.asarray(np.abs(rows).sum(axis=0))

    def mean(self) -> Array:
        """The sum over the number of rows."""
        return np.asarray(self.total() / max(1, self.rows))
