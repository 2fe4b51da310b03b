"""The runtime's profile by node and run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimizer.runtime import inside
from tests.support import runtime

CPU = "CPUExecutionProvider"


def event(name: str, start: int, length: int, op: str) -> dict[str, Any]:
    return {"cat": "Node", "name": f"{name}_kernel_time", "ts": start, "dur": length, "args": {"op_name": op}}


def run(start: int, length: int) -> dict[str, Any]:
    return {"cat": "Session", "name": "model_run", "ts": start, "dur": length}


def test_times_are_each_nodes_own_in_each_run() -> None:
    events = [run(0, 100), run(200, 90)]
    for begin, loop in ((0, 60), (200, 50)):
        events += [
            event("loop", begin + 10, loop, "Loop"),
            event("body", begin + 20, 10, "Add"),
            event("body", begin + 40, 5, "Add"),
            event("after", begin + 10 + loop, 0, "Relu"),
            event("last", begin + 80, 7, "Gemm"),
        ]
    found = inside._times(events)
    assert list(found["whole"]) == [0.1, 0.09]
    assert {k: [round(1e3 * v) for v in ms] for k, ms in found["taken"].items()} == {
        "loop": [45, 35],
        "body": [15, 15],
        "after": [0, 0],
        "last": [7, 7],
    }
    assert found["ops"]["loop"] == "Loop"


def test_the_first_runs_are_left_out_of_longer_ones() -> None:
    events = [x for i in range(10) for x in (run(100 * i, 50), event("a", 100 * i, 90 if i < 3 else 10, "Relu"))]
    found = inside._times(events)
    assert len(found["whole"]) == 10 - inside.SETTLING_RUNS and set(found["taken"]["a"]) == {0.01}


@pytest.mark.parametrize("graph", [True, False])
def test_a_loop_is_not_counted_twice(tmp_path: Path, graph: bool) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (int64 n, float[64, 64] x) => (float[64, 64] y) {
        c = Constant <value = bool {1}> ()
        y = Loop (n, c, x) <body = b (int64 i, bool k, float[64, 64] a) => (bool k2, float[64, 64] r) {
            k2 = Identity (k)
            t = MatMul (a, w)
            r = Tanh (t)
        }>
    }"""
    path = tmp_path / "loop.onnx"
    path.write_bytes(runtime.model(text, w=np.eye(64, dtype=np.float32)).to_bytes())
    feed = {"n": np.array(50), "x": np.ones((64, 64), np.float32)}
    found = inside.look_inside(str(path), feed, CPU, 1, runs=8, graph=graph)
    assert bool(found["nodes"]) == graph and len(found["whole"]) == 8
    (loop,) = [name for name, op in found["ops"].items() if op == "Loop"]
    taken = {name: ms.sum() for name, ms in found["taken"].items()}
    assert 0 < taken[loop] < sum(taken.values())
    assert sum(taken.values()) <= found["whole"].sum(), "counted twice, the body would make it more"
