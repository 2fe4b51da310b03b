"""Many seeds judged by warm child processes, and the table of what came out."""

from __future__ import annotations

import datetime
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optimizer.workers.pool import CallFailed, Worker, WorkerDied
from passes import catalogue
from tests.fuzz.judge import Failure

ROOT = Path(__file__).parents[2]
JOB = str(Path(__file__).with_name("job.py")) + ":judge_seeds"

BATCH = 20
BATCH_SECONDS = 240.0
ALONE_SECONDS = 60.0
BATCHES_OF_A_LIFE = 40
"""A child is replaced after so many batches, so that what libraries leak does not add up."""

FIRES_IN_10000 = 100
CHANGED_SHARE = 0.30
REJECTED_SHARE = 0.01
OP_TYPES = 60

Tell = Callable[[str], None]


@dataclass
class Summary:
    """What a campaign came to, added up seed by seed."""

    count: int = 0
    failures: list[Failure] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)
    fired: Counter[str] = field(default_factory=Counter)
    tried: Counter[str] = field(default_factory=Counter)
    ops: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    changed: int = 0
    excused: int = 0
    nodes: int = 0
    cpu: float = 0.0
    wall: float = 0.0

    def add(self, told: dict[str, Any]) -> None:
        """Take in one verdict, as plain data."""
        self.count += 1
        self.failures += [Failure(**f) for f in told["failures"]]
        if told["rejected"]:
            self.rejected[told["rejected"][:120]] += 1
        self.fired.update(told["fired"])
        self.tried.update(told["tried"])
        self.ops.update(told["ops"].keys())
        self.kinds.update(told["kinds"])
        self.changed += told["changed"]
        self.excused += told["excused"]
        self.nodes += told["nodes"]
        self.cpu += told["seconds"]

    def missed(self) -> list[str]:
        """The requirements that do not hold, one line each."""
        least = self.count * FIRES_IN_10000 // 10000
        lines = [f"{len(self.failures)} failures"] if self.failures else []
        rare = {n: self.fired[n] for n in catalogue.names() if self.fired[n] < least}
        lines += [f"{name} fired {times} times, less than {least}" for name, times in rare.items()]
        if self.changed < CHANGED_SHARE * self.count:
            lines.append(f"{self.changed} of {self.count} models were changed, less than {CHANGED_SHARE:.0%}")
        if self.rejected.total() > REJECTED_SHARE * self.count:
            lines.append(
                f"{self.rejected.total()} of {self.count} models were rejected, more than {REJECTED_SHARE:.0%}"
            )
        if self.count >= 1000 and len(self.ops) < OP_TYPES:
            lines.append(f"{len(self.ops)} operator types, less than {OP_TYPES}")
        return lines


def campaign(seeds: Iterable[int], jobs: int, tell: Tell) -> Summary:
    """Judge ``seeds`` in ``jobs`` child processes."""
    todo: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
    listed = list(seeds)
    for i in range(0, len(listed), BATCH):
        todo.put(listed[i : i + BATCH])
    summary, lock, start = Summary(), threading.Lock(), time.monotonic()

    def keep(told: Sequence[dict[str, Any]]) -> None:
        with lock:
            before = summary.count // 500
            for one in told:
                summary.add(one)
                for failure in one["failures"]:
                    tell(str(Failure(**failure)))
            if summary.count // 500 > before:
                tell(f"{summary.count} of {len(listed)} models, {time.monotonic() - start:.0f} s")

    threads = [threading.Thread(target=_serve, args=(todo, keep)) for _ in range(max(1, jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    summary.wall = time.monotonic() - start
    return summary


def _serve(todo: queue.SimpleQueue[list[int]], keep: Callable[[Sequence[dict[str, Any]]], None]) -> None:
    """One warm child after another until nothing is left to do."""
    worker, served = Worker.users(ROOT), 0
    try:
        while True:
            try:
                seeds = todo.get_nowait()
            except queue.Empty:
                return
            if not worker.alive or served >= BATCHES_OF_A_LIFE:
                worker.close()
                worker, served = Worker.users(ROOT), 0
            served += 1
            try:
                keep(worker.call(JOB, timeout=BATCH_SECONDS, seeds=seeds))
            except (WorkerDied, CallFailed):
                keep([_alone(seed) for seed in seeds])
    finally:
        worker.close()


def _alone(seed: int) -> dict[str, Any]:
    """One seed of a batch that died, in a process of its own."""
    try:
        with Worker.users(ROOT) as worker:
            told: dict[str, Any] = worker.call(JOB, timeout=ALONE_SECONDS, seeds=[seed])[0]
            return told
    except (WorkerDied, CallFailed) as end:
        failure = {"seed": seed, "recipe": "any", "what": f"the process ended: {end}"}
    nothing: dict[str, Any] = {"ops": {}, "fired": [], "tried": [], "kinds": [], "nodes": 0, "seconds": 0.0}
    return {"seed": seed, "rejected": "", "failures": [failure], "changed": False, "excused": 0, **nothing}


def table(found: Summary, first: int, jobs: int) -> str:
    """The page of the last whole run, in Markdown."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    missed = found.missed()
    rows = [
        ("models", f"{found.count:,} (seeds {first} to {first + found.count - 1})"),
        ("failures", str(len(found.failures))),
        ("changed by the lossless preset", f"{found.changed:,} ({found.changed / max(1, found.count):.0%})"),
        ("rejected by checker or runtime before any pass", str(found.rejected.total())),
        ("comparisons excused as ill-conditioned", str(found.excused)),
        ("operators in a model, on average", f"{found.nodes / max(1, found.count):.1f}"),
        ("operator types", str(len(found.ops))),
        ("time", f"{found.wall / 60:.1f} minutes with {jobs} processes, {found.cpu / 60:.1f} minutes of CPU"),
        ("verdict", "all requirements hold" if not missed else "; ".join(missed)),
    ]
    lines = [f"Last whole run: {today}.", "", "| | |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows), ""]
    lines += ["| pass | models it changed | of those it was tried on |", "|---|---|---|"]
    lines += [f"| {n} | {found.fired[n]:,} | {found.tried[n]:,} |" for n in catalogue.names()]
    lines += ["", "| element type | models |", "|---|---|"]
    lines += [f"| {k} | {n:,} |" for k, n in found.kinds.most_common()]
    lines += ["", "Operator types and the models that hold them:", ""]
    lines.append(", ".join(f"{op} {n:,}" for op, n in sorted(found.ops.items(), key=lambda item: (-item[1], item[0]))))
    if found.rejected:
        lines += ["", "Rejected:", "", *(f"- {n} x {why}" for why, n in found.rejected.most_common(10))]
    if found.failures:
        lines += ["", "Failures:", "", *(f"- {failure}" for failure in found.failures)]
    return "\n".join(lines) + "\n"
