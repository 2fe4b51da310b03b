"""Timing in turns: models that differ are told apart, equal ones are not, and raw samples are kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from optimizer.faults import Fault
from optimizer.measure.latency import Effort, compare, speedup
from optimizer.runtime.sessions import Site
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
