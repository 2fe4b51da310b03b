"""Operations of a worker that folds activations: one session, one reducer for every value asked for.

Values are folded where they are produced and dropped before the next feed is run: only the reducers' states travel
back, so memory does not grow with the number of samples. The runtime hands its outputs over without a copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from optimizer.runtime.jobs import Array, Feeds, run_once
from optimizer.runtime.providers import open_session
from passes.kit import reducers
from passes.kit.reducers import Reducer

_OPEN: dict[str, tuple[Any, dict[str, Reducer]]] = {}


def begin_fold(path: str, specs: dict[str, dict[str, Any]], provider: str, threads: int) -> str:
    """Open ``path`` with the runtime's optimizer off, to fold its outputs into reducers. Returns a handle.

    With the optimizer off every value is what the graph says, whatever the runtime would have fused it into.
    """
    session = open_session(path, provider, threads, optimize=False)
    handle = f"fold{len(_OPEN)}"
    _OPEN[handle] = session, {name: reducers.build(spec) for name, spec in specs.items()}
    return handle


def fold(handle: str, feeds: Sequence[Feeds], real: Sequence[int], fed: int) -> None:
    """Run feeds of ``fed`` samples one by one and fold the values asked for; the first ``real`` are not padding."""
    session, into = _OPEN[handle]
    for feed, count in zip(feeds, real, strict=True):
        _fold_one(session, feed, into, count, fed)


def _fold_one(session: Any, feed: Feeds, into: dict[str, Reducer], real: int, fed: int) -> None:
    for reducer, value in zip(into.values(), run_once(session, feed, list(into)), strict=True):
        for part in _parts(np.asarray(value), real, fed, reducer.per_sample):
            reducer.fold(part)


def _parts(array: Array, real: int, fed: int, per_sample: bool) -> Iterator[Array]:
    """``array`` without its padding, whole or sample by sample, where axis 0 holds the samples one after another."""
    rows, rest = divmod(array.shape[0], fed) if array.ndim else (0, 0)
    if fed == 1 or rows == 0 or rest:
        yield array
    elif per_sample:
        yield from (array[i * rows : (i + 1) * rows] for i in range(real))
    else:
        yield array[: real * rows]


def end_fold(handle: str) -> dict[str, dict[str, Array]]:
    """The folded state of every reducer; the session is closed."""
    _, into = _OPEN.pop(handle)
    return {name: {k: np.asarray(v) for k, v in reducer.arrays.items()} for name, reducer in into.items()}
