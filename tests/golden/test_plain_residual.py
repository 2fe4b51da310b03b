"""plain-residual, before and after."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from passes.fuse.plain_residual import PlainResidual
from passes.kit.model import Model
from tests.support.runtime import LocalContext, model, op_types, run, target

SCALE = np.ones(8, np.float32)
BODY = """{
    h = Relu(x)
    s = Add(x, h)
    n = LayerNormalization(s, g, b)
    y = Relu(n)
}"""


def built(body: str, opset: int = 17, dtype: str = "float") -> Model:
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> t ({dtype}[n,4,8] x) => ({dtype}[n,4,8] y) {body}'
    kind = np.float32 if dtype == "float" else np.float64
    return model(text, g=SCALE.astype(kind), b=SCALE.astype(kind))


def runtime_ops(subject: Model, tmp_path: Path) -> set[str]:
    """Operators of the graph that the runtime really runs."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = f"{tmp_path}/o.onnx"
    ort.InferenceSession(subject.to_bytes(), options, providers=["CPUExecutionProvider"])
    return {n.op_type for n in onnx.load(f"{tmp_path}/o.onnx").graph.node}


def test_the_residual_is_a_sum_and_the_runtime_leaves_it_alone(tmp_path: Path) -> None:
    subject = built(BODY)
    result = PlainResidual()(subject, LocalContext())
    assert op_types(result.model) == ["Relu", "Sum", "LayerNormalization", "Relu"]
    x = np.random.default_rng(0).normal(size=(2, 4, 8)).astype(np.float32)
    assert np.array_equal(run(subject, {"x": x})["y"], run(result.model, {"x": x})["y"])
    assert "SkipLayerNormalization" in runtime_ops(subject, tmp_path), "else the pass would have no reason"
    assert "SkipLayerNormalization" not in runtime_ops(result.model, tmp_path)


def test_a_bias_is_no_residual() -> None:
    subject = built("{ s = Add(x, b)\n y = LayerNormalization(s, g, b) }")
    result = PlainResidual()(subject, LocalContext())
    assert not result.changes and "bias" in result.skips[0].reason


def test_other_types_are_left_alone() -> None:
    assert not PlainResidual()(built(BODY, dtype="double"), LocalContext()).changes


@pytest.mark.parametrize("provider", ["CUDAExecutionProvider", "OpenVINOExecutionProvider"])
def test_other_providers_are_left_alone(provider: str) -> None:
    context = LocalContext(target=replace(target(), provider=provider))
    assert not PlainResidual()(built(BODY), context).changes
