"""``requantize-form``, before and after: models that onnxruntime's own quantizer wrote, in every form."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from passes.kit.contract import PassResult
from passes.kit.model import Model, constant
from passes.quantize.requantize_form import RequantizeForm
from tests.support.runtime import Array, LocalContext, model, op_types, run, target

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
LOUD = ("MaxPool", "Pad", "Transpose", "Reshape", "Relu")


class Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, feeds: list[dict[str, Array]]) -> None:
        self._left = iter(feeds)

    def get_next(self) -> dict[str, Array] | None:
        return next(self._left, None)


def net() -> Model:
    """Convolutions around a residual, pools, a concatenation, activations, a Gemm and a MatMul."""
    rng = np.random.default_rng(6)

    def normal(*shape: int) -> Array:
        return (rng.standard_normal(shape) / np.sqrt(max(1, np.prod(shape[1:])))).astype(np.float32)

    body = """a = Conv<pads=[1,1,1,1]>(x, w1, b1) ra = Relu(a) b = Conv<pads=[1,1,1,1]>(ra, w2) s = Add(b, ra)
        rs = Relu(s) m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(rs) l = LeakyRelu(m) g = Sigmoid(l) p = Mul(l, g)
        d = Conv<group=8, pads=[1,1,1,1]>(p, w3) c = Concat<axis=1>(d, m) e = Conv(c, w4, b4)
        v = AveragePool<kernel_shape=[2,2]>(e) q = GlobalAveragePool(v) f = Flatten(q) h = Gemm(f, wg, bg)
        y = MatMul(h, wm)"""
    shapes = {"w1": (8, 3, 3, 3), "w2": (8, 8, 3, 3), "w3": (8, 1, 3, 3), "w4": (8, 16, 1, 1), "b1": (8,), "b4": (8,)}
    shapes |= {"wg": (8, 12), "bg": (12,), "wm": (12, 5)}
    weights = {name: normal(*shape) for name, shape in shapes.items()}
    return model(HEAD + f"g (float[n,3,8,8] x) => (float[n,5] y) {{ {body} }}", **weights)


def feeds() -> list[dict[str, Array]]:
    rng = np.random.default_rng(7)
    return [{"x": (rng.standard_normal((2, 3, 8, 8)) + 0.3).astype(np.float32)} for _ in range(4)]


def theirs(folder: Path, form: str, activation: str, weight: str, per_channel: bool, symmetric: bool) -> Model:
    onnx.save(net().to_proto(), folder / "float.onnx")
    logging.disable(logging.WARNING)
    quantize_static(
        folder / "float.onnx",
        folder / "int8.onnx",
        Reader(feeds()),
        quant_format=QuantFormat[form],
        activation_type=QuantType[activation],
        weight_type=QuantType[weight],
        per_channel=per_channel,
        extra_options={"ActivationSymmetric": symmetric},
    )
    logging.disable(logging.NOTSET)
    return Model.from_proto(onnx.load(folder / "int8.onnx"))


def requantize(subject: Model, site: str = "x86-vnni") -> PassResult:
    context = LocalContext(target=target(site))
    result = RequantizeForm()(subject, context)
    if result.changes:
        onnx.checker.check_model(result.model.to_proto(), full_check=True)
    assert not RequantizeForm()(result.model, context).changes, "a second run found something to do"
    return result


def bit_equal(before: Model, after: Model, given: list[dict[str, Array]]) -> None:
    for feed in given:
        wanted, got = run(before, feed), run(after, feed)
        for name, value in wanted.items():
            assert got[name].dtype == value.dtype and got[name].tobytes() == value.tobytes(), name


def activations(subject: Model) -> Counter[str]:
    """Integer types that activations are quantized to, by the zero points of QuantizeLinear and QLinear operators."""
    found: Counter[str] = Counter()
    for node in subject.graph:
        index = {"QuantizeLinear": 2, "QLinearConv": 7, "QLinearMatMul": 7}.get(node.op_type)
        zero = constant(node.inputs[index]) if index is not None else None
        if zero is not None:
            found[str(zero.dtype)] += 1
    return found


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
def test_signed_activations_become_unsigned(tmp_path: Path, form: str, per_channel: bool, symmetric: bool) -> None:
    before = theirs(tmp_path, form, "QInt8", "QInt8", per_channel, symmetric)
    result = requantize(before)
    assert activations(before)["uint8"] == 0 < activations(before)["int8"]
    adds = op_types(before).count("QLinearAdd")
    assert activations(result.model)["int8"] <= 2 * adds, "only what an addition reads stays signed"
    kinds = {
        str(z.dtype)
        for n in result.model.graph
        if n.op_type == "QLinearConv" and (z := constant(n.inputs[7])) is not None
    }
    assert kinds == ({"uint8"} if form == "QOperator" else set())
    assert not result.skips
    bit_equal(before, result.model, feeds())


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
def test_unsigned_weights_become_signed(tmp_path: Path, form: str) -> None:
    before = theirs(tmp_path, form, "QUInt8", "QUInt8", False, False)
    result = requantize(before)
    assert len(result.changes) >= 6
    for node in result.model.graph:
        if node.op_type in ("QLinearConv", "QLinearMatMul"):
            zero = constant(node.inputs[5])
            assert zero is not None and zero.dtype == np.int8
    bit_equal(before, result.model, feeds())


def test_what_is_fast_already_stays(tmp_path: Path) -> None:
    before = theirs(tmp_path, "QDQ", "QUInt8", "QInt8", True, False)
    result = requantize(before)
    assert not result.changes and result.model is before


def test_every_convolution_finds_its_fast_kernel(tmp_path: Path) -> None:
    """onnxruntime turns some signed pairs round by itself, and leaves the layers between them in float."""
    before = theirs(tmp_path, "QDQ", "QInt8", "QInt8", True, True)
    kinds = []
    for subject in (before, requantize(before).model):
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        ort.InferenceSession(subject.to_bytes(), options, providers=["CPUExecutionProvider"])
        fused = ir.from_proto(onnx.load(tmp_path / "optimized.onnx"))
        zeros = [constant(n.inputs[2]) for n in fused.graph if n.op_type == "QLinearConv"]
        kinds.append([str(z.dtype) for z in zeros if z is not None])
    assert len(kinds[0]) < 4 and kinds[1] == ["uint8"] * 4


def test_an_addition_keeps_its_type_because_its_ties_would_move() -> None:
    """All 65,536 pairs of integers; without the bridges around QLinearAdd a few of its ties round the other way."""
    body = """q = QuantizeLinear(x, s, z) k = QuantizeLinear(v, t, u)
        a = com.microsoft.QLinearAdd(q, s, z, k, t, u, r, w)
        y = DequantizeLinear(a, r, w) m = QLinearMatMul(a, r, w, w8, s, n, t, z) o = DequantizeLinear(m, t, z)"""
    held = {"s": np.array(0.5, np.float32), "t": np.array(0.25, np.float32), "r": np.array(0.75, np.float32)}
    held |= {n: np.array(i, np.int8) for n, i in (("z", 36), ("u", -128), ("w", -100), ("n", 0))}
    before = model(
        """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>"""
        + f"g (float[256,256] x, float[256,256] v) => (float[256,256] y, float[256,2] o) {{ {body} }}",
        **held,
        w8=np.ones((256, 2), np.int8),
    )
    result = requantize(before)
    assert [c.where for c in result.changes] == ["a"]
    every = np.arange(-128, 128, dtype=np.float32)
    x = np.repeat(every[:, None] - 36, 256, 1) * np.float32(0.5)
    bit_equal(before, result.model, [{"x": x, "v": np.repeat(every[None] + 128, 256, 0) * np.float32(0.25)}])


CARRIED = """q = QuantizeLinear(x, s, z) m = MaxPool<kernel_shape=[2,2], pads=[1,1,1,1]>(q) r = Relu(m)
    p = Pad(r, pads) c = Clip(p, low, high) t = Transpose<perm=[0,1,3,2]>(c) i = Identity(t) f = Flatten(i)
    k = Concat<axis=1>(f, f) d = DequantizeLinear(k, s, z) y = Relu(d) e = ArgMax<axis=1, keepdims=0>(f)"""


@pytest.mark.parametrize("zero", [0, -7, 127])
def test_what_carries_integers_follows(zero: int) -> None:
    held = {
        "s": np.array(0.05, np.float32),
        "z": np.array(zero, np.int8),
        "pads": np.array([0, 0, 0, 1, 0, 0, 1, 0]),
        "low": np.array(-100, np.int8),
        "high": np.array(90, np.int8),
    }
    before = model(HEAD + f"g (float[1,2,4,4] x) => (float[a,b] y, int64[c] e) {{ {CARRIED} }}", **held)
    result = requantize(before)
    assert len(result.changes) == 1
    assert "Relu" not in [n.op_type for n in result.model.graph][:4], "the Relu of integers is a Clip now"
    x = np.random.default_rng(zero + 8).normal(0, 4, (1, 2, 4, 4)).astype(np.float32)
    bit_equal(before, result.model, [{"x": x}])


def test_a_zero_point_that_is_left_out_is_zero() -> None:
    body = """q = QuantizeLinear(x, s, z) w = DequantizeLinear(w8, s) d = DequantizeLinear(q, s) y = MatMul(d, w)
        a = MatMulInteger(q, w8)"""
    rng = np.random.default_rng(3)
    before = model(
        HEAD + f"g (float[2,4] x) => (float[2,3] y, int32[2,3] a) {{ {body} }}",
        s=np.array(0.1, np.float32),
        z=np.array(0, np.int8),
        w8=rng.integers(-127, 128, (4, 3)).astype(np.int8),
    )
    result = requantize(before)
    assert [c.detail for c in result.changes] == ["activation: int8 to uint8"]
    bit_equal(before, result.model, [{"x": rng.normal(0, 5, (2, 4)).astype(np.float32)}])


def test_two_activations_multiplied_become_unsigned_and_signed() -> None:
    body = """q = QuantizeLinear(x, s, z) k = QuantizeLinear(v, s, z) d = DequantizeLinear(q, s, z)
        e = DequantizeLinear(k, s, z) y = MatMul(d, e)"""
    held = {"s": np.array(0.1, np.float32), "z": np.array(3, np.int8)}
    before = model(HEAD + f"g (float[2,4] x, float[4,3] v) => (float[2,3] y) {{ {body} }}", **held)
    result = requantize(before)
    assert [c.where for c in result.changes] == ["q"], "the right operand is the weight's place"
    rng = np.random.default_rng(5)
    bit_equal(
        before, result.model, [{n: rng.normal(0, 5, s).astype(np.float32) for n, s in (("x", (2, 4)), ("v", (4, 3)))}]
    )


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) o = Identity(q)", "callers see it"),
        ("q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) o = Cast<to=3>(q)", "Cast reads it"),
        ("q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) o = Abs(q)", "Abs reads it"),
    ],
)
def test_it_refuses(body: str, reason: str) -> None:
    held = {"s": np.array(0.1, np.float32), "z": np.array(3, np.int8)}
    before = model(HEAD + f"g (float[2,4] x) => (float[2,4] y, int8[2,4] o) {{ {body} }}", **held)
    result = requantize(before)
    assert not result.changes
    assert reason in result.skips[0].reason


def test_where_sums_would_saturate_nothing_moves(tmp_path: Path) -> None:
    before = theirs(tmp_path, "QDQ", "QInt8", "QInt8", True, False)
    result = requantize(before, "x86-avx2")
    assert any("saturate" in s.reason for s in result.skips)
    bit_equal(before, result.model, feeds())
