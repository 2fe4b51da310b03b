"""Mutation fuzzing of the way in: ``python -m tests.redteam.fuzz N`` opens N mutated files and runs the passes.

Each input goes through the real thing: ``onnx_file.load`` (the probe in a forked child, then this process), and, when
it opened, the lossless recipe in another forked child with the limits of a compile's. Inputs are worked
through by processes of their own, each of which writes down what it begins: when one dies or hangs, the last input
that it began is the culprit, and a new one goes on behind it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from optimizer.faults import Fault
from optimizer.source import onnx_file
from optimizer.verify.apply import ISOLATED_SLACK_BYTES
from optimizer.workers import limits
from passes import catalogue
from passes.kit.model import Model
from tests.redteam.mutate import mutant
from tests.redteam.seeds import WEIGHTS, WEIGHTS_FILE, seeds
from tests.support.runtime import LocalContext, target

MOST_SECONDS, MOST_BYTES = 2.0, 10**9
HANG_SECONDS = 20.0
ROOT = Path(__file__).parents[2]


@dataclass
class Tally:
    """What became of the inputs. ``failures`` are deaths of a parent, hangs, and children over a limit."""

    inputs: int = 0
    parsed: int = 0
    opened: int = 0
    changed: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    ended_readers: int = 0
    most_seconds: float = 0.0
    most_child_bytes: int = 0
    most_parent_bytes: int = 0
    failures: list[str] = field(default_factory=list)

    def add(self, told: dict[str, Any]) -> None:
        """Count one input."""
        self.inputs += 1
        self.parsed += told["parsed"]
        self.opened += told["outcome"] == "opened"
        self.changed += told["changed"]
        if told["outcome"] != "opened":
            self.refusals[told["outcome"]] += 1
        self.ended_readers += told["ended"]
        self.faults.update(told["faults"])
        self.most_seconds = max(self.most_seconds, told["seconds"])
        self.most_child_bytes = max(self.most_child_bytes, told["child_bytes"])
        self.most_parent_bytes = max(self.most_parent_bytes, told["parent_bytes"])
        if told["seconds"] > MOST_SECONDS:
            self.failures.append(f"input {told['number']} took {told['seconds']:.1f} s")
        if max(told["child_bytes"], told["parent_bytes"]) > MOST_BYTES:
            self.failures.append(f"input {told['number']} took {told['child_bytes'] / 1e9:.2f} GB")
        if told["outcome"].startswith("untyped"):
            self.failures.append(f"input {told['number']}: {told['outcome']}")


# -- one input -------------------------------------------------------------------------------------------------------
def attempt(number: int, folder: Path, *, native: bool = True) -> dict[str, Any]:
    """Open the input of that number and run the passes on it (``native`` ones too); what happened, as plain data."""
    data = mutant(number)
    path = folder / "m.onnx"
    path.write_bytes(data)
    told: dict[str, Any] = {"number": number, "parsed": _parses(data), "changed": 0, "ended": False, "faults": []}
    peaks: list[int] = [0]
    _forget_peak()
    start = time.monotonic()
    try:
        model = _load(path, peaks)
        told["outcome"] = "opened"
    except Fault as fault:
        told["outcome"], told["ended"] = fault.code, "ended the reader" in fault.message
    except Exception as error:
        told["outcome"] = f"untyped {type(error).__name__}: {str(error)[:100]}"
    told["seconds"] = time.monotonic() - start
    if told["outcome"] == "opened":
        told["changed"] = run_passes(model, told, native)
    told["child_bytes"] = max(*peaks, told.get("child_bytes", 0))
    told["parent_bytes"] = _peak()
    return told


def _load(path: Path, peaks: list[int]) -> Model:
    asked = onnx_file._call

    def call(worker: Any, *args: Any) -> dict[str, Any]:
        try:
            return asked(worker, *args)
        finally:
            if worker.alive:
                peaks.append(worker.call("optimizer.runtime.jobs:memory_peak"))

    onnx_file._call = call
    try:
        return onnx_file.load(path, target()).model
    finally:
        onnx_file._call = asked


def _parses(data: bytes) -> bool:
    try:
        onnx.ModelProto.FromString(data)
    except DecodeError:
        return False
    return True


def run_passes(model: Model, told: dict[str, Any], native: bool = True) -> int:
    """The lossless recipe in a forked child, held as a compile holds it; how many passes changed something."""
    start = time.monotonic()
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            limits.hold(extra_address_bytes=ISOLATED_SLACK_BYTES)
            sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - until the child ends
            with os.fdopen(writer, "w") as answer:
                json.dump(_passes(model, native), answer)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        text = stream.read()
    _, status, used = os.wait4(pid, 0)
    told["child_bytes"] = max(told.get("child_bytes", 0), used.ru_maxrss * 1024)
    told["seconds"] = max(told["seconds"], time.monotonic() - start)
    if not text:
        how = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else "no answer"
        told["faults"].append(f"the worker for passes ended: {how}")
        return 0
    changed, faults = json.loads(text)
    told["faults"] += faults
    return int(changed)


def _passes(model: Model, native: bool) -> tuple[int, list[str]]:
    changed, faults = 0, []
    for subject in catalogue.build(catalogue.LOSSLESS):
        if subject.native and not native:
            continue
        try:
            result = subject(model, LocalContext())
            model, changed = result.model, changed + bool(result.changes)
        except Exception as error:
            faults.append(f"{subject.name}: {type(error).__name__}: {str(error).splitlines()[:1]}"[:140])
    return changed, faults


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


# -- many inputs -----------------------------------------------------------------------------------------------------
def work(numbers: Sequence[int], out: Path) -> None:
    """Work through ``numbers`` in this process, writing one line before and one after each."""
    import onnxsim  # noqa: F401 - once, before children are forked

    with tempfile.TemporaryDirectory(prefix="lathe-fuzz-") as folder, out.open("a") as log:
        (Path(folder) / WEIGHTS_FILE).write_bytes(WEIGHTS)
        (warm := Path(folder) / "warm.onnx").write_bytes(seeds()[0])
        onnx_file.load(warm, target())  # starting the nursery is no input's fault
        for number in numbers:
            print(json.dumps({"begin": number}), file=log, flush=True)
            print(json.dumps(attempt(number, Path(folder))), file=log, flush=True)


def run(start: int, count: int, jobs: int, tally: Tally, deadline: float = float("inf")) -> Tally:
    """Fuzz ``count`` inputs from ``start`` on in ``jobs`` processes, until ``deadline`` (monotonic) at most."""
    with tempfile.TemporaryDirectory(prefix="lathe-fuzz-") as folder:
        ends = [start + count * j // jobs for j in range(jobs + 1)]  # every second input is the slower kind
        parts = [range(a, b) for a, b in pairwise(ends)]
        lanes = [_Lane(part, Path(folder) / f"{j}.jsonl", tally) for j, part in enumerate(parts)]
        going = lanes
        while going and time.monotonic() < deadline:
            going = [lane for lane in going if lane.going()]
            time.sleep(0.05)
        for lane in lanes:
            lane.stop()
    return tally


class _Lane:
    """One process at work, started again behind an input that ended it."""

    def __init__(self, numbers: range, log: Path, tally: Tally) -> None:
        self._left, self._log, self._tally = numbers, log, tally
        self._read, self._begun, self._since = 0, -1, time.monotonic()
        self._process: subprocess.Popen[bytes] | None = None

    def going(self) -> bool:
        """Start, watch, count; false when everything is done."""
        if self._process is None:
            if not self._left:
                return False
            spec = f"{self._left.start}:{self._left.stop}:{self._left.step}"
            command = [sys.executable, "-m", "tests.redteam.fuzz", "--numbers", spec, "--log", str(self._log)]
            quiet = subprocess.DEVNULL  # the libraries complain about every input
            self._process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stdout=quiet, stderr=quiet)
            self._since = time.monotonic()
        ended = self._process.poll()
        self._take()
        if ended is None and time.monotonic() - self._since > HANG_SECONDS:
            self.stop()
            self._culprit(f"hung for {HANG_SECONDS:g} s")
        elif ended is not None:
            self._process = None
            if ended or self._left:
                self._culprit(f"ended its process with status {ended}")
        return True

    def _take(self) -> None:
        lines = self._log.read_text().splitlines(keepends=True) if self._log.exists() else []
        for line in lines[self._read :]:
            if not line.endswith("\n"):
                break
            self._read += 1
            self._since = time.monotonic()
            told = json.loads(line)
            if "begin" in told:
                self._begun = told["begin"]
            else:
                self._tally.add(told)
                self._left = self._left[1:]

    def _culprit(self, how: str) -> None:
        self._tally.failures.append(f"input {self._begun} {how}")
        self._left = self._left[1:]

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", nargs="?", type=int, default=20000)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=30.0, help="stop after this long, whatever is done")
    parser.add_argument("--numbers", help="start:stop:step, worked through in this process")
    parser.add_argument("--log", type=Path)
    args = parser.parse_args()
    if args.numbers:
        work(range(*map(int, args.numbers.split(":"))), args.log)
        return 0
    begun, tally = time.monotonic(), Tally()
    run(args.start, args.count, args.jobs, tally, begun + 60 * args.minutes)
    tell(tally, time.monotonic() - begun)
    return int(bool(tally.failures) or tally.inputs < args.count)


def tell(tally: Tally, seconds: float) -> None:
    """Print the table."""
    share = 100 / max(1, tally.inputs)
    print(f"inputs                 {tally.inputs:,}, in {seconds / 60:.1f} minutes")
    print(f"parse as a message     {tally.parsed} ({tally.parsed * share:.1f} %)")
    print(f"opened                 {tally.opened}; the passes changed {tally.changed} times")
    print(f"refused                {dict(tally.refusals.most_common())}")
    print(f"readers that died      {tally.ended_readers}")
    print(f"longest                {tally.most_seconds:.2f} s")
    print(f"most memory            child {tally.most_child_bytes / 1e6:.0f} MB, process of the passes "
          f"{tally.most_parent_bytes / 1e6:.0f} MB")  # fmt: skip
    print(f"passes left out        {sum(tally.faults.values())}")
    for text, count in tally.faults.most_common(20):
        print(f"  {count:5} {text}")
    print(f"failures               {len(tally.failures)}")
    for text in tally.failures[:50]:
        print(f"  {text}")


if __name__ == "__main__":
    sys.exit(main())
