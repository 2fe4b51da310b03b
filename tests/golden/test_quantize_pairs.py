"""``quantize-static16`` and ``quantize-fp8``, before and after."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from passes.kit.context import NoData
from passes.kit.contract import Pass, PassResult
from passes.kit.model import Model
from passes.quantize.quantize_fp8 import QuantizeFp8
from passes.quantize.quantize_static16 import QuantizeStatic16
from tests.support.runtime import LocalContext, model, op_types, run, target

Array = np.ndarray[Any, Any]
stream = {"rng": np.random.default_rng(7)}
NET = """g (float[N,3,8,8] x) => (float[N,5] y)
    { c = Conv <pads = [1,1,1,1]> (x, k, a) r = Relu(c) p = GlobalAveragePool(r)
      f = Flatten(p) y = Gemm <OPTIONS> (f, w, b) }"""
BOTH = [QuantizeStatic16, QuantizeFp8]


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Every test draws the same numbers, whichever tests ran before it."""
    stream["rng"] = np.random.default_rng(7)


def normal(*shape: int) -> Array:
    return stream["rng"].standard_normal(shape).astype(np.float32)


def net(opset: int, options: str = "alpha = 0.5, beta = 2.0") -> Model:
    text = f'<ir_version: 10, opset_import: ["" : {opset}]> ' + NET.replace("OPTIONS", options)
    weight = normal(5, 6) if "transB" in options else normal(6, 5)
    return model(text, k=normal(6, 3, 3, 3), a=normal(6), w=weight, b=normal(5))


def apply(subject: Pass, before: Model, feeds: list[dict[str, Array]]) -> PassResult:
    digest = before.digest()
    result = subject(before, LocalContext(feeds))
    assert Model(before.ir, before.map_types).digest() == digest, "the input was touched"
    onnx.checker.check_model(
        result.model.to_proto(), full_check=result.model.ir.opset_imports.get("com.microsoft") is None
    )
    return result


def off(after: Model, before: Model, feeds: dict[str, Array], *, optimize: bool = True) -> float:
    wanted, got = run(before, feeds)["y"], run(after, feeds, optimize=optimize)["y"]
    assert got.shape == wanted.shape
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize(("opset", "domain"), [(17, "com.microsoft"), (21, "")])
@pytest.mark.parametrize("activation", ["uint16", "int16"])
@pytest.mark.parametrize("options", ["alpha = 0.5, beta = 2.0", "transB = 1"])
def test_sixteen_bits_lose_next_to_nothing(opset: int, domain: str, activation: str, options: str) -> None:
    before, feeds = net(opset, options), [{"x": normal(4, 3, 8, 8)}]
    wide = apply(QuantizeStatic16(activation=activation, weight="int16"), before, feeds).model
    for optimize in (True, False):
        assert off(wide, before, feeds[0], optimize=optimize) < 3e-4
    after = apply(QuantizeStatic16(activation=activation), before, feeds).model
    assert 3e-4 < off(after, before, feeds[0]) < 0.02
    kinds = Counter((n.op_type, n.domain) for n in after.nodes())
    assert kinds["QuantizeLinear", domain] == 3 and kinds["DequantizeLinear", domain] == 5
    assert {v.dtype for v in after.graph.initializers.values()} >= {ir.DataType.INT8, ir.DataType[activation.upper()]}


def test_results_have_pairs_only_where_wanted() -> None:
    before, feeds = net(21), [{"x": normal(4, 3, 8, 8)}]
    after = apply(QuantizeStatic16(results=False), before, feeds).model
    assert op_types(after).count("QuantizeLinear") == 2
    assert after.signature == before.signature


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("options", ["alpha = 0.5, beta = 2.0", "transB = 1"])
def test_eight_bit_floats_round_as_three_bits_of_mantissa_do(per_channel: bool, options: str) -> None:
    before, feeds = net(21, options), [{"x": normal(4, 3, 8, 8)}]
    result = apply(QuantizeFp8(per_channel=per_channel), before, feeds)
    for optimize in (True, False):
        assert 1e-3 < off(result.model, before, feeds[0], optimize=optimize) < 0.06
    assert op_types(result.model).count("QuantizeLinear") == 2
    assert "only simulates" in result.changes[0].detail
    held = result.model.graph.initializers["k_quantized"].const_value
    assert held.dtype == ir.DataType.FLOAT8E4M3FN
    scale = result.model.graph.initializers["k_scale"].const_value.numpy()
    assert scale.shape == ((6, 1, 1, 1) if per_channel else ())
    kernel = before.graph.initializers["k"].const_value.numpy()
    back = held.numpy().astype(np.float32) * scale
    assert (
        np.abs(back - kernel).max() <= np.abs(kernel).max() / 16
        and np.abs(held.numpy().astype(np.float32)).max() == 448
    )


