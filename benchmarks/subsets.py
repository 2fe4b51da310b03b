"""How far int8 depends on the calibration samples: one compile for each random half, judged on every sample.

    python benchmarks/subsets.py MODEL CALIB EVAL [--halves 3] [--batch 1 --batch 8] [--level 2]

MODEL is a file or ``sample:NAME``; CALIB an npz of its inputs, EVAL one with labels too. A third of EVAL chooses
among recipes and the rest confirms, as for every compile that is given one judged source; the table then scores what
shipped on all of it, and times it again beside the source. Speed: geometric mean over the halves, with the lowest and
highest end of their intervals; quality: mean drop, with each half's own.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import optimizer
from optimizer.measure.latency import Effort
from optimizer.measure.scales import QualityReading, SpeedReading, Weighed
from optimizer.plan import DataRequest, Settings, SourceRequest
from optimizer.progress import Silent
from optimizer.runtime import hardware
from optimizer.workshop import open_bench
from passes.kit.model import Model


@dataclass(frozen=True)
class Half:
    """What one half of the calibration samples led to."""

    recipe: str
    quality: QualityReading
    speed: SpeedReading


def halves(calib: Path, count: int, folder: Path) -> list[Path]:
    """``count`` random halves of the calibration samples as files."""
    arrays = dict(np.load(calib))
    total = len(next(iter(arrays.values())))
    found = []
    for seed in range(count):
        chosen = np.sort(np.random.default_rng(seed).permutation(total)[: total // 2])
        found.append(folder / f"half-{seed}.npz")
        np.savez(found[-1], **{name: array[chosen] for name, array in arrays.items()})
    return found


def weigh(given: argparse.Namespace, half: Path, batch: int, folder: Path) -> Half:
    """Compile with one half, then score what shipped on all of EVAL and time it beside the source."""
    import onnx

    source, cache = SourceRequest(given.model), folder / "cache"
    record = optimizer.compile(
        given.model, data_request=DataRequest(calibrate=str(half), confirm=given.eval), batch=batch, level=given.level,
        budget=given.budget, output=folder / f"{half.stem}-{batch}.lathe", cache_dir=cache, golden="none",
    )  # fmt: skip
    path = Path(str(record.artifact)) / "model.onnx"
    model = Model.from_proto(onnx.load(path))
    shipped = Weighed(path, model.digest(), path.stat().st_size)
    every = DataRequest(calibrate=str(half), select=given.eval, confirm=given.eval)
    with open_bench(Settings(source, every, batch=batch, cache_dir=cache), Silent()) as bench:
        assert bench.splits is not None
        scales = bench.scales()
        return Half(record.recipe, scales.quality(shipped, bench.splits.confirm), scales.speed(shipped, Effort(8, 8.0)))


def row(batch: int, found: list[Half]) -> str:
    speeds, drops = [h.speed.speedup for h in found], [h.quality.drop.value for h in found]
    mean = np.exp(np.mean([np.log(s.value) for s in speeds]))
    told = f"{mean:.2f}x [{min(s.low for s in speeds):.2f}, {max(s.high for s in speeds):.2f}]"
    each = ", ".join(f"{d:+.4f}" for d in drops)
    values = f"{found[0].quality.baseline.value:.4f} | {np.mean([h.quality.candidate.value for h in found]):.4f}"
    recipes = "; ".join(dict.fromkeys(h.recipe.rpartition("tidy, ")[2] for h in found))
    return f"| {batch} | {told} | {values} | {np.mean(drops):+.4f} ({each}) | {recipes} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "calib", "eval"):
        parser.add_argument(name)
    parser.add_argument("--halves", type=int, default=3)
    parser.add_argument("--batch", type=int, action="append")
    parser.add_argument("--level", type=int, default=2)
    parser.add_argument("--budget", action="append", default=[])
    given = parser.parse_args()
    print(f"{given.model} on {hardware.host().cpu}, one thread, {given.halves} halves of {given.calib}\n")
    print("| batch | speed-up over fp32 | fp32 | int8, mean | drop, mean (each) | recipes |\n|" + " --- |" * 6)
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        files = halves(Path(given.calib), given.halves, folder)
        for batch in given.batch or [1, 8]:
            print(row(batch, [weigh(given, half, batch, folder) for half in files]), flush=True)


if __name__ == "__main__":
    main()
