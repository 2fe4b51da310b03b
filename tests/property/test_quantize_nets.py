"""Random small networks: quantized they stay close, keep their signature, and leave no layer in float."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from passes.kit.model import Model
from passes.quantize.layers import quantizable
from passes.quantize.placement import JOINERS
from passes.quantize.quantize_dynamic import QuantizeDynamic
from passes.quantize.quantize_static import QuantizeStatic
from tests.support.runtime import LocalContext, model, run, target

Array = np.ndarray[Any, Any]

# Every block maps [1, 8, 8, 8] to the same shape, so that they can stand in any order.
BLOCKS = {
    "conv": "{o} = Conv <pads = [1,1,1,1]> ({i}, w{k}, b{k})",
    "conv relu": "t{k} = Conv <pads = [1,1,1,1]> ({i}, w{k}) {o} = Relu(t{k})",
    "residual": "t{k} = Conv <pads = [1,1,1,1]> ({i}, w{k}, b{k}) s{k} = Add({i}, t{k}) {o} = Relu(s{k})",
    "swish": "t{k} = Sigmoid({i}) {o} = Mul({i}, t{k})",
    "tanh": "{o} = Tanh({i})",
    "relu": "{o} = Relu({i})",
    "pool": "{o} = MaxPool <kernel_shape = [3,3], pads = [1,1,1,1]> ({i})",
    "average": "{o} = AveragePool <kernel_shape = [3,3], pads = [1,1,1,1], count_include_pad = 1> ({i})",
    "transpose": "{o} = Transpose <perm = [0,1,3,2]> ({i})",
    "clip": "t{k} = Conv <pads = [1,1,1,1]> ({i}, w{k}) {o} = Clip(t{k}, low, high)",
    "gate": "g{k} = GlobalAveragePool({i}) h{k} = Conv({i}, v{k}) {o} = Mul(h{k}, g{k})",
    "branches": "t{k} = Conv({i}, v{k}) c{k} = Concat <axis = 1> ({i}, t{k}) {o} = Conv(c{k}, u{k})",
    "halves": "l{k}, r{k} = Split <axis = 1> ({i}, halves) {o} = Concat <axis = 1> (r{k}, l{k})",
    "matmul": "t{k} = MatMul({i}, m{k}) {o} = Add(t{k}, n{k})",
}
FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def network(blocks: list[str], seed: int, outputs: set[int]) -> Model:
    """The blocks one after another; ``outputs`` are indices of blocks whose result is an output beside the last."""
    rng = np.random.default_rng(seed)
    body = " ".join(BLOCKS[b].format(i=f"x{k}", o=f"x{k + 1}", k=k) for k, b in enumerate(blocks))
    wanted = sorted({*outputs, len(blocks) - 1})
    given_out = ", ".join(f"float[1,8,8,8] x{k + 1}" for k in wanted)
    text = f"""<ir_version: 8, opset_import: ["" : 17]> g (float[1,8,8,8] x0) => ({given_out})
        <float low = {{0.0}}, float high = {{6.0}}, int64[2] halves = {{4, 4}}> {{ {body} }}"""
    shapes = {"w": (8, 8, 3, 3), "v": (8, 8, 1, 1), "u": (8, 16, 1, 1), "m": (8, 8), "b": (8,), "n": (8,)}
    weights = {}
    for k in range(len(blocks)):
        for letter, shape in shapes.items():
            if f" {letter}{k})" in body or f" {letter}{k}," in body:
                fan = max(1, int(np.prod(shape[1:])))
                weights[f"{letter}{k}"] = (rng.standard_normal(shape) / np.sqrt(fan)).astype(np.float32)
    return model(text, **weights)


def integer_ops(subject: Model, folder: Path) -> Counter[str]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(subject.to_bytes(), options, providers=["CPUExecutionProvider"])
    return Counter(n.op_type for n in onnx.load(options.optimized_model_filepath).graph.node)


def roundings(blocks: list[str]) -> int:
    """How many times the error of one layer may stand in the result: a gate multiplies two values that carry it."""
    count = 1
    for block in blocks:
        count = 1 + count * (2 if block == "gate" else 1)
    return count


NETS = st.lists(st.sampled_from(sorted(BLOCKS)), min_size=1, max_size=5)


@FEW
@given(NETS, st.integers(0, 99), st.sets(st.integers(0, 3), max_size=2))
def test_static(tmp_path: Path, blocks: list[str], seed: int, outputs: set[int]) -> None:
    before = network(blocks, seed, {k for k in outputs if k < len(blocks)})
    feeds = [{"x0": np.random.default_rng(seed + 1).standard_normal((1, 8, 8, 8)).astype(np.float32)}]
    result = QuantizeStatic()(before, LocalContext(feeds))
    planned = Counter(c.rule for c in result.changes)
    assert planned["layer"] == len(quantizable(before, target()))
    onnx.checker.check_model(result.model.to_proto(), full_check=True)
    wanted, got = run(before, feeds[0]), run(result.model, feeds[0], optimize=True)
    plain = run(result.model, feeds[0])
    for name, value in wanted.items():
        assert got[name].dtype == value.dtype and got[name].shape == value.shape
        # The fused kernels round once more than the plain operators.
        assert np.linalg.norm(got[name] - value) <= 0.03 * roundings(blocks) * np.linalg.norm(value)
        assert np.linalg.norm(got[name] - plain[name]) <= 0.02 * roundings(blocks) * np.linalg.norm(value)
    ran = integer_ops(result.model, tmp_path)
    assert ran["QLinearConv"] + ran["MatMulIntegerToFloat"] + ran["QLinearMatMul"] == planned["layer"]
    assert sum(ran[f"QLinear{op}"] for op in JOINERS) == planned["joiner"]


@FEW
@given(
    st.lists(st.sampled_from(["matmul", "tanh", "transpose", "residual"]), min_size=1, max_size=4), st.integers(0, 99)
)
def test_dynamic(tmp_path: Path, blocks: list[str], seed: int) -> None:
    before = network(blocks, seed, set())
    feeds = {"x0": np.random.default_rng(seed + 1).standard_normal((1, 8, 8, 8)).astype(np.float32)}
    result = QuantizeDynamic()(before, LocalContext())
    assert len(result.changes) == blocks.count("matmul")
    wanted, got = run(before, feeds), run(result.model, feeds, optimize=True)
    for name, value in wanted.items():
        assert np.linalg.norm(got[name] - value) <= 0.03 * (1 + len(blocks)) * np.linalg.norm(value)
    ran = integer_ops(result.model, tmp_path)
    assert ran["DynamicQuantizeMatMul"] + ran["MatMulIntegerToFloat"] == len(result.changes)


@pytest.mark.parametrize("block", sorted(BLOCKS))
def test_every_block_between_two_convolutions(tmp_path: Path, block: str) -> None:
    """The promise of placement: between layers nothing is left in float that has an integer form."""
    before = network(["conv relu", block, "conv"], 3, set())
    feeds = [{"x0": np.random.default_rng(4).standard_normal((1, 8, 8, 8)).astype(np.float32)}]
    ran = integer_ops(QuantizeStatic()(before, LocalContext(feeds)).model, tmp_path)
    # In at the front and out at the back; tanh and a MatMul's float result need one more of each.
    extra = 1 if block in ("tanh", "matmul") else 0
    assert ran["QuantizeLinear"] == 1 + extra
    assert ran["DequantizeLinear"] == 1 + (1 if block == "tanh" else 0)
