"""The search for the highest rate: with an honest oracle it is found, with one that errs it stays near."""

from __future__ import annotations

import math

import numpy as np
import pytest

from optimizer.measure import server


@pytest.mark.parametrize("truth", [0.7, 90.0, 99.9, 100.0, 470.0, 20_000.0])
@pytest.mark.parametrize("step", [server.FIRST_STEP, server.NEXT_STEP])
def test_the_bracket_holds_the_truth(truth: float, step: float) -> None:
    found = server.highest(lambda rate: rate <= truth, 100.0, step=step)
    assert found is not None and found.low <= truth < found.high <= found.low * server.TOLERANCE * 1.0001


def test_a_good_start_takes_as_few_runs_as_planned() -> None:
    found = server.highest(lambda rate: rate <= 97.0, 100.0, step=server.NEXT_STEP)
    assert found is not None and found.runs <= server.probes(2) - server.probes(1)


def test_nothing_holds() -> None:
    assert server.highest(lambda rate: False, 100.0, lowest=5.0) is None


def test_runs_that_are_wrong_now_and_then_move_it_a_little() -> None:
    rng = np.random.default_rng(0)

    def oracle(rate: float) -> bool:
        return bool(rng.random() < 1 / (1 + (rate / 100.0) ** 40))

    rates = [r.low for _ in range(50) if (r := server.highest(oracle, 80.0)) is not None]
    assert len(rates) == 50 and 0.93 < math.exp(np.mean(np.log(rates))) / 100 < 1.07


def test_the_first_guess_is_near_what_a_queue_does() -> None:
    """A queue with random arrivals and a steady server, by Lindley's recursion, at the guessed rate."""
    one, bound, rng = 2.0, 20.0, np.random.default_rng(1)
    gaps = rng.exponential(server.gap_ms(one, bound, 0.99), 200_000)
    wait, late = 0.0, 0
    for gap in gaps:
        wait = max(0.0, wait + one - gap)
        late += wait + one > bound
    assert 0.002 < late / len(gaps) < 0.02
