"""Whether torch computes what the runtime does: else gradients would be those of another model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.runtime import sessions
from optimizer.runtime.sessions import Site

Array = np.ndarray[Any, Any]

PARITY = 1e-3
"""How far torch and the runtime may differ on a sample, as a share of the largest output."""

ROUNDED_PARITY = 0.1
"""The same where the model rounds inside: a number between two codes may fall to either side, and kernels may round
once more."""


def disagreement(
    path: Path, feed: Mapping[str, Array], outputs: Mapping[str, Array], site: Site, tolerance: float = PARITY
) -> str:
    """How torch's ``outputs`` for ``feed`` differ from what the runtime makes of the model at ``path``; empty when they
    do not."""
    with sessions.worker() as worker:
        (wanted,) = sessions.run(worker, path, [dict(feed)], site, optimize=False)
    for name, value in wanted.items():
        if value.dtype.kind == "f":
            error = float(np.abs(value - outputs[name]).max(initial=0))
            if not error <= tolerance * max(1.0, float(np.abs(value).max(initial=0))):
                return f"torch and the runtime differ by {error:.3g} on '{name}'"
    return ""
