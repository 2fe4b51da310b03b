"""Profiles by operator, and the work that kernels do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from optimizer.measure.explain_graph import Kernel
from optimizer.measure.profile import anatomy, counted, midmean, profile_of
from optimizer.runtime.sessions import Site
from tests.kit.test_work import quantized


def test_the_interval_of_a_midmean_covers_it_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    draws = [midmean(np.round(rng.lognormal(1.0, 0.6, 60))) for _ in range(400)]
    truth = midmean(np.round(rng.lognormal(1.0, 0.6, 400_000))).value
    covered = sum(d.low <= truth <= d.high for d in draws) / len(draws)
    assert 0.92 <= covered <= 0.99


def test_a_midmean_sees_less_than_a_tick_and_no_outliers() -> None:
    ticks = np.array([0.0, 1.0] * 20)
    assert midmean(ticks).value == 0.5
    assert midmean(np.append(ticks, 1e6)).value < 0.6
    assert midmean(np.array([3.0])).low == 0.0 and midmean(np.array([3.0])).value == 3.0


def found(**taken: list[float]) -> dict[str, Any]:
    ops = {name: name.partition("_")[0] for name in taken}
    whole = np.sum(list(taken.values()), axis=0) + 1.0
    return {"nodes": [], "ops": ops, "taken": {k: np.array(v) for k, v in taken.items()}, "whole": whole}


def test_a_profile_sums_nodes_by_operator_and_run() -> None:
    made = profile_of(found(Conv_1=[1.0, 3.0], Conv_2=[2.0, 0.0], Relu_1=[0.5, 0.5]))
    assert [(o.op, o.nodes, o.ms.value) for o in made.ops] == [("Conv", 2, 3.0), ("Relu", 1, 0.5)]
    assert made.ops[0].ms.low == made.ops[0].ms.high == 3.0, "both runs took three together"
    assert [(n.node, n.ms.value) for n in made.nodes] == [("Conv_1", 2.0), ("Conv_2", 1.0), ("Relu_1", 0.5)]
    assert (made.runs, made.whole.value, made.rest.value) == (2, 3.5, 1.0)


def test_a_run_without_kernels_is_all_rest() -> None:
    made = profile_of({"nodes": [], "ops": {}, "taken": {}, "whole": np.array([1.0, 1.0])})
    assert made.ops == () and made.whole.value == 0 and made.rest.value == 1.0


def test_work_counts_as_its_kernel_runs_it() -> None:
    model, feed = quantized(), {"x": np.ones((2, 8), np.float32)}
    believed = counted(model, feed)
    assert (believed.float_macs, believed.int8_macs, believed.layers) == (0, 64, ())
    fused = counted(model, feed, [Kernel("h_quant", "QLinearMatMul", (), ("p",), 0.5)])
    assert (fused.float_macs, fused.int8_macs) == (0, 64)
    assert [(y.layer, y.macs, y.ms, y.integer) for y in fused.layers] == [("h", 64, 0.5, True)]
    apart = counted(model, feed, [Kernel("h", "MatMul", (), ("h",), 0.5)])
    assert (apart.float_macs, apart.int8_macs) == (64, 0)


def test_a_gpu_has_no_profile_that_tells_anything() -> None:
    site = Site("CUDAExecutionProvider:device_id=1", 1, "")
    assert anatomy(Path("nowhere.onnx"), quantized(), {}, site) is None
