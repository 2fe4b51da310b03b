"""Every pass's output is checked against its input; a recipe that drifts as a whole is bisected to the pass."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from optimizer.faults import Fault
from optimizer.records import CheckedOn
from optimizer.runtime import sessions
from optimizer.runtime.sessions import JOBS, Site
from optimizer.store.store import Store
from optimizer.verify.adversaries import Kind, Probe, nudged
from optimizer.verify.numerics import Difference, Outputs, Slack, compare, slack
from optimizer.verify.quantized import output_steps
from optimizer.workers import wire
from optimizer.workers.pool import CallFailed, Worker, WorkerDied
from passes.kit.contract import Exactness
from passes.kit.model import Model

Array = np.ndarray[Any, Any]
CHECK_SECONDS = 300.0
KEPT_BYTES = 512 << 20
"""Outputs that are remembered at once."""

TRIED_SECONDS = 30.0
"""How long a model may take over an input that nobody gave it."""


@dataclass(frozen=True)
class Check:
    """The outcome of one comparison. ``fault`` is empty when it held; ``probe`` is the index of the feed that showed
    it, where numbers did."""

    fault: str
    worst: float = 0.0
    probe: int | None = None


@dataclass
class Verifier:
    """Compares models on ``probes`` (feeds): what the source runs on, the others must reproduce.

    ``adversaries`` are feeds that look for trouble (:mod:`optimizer.verify.adversaries`); those that the source does
    not run on are no measure: :meth:`tolerated` keeps the others, ``refused`` names them. Outputs are remembered by
    model digest, up to :data:`KEPT_BYTES`. ``structural`` off skips the checker and the types, to show what they find.
    """

    site: Site
    store: Store
    probes: Sequence[dict[str, Array]]
    adversaries: Sequence[Probe] = ()
    refused: Sequence[str] = ()
    structural: bool = True
    _outputs: dict[tuple[str, bool, int, bool], Any] = field(default_factory=dict)
    _objections: dict[str, str] = field(default_factory=dict)
    _worker: Worker | None = None

    def all_probes(self) -> list[Probe]:
        """The real feeds, then the adversarial ones."""
        real = [Probe(f"real {i}", Kind.REAL, feed) for i, feed in enumerate(self.probes)]
        return [*real, *self.adversaries]

    def checked_on(self) -> CheckedOn:
        """What the verdicts rest on, for the record."""
        return CheckedOn(len(self.probes), tuple(p.name for p in self.adversaries), tuple(self.refused))

    def tolerated(self, source: Model, tried: Sequence[Probe]) -> tuple[list[Probe], list[str]]:
        """The feeds of ``tried`` that ``source`` runs on, with the runtime's optimizer off and on, and the names of
        the others."""
        kept, dropped = [], []
        path = str(self.store.put_model(source))
        for probe in tried:
            try:
                for optimize in (False, True):
                    feeds = [dict(probe.feed)]
                    self._call(
                        "run_model", TRIED_SECONDS, path=path, feeds=feeds, optimize=optimize, **self.site.plain()
                    )
                kept.append(probe)
            except (Fault, WorkerDied, CallFailed):
                dropped.append(probe.name)
        return kept, dropped

    def digest(self) -> str:
        """SHA-256 over the probes: a verdict holds for the inputs that it was reached on."""
        message = io.BytesIO()  # as a worker gets them: text, sequences and types that numpy lacks included
        wire.send(message, [[probe.kind.value, dict(sorted(probe.feed.items()))] for probe in self.all_probes()])
        return hashlib.sha256(message.getbuffer()).hexdigest()

    def check(self, before: Model, after: Model, exactness: Exactness) -> Check:
        """Structure, then numbers: does ``after`` keep what a pass of that exactness promises about ``before``?"""
        if before.signature != after.signature:
            return Check("the inputs or outputs changed")
        try:
            if self.structural and (objection := self._objection(after)) and not self._objection(before):
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
        probes = self.all_probes()
        asked = [i for i, p in enumerate(probes) if exactness is not Exactness.LOSSY or p.kind in _DATA_LIKE]
        reference = self.outputs(before, asked)
        found = self.outputs(after, asked)
        slacks: list[Slack] = []
        if exactness is Exactness.NUMERIC:
            slacks = self._slacks(before, after, asked)
        names = [probes[i].name if probes[i].kind is not Kind.REAL else "" for i in asked]
        for place, (i, one, other) in enumerate(zip(asked, reference, found, strict=True)):
            mine = slacks[place : place + 1]
            if any(not d.ok for d in compare([one], [other], exactness, mine)):
                return _verdict(compare([one], [other], exactness, mine, names[place : place + 1]), i)
        return _verdict(compare(reference, found, exactness, slacks, names))

    def _slacks(self, before: Model, after: Model, asked: Sequence[int]) -> list[Slack]:
        """By how much each feed's outputs move by themselves.

        The noise of either form counts: a folded model may leave the runtime less to reorder. Far from the data, and
        with quantizers inside, a model may blow up a last bit: there the outputs of a nudged input count as well.
        """
        probes, steps = self.all_probes(), output_steps(before)
        runs = [(self.outputs(m, asked), self.outputs(m, asked, optimize=True)) for m in (before, after)]
        close = [i for i in asked if probes[i].kind is Kind.HARSH or steps is not None]
        moved = dict(zip(close, self.outputs(before, close, nudge=True), strict=True))
        slacks = []
        for place, i in enumerate(asked):
            pairs = [(off[place], on[place]) for off, on in runs]
            if i in moved:
                pairs.append((runs[0][0][place], moved[i]))
            found = slack(pairs, steps or {})
            real = probes[i].kind is Kind.REAL
            slacks.append(replace(found, loose={}) if real else found)
        return slacks

    def outputs(self, model: Model, which: Sequence[int], *, optimize: bool = False, nudge: bool = False) -> Outputs:
        """Outputs of ``model`` for the probes at ``which``; ``nudge`` moves their floats by a few last bits."""
        digest, probes = model.digest(), self.all_probes()
        missing = [i for i in which if (digest, optimize, i, nudge) not in self._outputs]
        if missing:
            feeds = [nudged(probes[i].feed) if nudge else dict(probes[i].feed) for i in missing]
            path = str(self.store.put_model(model))
            made = self._call(
                "run_model", CHECK_SECONDS, path=path, feeds=feeds, optimize=optimize, **self.site.plain()
            )
            self._outputs.update({(digest, optimize, i, nudge): out for i, out in zip(missing, made, strict=True)})
        found = [self._outputs[digest, optimize, i, nudge] for i in which]
        self._forget()
        return found

    def _forget(self) -> None:
        """Let the oldest outputs go when there are too many."""
        sizes = {key: sum(getattr(v, "nbytes", 0) for v in out.values()) for key, out in self._outputs.items()}
        total = sum(sizes.values())
        for key, size in sizes.items():
            if total <= KEPT_BYTES:
                return
            del self._outputs[key]
            total -= size

    def _objection(self, model: Model) -> str:
        key = model.digest()
        if key not in self._objections:
            self._objections[key] = self._call("check", CHECK_SECONDS, path=str(self.store.put_model(model)))
        return self._objections[key]

    def _call(self, job: str, seconds: float, /, **args: Any) -> Any:
        if self._worker is None or not self._worker.alive:
            self._worker = sessions.worker()
            sessions.prepare(self._worker, self.site)
        return self._worker.call(JOBS + job, timeout=seconds, **args)

    def close(self) -> None:
        """End the worker."""
        if self._worker is not None:
            self._worker.close()


_DATA_LIKE = (Kind.REAL, Kind.PLAIN)


def _verdict(differences: Sequence[Difference], probe: int | None = None) -> Check:
    bad = [d for d in differences if not d.ok]
    worst = max((d.worst for d in differences), default=0.0)
    return Check("; ".join(map(str, bad[:3])), worst, probe)
