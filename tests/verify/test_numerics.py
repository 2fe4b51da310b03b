"""What counts as the same: every kind of difference is found, and the runtime's own noise is not one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from optimizer.verify.numerics import Slack, compare, slack
from optimizer.verify.quantized import output_steps
from passes.kit.contract import Exactness
from tests.support.runtime import model

A = np.linspace(-3, 3, 12, dtype=np.float32).reshape(3, 4)


def faults(a: Any, b: Any, exactness: Exactness, allowed: float = 0.0) -> list[str]:
    return [str(d) for d in compare([{"y": a}], [{"y": b}], exactness, [Slack({"y": allowed})]) if not d.ok]


@pytest.mark.parametrize("exactness", list(Exactness))
def test_equal_outputs_hold(exactness: Exactness) -> None:
    assert not faults(A, A.copy(), exactness)


def test_exact_means_bit_equal_and_nan_equals_nan() -> None:
    b = A.copy()
    b[0, 0] = np.nextafter(b[0, 0], np.float32(9))
    assert faults(A, b, Exactness.EXACT)
    nan = np.where(A > 0, np.nan, A)
    assert not faults(nan, nan.copy(), Exactness.EXACT)


def test_numeric_allows_ten_times_the_noise_and_no_more() -> None:
    allowed = slack([({"y": A}, {"y": A + np.float32(1e-4)})], {}).noise["y"]
    assert not faults(A, A + np.float32(9e-4), Exactness.NUMERIC, allowed)
    assert faults(A, A + np.float32(12e-4), Exactness.NUMERIC, allowed)
    assert not faults(A, A + np.float32(2e-6), Exactness.NUMERIC)
    assert faults(A, A + np.float32(5e-6), Exactness.NUMERIC)


@pytest.mark.parametrize(
    "other",
    [
        A[:2],
        A.astype(np.float64),
        np.where(A[0, 0] == A, np.nan, A).astype(np.float32),
        np.where(A[0, 0] == A, np.inf, A).astype(np.float32),
        -A,
    ],
    ids=["shape", "dtype", "nan", "inf", "sign"],
)
def test_numeric_finds(other: np.ndarray[Any, Any]) -> None:
    assert faults(A, other, Exactness.NUMERIC, 1e-7)


def test_infinities_in_the_same_places_hold() -> None:
    b = np.where(A > 2, np.inf, A).astype(np.float32)
    assert not faults(b, b.copy(), Exactness.NUMERIC)
    assert faults(b, np.where(A > 2, -np.inf, A).astype(np.float32), Exactness.NUMERIC, 1.0)


@pytest.mark.parametrize("exactness", [Exactness.EXACT, Exactness.NUMERIC])
def test_integers_booleans_and_text_must_be_equal(exactness: Exactness) -> None:
    for a, b in (
        (np.array([1, 2]), np.array([1, 3])),
        (np.array([True]), np.array([False])),
        (np.array(["a"], dtype=object), np.array(["b"], dtype=object)),
    ):
        assert faults(a, b, exactness, 100.0) and not faults(a, a.copy(), exactness)


def test_lossy_must_stay_finite_with_the_same_shape() -> None:
    assert not faults(A, A * 3, Exactness.LOSSY)
    assert faults(A, np.where(A > 2, np.nan, A).astype(np.float32), Exactness.LOSSY)
    assert faults(A, A[:1], Exactness.LOSSY)
    nan = np.where(A > 2, np.nan, A).astype(np.float32)
    assert not faults(nan, nan, Exactness.LOSSY)


def test_maps_and_sequences_are_compared_inside() -> None:
    a = [{0: 0.25, 1: 0.75}]
    assert not faults(a, [{0: 0.25, 1: 0.75000001}], Exactness.NUMERIC)
    assert faults(a, [{0: 0.3, 1: 0.7}], Exactness.NUMERIC)
    assert faults(a, [], Exactness.NUMERIC)


def test_an_optional_output_that_is_empty_in_both_holds() -> None:
    assert not faults(None, None, Exactness.EXACT)
    assert faults(A, None, Exactness.EXACT) and faults(None, A, Exactness.NUMERIC)


def test_a_missing_output_is_found_and_every_feed_counts() -> None:
    assert [d for d in compare([{"y": A}], [{}], Exactness.LOSSY) if not d.ok]
    differences = compare([{"y": A}, {"y": A}], [{"y": A}, {"y": A + 1}], Exactness.NUMERIC)
    assert not differences[0].ok and differences[0].worst == pytest.approx(1.0)


def test_each_feed_has_its_own_slack() -> None:
    """The noise of a feed of huge numbers allows nothing to an ordinary one."""
    slacks = [Slack({"y": 0.0}), Slack({"y": 10.0})]
    wrong = [{"y": A + np.float32(1)}, {"y": A}]
    assert not compare([{"y": A}, {"y": A}], wrong, Exactness.NUMERIC, slacks)[0].ok
    assert compare([{"y": A}, {"y": A}], wrong[::-1], Exactness.NUMERIC, slacks)[0].ok


def test_elements_on_which_the_runtime_does_not_agree_with_itself_are_no_measure() -> None:
    off = np.float32([1, np.nan, 2, 3])
    on = np.float32([1, 0, 2, 3])
    found = slack([({"y": off}, {"y": on})], {})
    assert found.noise["y"] == 0 and found.loose["y"].tolist() == [False, True, False, False]
    assert compare([{"y": off}], [{"y": on}], Exactness.NUMERIC, [found])[0].ok
    other = np.float32([np.nan, 0, 2, 3])
    assert not compare([{"y": off}], [{"y": other}], Exactness.NUMERIC, [found])[0].ok
    assert not compare([{"y": off}], [{"y": on}], Exactness.EXACT, [found])[0].ok, "EXACT has no slack"


def test_behind_a_quantizer_one_step_is_allowed_and_two_are_counted() -> None:
    steps = Slack(steps={"y": 0.02})
    assert compare([{"y": A}], [{"y": A + np.float32(0.02)}], Exactness.NUMERIC, [steps])[0].ok
    two = compare([{"y": A}], [{"y": A + np.float32(0.04)}], Exactness.NUMERIC, [steps])[0]
    assert not two.ok and "differs by 2 steps where 1 are allowed" in str(two)
    integers = np.int8([1, 2, 3])
    one_step = Slack(steps={"y": 1.0})
    assert compare([{"y": integers}], [{"y": integers + np.int8(1)}], Exactness.NUMERIC, [one_step])[0].ok
    assert not compare([{"y": integers}], [{"y": integers + np.int8(2)}], Exactness.NUMERIC, [one_step])[0].ok
    assert not compare([{"y": integers}], [{"y": integers + np.int8(1)}], Exactness.EXACT, [one_step])[0].ok


def test_the_probe_is_named() -> None:
    found = compare([{"y": A}], [{"y": A + np.float32(1)}], Exactness.NUMERIC, (), ["corners"])[0]
    assert str(found).endswith("on the input 'corners'")


def test_which_outputs_have_a_step() -> None:
    head = '<ir_version: 10, opset_import: ["": 20]> g (float[n, 4] x) => '
    weights = {"s": np.float32(0.5), "z": np.uint8(0)}
    mixed = head + "(float[n, 4] a, uint8[n, 4] q, float[n, 4] f) "
    mixed += "{ q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)  a = Reshape(d, shape)  f = Exp(d) }"
    assert output_steps(model(mixed, shape=np.array([0, 4]), **weights)) == {"a": 0.5, "q": 1.0}
    assert output_steps(model(head + "(float[n, 4] y) { y = Relu(x) }")) is None
