"""What came back from another machine: the result of a job, held against the job and against itself, then read.

A result is another machine's word. Digests show that it speaks of this job and this runner, and times that cannot have
been are refused; who wrote it is not shown by anything.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.faults import Fault, bad_input, usage
from optimizer.measure.latency import Timing, Visit, speedup, timing_of
from optimizer.package import job as jobs
from optimizer.package.job import Told
from optimizer.package.manifest import to_text
from optimizer.plan import PROVIDERS
from optimizer.records import BenchmarkRow
from optimizer.runtime import elsewhere

Array = np.ndarray[Any, Any]

MOST_BYTES = 256 * 2**20
LONGEST_TEXT = 200
CLOCK_SLACK = 1.05
"""The processor time of one thread may seem to exceed the wall's by the ticks of its clock."""


class _Wrong(ValueError):
    """Something in a result that cannot be; the text says what."""


@dataclass(frozen=True)
class Imported:
    """Rows measured on ``machine`` (a line for people), its environment as it tells it, and when."""

    machine: str
    rows: tuple[BenchmarkRow, ...]
    environment: Mapping[str, Any]
    job: str
    started: str
    warnings: tuple[str, ...] = ()


def read(path: Path, job: Told | None, seed: int = 0) -> Imported:
    """Read a result and make its statistics here. ``job`` is what it must belong to, when that is at hand.

    Raises a :class:`Fault`: usage when there is no such file, bad input (exit 3) with one line that says what is wrong.
    """
    where = str(path)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise _Wrong("it is too large")
        tree = json.loads(path.read_text("utf-8"))
        return _imported(tree, job, seed)
    except FileNotFoundError as error:
        raise usage("there is no such result", where=where, hint="'python job.zip' writes one") from error
    except OSError as error:
        raise bad_input(f"cannot be read: {error.strerror}", where=where) from error
    except _Wrong as wrong:
        raise _fault(str(wrong), where) from None
    except RecursionError:
        raise _fault("it is nested too deep", where) from None
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise _fault(f"it is garbled ({type(error).__name__}: {' '.join(str(error).split())[:100]})", where) from error


def _fault(why: str, where: str) -> Fault:
    hint = "Run the job again there and import what it writes, as it is"
    return bad_input(f"this result does not hold: {why}", where=where, hint=hint, code="bad-result")


def _imported(tree: Any, job: Told | None, seed: int) -> Imported:
    if not isinstance(tree, dict) or tree.get("schema") != elsewhere.RESULT_SCHEMA:
        raise _Wrong(f"it is not of {elsewhere.RESULT_SCHEMA}")
    asked, digest = tree["asked"], str(tree["job"])
    if hashlib.sha256(to_text(asked).encode()).hexdigest() != digest:
        raise _Wrong("the job in it is not the job that it names")
    if job is not None and hashlib.sha256(job.text).hexdigest() != digest:
        raise _Wrong("it belongs to another job")
    if job is not None and job.runner != tree["runner"]:
        raise _Wrong("it was made by a runner that is not the job's")
    if asked.get("schema") != jobs.SCHEMA:
        raise _Wrong(f"its job is not of {jobs.SCHEMA}")
    environment = _environment(tree["environment"])
    rows = _rows(asked, tree["rows"], seed)
    _plausible(tree, tree["rows"])
    cores = f"{environment['cores']} core{'s' if environment['cores'] != 1 else ''}"
    machine = f"{environment['cpu']}, {cores}, {environment['system']}"
    mine = hashlib.sha256(jobs.runner_text()).hexdigest()
    notes = () if tree["runner"] == mine else ("it was made by the runner of another version of Lathe",)
    return Imported(machine, tuple(rows), environment, digest, _text(tree["started"]), notes)


# -- what it says ------------------------------------------------------------------------------------------------------
def _text(value: Any) -> str:
    """A stranger's text: short, and without what a terminal would act on."""
    if not isinstance(value, str) or len(value) > LONGEST_TEXT:
        raise _Wrong("a text in it is no text, or too long")
    return "".join(c if c.isprintable() else "?" for c in value)


def _count(value: Any, least: int = 0) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
        raise _Wrong(f"{str(value)[:40]!r} is no count")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e15:
        raise _Wrong(f"{str(value)[:40]!r} is no time")
    return float(value)


def _environment(told: Any) -> dict[str, Any]:
    if not isinstance(told, dict):
        raise _Wrong("it does not say what machine it is from")
    texts = {k: _text(told[k]) for k in ("cpu", "system", "architecture", "python")}
    counts = {k: _count(told[k]) for k in ("cores", "memory_bytes")}
    packages = {_text(k): _text(v) for k, v in told["packages"].items()}
    return {**texts, **counts, "packages": packages, "providers": [_text(p) for p in told["providers"]]}


