"""The frontier: nothing on it is beaten, what is alike is told once, what ships stays."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from optimizer.decide.pareto import frontier, lost
from optimizer.records import Interval, Judgement, Latency, Measured, Step, Verdict

BASE = Measured(None, Latency(2.0, 1.9, 2.1, "cpu", 100), 1000)


def step(
    label: str, speed: float, drop: float | None, size: int, word: Judgement = Judgement.ACCEPTED, why: str = ""
) -> Step:
    return Step(
        label, label, Verdict(word, why), speedup=Interval(speed, speed, speed), size_bytes=size,
        drop=None if drop is None else Interval(drop, drop, drop),
        latency_ms=Latency(2.0 / speed, 1.0, 2.0, "cpu", 10),
    )  # fmt: skip


def names(*steps: Step, shipped: str = "") -> list[str]:
    return [p.label for p in frontier(steps, BASE, shipped)]


def test_what_is_beaten_is_left_out() -> None:
    good, worse = step("good", 2.0, 0.01, 300), step("worse", 1.5, 0.02, 400)
    small = step("small", 1.2, 0.5, 100, Judgement.REJECTED, "quality: drop 0.5, allowed 0.1")
    assert names(good, worse, small) == ["good", "small", "source"]
    assert [p.holds for p in frontier((good, small), BASE)] == [True, False, True]


def test_what_paid_for_nothing_met_the_budget_all_the_same() -> None:
    useless = step("useless", 1.0, 0.0, 300, Judgement.REJECTED, "paid for nothing: 1.00x")
    heavy = step("heavy", 3.0, 0.0, 2000, Judgement.REJECTED, "limit: size<=1kB: size is 2 kB")
    assert {p.label: p.holds for p in frontier((useless, heavy), BASE)} == {
        "useless": True, "heavy": False, "source": True,
    }  # fmt: skip


def test_what_was_not_timed_is_not_on_it() -> None:
    assert names(Step("x", "x", Verdict(Judgement.REJECTED, ""), drop=Interval(0, 0, 0), size_bytes=1)) == ["source"]
    assert frontier((), None) == ()


def test_of_those_that_are_alike_the_one_that_ships_stays() -> None:
    twins = [step("a", 2.0, 0.0100, 300), step("b", 2.01, 0.0101, 300), step("c", 2.0, 0.00999, 301)]
    assert len(names(*twins)) == 2
    assert names(*twins, shipped="b") == ["b", "source"]
    assert names(step("lossless", 1.01, 0.0, 995), shipped="lossless") == ["lossless"]
    assert names(step("lossless", 1.01, 0.0, 995)) == ["source"]


def test_luck_is_no_quality() -> None:
    assert "source" in names(step("lucky", 0.9, -0.01, 1000))


POINTS = st.lists(st.tuples(st.floats(0.2, 5), st.floats(-0.1, 1), st.integers(1, 5000)), max_size=12)


@given(POINTS)
def test_nothing_on_it_is_beaten_clearly_and_everything_off_it_is_covered(raw: list[tuple[float, float, int]]) -> None:
    steps = [step(f"s{i}", *values) for i, values in enumerate(raw)]
    found = frontier(steps, BASE)
    everything = [p for s in steps for p in frontier([s], None)] + list(frontier((), BASE))
    assert found
    for p in found:
        assert not any(
            lost(q) < lost(p) and q.speedup.value > p.speedup.value and q.size_bytes < p.size_bytes for q in found
        )
    slack = 0.02 * max(lost(p) for p in everything) + 1e-12
    for p in everything:
        assert any(
            lost(q) <= lost(p) + slack
            and q.speedup.value * 1.0201 >= p.speedup.value
            and q.size_bytes <= p.size_bytes * 1.02
            for q in found
        ), p
