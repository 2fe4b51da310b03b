"""Lathe beside onnxruntime's own quantization: a grid of its settings, in speed, quality, time and memory.

    python benchmarks/against_onnxruntime.py [--work DIR] [--batch 1] [--level 2] [MODEL=EVAL[,CALIB] ...]

Without MODEL the three samples. EVAL and CALIB are npz files, as ``lathe optimize`` takes them. The grid: static
{U8S8, S8S8, U8U8} x {all operators, Conv and products only} x {MinMax, Percentile, Entropy}, and dynamic with signed
and unsigned weights; per channel, after onnxruntime's own preprocessing, calibrated on the samples that Lathe gets.
Every setting is made in a process of its own. All models that load are timed together, in turns, over restarts.

The verdict on a row: of Lathe's candidates (the source and everything that its record tells of) take the fastest that
loses no more than the row does; its speed over the row's must be at least 0.97 by the lower end of its interval.
"Loses no more": the point estimate of the paired difference is not worse, or its interval holds zero (a tie).
``--work`` keeps what was made, so that timing can be repeated without making it again.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from peer_calls import Reader

from optimizer.api import compile_settings
from optimizer.faults import Fault
from optimizer.measure.latency import Effort, Timing, compare, speedup
from optimizer.measure.quality import Judge
from optimizer.measure.scales import Scales, Weighed
from optimizer.measure.stats import DropEstimate, paired_drop
from optimizer.plan import DataRequest, Settings, SourceRequest
from optimizer.progress import Silent
from optimizer.records import Interval
from optimizer.report import words
from optimizer.runtime import hardware
from optimizer.workers.pool import CallFailed, WorkerDied
from optimizer.workshop import Bench, candidate_weight, open_bench
from passes.kit.recipe import Recipe

SAMPLES = ("sample:residual-cnn", "sample:depthwise-cnn", "sample:transformer")
AT_MOST_SAMPLES = 128
LIMIT_SECONDS = 900.0
AT_LEAST = 0.97
FORMS = {"U8S8": ("QUInt8", "QInt8"), "S8S8": ("QInt8", "QInt8"), "U8U8": ("QUInt8", "QUInt8")}
OPERATORS = {"all ops": None, "Conv and products": ("Conv", "MatMul", "Gemm")}
OBSERVERS = ("MinMax", "Percentile", "Entropy")


@dataclass(frozen=True)
class Setting:
    """One setting of onnxruntime's quantizers; ``observer`` is empty for dynamic."""

    label: str
    activation: str
    weight: str
    operators: tuple[str, ...] | None
    observer: str


GRID = (
    *(
        Setting(f"static {form}, {ops}, {observer}", *types, listed, observer)
        for form, types in FORMS.items()
        for ops, listed in OPERATORS.items()
        for observer in OBSERVERS
    ),
    *(Setting(f"dynamic, {word} weights", "", kind, None, "")
      for word, kind in (("signed", "QInt8"), ("unsigned", "QUInt8"))),
)  # fmt: skip


# -- onnxruntime's side: each setting in a child -----------------------------------------------------------------------
def quantize(setting: Setting, folder: Path, out: Path) -> None:
    """Preprocess and quantize with onnxruntime."""
    from onnxruntime import quantization as q
    from onnxruntime.quantization.shape_inference import quant_pre_process

    ready = out.with_suffix(".ready.onnx")
    try:
        quant_pre_process(folder / "source.onnx", ready)
    except Exception:  # symbolic shape inference knows fewer models than the quantizers do
        quant_pre_process(folder / "source.onnx", ready, skip_symbolic_shape=True)
    operators = list(setting.operators) if setting.operators else None
    weight = getattr(q.QuantType, setting.weight)
    if not setting.observer:
        q.quantize_dynamic(ready, out, per_channel=True, weight_type=weight, op_types_to_quantize=operators)
    else:
        q.quantize_static(
            ready, out, Reader(folder / "feeds.pickle"), op_types_to_quantize=operators, per_channel=True,
            activation_type=getattr(q.QuantType, setting.activation), weight_type=weight,
            calibrate_method=getattr(q.CalibrationMethod, setting.observer),
        )  # fmt: skip
    ready.unlink()


@dataclass(frozen=True)
class Made:
    """What a child made: where it lies, CPU seconds, peak resident bytes, and why it is missing."""

    path: str
    cpu: float
    peak: int
    trouble: str = ""


