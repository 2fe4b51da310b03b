"""What bounds a model: each ceiling in turn, none of them, and doubt where the spans say so."""

from __future__ import annotations

from dataclasses import replace

import pytest

from optimizer.decide import roofline
from optimizer.measure.profile import Counted
from optimizer.records import Bound, Ceiling, Ceilings, Interval, Latency, OpCost, Profile

EXACT = {name: Interval(v, v, v) for name, v in (("float", 50e9), ("int8", 200e9), ("memory", 10e9), ("cached", 40e9))}
ONE = Ceiling(
    1,
    EXACT["float"],
    EXACT["int8"],
    EXACT["memory"],
    EXACT["cached"],
    Interval(0.01, 0.01, 0.01),
    Interval(0.001, 0.001, 0.001),
)
TWO = replace(ONE, threads=2, float_macs=Interval(90e9, 88e9, 92e9))
MACHINE = Ceilings("a CPU", 2, "1.31", "CPUExecutionProvider", "2026-11-26", 100_000_000, (ONE, TWO))


def work(float_macs: int = 0, int8_macs: int = 0, least: float = 0.0, most: float | None = None) -> Counted:
    return Counted(float_macs, int8_macs, Interval(least, least, most or least), (), ())


def held(counted: Counted, ms: float, nodes: int = 1) -> roofline.Roofline:
    found = roofline.hold(counted, nodes, Latency(ms, ms, ms, "cpu", 100), MACHINE, ONE)
    assert found is not None
    return found


def test_compute() -> None:
    found = held(work(float_macs=40_000_000), 1.0)  # 0.8 ms at 50 G a second
    assert found.bound is Bound.COMPUTE and found.share.value == pytest.approx(0.8)
    assert "compute-bound" in found.says and "80%" in found.says
    assert any("4.0 times as fast" in text for text in found.advice), "int8 is"
    assert any("2 threads" in text and "1.8" in text for text in found.advice)


def test_integers_are_held_against_their_own_ceiling() -> None:
    found = held(work(int8_macs=160_000_000), 1.0)
    assert found.bound is Bound.COMPUTE and found.compute_ms.value == pytest.approx(0.8)
    assert not any("8-bit" in text for text in found.advice), "they are there already"
    without = replace(ONE, int8_macs=None)
    assert roofline.hold(work(int8_macs=1), 1, Latency(1, 1, 1, "cpu", 9), MACHINE, without) is None


@pytest.mark.parametrize(("least", "ms", "cached"), [(400e6, 50.0, False), (30e6, 1.0, True)])
def test_bandwidth_of_memory_or_of_the_caches(least: float, ms: float, cached: bool) -> None:
    found = held(work(float_macs=1000, least=least), ms)
    assert found.bound is Bound.BANDWIDTH and found.cached == cached
    assert found.bandwidth_ms.value == pytest.approx(least / (40e9 if cached else 10e9) * 1e3)
    assert "8 or 4 bits" in found.advice[0] and "batch" in found.advice[1]


def test_overhead() -> None:
    found = held(work(float_macs=1000), 0.1, nodes=81)
    assert found.bound is Bound.OVERHEAD and found.overhead_ms.value == pytest.approx(0.09)
    assert "batch" in found.advice[0] and "81" in found.advice[1]


def test_nothing_comes_near() -> None:
    profile = Profile(
        9,
        Interval(1, 1, 1),
        Interval(0, 0, 0),
        (OpCost("Transpose", 3, Interval(0.7, 0.7, 0.7)), OpCost("Add", 1, Interval(0.3, 0.3, 0.3))),
        (),
    )
    latency = Latency(1.0, 1.0, 1.0, "cpu", 100)
    found = roofline.hold(work(float_macs=5_000_000, least=1e6, most=30e6), 1, latency, MACHINE, ONE, profile)
    assert found is not None and found.bound is Bound.NOTHING
    assert "no ceiling explains" in found.says and "it may still be bandwidth" in found.says
    assert found.advice == ("a look at Transpose, where most of the kernels' time goes (70%, 3 nodes)",)


def test_rivals_and_ceilings_that_were_too_low_are_named() -> None:
    rival = held(work(float_macs=35_000_000, least=1e6, most=40e6), 1.0)
    assert rival.bound is Bound.COMPUTE and "bandwidth may weigh as much" in rival.says
    beyond = held(work(float_macs=100_000_000), 1.0)
    assert "measure again" in beyond.says


def test_work_that_cannot_be_counted_gives_no_verdict() -> None:
    unknown = replace(work(float_macs=1), unknown=("Einsum",))
    assert roofline.hold(unknown, 1, Latency(1, 1, 1, "cpu", 9), MACHINE, ONE) is None


def test_a_ceiling_is_for_its_provider_and_threads_alone() -> None:
    assert roofline.at(MACHINE, "CPUExecutionProvider", 2) is TWO
    assert roofline.at(MACHINE, "CPUExecutionProvider", 4) is None
    assert roofline.at(MACHINE, "CUDAExecutionProvider", 1) is None and roofline.at(None, "", 1) is None
