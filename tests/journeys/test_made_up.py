"""Without data: open dimensions get a size that the model runs with, and what comes out says that it was made up."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from optimizer import api
from optimizer.plan import Settings, SourceRequest
from optimizer.runtime.sessions import Site
from optimizer.store.store import Store
from optimizer.workshop import made_up_samples
from tests.support.runtime import model

SITE = Site("CPUExecutionProvider", 1, "test")
HEAD = '<ir_version: 8, opset_import: ["": 17]> '
LONG = (
    HEAD
    + """g (float[batch, length] x) => (float[batch, more] y)
    <int64[4] pads = {0, 40, 0, 0}> { y = Pad<mode = "reflect">(x, pads) }"""
)
CARRIED = (
    HEAD
    + """g (float[n, 8] x, float[2, n, 8] state) => (float[m, k, 8] y)
    <int64[1] first = {0}> { row = Unsqueeze(x, first) y = Concat<axis = 0>(row, state) }"""
)
NEVER = (
    HEAD
    + """g (float[batch, length] x) => (float[batch, 3] y)
    <int64[2] shape = {-1, 7}, int64[2] other = {-1, 11}> { a = Reshape(x, shape) y = Reshape(a, other) }"""
)


def test_open_dimensions_take_the_first_size_that_runs(tmp_path: Path) -> None:
    made = made_up_samples(model(LONG), 0, Store(tmp_path), SITE)
    assert next(iter(made.feeds(1)))[0]["x"].shape == (1, 64)
    assert "inputs are made up (x [1, 64])" in made.warnings[0]


def test_a_state_without_named_dimensions_carries_the_batch_on_axis_1(tmp_path: Path) -> None:
    subject = model(CARRIED)
    subject.graph.inputs[0].shape = ir.Shape([None, 8])
    subject.graph.inputs[1].shape = ir.Shape([2, None, 8])
    feed = next(iter(made_up_samples(subject, 0, Store(tmp_path), SITE).feeds(1)))[0]
    assert feed["x"].shape == (1, 8) and feed["state"].shape == (2, 1, 8)


@pytest.mark.parametrize("passes", [True, False])
def test_a_model_that_runs_on_nothing_made_up_is_inspected_all_the_same(tmp_path: Path, passes: bool) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(model(NEVER).to_proto(), path)
    settings = Settings(SourceRequest(str(path)), cache_dir=tmp_path / "cache")
    found = api.inspect(str(path), passes=passes, settings=settings)
    assert found.nodes == 2 and bool(found.warnings) == passes
    assert not passes or "passes were not tried on made-up inputs" in found.warnings[0]
