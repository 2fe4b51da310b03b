"""Whether an exported model computes what the PyTorch module computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from optimizer.faults import Fault, bad_input
from passes.kit.model import Model

Array = np.ndarray[Any, Any]
Run = Callable[[Model, list[Mapping[str, Array]]], Sequence[Mapping[str, Array]]]
"""Runs a model on feeds and gives its outputs by name, one dict a feed. The runtime room provides it."""

TOLERANCE = {"float64": 1e-4, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
"""Largest allowed difference as a share of the output's largest magnitude (at least 1), by the dtype of the output.

About a thousand roundings of the type: exporters reorder sums and fold normalizations, which moves float32 outputs
of deep networks by 1e-6 to 1e-5, while a wrong graph is off by far more. Integers and booleans must be equal.
"""


@dataclass(frozen=True)
class Case:
    """One run of the PyTorch module: what it was (``batch=3``), the feeds, its outputs and their torch dtypes."""

    label: str
    feeds: Mapping[str, Array]
    outputs: Mapping[str, Array]
    dtypes: Mapping[str, str]


@dataclass(frozen=True)
class Parity:
    """The largest difference between PyTorch and ONNX over all outputs and cases.

    ``max_abs`` is in the outputs' unit, ``max_rel`` its share of the output's largest magnitude (at least 1), and
    ``tolerance`` what ``max_rel`` may be. ``batches`` names the cases, ``worst`` the output that differs most and
    ``reason`` what does not hold, empty when ``ok``.
    """

    max_abs: float
    max_rel: float
    batches: tuple[str, ...]
    tolerance: float
    ok: bool
    worst: str = ""
    reason: str = ""

    def fault(self, where: str) -> Fault:
        """The error for an export that cannot be used."""
        hint = "The module may depend on Python values or randomness that a graph cannot hold"
        return bad_input(
            f"the exported model differs from PyTorch: {self.reason}", where=where, hint=hint, code="parity"
        )


def measure(model: Model, cases: Sequence[Case], run: Run) -> Parity:
    """Run ``model`` on the feeds of every case and compare with the outputs that PyTorch gave.

    A model that fails to run counts as a difference, because exports with a wrongly fixed size fail that way.
    """
    labels = tuple(case.label for case in cases)
    differences = []
    names = {port.name for port in model.signature.inputs}
    for case in cases:
        feeds = {name: array for name, array in case.feeds.items() if name in names}
        try:
            answer = run(model, [feeds])[0]
        except (Fault, RuntimeError) as error:
            text = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            return Parity(np.inf, np.inf, labels, 0.0, False, "", f"at {case.label} it does not run: {text}")
        differences += [_difference(case, name, answer.get(name)) for name in case.outputs]
    worst = max(differences, key=lambda d: (not d.ok, d.max_rel))
    return Parity(
        max(d.max_abs for d in differences), worst.max_rel, labels, worst.tolerance, worst.ok, worst.worst, worst.reason
    )


def _difference(case: Case, name: str, found: Array | None) -> Parity:
    expected = case.outputs[name]
    tolerance = TOLERANCE.get(case.dtypes.get(name, str(expected.dtype)), 0.0)
    what = f"output '{name}' at {case.label}"
    if found is None:
        return Parity(np.inf, np.inf, (), tolerance, False, name, f"{what} is missing")
    if found.shape != expected.shape:
        shapes = f"has shape {list(found.shape)} instead of {list(expected.shape)}"
        return Parity(np.inf, np.inf, (), tolerance, False, name, f"{what} {shapes}")
    gap, scale = _gap(expected, found)
    share = gap / max(scale, 1.0)
    ok = share <= tolerance
    reason = "" if ok else f"{what} is off by {gap:.3g} where {tolerance * max(scale, 1.0):.3g} is allowed"
    return Parity(gap, share, (), tolerance, ok, name, reason)


def _gap(expected: Array, found: Array) -> tuple[float, float]:
    """Largest absolute difference and largest finite magnitude; equal NaNs and infinities count as equal."""
    if expected.size == 0:
        return 0.0, 0.0
    a, b = expected.astype(np.float64), found.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        gap = np.where(same, 0.0, np.abs(a - b))
    finite = np.abs(a[np.isfinite(a)])
    largest = float(np.max(np.nan_to_num(gap, nan=np.inf, posinf=np.inf)))
    return largest, float(finite.max()) if finite.size else 0.0
