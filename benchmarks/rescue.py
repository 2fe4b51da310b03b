"""What the passes that prepare or repair static int8 win back: quality of recipes beside fp32.

    python benchmarks/rescue.py [MODEL [DATA_FOLDER]] [--speed] [--halves N] [--only TEXT]

MODEL is ``sample:NAME`` or an ``.onnx`` file (default: ``sample:depthwise-cnn``). DATA_FOLDER holds ``calib.npz`` and
``eval.npz`` (or ``eval_inputs.npz``); samples bring their own data. ``sqnr`` is the signal-to-error ratio of the
outputs in dB against fp32, a finer scale than accuracy. ``--halves N`` gives the mean and the standard deviation over
N random halves of the calibration data.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path

import numpy as np

from optimizer.data.metrics import choose
from optimizer.measure.latency import quick
from optimizer.plan import DataRequest, Settings, SourceRequest
from optimizer.progress import Silent
from optimizer.verify.apply import Builder, Candidate
from optimizer.workshop import Bench, candidate_weight, open_bench
from passes.catalogue import LOSSLESS
from passes.kit.recipe import Recipe

TENSOR = "quantize-static{per-channel=no}"
CHANNEL = "quantize-static"
CORRECTED = "quantize-static{correct-bias=true}"
RECIPES = {
    "per tensor": TENSOR,
    "per tensor, equalize": f"equalize, {TENSOR}",
    "per tensor, equalize with Min": f"equalize{{clip=min}}, {TENSOR}",
    "per tensor, open clips, equalize": f"open-clip, equalize, {TENSOR}",
    "per tensor, open clips, equalize, absorb": f"open-clip, equalize, absorb-bias, {TENSOR}",
    "per tensor, correct": "quantize-static{per-channel=no, correct-bias=true}",
    "per tensor, round": f"round-adaptively{{per-channel=no}}, {TENSOR}",
    "per tensor, all of them": "open-clip, equalize, absorb-bias, round-adaptively{per-channel=no}, "
    "quantize-static{per-channel=no, correct-bias=true}",
    "per channel": CHANNEL,
    "per channel, equalize": f"equalize, {CHANNEL}",
    "per channel, smooth 0.5": f"smooth{{alpha=0.5}}, {CHANNEL}",
    "per channel, smooth": f"smooth, {CHANNEL}",
    "per channel, correct": CORRECTED,
    "per channel, round": f"round-adaptively, {CHANNEL}",
    "per channel, smooth, correct": f"smooth, {CORRECTED}",
    "per channel, smooth, round": f"smooth, round-adaptively, {CHANNEL}",
    "per channel, smooth, round, correct": f"smooth, round-adaptively, {CORRECTED}",
    "per channel, open clips, smooth": f"open-clip, smooth, {CHANNEL}",
    "dynamic": "quantize-dynamic",
    "dynamic, smooth": "smooth, quantize-dynamic",
}


def settings(model: str, folder: str | None, cache: Path) -> Settings:
    data = DataRequest()
    if folder is not None:
        judged = next(p for n in ("eval_inputs.npz", "eval.npz") if (p := Path(folder) / n).is_file())
        data = DataRequest(calibrate=str(Path(folder) / "calib.npz"), select=str(judged), confirm=str(judged))
    return Settings(SourceRequest(model), data, cache_dir=cache)


def builders(bench: Bench, halves: int) -> list[Builder]:
    """The bench's own builder, or one for each random half of the calibration data."""
    whole = bench.builder.world.samples
    if not halves or whole is None:
        return [bench.builder]
    found = []
    for seed in range(halves):
        order = np.random.default_rng(seed).permutation(len(whole))
        half = whole.take(np.sort(order[: len(whole) // 2]))  # type: ignore[attr-defined]
        found.append(dataclasses.replace(bench.builder, world=dataclasses.replace(bench.builder.world, samples=half)))
    return found


def measure(bench: Bench, candidates: list[Candidate], speed: bool) -> list[str]:
    """Quality, its drop, the outputs' signal-to-error ratio and (``speed``) the speed-up over fp32."""
    assert bench.splits is not None
    scales = bench.scales()
    outputs = dataclasses.replace(
        scales, metric=choose("sqnr", bench.source.model.signature.outputs, bench.splits.confirm)
    )
    models = [candidate_weight(c) for c in candidates]
    readings = [scales.quality(m, bench.splits.confirm) for m in models]
    ratios = [outputs.quality(m, bench.splits.confirm).candidate.value for m in models]
    drops = np.array([r.drop.interval.value for r in readings])
    cells = [
        f"{np.mean([r.candidate.value for r in readings]):.4f}",
        f"{drops.mean():+.4f}" + (f" ± {drops.std():.4f}" if len(drops) > 1 else ""),
        f"{np.mean(ratios):.2f}",
    ]
    if speed:
        cells.append(f"{scales.speed(models[0], quick(2.0)).speedup.value:.2f}x")
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="sample:depthwise-cnn")
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--halves", type=int, default=0)
    parser.add_argument("--only", default="")
    chosen = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as cache,
        open_bench(settings(chosen.model, chosen.folder, Path(cache)), Silent()) as bench,
    ):
        table(bench, chosen)


def table(bench: Bench, chosen: argparse.Namespace) -> None:
    assert bench.metric is not None and bench.splits is not None
    print(f"{chosen.model}, {len(bench.splits.calibrate)} calibration and {len(bench.splits.confirm)} judged samples\n")
    heads = ["recipe", bench.metric.name, "drop", "sqnr, dB", *(["speed-up"] if chosen.speed else []), "passes", "took"]
    print("| " + " | ".join(heads) + " |\n|" + " --- |" * len(heads))
    every = builders(bench, chosen.halves)
    for label, text in RECIPES.items():
        if chosen.only not in label:
            continue
        start = time.perf_counter()
        candidates = [b.build(bench.source.model, LOSSLESS + Recipe.parse(text)) for b in every]
        took = time.perf_counter() - start
        notes = [n for n in candidates[0].notes if not any(n.name == s.name for s in LOSSLESS.steps)]
        told = ", ".join(f"{n.name} {n.changes}" + (" FAULT " + n.fault if n.fault else "") for n in notes)
        cells = [label, *measure(bench, candidates, chosen.speed), told, f"{took / len(every):.1f} s"]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
