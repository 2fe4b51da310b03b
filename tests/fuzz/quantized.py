"""Steps that come quantized: other people's QDQ and QOperator graphs, signed or unsigned.

Scales of values that are quantized again are powers of two: then every product and sum of integers is exact in float32
(below 2^24), the result does not depend on the order of summation, and quantizing it cannot tip over.
"""

from __future__ import annotations

import numpy as np

from tests.fuzz.draft import Draft, Dull, Held, step

F32 = ("float32",)


def _zero(d: Draft, kind: str, share: float = 0.5) -> int:
    return 0 if d.chance(share) else (d.between(-20, 20) if kind == "int8" else d.between(100, 150))


def _quantize(d: Draft, x: Held, scale: float, zero: int, kind: str) -> tuple[Held, list[Held]]:
    grid = [d.number(scale), d.weight(np.array(zero, kind))]
    q = d.op("QuantizeLinear", [x, *grid], x.dims, dtype=kind, settled=True, wide=128, keep=False)
    return q, grid


def _dequantize(d: Draft, q: Held, grid: list[Held], wide: float = 2.0) -> Held:
    return d.op("DequantizeLinear", [q, *grid], q.dims, dtype="float32", settled=True, wide=wide, keep=False)


@step(3, since=13)
def qdq_net(d: Draft) -> None:
    """Pairs around convolutions and products, S8S8 as onnxruntime's quantize_static writes them by default."""
    kind = d.one(["int8", "int8", "uint8"])
    x = d.pick(lambda v: v.settled and v.rank in (2, 4) and isinstance(v.dims[1], int) and 2 <= v.dims[1] <= 16, F32)
    scale = 2.0 ** d.between(-6, -4)
    for _ in range(d.between(1, 3)):
        q, grid = _quantize(d, x, scale, _zero(d, kind), kind)
        if x.rank == 4 and d.chance(0.3) and all(isinstance(n, int) and n >= 2 for n in x.dims[2:]):
            q = (
                d.op("MaxPool", [q], q.dims, settled=True, keep=False, kernel_shape=[3, 3], pads=[1] * 4)
                if kind != "int8" or d.opset >= 13
                else q
            )
        if d.chance(0.15):
            q = d.op("Reshape", [q, d.ints(0, -1)], _flat(q), settled=True, keep=False)
        y = _dequantize(d, q, grid)
        x = _layer(d, y, scale)
        if d.chance(0.3):
            x = d.op("Relu", [x], x.dims, settled=True, keep=False)
        scale = 2.0 ** d.between(-4, -2)
    d.values.append(x)


def _flat(q: Held) -> tuple[int | str, ...]:
    rest = q.dims[1:]
    if not all(isinstance(n, int) for n in rest) or int(np.prod(rest)) > 64:
        raise Dull
    return (q.dims[0], int(np.prod(rest)))


def _layer(d: Draft, x: Held, scale: float) -> Held:
    """A Conv or Gemm or MatMul whose weights are dequantized, per channel or per tensor."""
    channels, out = int(x.dims[1]), d.one([4, 8])
    shape = (out, channels, 3, 3) if x.rank == 4 else (channels, out)
    axis = 0 if x.rank == 4 else 1
    kind = d.one(["int8", "int8", "uint8"])
    reach = d.one([127, 60])
    low = -reach if kind == "int8" else 0
    codes = d.weight(d.rng.integers(low, reach + 1, shape).astype(kind))
    steps = np.exp2(d.rng.integers(-9, -6, out)).astype(np.float32)
    zero = 0 if kind == "int8" else 128
    if d.chance(0.5):
        grid = [d.weight(steps), d.weight(np.full(out, zero, kind))]
        weight = d.op("DequantizeLinear", [codes, *grid], shape, dtype="float32", settled=True, keep=False, axis=axis)
    else:
        steps = np.full(out, steps[0])
        grid = [d.number(float(steps[0])), d.weight(np.array(zero, kind))]
        weight = d.op("DequantizeLinear", [codes, *grid], shape, dtype="float32", settled=True, keep=False)
    bias = []
    if d.chance(0.5):
        held = d.weight(d.rng.integers(-500, 500, (out,)).astype(np.int32))
        zeros = d.weight(np.zeros(out, np.int32))
        scales = d.weight((steps * scale).astype(np.float32))
        real = d.op(
            "DequantizeLinear", [held, scales, zeros], (out,), dtype="float32", settled=True, keep=False, axis=0
        )
        bias = [real]
    if x.rank == 4:
        dims = (x.dims[0], out, *x.dims[2:])
        return d.op("Conv", [x, weight, *bias], dims, settled=True, wide=8, keep=False, pads=[1] * 4)
    if bias:
        return d.op("Gemm", [x, weight, *bias], (x.dims[0], out), settled=True, wide=8, keep=False)
    return d.op("MatMul", [x, weight], (x.dims[0], out), settled=True, wide=8, keep=False)


