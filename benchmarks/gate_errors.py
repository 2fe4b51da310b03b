"""How often `lathe gate` is wrong about latency on a busy machine: the same model again, and one that is slower.

    .venv/bin/python benchmarks/gate_errors.py                     # 200 gates A/A, 100 at +5 %, 100 at +10 %
    .venv/bin/python benchmarks/gate_errors.py --same 10 --slower 5

The baseline is a chain of 40 equal convolutions, the slower ones have two or four more of them: 5 % and 10 % more of
the same work, nothing simulated. Meanwhile a process of ours keeps one core busy. Every gate is a whole `lathe gate`
(opening, timing, ruling) with a policy of latency alone at the margin that a fresh policy has.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections import Counter
from datetime import date
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper as h

from optimizer import api
from optimizer.decide.policy import Policy
from optimizer.gating import MARGIN, SECONDS
from optimizer.plan import Settings, SourceRequest
from optimizer.runtime import hardware

LAYERS = 40
CHANNELS, EDGE = 24, 16
LIMIT_SECONDS = 20.0


def chain(folder: Path, layers: int) -> Path:
    """``layers`` convolutions of 3x3 with a Relu each: about 2 ms on one core for 40 of them."""
    rng, nodes, tensors, last = np.random.default_rng(0), [], [], "x"
    for i in range(layers):
        weights = (rng.normal(size=(CHANNELS, CHANNELS, 3, 3)) * np.sqrt(2 / 9 / CHANNELS)).astype(np.float32)
        tensors.append(onnx.numpy_helper.from_array(weights, f"w{i}"))
        nodes.append(h.make_node("Conv", [last, f"w{i}"], [f"c{i}"], f"conv{i}", kernel_shape=[3, 3], pads=[1] * 4))
        last = "y" if i == layers - 1 else f"r{i}"
        nodes.append(h.make_node("Relu", [f"c{i}"], [last], f"relu{i}"))
    ports = [[h.make_tensor_value_info(n, T.FLOAT, [1, CHANNELS, EDGE, EDGE])] for n in ("x", "y")]
    model = h.make_model(h.make_graph(nodes, "chain", *ports, tensors), opset_imports=[h.make_opsetid("", 17)])
    model.ir_version = 8
    path = folder / f"chain{layers}.onnx"
    onnx.save(model, path)
    return path


def burn(core: int) -> None:
    """Keep one core busy with work that also uses its caches."""
    os.environ["OMP_NUM_THREADS"] = "1"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    block = np.random.default_rng(0).normal(size=1 << 18)
    while True:
        block = np.sort(block)[::-1] * 1.0001


def gates(candidate: Path, baseline: Path, count: int, seconds: float, cache: Path) -> tuple[Counter[str], list[float]]:
    """Verdicts of ``count`` gates, and how long each took."""
    verdicts, took = Counter[str](), []
    policy = Policy.from_toml({"latency": {"max_ratio": MARGIN}})
    for _ in range(count):
        start = time.monotonic()
        settings = Settings(SourceRequest(str(candidate)), cache_dir=cache)
        record = api.gate(candidate, policy, baseline=baseline, seconds=seconds, settings=settings).record
        took.append(time.monotonic() - start)
        verdicts[record.ruling.value] += 1
    return verdicts, took


def row(slower: int, found: Counter[str], took: list[float], wanted: str) -> str:
    count = sum(found.values())
    cells = (f"+{slower} %", count, found["pass"], found["fail"], found["undecided"])
    return "| " + " | ".join(map(str, cells)) + f" | {np.median(took):.1f} s | {max(took):.1f} s | {wanted} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--same", type=int, default=200, help="gates of a model against itself")
    parser.add_argument("--slower", type=int, default=100, help="gates at each slowdown")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="seconds of timing of one gate, at most")
    parser.add_argument("--idle", action="store_true", help="without the load on one core")
    chosen = parser.parse_args()
    core = min(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    load = multiprocessing.get_context("spawn").Process(target=burn, args=(core,), daemon=True)
    if not chosen.idle:
        load.start()
    print("| slower by | gates | pass | fail | undecided | median | longest | wanted |\n|" + " --- |" * 8, flush=True)
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        baseline = chain(folder, LAYERS)
        plans = [(0, chosen.same, "fail <= 1 %, undecided <= 10 %"), (5, chosen.slower, "fail >= 95 %"),
                 (10, chosen.slower, "fail >= 99 %")]  # fmt: skip
        for percent, count, wanted in plans:
            candidate = chain(folder, LAYERS + LAYERS * percent // 100)
            found, took = gates(candidate, baseline, count, chosen.seconds, folder / "cache")
            print(row(percent, found, took, wanted), flush=True)
    machine = hardware.host()
    load_text = "no load" if chosen.idle else "one core kept busy"
    print(f"\n{date.today()}, {machine.cpu}, {machine.cores} cores, {load_text}; margin {MARGIN}x, longest wanted "
          f"{LIMIT_SECONDS:.0f} s.")  # fmt: skip


if __name__ == "__main__":
    main()
