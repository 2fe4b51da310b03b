"""Every pass's output is checked against its input; a recipe that drifts as a whole is bisected to the pass."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from optimizer.faults import Fault
from optimizer.runtime import sessions
from optimizer.runtime.sessions import JOBS, Site
from optimizer.store.store import Store
from optimizer.verify.numerics import Difference, Outputs, compare, noise
from optimizer.workers.pool import CallFailed, Worker, WorkerDied
from passes.kit.contract import Exactness
from passes.kit.model import Model

Array = np.ndarray[Any, Any]
CHECK_SECONDS = 300.0


@dataclass(frozen=True)
class Check:
    """The outcome of one comparison. ``fault`` is empty when it held."""

    fault: str
    worst: float = 0.0


@dataclass
class Verifier:
    """Compares models on a few ``probes`` (feeds): what the source runs on, the others must reproduce.

    Outputs are remembered by model digest for as long as the verifier lives.
    """

    site: Site
    store: Store
    probes: Sequence[dict[str, Array]]
    _outputs: dict[tuple[str, bool], Outputs] = field(default_factory=dict)
    _objections: dict[str, str] = field(default_factory=dict)
    _worker: Worker | None = None

    def digest(self) -> str:
        """SHA-256 over the probes: a verdict holds for the inputs that it was reached on."""
        total = hashlib.sha256()
        for probe in self.probes:
            for name in sorted(probe):
                array = probe[name]
                total.update(f"|{name}|{array.dtype.str}|{array.shape}|".encode())
                total.update("\0".join(map(str, array.flat)).encode() if array.dtype.hasobject else array.tobytes())
        return total.hexdigest()

    def check(self, before: Model, after: Model, exactness: Exactness) -> Check:
        """Structure, then numbers: does ``after`` keep what a pass of that exactness promises about ``before``?"""
        if before.signature != after.signature:
            return Check("the inputs or outputs changed")
        try:
            objection = self._objection(after)
            if objection and not self._objection(before):
                return Check(f"onnx.checker rejects the result: {objection}")
            return self._numbers(before, after, exactness)
        except Fault as fault:
            return Check(f"the result does not run: {fault.message}")
        except (WorkerDied, CallFailed) as error:
            return Check(f"the result does not run: {error}")

    def first_fault(self, chain: Sequence[Model], exactness: Exactness) -> int | None:
        """Index of the first model of ``chain`` that no longer agrees with ``chain[0]``, by bisection.

        ``None`` when the last one agrees. Assumes that once a chain has gone wrong it stays wrong.
        """
        if not self.check(chain[0], chain[-1], exactness).fault:
            return None
        good, bad = 0, len(chain) - 1
        while bad - good > 1:
            middle = (good + bad) // 2
            if self.check(chain[0], chain[middle], exactness).fault:
                bad = middle
            else:
                good = middle
        return bad

    def _numbers(self, before: Model, after: Model, exactness: Exactness) -> Check:
        reference = self.outputs(before, optimize=False)
        found = self.outputs(after, optimize=False)
        noises: dict[str, float] = {}
        if exactness is Exactness.NUMERIC:
            # The noise of either form counts: a folded model may leave the runtime less to reorder.
            for model in (before, after):
                off, on = self.outputs(model, optimize=False), self.outputs(model, optimize=True)
                noises = {k: max(v, noises.get(k, 0.0)) for k, v in noise(off, on).items()}
        return _verdict(compare(reference, found, exactness, noises))

    def outputs(self, model: Model, *, optimize: bool) -> Outputs:
        """Outputs of ``model`` for every probe."""
        key = (model.digest(), optimize)
        if key not in self._outputs:
            self._outputs[key] = self._call(
                "run_model",
                path=str(self.store.put_model(model)),
                feeds=list(self.probes),
                optimize=optimize,
                **self.site.plain(),
            )
        return self._outputs[key]

    def _objection(self, model: Model) -> str:
        key = model.digest()
        if key not in self._objections:
            self._objections[key] = self._call("check", path=str(self.store.put_model(model)))
        return self._objections[key]

    def _call(self, job: str, **args: Any) -> Any:
        if self._worker is None or not self._worker.alive:
            self._worker = sessions.worker()
            sessions.prepare(self._worker, self.site)
        return self._worker.call(JOBS + job, timeout=CHECK_SECONDS, **args)

    def close(self) -> None:
        """End the worker."""
        if self._worker is not None:
            self._worker.close()


def _verdict(differences: Sequence[Difference]) -> Check:
    bad = [d for d in differences if not d.ok]
    worst = max((d.worst for d in differences), default=0.0)
    return Check("; ".join(map(str, bad[:3])), worst)
