"""How much each layer suffers alone: one layer quantized at a time, outputs compared with the float ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.data.samples import Samples
from optimizer.measure.quality import outputs_of
from optimizer.runtime.sessions import Site

SAMPLES = 16


def sensitivities(
    layers: Sequence[str], build: Callable[[str], Path], reference: Path, samples: Samples, site: Site
) -> Iterator[tuple[str, float]]:
    """For each layer: its name and the relative squared error that quantizing it alone causes at the outputs.

    ``build`` makes the model with that one layer quantized. At most :data:`SAMPLES` samples are used. The error is
    ||y - r||^2 / ||r||^2 over all float outputs.
    """
    few = samples.take(np.arange(min(SAMPLES, len(samples))))
    expected = _floats(reference, few, site)
    energy = float(np.square(expected).sum()) or 1.0
    for layer in layers:
        found = _floats(build(layer), few, site)
        yield layer, float(np.square(found - expected).sum()) / energy


def _floats(path: Path, samples: Samples, site: Site) -> np.ndarray[Any, Any]:
    parts = [
        np.asarray(value, np.float64).reshape(-1)
        for _, _, outputs in outputs_of(path, samples, site)
        for value in outputs.values()
        if isinstance(value, np.ndarray) and value.dtype.kind == "f"
    ]
    return np.nan_to_num(np.concatenate(parts)) if parts else np.zeros(1)
