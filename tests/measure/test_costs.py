"""What inferences cost: sums worked out by hand, and a counter that is known to be right."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from optimizer.measure import costs
from optimizer.records import Latency
from optimizer.runtime.sessions import Site
from tests.support import runtime

LATENCY = Latency(2.0, 1.8, 2.4, "cpu", 100)


def test_a_million_inferences_cost_so_many_hours() -> None:
    found = costs.per_million(0.36, LATENCY, 1)  # 2000 s
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.18, 0.24))
    assert costs.per_million(0.36, LATENCY, 8).value == pytest.approx(0.2 / 8)


def test_an_estimate_says_that_it_is_one() -> None:
    found = costs.estimated(50.0, LATENCY, 4)
    assert found.joules.value == pytest.approx(0.025) and not found.measured and "estimate from 50 W" in found.says


class Clock:
    """A machine that draws 20 W whatever it does."""

    says = "a clock"

    def read(self) -> list[float]:
        return [20.0 * time.perf_counter()]

    def spans(self) -> list[float]:
        return [float("inf")]


def test_energy_is_counted_over_runs_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "BLOCK_SECONDS", 0.05)
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[256, 256] x) => (float[256, 256] y) { y = MatMul (x, w) }'
    path = tmp_path / "m.onnx"
    path.write_bytes(runtime.model(text, w=np.eye(256, dtype=np.float32)).to_bytes())
    site = Site("CPUExecutionProvider", 1, "")
    feed = {"x": np.ones((256, 256), np.float32)}
    one, two = (costs.counted(path, feed, batch, site, Clock()) for batch in (1, 2))
    assert one.measured and one.says == "a clock"
    assert one.joules.low <= one.joules.value <= one.joules.high
    assert 1e-4 < one.joules.value < 1.0 and two.joules.value < one.joules.value * 2


def test_a_mean_has_students_interval() -> None:
    found = costs.mean_of(np.array([1.0, 2.0, 3.0]))
    assert found.value == 2.0 and found.high == pytest.approx(2 + 4.302653 / np.sqrt(3), rel=1e-5)
    assert costs.mean_of(np.array([1.0])).high == np.inf
