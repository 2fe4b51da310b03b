"""float16 in a compile: tried on a device that computes in it, and not where it would overflow."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper as h

import optimizer
from optimizer.records import Record
from tests.support import models


def compiled(model: Path, folder: Path, **given: Any) -> Record:
    return optimizer.compile(
        str(model), output=folder / "out.lathe", cache_dir=folder / "cache", seconds=0.05, golden="none", **given
    )


def layer(path: Path, weight: float) -> Path:
    nodes = [h.make_node("MatMul", ["x", "w"], ["a"], "mm"), h.make_node("Sigmoid", ["a"], ["y"], "act")]
    ports = {"x": (T.FLOAT, ["n", 8])}, {"y": (T.FLOAT, ["n", 8])}
    return models.save(path, nodes, *ports, {"w": np.full((8, 8), weight, np.float32)})


def test_it_is_tried_where_the_target_computes_in_it_and_is_at_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data.npz"
    np.savez(data, x=np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32))
    net = layer(tmp_path / "net.onnx", 0.1)
    elsewhere = compiled(net, tmp_path, data=str(data), target="cuda")
    assert not any(s.label == "float16" for s in elsewhere.steps), "a CPU can measure neither its speed nor its quality"
    assert any("float16" in w and "--provider cuda" in w for w in elsewhere.warnings)
    monkeypatch.setattr(sys.modules["optimizer.compile"], "computes_in_float16", lambda bench: True)
    record = compiled(net, tmp_path, data=str(data), target="cuda", overwrite=True)
    (step,) = (s for s in record.steps if s.label == "float16")
    note = next(n for n in step.passes if n.name == "convert-float16")
    assert note.changes == 2 and not note.fault and step.drop is not None


def test_what_overflows_on_the_data_stays_in_float32(tmp_path: Path) -> None:
    data = tmp_path / "data.npz"
    np.savez(data, x=np.full((40, 8), 3.0, np.float32))
    record = compiled(layer(tmp_path / "net.onnx", 6e4), tmp_path, data=str(data), recipe="convert-float16")
    step = next(s for s in record.steps if s.label == "your recipe")
    (note,) = step.passes
    assert note.changes == 0 and any("its values reach 1.44e+06" in text for text in note.skips)
