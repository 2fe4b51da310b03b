"""Samples into piles: inputs as they are fed, and what the model makes of them inside and at its end."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from optimizer.data.samples import Samples
from optimizer.runtime.answers import World
from optimizer.watch.sketches import Array, Pile
from passes.kit.model import Model, Port
from passes.kit.reducers import Reducer
from passes.kit.summaries import SampleRows, rows

BATCH_BYTES = 1 << 22
"""What samples that are looked at together may take."""

PART = 256
"""Samples that the model runs on before their rows are poured into the sketches."""


def fill_inputs(piles: Mapping[str, Pile], samples: Samples) -> None:
    """Pour the inputs of all samples into ``piles``, by name. Memory does not grow with their number."""
    for feed, real in samples.feeds(_batch(samples)):
        for name, pile in piles.items():
            pile.add(rows(pile.layout, apart(feed[name], samples.whole, real)))


def fill_labels(piles: Mapping[str, Pile], samples: Samples) -> None:
    """Count the classes that the labels give."""
    for start in range(0, len(samples), PART):
        found = samples.labels_of(start, min(PART, len(samples) - start))
        for name, pile in piles.items():
            values = np.asarray(found[name], np.int64).reshape(-1)
            pile.add(np.zeros((len(values), 0), np.float32), values)


def fill_inside(piles: Mapping[str, Pile], model: Model, world: World, samples: Samples) -> None:
    """Run ``model`` on the samples and pour the named values of its main graph into ``piles``."""
    asked: dict[str, Reducer] = {name: SampleRows(pile.layout.plain()) for name, pile in piles.items()}
    for start in range(0, len(samples), PART):
        part = samples.take(np.arange(start, min(start + PART, len(samples))))
        told = dataclasses.replace(world, samples=part, answered=[]).stats(model, asked)
        for name, pile in piles.items():
            pile.add(told[name].arrays["rows"], told[name].arrays["classes"])


def apart(array: Array, whole: bool, real: int) -> Array:
    """``array`` of a feed with one sample for each index of axis 0; padding is cut off."""
    return array[None] if whole else array[:real]


def sized(port: Port, whole: bool) -> bool:
    """Whether samples of this input may differ in size."""
    dims = port.dims if port.dims is None or whole else port.dims[1:]
    return dims is None or any(not isinstance(d, int) for d in dims)


def first_feed(samples: Samples) -> dict[str, Any]:
    """The feed of the first sample."""
    return next(iter(samples.take([0]).feeds(1)))[0]


def class_labels(samples: Samples) -> Iterator[str]:
    """Names of labels that are one whole number a sample."""
    for name, array in samples.labels.items():
        if array.dtype.kind in "iu" and array.size == len(array):
            yield name


def _batch(samples: Samples) -> int:
    size = sum(np.asarray(a).nbytes for a in first_feed(samples).values()) if len(samples) else 1
    return max(1, min(PART, BATCH_BYTES // max(1, size)))
