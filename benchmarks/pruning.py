"""What pruning gives and what refit and distillation win back, beside the source and beside int8.

    python benchmarks/pruning.py [MODEL [DATA_FOLDER]] [--prune TEXT] [--distill STEPS] [--int8 [TEXT]] [--seeds N]
                                 [--peer SHARE]
    python benchmarks/pruning.py sample:transformer --prune 'prune-channels{keep=["*=75%"]}'   # MLP width

MODEL is ``sample:NAME`` or an ``.onnx`` file (default: ``sample:residual-cnn``). DATA_FOLDER holds ``calib.npz`` and
``eval_inputs.npz`` (or ``eval.npz``); samples bring their own data. Drops are on the confirm samples, in the metric's
unit and as a share of the source's quality; speeds are of pairs measured in turns, each beside the model named in its
column. ``--int8`` puts static int8 (or another recipe) on top and, with ``--distill``, trains its integers; ``--peer``
prunes that share of channels with onnxsim's structured pruning.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from optimizer.measure.latency import compare, quick, speedup
from optimizer.measure.scales import Scales, Weighed
from optimizer.plan import DataRequest, Settings, SourceRequest
from optimizer.progress import Silent
from optimizer.recover.distill import FITTED_RATE, Lesson, Room, distill
from optimizer.workshop import Bench, open_bench
from passes.catalogue import LOSSLESS
from passes.kit.model import Model
from passes.kit.recipe import Recipe

INT8 = "quantize-static"
SECONDS = 2.0


@dataclass(frozen=True)
class Row:
    """One model of one seed: its drop, and how many times faster than another it is."""

    name: str
    drop: float
    share: float
    speed: float
    beside: str

    def text(self) -> str:
        return f"  {self.name:<28} drop {self.drop:+.4f} ({self.share:+.2%})   {self.speed:.2f}x of {self.beside}"


@dataclass
class Bout:
    """The models of one seed on the scales."""

    bench: Bench
    scales: Scales
    rows: list[Row]

    def weighed(self, model: Model) -> Weighed:
        return Weighed(self.bench.store.put_model(model), model.digest(), model.file_bytes())

    def drop(self, model: Model) -> tuple[float, float]:
        """The drop, and as a share of the source's quality."""
        assert self.bench.splits is not None
        found = self.scales.quality(self.weighed(model), self.bench.splits.confirm)
        return found.drop.value, found.drop.value / abs(found.baseline.value)

    def add(self, name: str, model: Model, other: Model, beside: str) -> float:
        """Weigh ``model`` and time it in turns with ``other``."""
        paths = [self.bench.store.put_model(m) for m in (other, model)]
        base, mine = compare(paths, [self.bench.feed] * 2, self.bench.site, quick(3 * SECONDS))
        row = Row(name, *self.drop(model), speedup(base, mine, 0).value, beside)
        self.rows.append(row)
        print(row.text(), flush=True)
        return row.drop


def room(bout: Bout) -> Room:
    bench = bout.bench
    splits = bench.splits
    assert splits is not None

    def score(model: Model) -> float:
        return -bout.scales.quality(bout.weighed(model), splits.select).drop.value

    classes = bench.metric is not None and bench.metric.name.startswith("top")
    return Room(bench.site, bench.store, splits.calibrate, score, lambda *_: None, lambda: False, classes)


def fight(bout: Bout, prune: Recipe, steps: int, int8: Recipe, peer: float) -> None:
    """Every model of one seed."""
    bench = bout.bench
    source = bench.source.model
    build = bench.builder.build

    def made(recipe: Recipe, start: Model = source) -> Model:
        found = build(start, recipe)
        for note in found.notes:
            for skip in note.skips if note.name.startswith(("prune", "refit")) else ():
                if "goal" in skip or "needed" in skip:
                    print(f"  {note.name}: {skip}")
        return found.model

    plain, narrow = made(LOSSLESS), made(LOSSLESS + prune)
    fitted = made(LOSSLESS + prune + Recipe.parse("refit"))
    lost = bout.add("pruned", narrow, plain, "fp32")
    after = bout.add("pruned, refit", fitted, plain, "fp32")
    won = {"refit": after}
    best = fitted
    lesson = Lesson(steps, seed=bench.settings.seed)
    if steps:
        found = distill(fitted, source, replace(lesson, rate=FITTED_RATE), room(bout))
        print(f"  distilled: {found.note}")
        best = found.model
        won["refit and distillation"] = bout.add("pruned, refit, distilled", best, plain, "fp32")
    for name, drop in won.items():
        print(f"  {name} wins back {1 - drop / lost:.0%} of what was lost" if lost > 0 else "  nothing was lost")
    if int8.steps:
        integers, both = made(LOSSLESS + int8), made(int8, best)
        bout.add("int8", integers, plain, "fp32")
        bout.add("pruned, refit, int8", both, integers, "int8")
        for name, model in (("int8", integers), ("pruned, refit, int8", both)) if steps else ():
            found = distill(model, source, lesson, room(bout))
            print(f"  trained as integers: {found.note}")
            bout.add(f"{name}, trained", found.model, integers, "int8")
    if peer:
        bout.add("onnxsim structured", by_onnxsim(plain, peer), plain, "fp32")


def by_onnxsim(model: Model, share: float) -> Model:
    """The same share of channels by onnxsim's structured pruning: weights alone, any width."""
    from onnxsim.pruning import apply_structured_pruning

    proto: onnx.ModelProto = apply_structured_pruning(model.to_proto(), sparsity=share)
    return Model.from_proto(proto)


def settings(model: str, folder: str | None, cache: Path, seed: int) -> Settings:
    data = DataRequest()
    if folder is not None:
        judged = next(p for n in ("eval_inputs.npz", "eval.npz") if (p := Path(folder) / n).is_file())
        data = DataRequest(calibrate=str(Path(folder) / "calib.npz"), select=str(judged))
    return Settings(SourceRequest(model), data, cache_dir=cache, seed=seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="sample:residual-cnn")
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--prune", default="prune-channels{ratio=0.5}")
    parser.add_argument("--distill", type=int, default=0, metavar="STEPS")
    parser.add_argument("--int8", nargs="?", const=INT8, default="", metavar="TEXT", help=f"default: {INT8}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--peer", type=float, default=0.0, metavar="SHARE", help="share of channels for onnxsim")
    asked = parser.parse_args()
    rows: list[Row] = []
    for seed in range(asked.seeds):
        print(f"seed {seed}", flush=True)
        with (
            tempfile.TemporaryDirectory() as cache,
            open_bench(settings(asked.model, asked.folder, Path(cache), seed), Silent()) as bench,
        ):
            bout = Bout(bench, bench.scales(), [])
            fight(bout, Recipe.parse(asked.prune), asked.distill, Recipe.parse(asked.int8), asked.peer)
            rows += bout.rows
    print(f"mean of {asked.seeds} seeds")
    for name in dict.fromkeys(r.name for r in rows):
        found = [r for r in rows if r.name == name]
        drop, share, speed = (float(np.mean([getattr(r, k) for r in found])) for k in ("drop", "share", "speed"))
        print(Row(name, drop, share, speed, found[0].beside).text())


if __name__ == "__main__":
    main()
