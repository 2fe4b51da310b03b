"""How often `lathe gate` is wrong about latency on a busy machine: the same model again, and one that is slower.

    .venv/bin/python benchmarks/gate_errors.py --log gates.jsonl               # 200 A/A, 100 at +5 %, 100 at +10 %
    .venv/bin/python benchmarks/gate_errors.py --log gates.jsonl --minutes 20  # a slice of them; again goes on
    .venv/bin/python benchmarks/gate_errors.py --log gates.jsonl --minutes 0   # only the table of what is there

The baseline is a chain of 40 equal convolutions, the slower ones have two or four more of them: 5 % and 10 % more of
the same work, nothing simulated. Meanwhile a process of ours keeps one core busy. Every gate is a whole `lathe gate`
(opening, timing, ruling) with a policy of latency alone at the margin that a fresh policy has. Each gate is one line of
the log, with the machine, the code and the settings that it was made with: lines of others are refused, and logs of
the same may be joined with `cat`. The three kinds take turns, so that a slice has all of them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

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


def terms(seconds: float, idle: bool) -> dict[str, Any]:
    """What all lines of a log must have in common: machine, code, settings."""
    root, code = Path(__file__).parents[1], hashlib.sha256()
    for file in sorted([Path(__file__), *root.glob("optimizer/**/*.py"), *root.glob("passes/**/*.py")]):
        code.update(file.read_bytes())
    machine = hardware.host()
    return {"cpu": machine.cpu, "cores": machine.cores, "code": code.hexdigest()[:16], "seconds": seconds,
            "load": "none" if idle else "one core kept busy", "margin": MARGIN}  # fmt: skip


def read(log: Path | None, wanted: dict[str, Any]) -> list[dict[str, Any]]:
    """The gates of a log. Ends with a sentence when one was made under other terms."""
    if log is None or not log.is_file():
        return []
    found: list[dict[str, Any]] = [json.loads(line) for line in log.read_text("utf-8").splitlines() if line.strip()]
    for number, gate in enumerate(found, 1):
        other = [k for k, v in wanted.items() if gate["terms"].get(k) != v]
        if other:
            raise SystemExit(f"{log}:{number} was measured with another {', '.join(other)}: name a new --log")
    return found


def gate(candidate: Path, baseline: Path, seconds: float, cache: Path) -> dict[str, Any]:
    """One gate: its ruling, the ratio that it saw over how many restarts, and seconds in all and of timing."""
    policy = Policy.from_toml({"latency": {"max_ratio": MARGIN}})
    settings = Settings(SourceRequest(str(candidate)), cache_dir=cache)
    start = time.monotonic()
    record = api.gate(candidate, policy, baseline=baseline, seconds=seconds, settings=settings).record
    (rule,) = record.rules
    return {"ruling": rule.ruling.value, "found": rule.found, "took": round(time.monotonic() - start, 2)}


def due(found: Sequence[dict[str, Any]], plans: dict[int, int]) -> int | None:
    """The slowdown whose gates are furthest behind their plan; ``None`` when all are done."""
    done = Counter(g["slower"] for g in found)
    left = {slower: done[slower] / count for slower, count in plans.items() if done[slower] < count}
    return min(left, key=lambda slower: (left[slower], slower)) if left else None


WANTED = {0: "fail <= 1 %, undecided <= 10 %", 5: "fail >= 95 %", 10: "fail >= 99 %"}


def table(found: Sequence[dict[str, Any]]) -> list[str]:
    """What the gates of a log say."""
    lines = ["| slower by | gates | pass | fail | undecided | median | longest | wanted |", "|" + " --- |" * 8]
    for slower, wanted in WANTED.items():
        mine = [g for g in found if g["slower"] == slower]
        if mine:
            count, took = Counter(g["ruling"] for g in mine), [g["took"] for g in mine]
            cells = (f"+{slower} %", len(mine), count["pass"], count["fail"], count["undecided"],
                     f"{np.median(took):.1f} s", f"{max(took):.1f} s", wanted)  # fmt: skip
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--same", type=int, default=200, help="gates of a model against itself")
    parser.add_argument("--slower", type=int, default=100, help="gates at each slowdown")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="seconds of timing of one gate, at most")
    parser.add_argument("--idle", action="store_true", help="without the load on one core")
    parser.add_argument("--log", type=Path, help="where gates are written, one a line; those that are there count")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no gate after so many")
    chosen = parser.parse_args()
    agreed = terms(chosen.seconds, chosen.idle)
    found, start = read(chosen.log, agreed), time.monotonic()
    core = min(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    load = multiprocessing.get_context("spawn").Process(target=burn, args=(core,), daemon=True)
    plans = {0: chosen.same, 5: chosen.slower, 10: chosen.slower}
    if not chosen.idle and chosen.minutes > 0:
        load.start()
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        models = {slower: chain(folder, LAYERS + LAYERS * slower // 100) for slower in plans}
        while time.monotonic() - start < chosen.minutes * 60 and (slower := due(found, plans)) is not None:
            made = gate(models[slower], models[0], chosen.seconds, folder / "cache")
            found.append({"slower": slower, **made, "terms": agreed})
            if chosen.log is not None:
                with chosen.log.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(found[-1]) + "\n")
    print("\n".join(table(found)))
    print(f"\n{date.today()}, {agreed['cpu']}, {agreed['cores']} cores, {agreed['load']}; margin {MARGIN}x, longest "
          f"wanted {LIMIT_SECONDS:.0f} s.")  # fmt: skip


if __name__ == "__main__":
    main()
