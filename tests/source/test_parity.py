"""Differences between PyTorch and ONNX are measured in the outputs' own terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from optimizer.faults import Exit, bad_input
from optimizer.source.parity import Case, Parity, measure
from tests.support import runtime

MODEL = runtime.model('<ir_version: 8, opset_import: ["":18]> g (float[n] x) => (float[n] y) { y = Relu(x) }')


def compare(expected: Any, found: Any, dtype: str = "float32") -> Parity:
    case = Case("batch=2", {"x": np.zeros(1), "unused": np.zeros(1)}, {"y": np.asarray(expected)}, {"y": dtype})

    def run(model: object, feeds: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
        assert list(feeds[0]) == ["x"]
        return [{} if found is None else {"y": np.asarray(found)}]

    return measure(MODEL, [case], run)


@pytest.mark.parametrize(
    ("expected", "found", "dtype", "ok"),
    [
        ([1.0, 2.0], [1.0, 2.00005], "float32", True),
        ([1.0, 2.0], [1.0, 2.0005], "float32", False),
        ([1e6, 2.0], [1e6, 2.5], "float32", True),
        ([1e-9], [2e-9], "float32", True),
        ([1.0], [1.005], "float16", True),
        ([1.0], [1.05], "float16", False),
        ([np.nan, np.inf], [np.nan, np.inf], "float32", True),
        ([1.0], [np.nan], "float32", False),
        ([np.inf], [1.0], "float32", False),
        ([3, 4], [3, 4], "int64", True),
        ([3, 4], [3, 5], "int64", False),
        ([True, False], [True, True], "bool", False),
        (np.zeros((0, 3)), np.zeros((0, 3)), "float32", True),
    ],
)
def test_what_is_close_enough(expected: Any, found: Any, dtype: str, ok: bool) -> None:
    parity = compare(expected, found, dtype)
    assert parity.ok is ok and parity.worst == "y" and parity.batches == ("batch=2",)
    assert (parity.reason == "") is ok


def test_reasons_name_the_output_and_the_difference() -> None:
    off = compare([1.0, 4.0], [1.0, 4.5])
    assert off.max_abs == 0.5 and off.max_rel == 0.125
    assert off.reason == "output 'y' at batch=2 is off by 0.5 where 0.0004 is allowed"
    assert compare([[1.0]], [1.0]).reason == "output 'y' at batch=2 has shape [1] instead of [1, 1]"
    assert compare([1.0], None).reason == "output 'y' at batch=2 is missing"
    fault = off.fault("net:build")
    assert fault.code == "parity" and fault.exit is Exit.BAD_INPUT and "off by 0.5" in str(fault)


def test_a_model_that_does_not_run_differs() -> None:
    def run(model: object, feeds: object) -> list[dict[str, Any]]:
        raise bad_input("dimension mismatch")

    case = Case("batch=3", {}, {"y": np.zeros(1)}, {"y": "float32"})
    parity = measure(MODEL, [case], run)
    assert not parity.ok and parity.reason == "at batch=3 it does not run: dimension mismatch"