CHAINS = {
    "conv": ("float[1,4,6,6]", "a = Conv(x, k, b) r = Relu(a) y = Conv(r, l)", (4, 4, 1, 1), 4),
    "pool": (
        "float[1,4,6,6]",
        "a = Conv(x, k) r = MaxPool <kernel_shape = [1,1]> (a) y = Conv(r, l, b)",
        (4, 4, 1, 1),
        4,
    ),
    "gemm": ("float[2,8]", "a = Gemm(x, k) y = Gemm(a, l, b)", (8, 8), 8),
    "matmul": ("float[2,3,8]", "a = MatMul(x, k) c = Add(a, b) y = MatMul(c, l)", (8, 8), 8),
}


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("kind", [QuantizeFp8, QuantizeStatic16])
def test_the_runtime_makes_no_integer_kernels_of_it(kind: type[Pass], chain: str) -> None:
    shape, body, weight, bias = CHAINS[chain]
    text = f'<ir_version: 10, opset_import: ["" : 21]> g ({shape} x) => ({shape} y) {{ {body} }}'
    arrays = {"k": normal(*weight), "l": normal(*weight)} | ({"b": normal(bias)} if "b)" in body else {})
    before = model(text, **arrays)
    feeds = [{"x": normal(*map(int, shape[6:-1].split(",")))}]
    after = apply(kind(), before, feeds).model
    assert off(after, before, feeds[0], optimize=True) == pytest.approx(
        off(after, before, feeds[0], optimize=False), abs=1e-3
    )


def test_for_other_providers_layers_read_the_pairs_themselves() -> None:
    text = '<ir_version: 10, opset_import: ["" : 21]> g (float[2,8] x) => (float[2,8] y) { y = MatMul(x, w) }'
    before, feeds = model(text, w=normal(8, 8)), [{"x": normal(2, 8)}]
    gpu = replace(target(), provider="TensorrtExecutionProvider")
    after = QuantizeFp8()(before, LocalContext(feeds, gpu)).model
    assert Counter(op_types(after)) == {"QuantizeLinear": 1, "DequantizeLinear": 2, "MatMul": 1}
    scale = after.graph.initializers["w_scale"].const_value
    assert scale.numpy().shape == (8,) and off(after, before, feeds[0], optimize=False) < 0.06


def test_old_models_are_raised_and_say_so() -> None:
    before, feeds = net(17), [{"x": normal(4, 3, 8, 8)}]
    result = apply(QuantizeFp8(), before, feeds)
    assert result.model.opset == 21 and result.changes[0].rule == "opset"
    assert off(result.model, before, feeds[0]) < 0.06


@pytest.mark.parametrize("kind", BOTH)
def test_layers_that_share_values_share_pairs(kind: type[Pass]) -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]> g (float[N,8] x) => (float[N,8] y)
        { a = MatMul(x, w) b = MatMul(x, v) y = Mul(a, b) }"""
    before, feeds = model(text, w=normal(8, 8), v=normal(8, 8)), [{"x": normal(4, 8)}]
    after = apply(kind(), before, feeds).model
    assert op_types(after).count("QuantizeLinear") == (3 if kind is QuantizeStatic16 else 1)
    assert off(after, before, feeds[0]) < 0.1
    shared = model(text.replace("v)", "w)"), w=normal(8, 8))
    assert sum(n.endswith("w_quantized") for n in apply(kind(), shared, feeds).model.graph.initializers) == 1


@pytest.mark.parametrize("kind", BOTH)
def test_what_is_refused_says_why(kind: type[Pass]) -> None:
    text = '<ir_version: 10, opset_import: ["" : 21]> g (float[1,8] x) => (float[1,8] y) { y = MatMul(x, w) }'
    before = model(text, w=normal(8, 8))
    result = kind()(before, LocalContext([{"x": np.full((1, 8), np.nan, np.float32)}]))
    assert not result.changes and "not finite" in result.skips[0].reason
    assert not kind(exclude=("y",))(before, LocalContext([{"x": normal(1, 8)}])).changes
    with pytest.raises(NoData):
        kind()(before, LocalContext())


def test_zeros_stay_zeros() -> None:
    text = '<ir_version: 10, opset_import: ["" : 21]> g (float[1,8] x) => (float[1,8] y) { y = MatMul(x, w) }'
    before, feeds = model(text, w=np.zeros((8, 8), np.float32)), [{"x": np.zeros((1, 8), np.float32)}]
    for kind in BOTH:
        after = apply(kind(), before, feeds).model
        np.testing.assert_array_equal(run(after, {"x": normal(1, 8)})["y"], 0)
    assert np.zeros(1, ml_dtypes.float8_e4m3fn).itemsize == 1