def in_child(
    arguments: Sequence[str], out: Path, kept: Path, script: Path = Path(__file__), limit: float = LIMIT_SECONDS
) -> Made:
    """Run ``script`` with ``arguments`` in a process of its own for ``limit`` seconds at most, and remember what that
    took."""
    if kept.exists():
        return Made(**json.loads(kept.read_text()))
    with tempfile.TemporaryFile() as errors:
        command = [sys.executable, str(script.resolve()), *arguments]
        child = subprocess.Popen(command, cwd=kept.parent, stdout=errors, stderr=errors)  # it may litter its folder
        deadline = time.monotonic() + limit
        while True:
            found, status, usage = os.wait4(child.pid, os.WNOHANG)
            if found:
                break
            if time.monotonic() > deadline:
                child.kill()
            time.sleep(0.02)
        child.returncode = os.waitstatus_to_exitcode(status)  # reaped here, so the object must not wait for it
        errors.seek(0)
        told = errors.read().decode(errors="replace").strip().splitlines()
    trouble = "" if child.returncode == 0 and out.exists() else (told[-1][:90] if told else f"exit {child.returncode}")
    if child.returncode < 0:
        trouble = f"ended by signal {-child.returncode} (the limit is {limit:.0f} s)"
    made = Made(str(out), usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, trouble)
    kept.write_text(json.dumps(vars(made)))
    return made


# -- both sides of one model -------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Contender:
    """A model in the comparison: whose it is, what making it took, and its rows of quality."""

    label: str
    weighed: Weighed
    made: Made | None
    rows: Any
    ours: bool


def settings_of(model: str, data: str, work: Path, level: int, batch: int) -> Settings:
    judged, _, calibration = data.partition(",")
    request = DataRequest(calibrate=calibration, confirm=judged) if calibration else DataRequest(judged or None)
    limit = 240.0 if level >= 3 else None
    return Settings(
        SourceRequest(model), request, level=level, batch=batch, time_limit=limit, cache_dir=work / "cache",
        output=work / "ours.lathe", overwrite=True, golden="none",
    )  # fmt: skip


def ours(folder: Path) -> None:
    """Compile as a user would; the record is left beside the artifact."""
    record = compile_settings(pickle.loads((folder / "settings.pickle").read_bytes()))
    recipes = {s.recipe: s.label for s in record.steps if s.recipe and s.model}
    plain = {"recipes": recipes, "shipped": record.recipe, "outcome": record.outcome.value, "took": record.seconds}
    (folder / "ours.json").write_text(json.dumps(plain))


def gather(bench: Bench, scales: Scales, work: Path, grid: Sequence[Setting]) -> tuple[list[Contender], list[Made]]:
    """Every contender with its quality: the source, Lathe's candidates, onnxruntime's settings; and what failed."""
    assert bench.splits is not None and bench.metric is not None
    judge = Judge(bench.metric, bench.splits.confirm, bench.site, bench.store, scales.baseline.path)
    found = [Contender("source", scales.baseline, None, judge.rows(scales.baseline.path, scales.baseline.digest), True)]
    made = in_child(["--ours", str(work)], work / "ours.json", work / "ours.cost.json")
    if made.trouble:
        raise SystemExit(f"Lathe failed: {made.trouble}")
    plain = json.loads((work / "ours.json").read_text())
    for recipe, label in plain["recipes"].items():
        candidate = candidate_weight(bench.builder.build(bench.source.model, Recipe.parse(recipe)))
        told = f"Lathe: {label}" + (" (ships)" if recipe == plain["shipped"] else "")
        found.append(Contender(told, candidate, made, judge.rows(candidate.path, candidate.digest), True))
    failed = []
    for number, setting in enumerate(grid):
        out = work / f"theirs-{number}.onnx"
        made = in_child(["--theirs", str(number), str(work)], out, out.with_suffix(".json"))
        try:
            if made.trouble:
                raise Fault("failed", made.trouble)
            rows = judge.rows(out, f"theirs {setting.label} {out.stat().st_mtime_ns}")
        except (Fault, WorkerDied, CallFailed) as error:
            failed.append(Made(setting.label, made.cpu, made.peak, str(error)))
            continue
        found.append(Contender(setting.label, Weighed(out, "", out.stat().st_size), made, rows, False))
    return found, failed


def loss(bench: Bench, reference: Any, rows: Any) -> DropEstimate:
    assert bench.metric is not None
    return paired_drop(bench.metric, reference, rows, seed=0)


