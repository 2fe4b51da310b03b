"""Timing in turns: models that differ are told apart, equal ones are not, and raw samples are kept."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimizer.faults import Fault
from optimizer.measure import latency
from optimizer.measure.latency import Effort, compare, speedup
from optimizer.runtime.sessions import Site
from optimizer.workers.pool import Worker
from tests.support import models

SITE = Site("CPUExecutionProvider", 1, "test")
EFFORT = Effort(3, 0.3)


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("nets")
    return models.cnn(folder / "narrow.onnx", width=8), models.cnn(folder / "wide.onnx", width=64)


def test_a_wider_net_is_slower_and_a_net_is_as_fast_as_itself(nets: tuple[Path, Path]) -> None:
    narrow, wide = nets
    feed = {"x": np.zeros((1, 3, 16, 16), np.float32)}
    slow, fast, again = compare([wide, narrow, narrow], [feed] * 3, SITE, EFFORT)
    assert speedup(slow, fast, 0).low > 1.5
    assert 0.5 < speedup(fast, again, 0).value < 2.0
    assert len(slow.blocks) == EFFORT.restarts and all(len(r) == len(slow.blocks[0]) > 1 or r for r in slow.blocks)
    found = slow.latency()
    assert found.low <= found.p50 <= found.high and found.clock == "cpu" and found.runs > 10
    assert slow.load_ms > 0 and slow.memory_bytes > 0


def test_wall_time_is_the_clock_of_several_threads() -> None:
    assert Site("CPUExecutionProvider", 2, "").clock == "wall"
    assert Site("CUDAExecutionProvider", 1, "").clock == "wall"


def test_a_model_that_cannot_run_is_a_fault(nets: tuple[Path, Path]) -> None:
    with pytest.raises(Fault, match="onnxruntime"):
        compare([nets[0]], [{"x": np.zeros((1, 4, 16, 16), np.float32)}], SITE, EFFORT)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system pins nothing")
def test_models_that_take_turns_on_the_cpu_clock_share_one_core(
    nets: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    feed, seen = {"x": np.zeros((1, 3, 16, 16), np.float32)}, []
    plain = latency._take_turns

    def watched(workers: Sequence[Worker], *rest: Any, **more: Any) -> Any:
        seen.append([os.sched_getaffinity(w.pid) for w in workers])
        return plain(workers, *rest, **more)

    monkeypatch.setattr(latency, "_take_turns", watched)
    compare(nets, [feed] * 2, SITE, Effort(2, 0.02))
    assert len(seen) == 2 and all(len(a) == 1 and a == b for a, b in seen)
    compare(nets, [feed] * 2, Site("CPUExecutionProvider", 2, "test"), Effort(1, 0.02))
    assert seen[-1][0] == os.sched_getaffinity(0), "several threads need several cores"
