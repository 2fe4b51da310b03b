"""The runner of a job: times models on a machine that has Python, numpy and onnxruntime, and nothing of Lathe.

    python job.zip [--out result.json]         or, unpacked:         python runner.py [--out result.json]

It is put into every job as ``runner.py`` and imports nothing of ours. It times as `lathe benchmark` does there: each
model in a process of its own, blocks of runs in alternating order, all of it again after process restarts. What it
writes is raw: nanoseconds of every run, by the wall's clock and by the process's. Statistics are made where it is
imported.

Exit codes: 0 when anything was measured, 3 when the job is damaged, 4 when nothing could be measured.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import IO, Any, Callable, Iterator  # noqa: UP035  (Python 3.8 reads this)

JOB, RUNNER = "job.json", "runner.py"
RESULT_SCHEMA, JOB_SCHEMA = "lathe.job-result/1", "lathe.job/1"
MAX_RUNS_PER_BLOCK = 200
WARM_UP_RUNS, MOST_WARM_UP_RUNS = 3, 2000
ANSWER_SECONDS = 1800
PIECE = 1 << 20


# -- the child: one model --------------------------------------------------------------------------------------------
def child() -> None:
    """Answer one line of JSON for each line of JSON: ``begin`` loads the model, ``block`` times runs of it."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print must not stand between the answers
    run: Any = None
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if "model" in asked:
                run, answer = begin(asked)
            else:
                answer = block(run, asked["runs"])
        except Exception as error:
            answer = {"reason": " ".join(str(error).split())[:300] or type(error).__name__}
        out.write(json.dumps(answer) + "\n")
        out.flush()


def begin(asked: dict[str, Any]) -> tuple[Callable[[], None], dict[str, Any]]:
    """Load the model and warm it up. Returns a call that runs it once, and the facts (milliseconds, bytes)."""
    import gc

    import numpy
    import onnxruntime

    if asked["core"] is not None:
        os.sched_setaffinity(0, {asked["core"]})
    before = resident()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = asked["threads"], 1
    options.log_severity_level = 4
    start = time.perf_counter()
    providers = list(dict.fromkeys([asked["provider"], "CPUExecutionProvider"]))
    session = onnxruntime.InferenceSession(asked["model"], options, providers=providers)
    load_ms = (time.perf_counter() - start) * 1e3
    if asked["provider"] not in session.get_providers():
        raise RuntimeError(asked["provider"] + " did not start; onnxruntime would have used the CPU silently")
    with numpy.load(asked["feed"], allow_pickle=False) as archive:
        feed = {name: archive[name] for name in archive.files}

    def run() -> None:
        session.run(None, feed)

    start = time.perf_counter()
    run()
    first_ms = (time.perf_counter() - start) * 1e3
    spent, runs, pace = 0.0, 0, first_ms
    while runs < WARM_UP_RUNS or (spent < asked["warm_up_ms"] and runs < MOST_WARM_UP_RUNS):
        start = time.perf_counter()
        run()
        took = (time.perf_counter() - start) * 1e3
        pace = took if not runs else min(pace, took)
        spent, runs = spent + took, runs + 1
    gc.collect()
    gc.disable()
    memory = max(0, peak() - before)
    return run, {"load_ms": load_ms, "first_ms": first_ms, "pace_ms": pace, "memory_bytes": memory}


def block(run: Callable[[], None], runs: int) -> dict[str, Any]:
    """Nanoseconds of each of ``runs`` runs, by both clocks; one more goes before them untimed."""
    run()
    wall, cpu = [], []
    for _ in range(runs):
        start, begun = time.perf_counter_ns(), time.process_time_ns()
        run()
        cpu.append(time.process_time_ns() - begun)
        wall.append(time.perf_counter_ns() - start)
    return {"wall": wall, "cpu": cpu}


def resident() -> int:
    """Bytes of memory that this process holds now; 0 where the system does not say."""
    return status("VmRSS:")