def verdict(bench: Bench, row: int, found: list[Contender], timings: list[Timing]) -> tuple[str, Interval | None, str]:
    """The fastest of ours that loses no more than the row: its label, its speed over the row's, and how it is equal."""
    best: tuple[str, Interval | None, str] = ("none", None, "")
    for i, contender in enumerate(found):
        if not contender.ours:
            continue
        worse = loss(bench, found[row].rows, contender.rows)
        if worse.value > 0 and worse.low > 0:
            continue
        ratio = speedup(timings[row], timings[i], seed=0)
        if best[1] is None or ratio.value > best[1].value:
            best = (contender.label, ratio, "" if worse.value <= 0 else "tie")
    return best


def table(bench: Bench, found: list[Contender], failed: list[Made], timings: list[Timing]) -> int:
    """Print the table of one model; returns the number of rows that do not hold."""
    assert bench.metric is not None
    print("| model of | speed-up over fp32 | loss | CPU s | peak MB | Lathe over it, at no more loss | |")
    print("|" + " --- |" * 7)
    missed = 0
    for i, contender in enumerate(found):
        faster = speedup(timings[0], timings[i], seed=0)
        lost = loss(bench, found[0].rows, contender.rows)
        cost = f"{contender.made.cpu:.1f} | {contender.made.peak / 1e6:.0f}" if contender.made else " | "
        cells = [contender.label, words.times(faster), f"{lost.value:+.4f} [{lost.low:+.4f}, {lost.high:+.4f}]", cost]
        if not contender.ours:
            label, ratio, how = verdict(bench, i, found, timings)
            holds = ratio is not None and ratio.low >= AT_LEAST
            missed += not holds
            cells += [
                f"{words.times(ratio)} {label.removeprefix('Lathe: ')}",
                " ".join(filter(None, [how, "" if holds else "**below**"])),
            ]
        else:
            cells += ["", ""]
        print("| " + " | ".join(cells) + " |")
    for made in failed:
        print(f"| {made.path} | fails: {made.trouble} | | {made.cpu:.1f} | {made.peak / 1e6:.0f} | | |")
    return missed


def compared(model: str, data: str, given: argparse.Namespace, root: Path) -> int:
    """One model: make everything, judge it, time it, print it."""
    name = model.removeprefix("sample:") if ":" in model else f"{Path(model).parent.name}-{Path(model).stem}"
    work = root.resolve() / name
    work.mkdir(parents=True, exist_ok=True)
    settings = settings_of(model, data, work, given.level, given.batch)
    (work / "settings.pickle").write_bytes(pickle.dumps(settings))
    with open_bench(settings, Silent()) as bench:
        if bench.splits is None or bench.metric is None:
            raise SystemExit(f"{model} needs data with a metric")
        calibration = bench.splits.calibrate
        chosen = calibration.take(np.arange(min(AT_MOST_SAMPLES, len(calibration))))
        (work / "feeds.pickle").write_bytes(pickle.dumps([feed for feed, _ in chosen.feeds(1)]))
        (work / "source.onnx").write_bytes(bench.source.model.to_bytes())
        scales = bench.scales()
        found, failed = gather(bench, scales, work, GRID)
        if given.make_only:
            return 0
        effort = Effort(restarts=given.restarts, seconds=given.seconds)
        timings = compare([c.weighed.path for c in found], [bench.feed] * len(found), bench.site, effort)
        count = len(bench.splits.confirm)
        print(f"\n### {name}: batch {given.batch}, {bench.metric.name} on {count} samples\n")
        return table(bench, found, failed, timings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL=EVAL[,CALIB]")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--level", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=4.0, help="timed seconds for each model")
    parser.add_argument("--restarts", type=int, default=8)
    parser.add_argument("--make-only", action="store_true", help="make and judge, but do not time")
    parser.add_argument("--ours", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--theirs", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.ours:
        return ours(given.ours)
    if given.theirs:
        number, folder = int(given.theirs[0]), Path(given.theirs[1])
        return quantize(GRID[number], folder, folder / f"theirs-{number}.onnx")
    asked = given.models or [f"{s}=" for s in SAMPLES]
    print(f"{hardware.host().cpu}, one thread, onnxruntime {hardware.environment()['packages']['onnxruntime']}")
    with tempfile.TemporaryDirectory() as scratch:
        pairs = [text.partition("=")[::2] for text in asked]
        missed = sum(compared(model, data, given, given.work or Path(scratch)) for model, data in pairs)
    print(f"\nRows where Lathe is not shown to be at least {AT_LEAST} as fast at no more loss: {missed}")
    return None


if __name__ == "__main__":
    main()
