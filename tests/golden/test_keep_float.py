"""quantize-static leaves a layer in float: the runtime must not quantize it behind our back."""

from __future__ import annotations

import numpy as np
import pytest

from passes.kit.model import Model
from passes.quantize.quantize_static import QuantizeStatic
from tests.support.runtime import LocalContext, model, op_types, run

BODY = """<ir_version: 8, opset_import: ["" : 17]> g (float[n,4,8,8] x) => (float[n,4,8,8] y) {
    [first] a = Conv <pads = [1,1,1,1]> (x, w0)
    [depthwise] d = Conv <group = 4, pads = [1,1,1,1]> (a, w1)
    [act] r = %s
    [last] y = Conv <pads = [1,1,1,1]> (r, w2)
}"""
ACTS = {"none": "Identity (d)", "relu": "Relu (d)", "clip": "Clip (d, low, high)"}


def built(act: str) -> Model:
    rng = np.random.default_rng(0)
    spread = np.array([1.0, 0.1, 0.01, 0.001]).reshape(4, 1, 1, 1)  # one scale for all channels would be ruinous
    weights = {
        "w0": rng.normal(size=(4, 4, 3, 3)) * 0.3, "w1": rng.normal(size=(4, 1, 3, 3)) * spread,
        "w2": rng.normal(size=(4, 4, 3, 3)) / spread.reshape(1, 4, 1, 1) * 0.3,
        "low": np.array(0.0), "high": np.array(6.0),
    }  # fmt: skip
    return model(BODY % ACTS[act], **{n: np.asarray(w, np.float32) for n, w in weights.items()})


@pytest.mark.parametrize("act", ACTS)
def test_the_runtime_runs_the_layer_as_it_was_left(act: str) -> None:
    x = np.random.default_rng(1).normal(size=(4, 4, 8, 8)).astype(np.float32)
    before = built(act)
    result = QuantizeStatic(exclude=("depthwise",))(before, LocalContext(feeds=[{"x": x}]))
    after = result.model
    assert op_types(after).count("Sum") == 1
    assert [c for c in result.changes if c.rule == "sum" and c.where == "depthwise"]
    off, on = (run(after, {"x": x}, optimize=o)["y"] for o in (False, True))
    assert np.abs(on - off).max() < 0.02 * np.abs(off).max()


def test_nothing_is_put_between_where_nothing_threatens() -> None:
    x = np.random.default_rng(1).normal(size=(4, 4, 8, 8)).astype(np.float32)
    for left_out in ((), ("first",), ("last",)):  # what reads floats, or gives them to the caller, is safe
        after = QuantizeStatic(exclude=left_out)(built("relu"), LocalContext(feeds=[{"x": x}])).model
        assert "Sum" not in op_types(after)
