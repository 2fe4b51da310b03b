"""What an optimizer made of a case, judged: checker, signature, loading, and the numbers that the case expects.

Runs in a child of the harness; models run in a worker of the product below it, so that a crash there is told apart.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from optimizer.faults import Fault
from optimizer.runtime import sessions
from optimizer.runtime.sessions import JOBS, Site
from optimizer.workers.pool import CallFailed, Worker, WorkerDied
from tests.conformance.cases import Case, data_sets
from tests.conformance.compare import mismatch, signature_change

RUN_SECONDS = 60.0

PASSES, DIFFERS, CANNOT, DIES = "passes", "differs", "cannot", "dies"
"""What a runtime does with a case before any optimizer saw it."""


@dataclass(frozen=True)
class Verdict:
    """``word`` is one of the categories of the report, ``why`` empty where it explains itself, ``by`` who computed."""

    word: str
    why: str = ""
    by: str = ""

    def plain(self) -> dict[str, str]:
        return dataclasses.asdict(self)


@dataclass
class Bench:
    """A case on the bench: what it expects and what becomes of it before any optimizer saw it.

    ``runtime`` is one of the words above for onnxruntime, ``reference`` for onnx's reference evaluator, which is asked
    only where onnxruntime gives no yardstick.
    """

    case: Case
    site: Site
    worker: Worker | None = None
    runtime: str = CANNOT
    why: str = ""
    reference: str = ""
    objection: str = ""
    sets: list[tuple[dict[str, Any], dict[str, Any]]] = field(default_factory=list)
    before: list[dict[str, Any]] = field(default_factory=list)
    _known: dict[tuple[Path, bool], Verdict] = field(default_factory=dict)

    @property
    def runs(self) -> bool:
        """Whether onnxruntime executes the case, whatever it computes."""
        return self.runtime in (PASSES, DIFFERS)

    @property
    def feeds(self) -> list[dict[str, Any]]:
        return [feeds for feeds, _ in self.sets]

    def prepare(self) -> None:
        """Run the case as it is."""
        self.sets = list(data_sets(self.case))
        self.objection = self._call("check", path=str(self.case.model))
        try:
            self.before = self._run(self.case.model)
            self.why = self._against_expected(self.before)
            self.runtime = DIFFERS if self.why else PASSES
        except WorkerDied as death:
            self.runtime, self.why = DIES, str(death)
        except (Fault, CallFailed) as error:
            self.why = error.message if isinstance(error, Fault) else f"{error.kind}: {error}"
        if self.runtime != PASSES:
            self.reference = self._by_reference(self.case.model)

    def judge(self, path: Path, *, changed: bool) -> Verdict:
        """The verdict on the model at ``path``, which an optimizer made of the case; a path means one model."""
        key = path, changed
        if key not in self._known:
            self._known[key] = self._judge(path, "changed, right" if changed else "same")
        return self._known[key]

    def _judge(self, path: Path, fine: str) -> Verdict:
        if why := signature_change(_header(self.case.model), _header(path)):
            return Verdict("signature changed", why)
        objection = self._call("check", path=str(path))
        if objection and not self.objection:
            return Verdict("checker rejects", objection)
        if self.runs:
            verdict = self._by_runtime(path, fine)
            if self.reference != PASSES or verdict.word != fine:
                return verdict
        if self.reference == PASSES:
            told = self._by_reference(path)
            return Verdict(fine, "", "reference") if told == PASSES else Verdict("wrong", told, "reference")
        return Verdict("unchecked", self.why)

    def _by_runtime(self, path: Path, fine: str) -> Verdict:
        """Numbers against those expected, or where onnxruntime computes others all along, against its own before."""
        try:
            after = self._run(path)
        except WorkerDied as death:
            return Verdict("dead", f"running it: {death}")
        except (Fault, CallFailed) as error:
            return Verdict("does not load", str(error))
        if self.runtime == PASSES:
            why, by = self._against_expected(after), "runtime"
        else:
            case = self.case
            pairs = zip(after, self.before, strict=True)
            why = next((w for a, b in pairs if (w := mismatch(a, b, case.rtol, case.atol))), "")
            by = "runtime before"
        return Verdict("wrong", why, by) if why else Verdict(fine, "", by)

    # -- running --------------------------------------------------------------------------------------------------
    def _against_expected(self, outputs: list[dict[str, Any]]) -> str:
        case = self.case
        pairs = zip(outputs, (wanted for _, wanted in self.sets), strict=True)
        return next((why for found, wanted in pairs if (why := mismatch(found, wanted, case.rtol, case.atol))), "")

    def _run(self, path: Path) -> list[dict[str, Any]]:
        return list(self._call("run_model", path=str(path), feeds=self.feeds, **self.site.plain()))

    def _by_reference(self, path: Path) -> str:
        """What onnx's reference evaluator makes of a model: one of the words above, or how its numbers differ."""
        from onnx.reference import ReferenceEvaluator

        try:
            evaluator = ReferenceEvaluator(str(path))
            names = [o.name for o in onnx.load(path, load_external_data=False).graph.output]
            found = [dict(zip(names, evaluator.run(None, feeds), strict=True)) for feeds in self.feeds]
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            return CANNOT if path == self.case.model else f"it does not run: {type(error).__name__}: {lines[0][:200]}"
        why = self._against_expected(found)
        return (DIFFERS if path == self.case.model else why) if why else PASSES

    def _call(self, job: str, **args: Any) -> Any:
        if self.worker is None or not self.worker.alive:
            self.worker = sessions.worker()
        return self.worker.call(JOBS + job, timeout=RUN_SECONDS, **args)

    def close(self) -> None:
        """End the worker."""
        if self.worker is not None:
            self.worker.close()


def _header(path: Path) -> onnx.ModelProto:
    return onnx.load(path, load_external_data=False)