def peak() -> int:
    """The most bytes of memory that this process has held."""
    found = status("VmHWM:")
    if found:
        return found
    try:
        import resource
    except ImportError:
        return 0
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def status(key: str) -> int:
    """A line of Linux's /proc/self/status, in bytes."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(key):
                return int(line.split()[1]) * 1024
    return 0


# -- the parent: turns and restarts ------------------------------------------------------------------------------------
class Model:
    """A process with one model loaded."""

    def __init__(self, runner: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(runner), "--child"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, universal_newlines=True,
        )  # fmt: skip

    def ask(self, **question: Any) -> dict[str, Any]:
        """The answer; raises RuntimeError with the reason when the model cannot run."""
        import threading

        assert self.process.stdin is not None and self.process.stdout is not None
        watch = threading.Timer(ANSWER_SECONDS, self.process.kill)
        watch.start()
        try:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except OSError:
            line = ""
        finally:
            watch.cancel()
        if not line:
            raise RuntimeError(f"its process ended with exit code {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "reason" in answer:
            raise RuntimeError(answer["reason"])
        return answer

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def visit(
    runner: Path, entries: list[dict[str, Any]], settings: dict[str, Any], restart: int, core: int | None
) -> list[dict[str, Any]]:
    """One restart: every model loaded in a process of its own, then blocks in turns. One dict for each entry."""
    models: list[Model] = []
    facts: list[dict[str, Any]] = [{} for _ in entries]
    blocks: list[list[dict[str, Any]]] = [[] for _ in entries]
    try:
        models = [Model(runner) for _ in entries]
        order = list(range(len(entries))) if restart % 4 < 2 else list(range(len(entries)))[::-1]
        for i in order:
            facts[i] = models[i].ask(core=core, warm_up_ms=settings["warm_up_ms"], **entries[i])
        runs = [max(1, min(MAX_RUNS_PER_BLOCK, int(settings["block_ms"] / max(1e-3, f["pace_ms"])))) for f in facts]
        forwards, order = restart % 2 == 0, list(range(len(entries)))
        deadline = time.monotonic() + settings["seconds"] / settings["restarts"] * len(entries)
        while len(blocks[0]) < settings["least_blocks"] or time.monotonic() < deadline:
            for i in order if forwards else order[::-1]:
                blocks[i].append(models[i].ask(runs=runs[i]))
            forwards = not forwards
    finally:
        for model in models:
            model.close()
    return [dict(facts[i], blocks=blocks[i]) for i in range(len(entries))]


def setting_rows(
    runner: Path, job: dict[str, Any], setting: dict[str, Any], folder: Path, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Rows of one provider, number of threads and batch: a model that cannot run alone gets its reason."""
    rows: list[dict[str, Any]] = []
    running: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for index, model in enumerate(job["models"]):
        feed = next(f["file"] for f in model["feeds"] if f["batch"] == setting["batch"])
        entry = {"model": str(folder / model["file"]), "feed": str(folder / feed),
                 "provider": setting["provider"], "threads": setting["threads"]}  # fmt: skip
        row = dict(setting, model=index, restarts=[], reason="")
        rows.append(row)
        alone = None
        try:
            alone = Model(runner)
            alone.ask(core=None, warm_up_ms=0, **entry)
            running.append((row, entry))
        except RuntimeError as error:
            row["reason"] = str(error)
        finally:
            if alone is not None:
                alone.close()
    pinned = setting["threads"] == 1 and setting["provider"] == "CPUExecutionProvider"
    for restart in range(job["settings"]["restarts"]) if running else ():
        say(f"restart {restart + 1} of {job['settings']['restarts']}")
        core = idlest_core() if pinned else None
        try:
            found = visit(runner, [entry for _, entry in running], job["settings"], restart, core)
        except RuntimeError as error:
            for row, _ in running:
                row["restarts"], row["reason"] = [], str(error)
            return rows
        for (row, _), part in zip(running, found):  # noqa: B905  (strict= is not known to Python 3.8)
            row["restarts"].append(part)
    return rows


def idlest_core() -> int | None:
    """The core, of those that may be used, that idles most at the moment; None where nobody can say."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    before = idle_ticks()
    time.sleep(0.05)
    mine = os.sched_getaffinity(0)
    idled = {c: t - before[c] for c, t in idle_ticks().items() if c in mine and c in before}
    return max(idled, key=lambda c: (idled[c], c)) if idled else None


def idle_ticks() -> dict[int, int]:
    """Idle time of each core since the start."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return {}
    rows = [line.split() for line in lines if line.startswith("cpu") and line[3:4].isdigit()]
    return {int(row[0][3:]): int(row[4]) + int(row[5]) for row in rows}


# -- the job -----------------------------------------------------------------------------------------------------------
class Damaged(Exception):
    """The job is not what it says."""