def _rows(asked: Mapping[str, Any], told: Any, seed: int) -> list[BenchmarkRow]:
    """A row for each site and model of the job, in its order."""
    settings, models = asked["settings"], asked["models"]
    wanted = [(s["provider"], s["threads"], s["batch"], i) for s in settings["sites"] for i in range(len(models))]
    if not isinstance(told, list) or [_key(r) for r in told] != wanted:
        raise _Wrong("its rows are not those that the job asks for")
    rows: list[BenchmarkRow] = []
    first: Timing | None = None
    for row in told:
        timing = _timing(row, settings)
        first = timing if row["model"] == 0 else first
        rows.append(_row(row, models[row["model"]], timing, first, seed))
    return rows


def _key(row: Any) -> tuple[Any, ...]:
    if not isinstance(row, dict):
        raise _Wrong("a row of it is no row")
    return row.get("provider"), row.get("threads"), row.get("batch"), row.get("model")


def _timing(row: Mapping[str, Any], settings: Mapping[str, Any]) -> Timing | None:
    if row["reason"]:
        return None
    if len(row["restarts"]) != settings["restarts"]:
        raise _Wrong(f"it has {len(row['restarts'])} restarts of {settings['restarts']}")
    alone = row["threads"] == 1 and row["provider"] == PROVIDERS["cpu"]
    clock = (
        "cpu" if alone and all(min(b["cpu"], default=0) > 0 for r in row["restarts"] for b in r["blocks"]) else "wall"
    )
    visits = []
    for restart in row["restarts"]:
        if len(restart["blocks"]) < settings["least_blocks"]:
            raise _Wrong("a restart has fewer blocks than were asked for")
        blocks = tuple(_block(b, clock, alone=alone) for b in restart["blocks"])
        facts = (_number(restart["load_ms"]), _number(restart["first_ms"]), _count(restart["memory_bytes"]))
        visits.append(Visit(blocks, *facts))
    return timing_of(visits, clock)


def _block(told: Mapping[str, Any], clock: str, *, alone: bool) -> Array:
    """Milliseconds of the runs of a block, by the clock that counts."""
    wall, cpu = ([_count(n) for n in told[k]] for k in ("wall", "cpu"))
    if not wall or len(wall) != len(cpu) or len(wall) > elsewhere.MAX_RUNS_PER_BLOCK or min(wall) < 1:
        raise _Wrong("a block of it holds no runs, or runs without a time")
    if alone and sum(cpu) > sum(wall) * CLOCK_SLACK + 2e7:
        raise _Wrong("one thread took more processor time than time passed")
    return np.asarray(cpu if clock == "cpu" else wall, np.float64) / 1e6


def _plausible(tree: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Runs came one after the other, so together they cannot have taken longer than the whole."""
    spent = sum(sum(b["wall"]) for row in rows for restart in row["restarts"] for b in restart["blocks"]) / 1e9
    seconds = _number(tree["seconds"])
    if spent > seconds:
        raise _Wrong(f"its runs add up to {spent:.1f} s, but it took {seconds:.1f} s")
    began, ended = (datetime.datetime.fromisoformat(_text(tree[k])) for k in ("started", "finished"))
    if abs((ended - began).total_seconds() - seconds) > 2 + 0.01 * seconds:
        raise _Wrong(f"it took {seconds:.1f} s, but not by its dates")


def _row(
    row: Mapping[str, Any], model: Mapping[str, Any], timing: Timing | None, first: Timing | None, seed: int
) -> BenchmarkRow:
    samples = next(f["samples"] for f in model["feeds"] if f["batch"] == row["batch"])
    bare = BenchmarkRow(
        _text(model["name"]), _text(row["provider"]), _count(samples, 1), _count(row["threads"], 1),
        size_bytes=_count(model["size_bytes"]), reason=_reason(row),
    )  # fmt: skip
    if timing is None:
        return bare
    latency = timing.latency()
    return dataclasses.replace(
        bare,
        latency=latency,
        throughput=bare.batch / latency.p50 * 1e3,
        speedup=speedup(first, timing, seed) if first is not None and row["model"] else None,
        memory_bytes=timing.memory_bytes or None,
        load_ms=timing.load_ms,
    )


def _reason(row: Mapping[str, Any]) -> str:
    return _text(str(row["reason"])[:LONGEST_TEXT])
