"""Benchmarks: who is measured where, what a fallback is called, noise, and sweeps that stop by themselves."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from optimizer.data.synthetic import synthetic
from optimizer.faults import Exit, Fault, usage
from optimizer.measure import scaling
from optimizer.measure.bench import Entrant, Lane, Place, idle, measure, open_lane, shares
from optimizer.measure.latency import Effort, Timing
from optimizer.records import Coverage, Interval, SweepPoint
from optimizer.runtime import sessions
from optimizer.runtime.sessions import Site
from passes.kit.model import Model, Port
from tests.support import fake_cuda, models
from tests.support.fake_cuda import CPU, CUDA, FakeCuda

HERE = Site(CPU, 1, "test")
GPU = Site(CUDA, 1, "test")
EFFORT = Effort(2, 0.05, 2, 2)


def ports(path: Path) -> tuple[Port, ...]:
    return Model.from_proto(onnx.load(path)).signature.inputs


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Entrant:
    path = models.cnn(tmp_path_factory.mktemp("nets") / "net.onnx", width=16)
    return Entrant("net.onnx", path, path.stat().st_size, synthetic(ports(path), 2, 0))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    fake_cuda.without_processes(monkeypatch)
    fake_cuda.install(monkeypatch, FakeCuda())
    yield monkeypatch
    gc.enable()  # a worker turns it off before it times


def quiet(text: str) -> None:
    """Tell nobody."""


def test_all_models_and_providers_stand_in_one_rotation_with_the_first_one_twice(
    net: Entrant, gpu: pytest.MonkeyPatch
) -> None:
    found = measure([net, replace(net, name="again")], [Place(CPU, 1, HERE), Place(CUDA, 1, GPU)], [1], EFFORT, quiet)
    assert [(r.model, r.provider) for r in found.rows] == [
        ("net.onnx", CPU), ("again", CPU), ("net.onnx", CUDA), ("again", CUDA),
    ]  # fmt: skip
    assert found.rows[0].speedup is None and all(r.speedup for r in found.rows[1:])
    assert {r.latency.clock for r in found.rows if r.latency} == {"wall"}, "a GPU is not timed by the CPU's clock"
    assert all(r.latency and r.latency.other_ms and r.first_ms and r.memory for r in found.rows)
    assert found.rows[2].coverage == (Coverage(CUDA, 7, 16 * 16 * 9 * (3 * 16 + 2 * 16 * 16) + 160),)
    (noise,) = found.noise
    assert noise.resolves >= 0 and noise.ratio.low <= noise.ratio.value <= noise.ratio.high
    assert any("enable_cuda_graph=1" in note for note in found.notes)


@pytest.mark.parametrize(
    ("fake", "said"),
    [
        (FakeCuda(starts=False), "did not start"),
        (FakeCuda(placed=lambda op: CPU), "ran none of the model's nodes: CPUExecutionProvider did"),
        (FakeCuda(placed=lambda op: CPU if op == "Conv" else CUDA), "ran 0.0% of the model's work"),
        (FakeCuda(broken="no kernel image"), "no kernel image"),
    ],
)
def test_a_gpu_that_runs_nothing_is_a_reason_or_by_leave_the_cpu(
    net: Entrant, gpu: pytest.MonkeyPatch, fake: FakeCuda, said: str
) -> None:
    fake_cuda.install(gpu, fake)
    (row,) = measure([net], [Place(CUDA, 1, GPU)], [1], EFFORT, quiet).rows
    assert row.provider == CUDA and row.latency is None and said in row.reason
    allowed = measure([net], [Place(CUDA, 1, GPU, fall_back=HERE)], [1], EFFORT, quiet)
    (row,) = allowed.rows
    assert row.provider == CPU and row.asked == CUDA and row.latency and not row.reason
    assert {c.provider for c in row.coverage} == {CPU}
    assert any("the CPU stands in for CUDAExecutionProvider" in note for note in allowed.notes)


def test_a_model_that_fails_is_a_row_and_the_next_one_is_the_measure(net: Entrant) -> None:
    wrong = replace(net, name="wrong", samples=synthetic(net.samples.ports, 1, 0, dims={"x:1": 4}))
    broken = Entrant("broken", Path("/nowhere.onnx"), 1, net.samples)
    rows = measure([broken, wrong, net], [Place(CPU, 1, HERE)], [1], EFFORT, quiet).rows
    assert [bool(r.reason) for r in rows] == [True, False, False]
    assert rows[1].speedup is None and rows[2].speedup is not None


def test_an_option_that_cannot_be_meant_is_a_usage_fault(net: Entrant, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: Any, **__: Any) -> Any:
        raise usage("openvino on CPU has no option 'DEVISE'")

    monkeypatch.setattr(sessions, "ask", ask)
    with pytest.raises(Fault, match="no option 'DEVISE'"):
        open_lane(net, Place(CPU, 1, HERE), 1)


def test_a_partial_share_is_told() -> None:
    split = (Coverage(CUDA, 12, 97), Coverage(CPU, 2, 3))
    assert shares(split, CUDA) == (12 / 14, 0.97) and not idle(split, CUDA)
    assert shares((Coverage(CUDA, 1, None),), CUDA) == (1.0, None) and not idle((Coverage(CUDA, 1, None),), CUDA)
    assert not idle((Coverage(CPU, 3, 0),), CPU)


# -- sweeps ------------------------------------------------------------------------------------------------------------
class Machine:
    """A double of the rotation: a run of batch b takes ``base + each * b`` milliseconds, give or take ``noise``."""

    def __init__(self, base: float, each: float, noise: float = 0.002, memory: float = 1e6) -> None:
        self.base, self.each, self.noise, self.memory = base, each, noise, memory
        self.rng, self.batches = np.random.default_rng(0), list[int]()

    def __call__(self, lanes: Sequence[Lane], effort: Effort) -> list[Timing]:
        self.batches += [lane.samples for lane in lanes]
        return [self._timing(lane.samples) for lane in lanes]

    def _timing(self, batch: int) -> Timing:
        ms = self.base + self.each * batch
        blocks = tuple(tuple(ms * self.rng.lognormal(0, self.noise, (6, 5))) for _ in range(3))
        return Timing(blocks, "cpu", 1.0, 1.0, int(self.memory * batch))


def swept(net: Entrant, machine: Machine, monkeypatch: pytest.MonkeyPatch, **given: Any) -> Any:
    def lane(entrant: Entrant, place: Place, batch: int, feed: Any = None) -> Lane:
        return Lane(entrant, place, {}, batch, HERE)

    monkeypatch.setattr(scaling, "open_lane", lane)
    monkeypatch.setattr(scaling, "take_turns", machine)
    return scaling.by_batch(net, Place(CPU, 1, HERE), EFFORT, **given)


def test_the_batch_is_doubled_until_throughput_stops_growing(net: Entrant, monkeypatch: pytest.MonkeyPatch) -> None:
    # Throughput b / (8 + b): from 128 to 256 it grows by 136/132 = 1.03, from 64 to 128 by 1.059.
    found = swept(net, Machine(8.0, 1.0), monkeypatch)
    assert [p.value for p in found.points] == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    assert found.suggested == 128 and found.why.startswith("from batch 128 to 256 throughput grows 1.03x [1.0")
    assert found.points[3].growth.value == pytest.approx(2 * 12 / 16, rel=0.01)


def test_one_uncertain_step_does_not_end_the_sweep(net: Entrant, monkeypatch: pytest.MonkeyPatch) -> None:
    found = swept(net, Machine(0.0, 1.0, noise=0.3), monkeypatch)
    assert len(found.points) >= 3 and found.suggested in (1, 2)


def test_a_sweep_ends_with_its_time_or_its_memory(net: Entrant, monkeypatch: pytest.MonkeyPatch) -> None:
    late = swept(net, Machine(1e3, 1.0), monkeypatch, seconds=1e-9)
    assert len(late.points) == 2 and "time for the sweep is up" in late.why and late.suggested == 2
    huge = swept(net, Machine(1e3, 1.0, memory=1e15), monkeypatch)
    assert len(huge.points) == 2 and "not expected to fit into memory" in huge.why


def test_a_fixed_batch_cannot_be_swept(net: Entrant, tmp_path: Path) -> None:
    fixed = replace(net, samples=replace(net.samples, batch=1))
    found = scaling.by_batch(fixed, Place(CPU, 1, HERE), EFFORT)
    assert "fixes its batch at 1" in found.why and found.suggested is None and found.points[0].reason == found.why


def test_the_best_batch_is_the_smallest_of_the_good_ones() -> None:
    def point(value: int, growth: float | None) -> SweepPoint:
        return SweepPoint(value, None, None, None if growth is None else Interval(growth, growth, growth))

    assert scaling.best_batch([point(1, None), point(2, 0.9), point(4, 1.4), point(8, 1.02)]) == 4
    assert scaling.best_batch([point(1, None), point(2, 1.04)]) == 1
    assert scaling.best_batch([]) is None


def test_lengths_follow_the_open_dimension(tmp_path: Path) -> None:
    path = models.cnn(tmp_path / "net.onnx", width=16)
    net = Entrant("net.onnx", path, 1, synthetic(ports(path), 1, 0))
    found = scaling.by_length(net, Place(CPU, 1, HERE), "n", (1, 8), 1, Effort(3, 0.1))
    assert [p.value for p in found.points] == [1, 8] and found.kind == "n"
    assert found.points[1].growth is not None and found.points[1].growth.low > 1.5, "eight times the work"
    with pytest.raises(Fault, match=r"no open dimension 'sequence'.*It has: n, x:0") as caught:
        scaling.by_length(net, Place(CPU, 1, HERE), "sequence", (1, 8), 1, EFFORT)
    assert caught.value.exit is Exit.USAGE


def test_a_sweep_on_a_stand_in_is_called_by_who_ran_it(net: Entrant) -> None:
    found = scaling.by_length(net, Place(CUDA, 1, None, "no GPU", HERE), "n", (1, 2), 1, Effort(2, 0.05, 2, 2))
    assert found.provider == CPU and found.asked == CUDA
    nobody = scaling.by_batch(net, Place(CUDA, 1, None, "no GPU"), EFFORT)
    assert nobody.provider == CUDA and nobody.why == "no GPU" and nobody.points[0].latency is None


def test_threads_go_up_to_the_cores(net: Entrant) -> None:
    def place(count: int) -> Place:
        return Place(CPU, count, Site(CPU, count, "test"))

    found = scaling.by_threads(net, place, 1, 3, Effort(2, 0.05, 2, 2))
    assert [p.value for p in found.points] == [1, 2, 3] and found.suggested in (1, 2, 3)
    assert {p.latency.clock for p in found.points if p.latency} == {"wall"}
    assert open_lane(net, place(1), 1).asked == ""
