"""Forms that another program makes of the model: believed only after they gave the golden outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from optimizer.faults import limit_not_met
from optimizer.package.formats.base import Artifact
from optimizer.package.receiver.pairs import Tolerance, difference, leaves


def held_to_golden(artifact: Artifact, form: str, given: Sequence[dict[str, Any]]) -> str:
    """In words how the converted model did on the golden inputs. Raises a :class:`~optimizer.faults.Fault` (exit 1)
    when an output is out of tolerance."""
    if not artifact.pairs:
        return "there are no golden pairs, so the converted model was not compared"
    equal = True
    for i, (pair, outputs) in enumerate(zip(artifact.pairs, given, strict=True)):
        for name, expected in pair.outputs.items():
            allowed = Tolerance(**artifact.manifest["golden"]["tolerance"][name])
            if why := difference(expected, outputs[name], allowed):
                message = f"the model converted to {form} answers otherwise: pair {i}, output '{name}': {why}"
                raise limit_not_met(message, hint=_hint(artifact), code="other-answers")
            theirs, ours = ([a for _, a in leaves(v)] for v in (expected, outputs[name]))
            equal &= all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(theirs, ours, strict=True))
    return f"{len(artifact.pairs)} golden pairs {'bit for bit' if equal else 'within tolerance'}"


def _hint(artifact: Artifact) -> str:
    if not artifact.manifest["model"]["quantized"]:
        return "Nothing was written."
    return "Nothing was written. It rounds integers elsewhere: package what lathe optimize -O1 makes."
