"""Cases to children and back: warm processes side by side, a time limit each, deaths tried again alone, and a memory.

Results are JSON lines in a file named by a digest of everything that they depend on, so that a run that was cut off
goes on, and one after a change starts anew.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import queue
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from optimizer.workers.pool import CallFailed, Worker, WorkerDied
from tests.conformance.cases import CACHE, ROOT, Case
from tests.conformance.peers import PEERS

JOB = str(ROOT / "tests" / "conformance" / "job.py")
CASE_SECONDS = 180.0
"""A case takes half a second; the slowest light model some ten, more on a busy machine."""

LATHE = "lathe"

Result = dict[str, Any]
"""``case``, ``runtime``, ``why``, ``reference``, ``seconds``, ``trials``: name -> verdict with changes and faults."""


@dataclass
class Harness:
    """Runs cases of one subject (``lathe``, or the name of another optimizer) and remembers what came out."""

    subject: str
    cache: Path = CACHE
    jobs: int = 2
    seconds: float = CASE_SECONDS
    job: str = JOB
    tell: Callable[[str], None] = field(default=lambda text: print(text, file=sys.stderr, flush=True))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, cases: Sequence[Case]) -> list[Result]:
        """A result for each case, in their order; those known from before are not run again."""
        known = self.known()
        todo: queue.SimpleQueue[Case] = queue.SimpleQueue()
        missing = [case for case in cases if case.id not in known]
        for case in sorted(missing, key=_size, reverse=True):  # the longest first, so that the end is not one's alone
            todo.put(case)
        self._note = _Progress(len(missing), self.tell)
        died: list[Case] = []
        threads = [threading.Thread(target=self._serve, args=(todo, known, died)) for _ in range(self.jobs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for case in died:
            self._keep(self._alone(case), known)
        if lost := [case.id for case in cases if case.id not in known]:
            raise RuntimeError(f"{len(lost)} cases gave no result, {lost[0]} among them: the harness itself failed")
        return [known[case.id] for case in cases]

    def _serve(self, todo: queue.SimpleQueue[Case], known: dict[str, Result], died: list[Case]) -> None:
        """One warm child after another until nothing is left to do."""
        with _Child(self) as child:
            while True:
                try:
                    case = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    self._keep(child.ask(case), known)
                except WorkerDied as death:
                    self.tell(f"{case.id}: {death}; it is tried again alone")
                    died.append(case)

    def _alone(self, case: Case) -> Result:
        """A case that took its process down, in a fresh one; when it does so again, trial by trial."""
        try:
            with _Child(self) as child:
                return child.ask(case)
        except WorkerDied as death:
            result: Result = {"case": case.id, "runtime": "dies", "why": str(death), "reference": "", "trials": {}}
        for name in self._trials():
            try:
                with _Child(self) as child:
                    result.update(child.ask(case, [name]), trials={**result["trials"], **child.last["trials"]})
            except WorkerDied as death:
                result["trials"][name] = {"word": "dead", "why": str(death), "by": ""}
        return result

    def _trials(self) -> list[str]:
        if self.subject != LATHE:
            return [self.subject]
        with _Child(self) as child:
            return list(child.trials)

    # -- memory -------------------------------------------------------------------------------------------------------
    @functools.cached_property
    def _file(self) -> Path:
        return self.cache / f"results-{self.subject}-{digest(self.subject)}.jsonl"

    def known(self) -> dict[str, Result]:
        """Results by case that earlier runs of the same code left."""
        for old in self.cache.glob(f"results-{self.subject}-*.jsonl"):
            if old != self._file:
                old.unlink()
        lines = self._file.read_text().splitlines() if self._file.exists() else []
        return {found["case"]: found for line in lines if (found := _parsed(line))}

    def _keep(self, result: Result, known: dict[str, Result]) -> None:
        with self._lock:
            known[result["case"]] = result
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a") as file:
                file.write(json.dumps(result) + "\n")
            self._note.one()


class _Child:
    """A warm process of the harness, started when it is first needed and again after a death."""

    def __init__(self, harness: Harness) -> None:
        self._harness = harness
        self._scratch = tempfile.mkdtemp(prefix="conformance-")
        self._worker: Worker | None = None
        self._trials: list[str] = []
        self.last: Result = {}

    @property
    def trials(self) -> list[str]:
        if not self._trials:
            self._trials = self._call("trial_names")
        return self._trials

    def ask(self, case: Case, trials: Sequence[str] | None = None) -> Result:
        """One case. Raises :class:`WorkerDied` when it ends the process or takes too long."""
        start, subject = time.monotonic(), self._harness.subject
        plain = {"case": asdict(case), "scratch": self._scratch}
        try:
            if subject == LATHE:
                told = self._call("run_case", **plain, trials=list(trials or self.trials))
            else:
                told = self._call("run_peer", **plain, peer=subject)
        except CallFailed as failure:  # an error of the harness itself must not pass for a result
            raise RuntimeError(f"{case.id}: {failure.kind}: {failure}\n{failure.trace}") from failure
        self.last = {"case": case.id, **told, "seconds": round(time.monotonic() - start, 2)}
        return self.last

    def _call(self, name: str, **args: Any) -> Any:
        if self._worker is None or not self._worker.alive:
            self._worker = Worker.users(ROOT)
        return self._worker.call(f"{self._harness.job}:{name}", timeout=self._harness.seconds, **args)

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *_: object) -> None:
        if self._worker is not None:
            self._worker.close()
        shutil.rmtree(self._scratch, ignore_errors=True)


class _Progress:
    """A line every hundred cases."""

    def __init__(self, total: int, tell: Callable[[str], None]) -> None:
        self._total, self._tell, self._done, self._start = total, tell, 0, time.monotonic()

    def one(self) -> None:
        self._done += 1
        if self._done % 100 == 0:
            self._tell(f"{self._done} of {self._total} cases, {time.monotonic() - self._start:.0f} s")


def digest(subject: str) -> str:
    """SHA-256 over the sources and versions that a result depends on, shortened."""
    total = hashlib.sha256()
    tops = ("passes", "optimizer", "tests/conformance") if subject == LATHE else ("tests/conformance",)
    for path in sorted(p for top in tops for p in (ROOT / top).rglob("*.py")):
        if path.name not in _NOT_JUDGING:
            total.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    packages = ["onnx", "onnxruntime", "onnx-ir", "numpy"]
    packages += ["onnxsim"] if subject == LATHE else list(PEERS[subject].packages)
    for name in packages:
        total.update(f"{name}=={importlib.metadata.version(name)}\n".encode())
    return total.hexdigest()[:16]


_NOT_JUDGING = {"__init__.py", "__main__.py", "harness.py", "report.py", "test_slice.py", "test_harness.py"}


def _size(case: Case) -> int:
    return case.model.stat().st_size if case.model.exists() else 0


def _parsed(line: str) -> Result | None:
    """A line that a cut-off run left whole."""
    try:
        found: Result = json.loads(line)
    except ValueError:
        return None
    return found
