"""Timing in turns: models that differ are told apart, equal ones are not, and raw samples are kept."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimizer.faults import Fault
from optimizer.measure import latency
from optimizer.measure.latency import Effort, Timing, Visit, compare, speedup
from optimizer.records import Interval
from optimizer.runtime import jobs
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


def visit(ms: float, count: int = 6) -> Visit:
    return Visit(tuple(np.full(5, ms) for _ in range(count)), 1.0, 2.0, 3_000_000, (ms * 1.5,) * count)


def looking(monkeypatch: pytest.MonkeyPatch, spread: float, effort: Effort) -> list[Timing]:
    """Compare two models on a machine whose restarts differ by ``spread``."""
    rng = np.random.default_rng(0)

    def endless(*_: Any) -> Iterator[list[Visit]]:
        while True:
            yield [visit(1.0), visit(2.0 * float(rng.lognormal(0, spread)))]

    monkeypatch.setattr(latency, "visits", endless)
    return compare([Path("a"), Path("b")], [{}, {}], SITE, effort)


def test_it_stops_when_the_ratio_is_known_well_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    effort = latency.benchmark(3.0, 0.01)
    assert len(looking(monkeypatch, 0.001, effort)[0].blocks) == 5
    assert len(looking(monkeypatch, 0.05, effort)[0].blocks) == 10, "no better than five percent: all restarts"
    assert len(looking(monkeypatch, 0.05, replace(effort, enough=0.2))[0].blocks) == 5
    assert len(looking(monkeypatch, 0.05, replace(effort, seconds=0.0))[0].blocks) == 3, "the time is up"


def test_memory_and_the_other_clock_come_from_all_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = looking(monkeypatch, 0.01, Effort(4, 1.0))
    assert first.memory == Interval(3_000_000, 3_000_000, 3_000_000) and first.load_ms == 1.0
    assert first.latency().p90_interval is None, "a search has no time for them"
    found = first.latency(tails=True)
    assert found.other_ms == 1.5 and found.p90 == 1.0 and found.p90_interval == Interval(1.0, 1.0, 1.0)
    assert found.p99 is None and found.p99_interval is None


def test_one_lane_on_the_wall_clock_puts_all_on_it() -> None:
    assert latency.clock_of([SITE, SITE]) == "cpu"
    assert latency.clock_of([SITE, Site("CUDAExecutionProvider", 1, "")]) == "wall"
    assert Site("OpenVINORuntime", 1, "").clock == "cpu"
    assert Site("OpenVINORuntime:device=GPU", 1, "").clock == "wall"


def warmed(monkeypatch: pytest.MonkeyPatch, runs_ms: Sequence[float], patience: float) -> tuple[float, int, bool]:
    """Warm up for 5 ms on a clock that each run puts forward."""
    now, left = [0.0], iter(runs_ms)

    def run() -> None:
        now[0] += next(left) / 1e3

    monkeypatch.setattr(jobs.time, "perf_counter", lambda: now[0])
    return jobs._warm_up(run, 5.0, patience)


def test_a_model_warms_up_until_it_is_stable(monkeypatch: pytest.MonkeyPatch) -> None:
    settling = [*np.linspace(4.0, 1.0, 20), *[1.0] * 100]
    pace, runs, stable = warmed(monkeypatch, settling, 20.0)
    assert stable and 25 <= runs <= 40 and pace == pytest.approx(1.0)
    assert warmed(monkeypatch, settling, 1.0)[1] < 5, "without patience the time given is all there is"
    _, runs, stable = warmed(monkeypatch, np.linspace(1.0, 40.0, 200).tolist(), 4.0)
    assert runs < 15 and not stable, "one that never settles has four times as long"
