"""Lathe's quantization beside that of onnxruntime and onnxsim, algorithm by algorithm.

    python benchmarks/peers.py [--work DIR] [--only FAMILY ...] [MODEL=EVAL[,CALIB] ...]

Without MODEL the three samples. EVAL and CALIB are npz files, as ``lathe optimize`` takes them. Every row is one call
of ``peer_calls.py`` in a process of its own, on the same calibration samples (128 at most), and shows the loss of
quality, the ratio of signal to error of the outputs against fp32 (dB), the speed over fp32 (interleaved, one thread;
all of a family in turns), the size, and the CPU seconds and peak memory that the call took. What cannot be made or run
is a row with the reason. Rows "X, then Lathe" give a peer's preparation to Lathe's quantizer, which tells the
algorithms apart. ``--work`` keeps what was made: a second run only makes what is missing.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import pickle
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from against_onnxruntime import AT_MOST_SAMPLES, SAMPLES, Made, in_child, settings_of

from optimizer.data.metrics import choose
from optimizer.faults import Fault
from optimizer.measure.latency import Timing, compare, quick, speedup
from optimizer.measure.scales import QualityReading, Scales, Weighed
from optimizer.progress import Silent
from optimizer.report import words
from optimizer.runtime import hardware
from optimizer.workers.pool import CallFailed, WorkerDied
from optimizer.workshop import Bench, open_bench

CALLS = Path(__file__).with_name("peer_calls.py")
HEADS = ("", "loss", "SQNR, dB", "speed-up over fp32", "bytes", "CPU s", "peak MB")


@dataclass(frozen=True)
class Way:
    """One row: a function of ``peer_calls.py`` and its options."""

    label: str
    call: str
    options: Mapping[str, Any] = field(default_factory=dict)


def lathe(recipe: str, label: str = "", **more: str) -> Way:
    """A recipe of Lathe."""
    return Way(label or f"Lathe `{recipe}`", "lathe", {"recipe": recipe, **more})


def sim(label: str, call: str, **options: Any) -> Way:
    """A call of onnxsim."""
    return Way(f"onnxsim {label}", call, options)


def ort(label: str, call: str, **options: Any) -> Way:
    """A call of onnxruntime."""
    return Way(f"onnxruntime {label}", call, options)


TENSOR = "quantize-static{per-channel=no}"
CHANNEL = "quantize-static"
WEIGHTS = "quantize-weights{{method={}, bits={}, accuracy-level=0}}"

FAMILIES: dict[str, tuple[Way, ...]] = {
    "observers": (
        *(lathe(f"quantize-static{{observer={o}}}")
          for o in ("minmax", "moving-average", "percentile", "entropy", "mse", "auto")),
        ort("minmax", "ort_static"),
        ort("moving average", "ort_static", CalibMovingAverage=True),
        ort("percentile", "ort_static", observer="Percentile"),
        ort("entropy", "ort_static", observer="Entropy"),
        *(sim(m, "sim_static", method=m) for m in ("minmax", "minmax_mean", "percentile", "entropy", "mse", "auto")),
        sim("minmax, all tensors", "sim_static", full_graph=True),
    ),
    "equalize": (
        lathe(TENSOR, "Lathe per tensor"),
        lathe(f"equalize, {TENSOR}", "Lathe equalize"),
        lathe(f"open-clip, equalize, {TENSOR}", "Lathe open-clip, equalize"),
        lathe(f"open-clip, equalize, absorb-bias, {TENSOR}", "Lathe open-clip, equalize, absorb-bias"),
        lathe(TENSOR, "onnxsim cross_layer_equalize, then Lathe", before="cross_layer_equalize"),
        lathe(TENSOR, "onnxsim quark equalize, then Lathe", before="quark_equalize_once"),
        lathe(TENSOR, "onnxsim quark equalize to the end, ReLU6 opened, then Lathe", before="quark_equalize"),
    ),
    "bias": (
        lathe(TENSOR, "Lathe per tensor"),
        lathe("quantize-static{per-channel=no, correct-bias=true}", "Lathe correct-bias"),
        lathe(TENSOR, "Lathe, then onnxsim correct_bias", after="correct_bias"),
        sim("per tensor, all tensors", "sim_full", per_channel=False),
        sim("the same, quark bias correction", "sim_full", per_channel=False, after="quark_bias"),
        sim("static", "sim_static"),
        sim("static, correct_bias", "sim_static", after="correct_bias"),
        sim("static, correct_spatial_bias", "sim_static", after="correct_spatial_bias"),
    ),
    "smooth": (
        lathe(CHANNEL, "Lathe static"),
        lathe(f"smooth, {CHANNEL}", "Lathe smooth (searched)"),
        lathe(f"smooth{{alpha=0.5}}, {CHANNEL}", "Lathe smooth 0.5"),
        lathe(CHANNEL, "onnxsim apply_smoothquant, then Lathe", before="smoothquant"),
        sim("static", "sim_static"),
        sim("apply_smoothquant, static", "sim_static", before="smoothquant"),
        ort("SmoothQuant=True", "ort_static", SmoothQuant=True),
    ),
    "round": (
        lathe(CHANNEL, "Lathe static"),
        lathe(f"round-adaptively, {CHANNEL}", "Lathe round-adaptively"),
        sim("all tensors", "sim_full"),
        sim("all tensors, adaround_int8", "sim_full", after="adaround_int8"),
        sim("all tensors, gptq_int8", "sim_full", after="gptq_int8"),
    ),
    "dynamic": (
        lathe("quantize-dynamic"),
        ort("quantize_dynamic", "ort_dynamic"),
        sim("quantize_dynamic", "sim_plain", function="quantize_dynamic"),
        sim("quantize_dynamic_matmul_integer_to_float", "sim_plain",
            function="quantize_dynamic_matmul_integer_to_float"),
    ),
    "weights": (
        *(lathe(WEIGHTS.format(m, 4), f"Lathe 4 bits {m}") for m in ("rtn", "hqq", "awq", "gptq", "gptq-awq")),
        ort("4 bits default", "ort_weights"),
        ort("4 bits default, symmetric", "ort_weights", symmetric=True),
        *(ort(f"4 bits {m}", "ort_weights", method=m) for m in ("RTN", "KQuant", "HQQ", "GPTQ")),
        sim("quantize_weight_only_matmul_nbits", "sim_plain", function="quantize_weight_only_matmul_nbits"),
        sim("quantize_weight_only_int4", "sim_int4"),
        *(sim(f"int4, {f}", "sim_int4", refine=f) for f in ("apply_awq", "apply_gptq", "apply_adaround",
                                                            "apply_autoround")),
        sim("quantize_weight_only_int4_hqq", "sim_plain", function="quantize_weight_only_int4_hqq", opset=21),
        sim("quark 4 bits HQQ", "sim_quark_weights", algorithm="HQQ"),
        sim("quark 4 bits GPTQ", "sim_quark_weights", algorithm="GPTQ"),
        sim("quark 4 bits GPTQ, Compensate", "sim_quark_weights", algorithm="GPTQ", compensate=True),
        lathe(WEIGHTS.format("rtn", 8), "Lathe 8 bits rtn"),
        ort("8 bits default", "ort_weights", bits=8),
        sim("quantize_weight_only_int8_block", "sim_plain", function="quantize_weight_only_int8_block", opset=21),
    ),
    "16 bits": (
        lathe("quantize-static16"),
        ort("static, 16-bit activations", "ort_static", activation="QUInt16"),
        sim("quantize_static_int16", "sim_plain", function="quantize_static_int16", opset=21, calibrated=True),
    ),
    "fp8": (
        lathe("quantize-fp8"),
        ort("static, fp8", "ort_static", activation="QFLOAT8E4M3FN", weight="QFLOAT8E4M3FN", observer="Distribution",
            per_channel=False),
        sim("quantize_fp8", "sim_plain", function="quantize_fp8", opset=21),
        sim("apply_deepseek_fp8", "sim_plain", function="apply_deepseek_fp8"),
    ),
}  # fmt: skip
"""``absorb-bias`` has no counterpart in either peer, and onnxruntime none for equalizing, bias correction, AdaRound and
AWQ; its SmoothQuant wants another package."""


@dataclass(frozen=True)
class Row:
    """What a way made, weighed; ``trouble`` says why it is missing."""

    way: Way
    made: Made
    path: Path
    reading: QualityReading | None = None
    sqnr: float = math.nan
    trouble: str = ""


def made_by(way: Way, work: Path, limit: float) -> Made:
    """Make it in a child, or find it in ``work``. The same call in two families is made once."""
    options = json.dumps(way.options, sort_keys=True)
    name = re.sub(r"\W+", "-", f"{way.call} {options}").strip("-")[:60] + "-" + _digest(options.encode())[:6]
    folder = work / name  # a folder of its own: peers litter the one they run in
    folder.mkdir(exist_ok=True)
    out = folder / "model.onnx"
    return in_child([way.call, options, str(work), str(out)], out, folder / "made.json", CALLS, limit)


def weighed(way: Way, bench: Bench, scales: Scales, work: Path, limit: float) -> Row:
    """Make, load and judge; what goes wrong is told in the row."""
    assert bench.splits is not None
    made = made_by(way, work, limit)
    path = Path(made.path)
    if made.trouble:
        return Row(way, made, path, trouble=made.trouble)
    model = Weighed(path, _digest(path.read_bytes()), path.stat().st_size)
    judged = bench.splits.confirm
    finer = dataclasses.replace(scales, metric=choose("sqnr", bench.source.model.signature.outputs, judged))
    try:
        reading = scales.quality(model, judged)
        return Row(way, made, path, reading, finer.quality(model, judged).candidate.value)
    except (Fault, WorkerDied, CallFailed) as error:
        return Row(way, made, path, trouble="does not run: " + " ".join(str(error).split()))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def timed(rows: Sequence[Row], bench: Bench, scales: Scales, seconds: float) -> dict[str, str]:
    """Speed over fp32 of the rows that run, by label, timed together."""
    running = [row for row in rows if not row.trouble]
    paths = [scales.baseline.path, *(row.path for row in running)]
    if not seconds or not running:
        return {}
    timings: list[Timing] = compare(paths, [bench.feed] * len(paths), bench.site, quick(seconds))
    return {
        row.way.label: words.times(speedup(timings[0], timing, seed=0))
        for row, timing in zip(running, timings[1:], strict=True)
    }


def line(row: Row, speed: str, bits: bool) -> str:
    """A row of the table."""
    cost = (f"{row.made.cpu:.1f}", f"{row.made.peak / 1e6:.0f}")
    if row.reading is None:
        text = row.trouble.replace("|", "/")[:160]
        return "| " + " | ".join((row.way.label, f"fails: {text}", "", "", "", *cost)) + " |"
    loss = f"{row.reading.drop.interval.value:+.4f}"
    if bits:
        loss = f"{math.log2(row.reading.candidate.value / row.reading.baseline.value):+.4f}"
    return (
        "| " + " | ".join((row.way.label, loss, f"{row.sqnr:.2f}", speed, f"{row.path.stat().st_size:,}", *cost)) + " |"
    )


def table(bench: Bench, work: Path, given: argparse.Namespace) -> None:
    """Print the families asked for, one table each."""
    assert bench.metric is not None and bench.splits is not None
    scales = bench.scales()
    bits = bench.metric.name == "perplexity"
    kind = "bits per token" if bits else bench.metric.name
    for family in given.only or FAMILIES:
        rows = [weighed(way, bench, scales, work, given.limit) for way in FAMILIES[family]]
        speeds = timed(rows, bench, scales, given.seconds)
        heads = (family, f"loss, {kind}", *HEADS[2:])
        print("\n| " + " | ".join(heads) + " |\n|" + " --- |" * len(heads))
        for row in rows:
            print(line(row, speeds.get(row.way.label, ""), bits), flush=True)


def compared(model: str, data: str, given: argparse.Namespace, root: Path) -> None:
    """One model: lay out what the calls need, make everything, print the tables."""
    name = model.removeprefix("sample:") if ":" in model else f"{Path(model).parent.name}-{Path(model).stem}"
    work = root.resolve() / name
    work.mkdir(parents=True, exist_ok=True)
    settings = settings_of(model, data, work, 2, 1)
    with open_bench(settings, Silent()) as bench:
        if bench.splits is None or bench.metric is None:
            raise SystemExit(f"{model} needs data with a metric")
        chosen = bench.splits.calibrate.take(np.arange(min(AT_MOST_SAMPLES, len(bench.splits.calibrate))))
        feeds = [feed for feed, _ in chosen.feeds(1)]
        (work / "feeds.pickle").write_bytes(pickle.dumps(feeds))
        np.savez(work / "calib.npz", **{name: np.concatenate([f[name] for f in feeds]) for name in feeds[0]})
        (work / "source.onnx").write_bytes(bench.source.model.to_bytes())
        judged = len(bench.splits.confirm)
        print(f"\n### {name}: {bench.metric.name} on {judged} samples, {len(chosen)} for calibration", flush=True)
        table(bench, work, given)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL=EVAL[,CALIB]")
    parser.add_argument("--work", type=Path, help="folder that keeps what was made")
    parser.add_argument("--only", nargs="*", choices=list(FAMILIES), metavar="FAMILY", help=", ".join(FAMILIES))
    parser.add_argument("--limit", type=float, default=300.0, help="seconds that one call may take")
    parser.add_argument("--seconds", type=float, default=2.0, help="timed seconds for each model (0: none)")
    given = parser.parse_args()
    packages = hardware.environment()["packages"]
    print(
        f"{hardware.host().cpu}, one thread; " + ", ".join(f"{n} {packages.get(n)}" for n in ("onnxruntime", "onnxsim"))
    )
    with tempfile.TemporaryDirectory() as scratch:
        for text in given.models or [f"{s}=" for s in SAMPLES]:
            model, _, data = text.partition("=")
            compared(model, data, given, given.work or Path(scratch))


if __name__ == "__main__":
    main()
