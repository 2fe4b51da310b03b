"""Samples: data by name, and how it becomes feeds of a model. Arrays stay where they are until a feed needs them."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from passes.kit.model import Port

Array = np.ndarray[Any, Any]
Feed = dict[str, Array]

CHUNK_BYTES = 1 << 24
"""How much of a memory-mapped array is looked at in one go."""


class Kind(enum.StrEnum):
    """How an array is handed to the model."""

    ENTRY = "one feed per entry"
    ROWS = "sliced along axis 0"
    CONSTANT = "constant"


@dataclass(frozen=True)
class Slicing:
    """How one input is cut: its kind, the numpy dtype it is fed in, and for ROWS how many rows one sample owns."""

    kind: Kind
    dtype: np.dtype[Any]
    rows: int = 1


@dataclass(frozen=True, eq=False)
class Samples:
    """Real (or seeded synthetic) data for a model.

    Attributes:
        ports: The model's inputs, in its order.
        inputs: Array per input name. The sample axis comes first, except for 0-d constants. May be memory-mapped.
        labels: Array per name, sample axis first, as long as the inputs.
        slicing: How each input is cut (see :class:`Slicing`).
        index: int64 [n], which stored samples belong to this view, in order; :meth:`take` only changes this.
        batch: The batch that the model fixes, or None when the caller may choose it.
        whole: True when one sample is one whole feed: an array of the input's rank + 1, or inputs that fix different
            lengths on axis 0. Such samples cannot be put together into larger batches.
        warnings: What was changed or left out while reading, in words.
    """

    ports: tuple[Port, ...]
    inputs: Mapping[str, Array]
    labels: Mapping[str, Array]
    slicing: Mapping[str, Slicing]
    index: Array
    batch: int | None = None
    whole: bool = False
    warnings: tuple[str, ...] = ()
    _memo: dict[str, str] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.index)

    def take(self, indices: Sequence[int] | Array) -> Samples:
        """The samples at ``indices`` (positions in this view, each in 0..n-1), without reading any data.

        Raises ``IndexError`` for a position outside.
        """
        chosen = np.asarray(indices, np.int64).reshape(-1)
        if chosen.size and (chosen.min() < 0 or chosen.max() >= len(self)):
            raise IndexError(f"positions must lie in 0..{len(self) - 1}")
        return dataclasses.replace(self, index=self.index[chosen], _memo={})

    def fed(self, batch: int) -> int:
        """How many samples one feed holds when ``batch`` is asked for: the model's own batch wins."""
        if batch < 1:
            raise ValueError("a batch has at least one sample")
        return 1 if self.whole else self.batch or batch

    def feeds(self, batch: int) -> Iterator[tuple[Feed, int]]:
        """Feeds in order, each with the number of real samples in it; the last is padded by repeating its last sample.

        Every feed holds ``fed(batch)`` samples. Arrays are fresh, contiguous, and in the dtype of the input.
        """
        step = self.fed(batch)
        for start in range(0, len(self), step):
            chosen = self.index[start : start + step]
            real = len(chosen)
            padded = np.concatenate([chosen, np.repeat(chosen[-1:], step - real)]) if real < step else chosen
            yield self._feed(padded), real

    def _feed(self, chosen: Array) -> Feed:
        return {port.name: self._fed_array(port, chosen) for port in self.ports}

    def _fed_array(self, port: Port, chosen: Array) -> Array:
        array, how = self.inputs[port.name], self.slicing[port.name]
        if how.kind is Kind.CONSTANT:
            value = np.asarray(array).astype(how.dtype)
            return np.full(_constant_shape(port, len(chosen)), value) if port.dims else value
        if how.kind is Kind.ENTRY:
            return np.asarray(_rows(array, chosen)[0], how.dtype, order="C")
        rows = chosen if how.rows == 1 else (chosen[:, None] * how.rows + np.arange(how.rows)).reshape(-1)
        return np.ascontiguousarray(_rows(array, rows), how.dtype)

    def labels_of(self, start: int, count: int) -> dict[str, Array]:
        """Labels of samples ``start`` .. ``start + count - 1``, in memory.

        For whole feeds (``count`` is 1) a label that holds one value per row of the feed loses the sample axis, so
        that it lines up with the outputs: labels [feeds, b] with feeds of b rows give [b].
        """
        chosen = self.index[start : start + count]
        found = {name: _rows(array, chosen) for name, array in self.labels.items()}
        rows = self._entry_rows()
        if not self.whole or count != 1 or rows is None:
            return found
        return {name: a[0] if a.ndim > 1 and a.shape[1] == rows else a for name, a in found.items()}

    def _entry_rows(self) -> int | None:
        """Rows of axis 0 inside one whole feed, by the first input that has such an axis."""
        for name, how in self.slicing.items():
            array = self.inputs[name]
            if how.kind is Kind.ENTRY and array.ndim > 1:
                return int(array.shape[1])
            if how.kind is Kind.ROWS:
                return how.rows
        return None

    def digest(self) -> str:
        """SHA-256 over names, dtypes, shapes and content of inputs and labels, read in chunks."""
        if "digest" not in self._memo:
            self._memo["digest"] = self._digest()
        return self._memo["digest"]

    def _digest(self) -> str:
        total = hashlib.sha256(b"lathe.samples/1")
        for role, arrays in (("input", self.inputs), ("label", self.labels)):
            for name in sorted(arrays):
                array, how = arrays[name], self.slicing.get(name)
                text = f"|{role}|{name}|{array.dtype.str}|{array.shape[1:]}|{len(self)}|{how.kind if how else ''}|"
                total.update(text.encode())
                constant = how is not None and how.kind is Kind.CONSTANT
                rows = how.rows if how else 1
                for piece in [array] if constant else self._pieces(array, rows):
                    total.update(_bytes(np.asarray(piece)))
        return total.hexdigest()

    def _pieces(self, array: Array, rows: int) -> Iterator[Array]:
        per_sample = max(1, array.nbytes // max(1, len(array)) * rows)
        step = max(1, CHUNK_BYTES // per_sample)
        for start in range(0, len(self), step):
            chosen = self.index[start : start + step]
            wanted = chosen if rows == 1 else (chosen[:, None] * rows + np.arange(rows)).reshape(-1)
            yield _rows(array, wanted)


def cut(outputs: Mapping[str, Any], real: int, fed: int) -> dict[str, Any]:
    """Outputs without the rows of padded samples: those whose axis 0 (or list length) equals ``fed`` keep ``real``."""
    if real == fed:
        return dict(outputs)
    return {name: value[:real] if _length(value) == fed else value for name, value in outputs.items()}


def _length(value: Any) -> int | None:
    if isinstance(value, np.ndarray):
        return int(value.shape[0]) if value.ndim else None
    return len(value) if isinstance(value, (list, tuple)) else None


def _rows(array: Array, chosen: Array) -> Array:
    """Rows of a (memory-mapped) array as a plain array in memory; neighbouring rows are read in one piece."""
    if len(chosen) and chosen[-1] - chosen[0] == len(chosen) - 1 and (np.diff(chosen) == 1).all():
        found = np.array(array[chosen[0] : chosen[-1] + 1], subok=False)
    else:
        found = np.asarray(array[chosen])
    let_go(array)
    return found


def let_go(array: Array) -> None:
    """Give the memory of a file-mapped array back to the system: what was read of it must not add up.

    The pages stay in the system's cache, but no longer count as this process's own.
    """
    mapped = getattr(array, "_mmap", None)
    if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def _constant_shape(port: Port, fed: int) -> tuple[int, ...]:
    """Shape that a 0-d constant is spread to: the input's own, a dynamic axis 0 taking the batch."""
    dims = port.dims or ()
    return tuple(d if isinstance(d, int) else fed for d in dims)


def _bytes(array: Array) -> bytes | memoryview:
    if array.dtype.kind in "OU":
        return "\0".join(str(v) for v in array.reshape(-1)).encode() + b"\0"
    contiguous = np.ascontiguousarray(array)
    return contiguous.reshape(-1).view(np.uint8).data if contiguous.size else b""
