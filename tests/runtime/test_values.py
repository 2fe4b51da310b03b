"""Types that numpy lacks go into the runtime and come out of it element by element."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto as T
from onnx import helper as h

from optimizer.runtime import values

NARROW = {
    "bfloat16": T.BFLOAT16,
    "float8_e4m3fn": T.FLOAT8E4M3FN,
    "float8_e5m2": T.FLOAT8E5M2,
    "int4": T.INT4,
    "uint4": T.UINT4,
}


def session(cast_from: int, cast_to: int) -> Any:
    node = h.make_node("Cast", ["x"], ["y"], to=cast_to)
    ports = [[h.make_tensor_value_info(n, t, ["a", "b"])] for n, t in (("x", cast_from), ("y", cast_to))]
    graph = h.make_graph([node], "g", *ports)
    proto = h.make_model(graph, opset_imports=[h.make_opsetid("", 23)], ir_version=11)
    return ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize("shape", [(1, 5), (2, 3), (0, 4)])
def test_narrow_types_are_fed_and_fetched(name: str, shape: tuple[int, int]) -> None:
    dtype = np.dtype(getattr(ml_dtypes, name))
    low = 0 if name.startswith("u") else -3
    numbers = (np.arange(np.prod(shape)).reshape(shape) + low).astype(np.float32)
    (wide,) = values.run(session(NARROW[name], T.FLOAT), {"x": numbers.astype(dtype)}, None)
    np.testing.assert_array_equal(wide, numbers)
    (narrow,) = values.run(session(T.FLOAT, NARROW[name]), {"x": numbers}, ["y"])
    assert narrow.dtype == dtype
    np.testing.assert_array_equal(narrow.astype(np.float32), numbers)


def test_numpys_own_types_go_the_short_way() -> None:
    (found,) = values.run(session(T.FLOAT, T.INT64), {"x": np.ones((2, 1), np.float32)}, None)
    assert found.dtype == np.int64