def read_job(place: Path, folder: Path) -> tuple[dict[str, Any], str]:
    """The job at ``place`` (a zip, or the folder that it was unpacked to): its files are put under ``folder`` and held
    against their digests. Returns the job and the digest of its text."""
    text = member(place, JOB)
    job: dict[str, Any] = json.loads(text.decode("utf-8"))
    if job.get("schema") != JOB_SCHEMA:
        raise Damaged("this is no job of " + JOB_SCHEMA)
    wanted = [(f["file"], f["sha256"]) for m in job["models"] for f in (*m["files"], *m["feeds"])]
    for name, digest in wanted:
        parts = name.split("/")
        if ".." in parts or "\\" in name or not all(parts) or ":" in name:
            raise Damaged("it names a file outside itself: " + name)
        target = folder.joinpath(*parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        if copied(place, name, target) != digest:
            raise Damaged(name + " is not what the job says")
    return job, hashlib.sha256(text).hexdigest()


@contextlib.contextmanager
def opened(place: Path, name: str) -> Iterator[IO[bytes]]:
    """A member of the job as a stream."""
    if place.is_dir():
        with (place / name).open("rb") as stream:
            yield stream
    else:
        with zipfile.ZipFile(str(place)) as archive, archive.open(name) as stream:
            yield stream


def member(place: Path, name: str) -> bytes:
    """The bytes of a small member."""
    with opened(place, name) as stream:
        return stream.read()


def copied(place: Path, name: str, target: Path) -> str:
    """Copy a member; the SHA-256 of its bytes."""
    total = hashlib.sha256()
    with opened(place, name) as stream, target.open("wb") as file:
        while True:
            piece = stream.read(PIECE)
            if not piece:
                return total.hexdigest()
            total.update(piece)
            file.write(piece)


def environment() -> dict[str, Any]:
    """What this machine is: nothing in it names a person or a network."""
    import numpy
    import onnxruntime

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, AttributeError, OSError):
        memory = 0
    return {
        "cpu": cpu_name(),
        "cores": cores,
        "memory_bytes": memory,
        "system": platform.system() + " " + platform.release(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "packages": {"numpy": numpy.__version__, "onnxruntime": onnxruntime.__version__},
        "providers": onnxruntime.get_available_providers(),
    }


def cpu_name() -> str:
    """The CPU as the system names it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Processor")):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown CPU"


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def measured(place: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Everything that the job asks for, as the result to write."""
    with tempfile.TemporaryDirectory(prefix="lathe-job-") as text:
        folder = Path(text)
        job, digest = read_job(place, folder)
        code = member(place, RUNNER)
        runner = folder / RUNNER
        runner.write_bytes(code)
        started = now()
        rows: list[dict[str, Any]] = []
        begun = time.monotonic()
        for setting in job["settings"]["sites"]:
            say(f"{setting['provider']}, batch {setting['batch']}, threads {setting['threads']}")
            rows += setting_rows(runner, job, setting, folder, say)
        return {
            "schema": RESULT_SCHEMA,
            "job": digest,
            "runner": hashlib.sha256(code).hexdigest(),
            "environment": environment(),
            "started": started,
            "finished": now(),
            "seconds": time.monotonic() - begun,
            "asked": job,
            "rows": rows,
        }


def main() -> int:
    """The command line."""
    if sys.argv[1:] == ["--child"]:
        child()
        return 0
    parser = argparse.ArgumentParser(prog="runner", description="Time the models of a job on this machine.")
    parser.add_argument("--out", type=Path, default=Path("result.json"), help="where the result goes")
    chosen = parser.parse_args()
    home = Path(__file__).resolve().parent  # the zip itself, or the folder
    try:
        import numpy  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        print(f"error: {error.name} is missing. Run: pip install numpy onnxruntime", file=sys.stderr)
        return 4
    try:
        result = measured(home, lambda text: print(text, file=sys.stderr))
    except (Damaged, KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        print(f"error: the job cannot be read: {error}", file=sys.stderr)
        return 3
    partial = chosen.out.with_name(chosen.out.name + ".partial")
    partial.write_text(json.dumps(result))
    partial.replace(chosen.out)
    reasons = sorted({row["reason"] for row in result["rows"] if row["reason"]})
    for reason in reasons:
        print("warning: " + reason, file=sys.stderr)
    print(f"wrote {chosen.out}: import it with 'lathe benchmark --import-result {chosen.out.name}'", file=sys.stderr)
    return 0 if any(row["restarts"] for row in result["rows"]) else 4


if __name__ == "__main__":
    sys.exit(main())