@step(1.5, since=11)
def qoperators(d: Draft) -> None:
    """QLinearMatMul, QLinearConv and contrib's QLinearAdd."""
    kind = d.one(["int8", "int8", "uint8"])
    x = d.pick(lambda v: v.settled and v.rank in (2, 4) and isinstance(v.dims[1], int) and 2 <= v.dims[1] <= 16, F32)
    scale = float(d.one([0.03, 0.0625, 0.011]))
    q, grid = _quantize(d, x, scale, _zero(d, kind), kind)
    channels, out = int(x.dims[1]), d.one([4, 8])
    shape = (out, channels, 1, 1) if x.rank == 4 else (channels, out)
    weight = [
        d.weight(d.rng.integers(-60, 61, shape).astype(np.int8)),
        d.number(0.01),
        d.weight(np.array(0, np.int8)),
    ]
    after = [d.number(0.05), d.weight(np.array(_zero(d, kind), kind))]
    dims = (x.dims[0], out, *x.dims[2:])
    op = "QLinearConv" if x.rank == 4 else "QLinearMatMul"
    y = d.op(op, [q, *grid, *weight, *after], dims, dtype=kind, settled=True, keep=False)
    if d.chance(0.3):
        third = [d.number(0.1), d.weight(np.array(_zero(d, kind), kind))]
        inputs = [y, *after, y, *after, *third]
        y = d.op("QLinearAdd", inputs, dims, dtype=kind, settled=True, keep=False, domain="com.microsoft")
        after = third
    if d.chance(0.3):
        y = d.op("Relu", [y], dims, settled=True, keep=False) if kind == "int8" and d.opset >= 14 else y
    d.values.append(_dequantize(d, y, after))


@step(1, since=11)
def dynamic(d: Draft) -> None:
    """DynamicQuantizeLinear and MatMulInteger."""
    x = d.pick(lambda v: v.settled and v.rank in (2, 3) and isinstance(v.dims[-1], int) and v.dims[-1] >= 2, F32)
    size, out = int(x.dims[-1]), 4
    outputs = [("uint8", x.dims), ("float32", ()), ("uint8", ())]
    q, scale, zero = d.ops("DynamicQuantizeLinear", [x], outputs, settled=True, keep=False)
    codes, none = d.weight(d.rng.integers(-127, 128, (size, out)).astype(np.int8)), d.weight(np.array(0, np.int8))
    dims = (*x.dims[:-1], out)
    y = d.op("MatMulInteger", [q, codes, zero, none], dims, dtype="int32", settled=True, keep=False)
    f = d.op("Cast", [y], dims, dtype="float32", settled=True, keep=False, to=1)
    total = d.op("Mul", [scale, d.number(0.01)], (), settled=True, keep=False)
    d.op("Mul", [f, total], dims, settled=True, wide=4)


@step(1, since=13)
def bytes_in_between(d: Draft) -> None:
    """A quantized value that is moved about as integers and read by several."""
    kind = d.one(["int8", "uint8"])
    x = d.pick(lambda v: v.settled and v.rank >= 2, F32)
    q, grid = _quantize(d, x, float(d.one([0.0625, 0.02])), _zero(d, kind), kind)
    perm = [int(i) for i in d.rng.permutation(x.rank)]
    y = d.op("Transpose", [q], tuple(x.dims[i] for i in perm), settled=True, keep=False, perm=perm)
    if d.chance(0.3):
        y = d.op("Concat", [y, y], (*y.dims[:-1], _twice(y.dims[-1])), settled=True, keep=False, axis=-1)
    if d.chance(0.2):
        d.values.append(q)
    d.values.append(_dequantize(d, y, grid))


def _twice(size: int | str) -> int:
    if isinstance(size, str):
        raise Dull
    return 2 * size
