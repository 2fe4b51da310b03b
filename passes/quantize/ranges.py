"""Ranges of activations, from reducers over the calibration data. Memory does not grow with the number of samples."""

from __future__ import annotations

from collections.abc import Sequence

from passes.kit.context import Context
from passes.kit.model import Model
from passes.kit.reducers import MinMax
from passes.quantize.observers import Observer, Range


def observe(model: Model, context: Context, names: Sequence[str], observer: Observer) -> dict[str, Range]:
    """The range that ``observer`` chooses for each named value of ``model``, from one look at the calibration data.

    Raises :class:`passes.kit.context.NoData` when there is nothing to look at.
    """
    if not names:
        return {}
    seen = context.stats(model, {name: observer.reducer() for name in names})
    return {name: observer.choose(reducer) for name, reducer in seen.items() if isinstance(reducer, MinMax)}
