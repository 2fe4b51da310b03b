"""What calibrating and quantizing costs: Lathe's ``quantize-static`` through its API against onnxruntime's.

    .venv/bin/python benchmarks/calibration.py             # a ResNet-50 shape with random weights, 224 x 224
    .venv/bin/python benchmarks/calibration.py 3           # medians of three rounds

Every run is a fresh process, and the two sides take turns. CPU seconds hold user and system time of the process and of
its workers, imports included. Memory is the peak of the sum over all processes, sampled: resident (pages that
processes share count in each of them) and proportional (they count once).
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SAMPLES = 512
LOOK_EVERY_SECONDS = 0.04
THEIRS = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}

RUNS = (
    ("onnxruntime", "minmax", 128),
    ("lathe", "minmax", 128),
    ("onnxruntime", "minmax", 64),
    ("onnxruntime", "percentile", 64),
    ("lathe", "percentile", 64),
    ("onnxruntime", "entropy", 64),
    ("lathe", "entropy", 64),
    ("lathe", "moving-average", 64),
    ("lathe", "mse", 64),
    ("lathe", "auto", 64),
    ("lathe", "minmax", 16),
    ("lathe", "minmax", 512),
    ("lathe", "percentile", 16),
    ("lathe", "percentile", 512),
)


@dataclass(frozen=True)
class Cost:
    """CPU seconds, and the peaks of resident and proportional memory in MB."""

    cpu: float
    resident: float
    proportional: float


def prepare(folder: Path) -> None:
    """The export and the samples, made in a process of their own."""
    import torch

    sys.path.insert(0, str(Path(__file__).parent))
    from networks import resnet50

    network, batch = resnet50(), torch.export.Dim("n")
    torch.onnx.export(
        network, (torch.randn(2, 3, 224, 224),), str(folder / "model.onnx"), dynamo=True, external_data=False,
        dynamic_shapes=({0: batch},), input_names=["input"], output_names=["output"],
    )  # fmt: skip
    rng = np.random.default_rng(0)
    shape = (SAMPLES, 3, 224, 224)
    stored = np.lib.format.open_memmap(folder / "input.npy", mode="w+", dtype=np.float32, shape=shape)
    for i in range(SAMPLES):
        stored[i] = rng.normal(size=shape[1:])


def lathe(folder: Path, observer: str, count: int) -> None:
    """Calibrate and quantize through the API; the result is written to a file."""
    import onnx
    import onnxruntime

    from optimizer.data.checks import from_arrays
    from optimizer.package.artifact import write_model_file
    from optimizer.runtime.answers import World
    from optimizer.runtime.hardware import load_target
    from optimizer.runtime.sessions import Site
    from optimizer.store.store import Store, key_of
    from passes.kit.model import Model
    from passes.quantize.quantize_static import QuantizeStatic

    model = Model.from_proto(onnx.load(folder / "model.onnx"))
    stored = np.load(folder / "input.npy", mmap_mode="r")
    samples = from_arrays({"input": stored}, model.signature.inputs).take(np.arange(count))
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        site = Site("CPUExecutionProvider", 1, onnxruntime.__version__)
        world = World(load_target("x86-vnni"), 0, site, Store(Path(scratch)), key_of, samples)
        result = QuantizeStatic(observer=observer)(model, world)
        write_model_file(Path(scratch) / "quantized.onnx", result.model)


def onnxruntime_(folder: Path, observer: str, count: int) -> None:
    """The same with onnxruntime's ``quantize_static``, in the form that is fast on this kind of CPU."""
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static

    stored = np.load(folder / "input.npy", mmap_mode="r")

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rows = iter(range(count))

        def get_next(self) -> Any:
            row = next(self.rows, None)
            return None if row is None else {"input": np.array(stored[row : row + 1])}

    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        quantize_static(
            folder / "model.onnx", Path(scratch) / "quantized.onnx", Reader(), per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            calibrate_method=getattr(CalibrationMethod, THEIRS[observer]),
        )  # fmt: skip


def measure(*arguments: str) -> Cost:
    """Run this file again with ``arguments`` and watch what it costs."""
    before = os.times()
    process = subprocess.Popen([sys.executable, __file__, "--run", *arguments], stdout=subprocess.DEVNULL)
    resident = proportional = 0
    while process.poll() is None:
        now = [_memory(pid) for pid in _family(process.pid)]
        resident, proportional = max(resident, sum(r for r, _ in now)), max(proportional, sum(p for _, p in now))
        time.sleep(LOOK_EVERY_SECONDS)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with {process.returncode}")
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return Cost(spent, resident / 1e3, proportional / 1e3)


def _family(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return [pid]
    return [pid, *(one for child in children for one in _family(int(child)))]


def _memory(pid: int) -> tuple[int, int]:
    """Resident and proportional memory of a process in KB (zero when it has gone)."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0, 0
    found = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:]}
    return found.get("Rss", 0), found.get("Pss", 0)


def main(rounds: int) -> None:
    costs: dict[tuple[str, str, int], list[Cost]] = {run: [] for run in RUNS}
    with tempfile.TemporaryDirectory() as folder:
        measure("prepare", folder)
        for _ in range(rounds):
            for run in RUNS:
                costs[run].append(measure(run[0], folder, run[1], str(run[2])))
    middle = {run: _middle(found) for run, found in costs.items()}
    print("| tool | observer | samples | CPU s | peak MB, resident | peak MB, proportional | CPU, of onnxruntime's |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for (tool, observer, count), cost in middle.items():
        theirs = middle.get(("onnxruntime", observer, count)) if tool == "lathe" else None
        ratio = f"{cost.cpu / theirs.cpu:.2f}x" if theirs else ""
        numbers = f"{cost.cpu:.1f} | {cost.resident:,.0f} | {cost.proportional:,.0f}"
        print(f"| {tool} | {observer} | {count} | {numbers} | {ratio} |")
    _summary(middle)


def _middle(costs: list[Cost]) -> Cost:
    return Cost(*(statistics.median(getattr(c, n) for c in costs) for n in ("cpu", "resident", "proportional")))


def _summary(middle: dict[tuple[str, str, int], Cost]) -> None:
    ours = [cost for (tool, _, count), cost in middle.items() if tool == "lathe" and count in (64, 128)]
    for word in ("resident", "proportional"):
        theirs = getattr(middle["onnxruntime", "minmax", 64], word)
        most = max(getattr(cost, word) for cost in ours)
        print(f"\nLargest {word} peak of any observer over onnxruntime's min/max at 64: {most / theirs:.2f}x", end="")
        for observer in ("minmax", "percentile"):
            few, many = (getattr(middle["lathe", observer, n], word) for n in (16, 512))
            print(f"; {observer}, 512 samples over 16: {many / few:.2f}x", end="")
    print()


if __name__ == "__main__":
    if sys.argv[1:2] != ["--run"]:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    elif sys.argv[2] == "prepare":
        prepare(Path(sys.argv[3]))
    else:
        act = {"lathe": lathe, "onnxruntime": onnxruntime_}[sys.argv[2]]
        act(Path(sys.argv[3]), sys.argv[4], int(sys.argv[5]))
