"""Steps with weights: convolutions, products, pools, normalizations, recurrences."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tests.fuzz.draft import Dim, Draft, Dull, Held, step

F32 = ("float32",)
MATRIX = ("float32", "float32", "float64", "float16")


def image(d: Draft, ranks: tuple[int, ...] = (4, 4, 3)) -> Held:
    """A value [N, C, ...] with known channels and at most 12 of them."""
    return d.pick(
        lambda v: v.rank in ranks and isinstance(v.dims[1], int) and 1 <= v.dims[1] <= 16 and v.wide < 100, F32
    )


def conv(d: Draft, x: Held, out: int = 0, *, keep: bool = True, bias: bool | None = None, kernel: int = 0) -> Held:
    """A convolution that keeps the spatial size; grouped or depthwise now and then."""
    channels = int(x.dims[1])
    spatial = x.rank - 2
    group = d.one([1, 1, 1, channels] + ([2] if channels % 2 == 0 else []))
    if d.nodes and group > 1 and out and out % group:
        group = 1
    out = out or group * d.between(1, max(1, 8 // group))
    k = kernel or d.one([1, 3])
    fan = channels // group * k**spatial
    weight = d.weight(d.normal(out, channels // group, *(k,) * spatial, scale=1 / math.sqrt(fan)), shared=True)
    more = [d.weight(d.normal(out), shared=True)] if (d.chance(0.5) if bias is None else bias) else []
    given: dict[str, Any] = {"pads": [k // 2] * (2 * spatial), "group": group}
    if d.chance(0.3):
        given = {"auto_pad": "SAME_UPPER", "group": group}
    if d.chance(0.5):
        given["kernel_shape"] = [k] * spatial
    return d.op("Conv", [x, weight, *more], (x.dims[0], out, *x.dims[2:]), keep=keep, wide=x.wide * 2 + 2, **given)


def batchnorm(d: Draft, x: Held, *, keep: bool = True) -> Held:
    channels = int(x.dims[1])
    signs = np.sign(d.rng.standard_normal(channels)) if d.chance(0.3) else np.ones(channels)
    gamma = (d.positive(channels) * signs).astype(x.kind)
    if d.chance(0.1):
        gamma[d.between(0, channels - 1)] = 0
    moments = [d.weight(d.normal(channels, kind=x.kind)) for _ in range(2)]
    variance = d.weight(d.positive(channels, kind=x.kind), shared=True)
    epsilon = d.one([1e-5, 1e-3])
    inputs = [x, d.weight(gamma), *moments, variance]
    return d.op("BatchNormalization", inputs, x.dims, keep=keep, wide=x.wide * 2 + 2, epsilon=epsilon)


@step(4, since=7)
def convolution(d: Draft) -> None:
    conv(d, image(d))


@step(1, since=7)
def strided(d: Draft) -> None:
    x = image(d, (4,))
    high, wide = x.dims[2:]
    if not (isinstance(high, int) and isinstance(wide, int) and high >= 4 and wide >= 4):
        raise Dull
    out = d.between(1, 6)
    weight = d.weight(d.normal(out, int(x.dims[1]), 3, 3, scale=1 / math.sqrt(9 * int(x.dims[1]))))
    dims = (x.dims[0], out, (high - 1) // 2 + 1, (wide - 1) // 2 + 1)
    d.op("Conv", [x, weight], dims, wide=2 * x.wide, pads=[1] * 4, strides=[2, 2], kernel_shape=[3, 3])


@step(1, since=7)
def transposed(d: Draft) -> None:
    x = image(d, (4,))
    high, wide = x.dims[2:]
    if not (isinstance(high, int) and isinstance(wide, int)):
        raise Dull
    channels = int(x.dims[1])
    group = d.one([1, 1, channels])
    out = d.between(1, 3)
    weight = d.weight(d.normal(channels, out, 2, 2, scale=1 / math.sqrt(channels)), shared=True)
    more = [d.weight(d.normal(out * group))] if d.chance(0.5) else []
    dims = (x.dims[0], out * group, high * 2, wide * 2)
    y = d.op("ConvTranspose", [x, weight, *more], dims, wide=2 * x.wide + 2, strides=[2, 2], group=group)
    if d.chance(0.6):
        batchnorm(d, y)


@step(1.5, since=7)
def norm(d: Draft) -> None:
    batchnorm(d, image(d, (4, 3, 2)))


@step(2, since=8)
def pool(d: Draft) -> None:
    x = image(d)
    name = d.one(["MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool"])
    spatial = x.rank - 2
    if name.startswith("Global"):
        d.op(name, [x], (*x.dims[:2], *(1,) * spatial), settled=name == "GlobalMaxPool" and x.settled)
        return
    if not all(isinstance(n, int) and n >= 2 for n in x.dims[2:]):
        raise Dull
    given: dict[str, Any] = {"kernel_shape": [3] * spatial, "pads": [1] * (2 * spatial)}
    if name == "AveragePool":
        given["count_include_pad"] = d.between(0, 1)
    d.op(name, [x], x.dims, settled=name == "MaxPool" and x.settled, wide=x.wide * 3, **given)


@step(2, since=9)
def normalize(d: Draft) -> None:
    name = d.one(["LayerNormalization", "InstanceNormalization", "LRN", "GroupNormalization", "LpNormalization"])
    if name == "LayerNormalization":
        if d.opset < 17:
            raise Dull
        x = last_fixed(d)
        size = int(x.dims[-1])
        more = [d.weight(d.normal(size))] if d.chance(0.7) else []
        d.op(name, [x, d.weight(d.positive(size)), *more], x.dims, wide=4, axis=-1)
        return
    x = image(d, (4, 3))
    channels = int(x.dims[1])
    if name == "InstanceNormalization":
        d.op(name, [x, d.weight(d.positive(channels)), d.weight(d.normal(channels))], x.dims, wide=4, epsilon=1e-3)
    elif name == "LRN":
        if x.rank != 4:
            raise Dull
        d.op(name, [x], x.dims, size=3)
    elif name == "LpNormalization":
        d.op(name, [x], x.dims, wide=1, axis=1, p=2)
    elif d.opset >= 21:
        inputs = [x, d.weight(d.positive(channels)), d.weight(d.normal(channels))]
        d.op(name, inputs, x.dims, wide=4, num_groups=1, epsilon=1e-3)
    else:
        raise Dull


def last_fixed(d: Draft, kinds: tuple[str, ...] = F32, ranks: tuple[int, ...] = (2, 3, 4)) -> Held:
    """A value whose last axis is of fixed size, at least 2."""
    return d.pick(lambda v: v.rank in ranks and isinstance(v.dims[-1], int) and 2 <= v.dims[-1] <= 64, kinds)


def matmul(d: Draft, x: Held, out: int, *, bias: bool = True, keep: bool = True) -> Held:
    size = int(x.dims[-1])
    weight = d.weight(d.normal(size, out, scale=1 / math.sqrt(size), kind=x.kind), shared=True)
    dims = (*x.dims[:-1], out)
    product = d.op("MatMul", [x, weight], dims, keep=keep and not bias, wide=2 * x.wide)
    if not bias:
        return product
    shift = d.weight(d.normal(out, kind=x.kind), shared=True)
    pair = [product, shift] if d.chance(0.5) else [shift, product]
    return d.op("Add", pair, dims, keep=keep, wide=2 * x.wide + 2)


@step(3, since=9)
def product(d: Draft) -> None:
    x = last_fixed(d, MATRIX)
    matmul(d, x, d.one([4, 8, 16]), bias=d.chance(0.6))


@step(2, since=11)
def gemm(d: Draft) -> None:
    x = last_fixed(d, MATRIX, (2,))
    size, out = int(x.dims[1]), d.one([4, 8])
    flip = d.between(0, 1)
    weight = d.normal(size, out, scale=1 / math.sqrt(size), kind=x.kind)
    inputs = [x, d.weight(weight.T.copy() if flip else weight)]
    if d.chance(0.8):
        inputs.append(d.weight(d.normal(*d.one([(out,), (1, out)]), kind=x.kind)))
    given: dict[str, Any] = {"transB": flip}
    if d.chance(0.3):
        given |= {"alpha": 0.5, "beta": 2.0}
    d.op("Gemm", inputs, (x.dims[0], out), wide=3 * x.wide + 2, **given)


@step(1, since=12)
def einsum(d: Draft) -> None:
    x = d.pick(lambda v: v.rank == 3 and v.wide < 50, F32)
    d.op("Einsum", [x, x], (x.dims[0], x.dims[1], x.dims[1]), wide=x.wide**2, equation="bij,bkj->bik")


@step(0.7, since=14)
def recurrence(d: Draft) -> None:
    """LSTM, GRU or RNN over [S, N, D]; the sequence goes first."""
    x = d.pick(lambda v: v.rank == 3 and isinstance(v.dims[-1], int) and v.dims[-1] <= 16, F32)
    name, gates = d.one([("LSTM", 4), ("GRU", 3), ("RNN", 1)])
    hidden, size = d.between(2, 4), int(x.dims[-1])
    weights = [d.weight(d.normal(1, gates * hidden, n, scale=0.4)) for n in (size, hidden)]
    first = [d.weight(d.normal(1, 2 * gates * hidden))] if d.chance(0.5) else []
    steps: Dim = x.dims[0]
    outputs = [("", (steps, 1, x.dims[1], hidden)), ("", (1, x.dims[1], hidden))]
    d.ops(name, [x, *weights, *first], outputs, wide=1, hidden_size=hidden)


@step(0.7, since=10)
def integer_product(d: Draft) -> None:
    """MatMulInteger or ConvInteger on settled bytes."""
    x = d.pick(lambda v: v.rank >= 2 and isinstance(v.dims[-1], int), ("uint8", "int8"))
    size, out = int(x.dims[-1]), 4
    weight = d.weight(d.rng.integers(-100, 100, (size, out)).astype(np.int8))
    y = d.op("MatMulInteger", [x, weight], (*x.dims[:-1], out), dtype="int32", settled=True, wide=1e6, keep=False)
    f = d.op("Cast", [y], y.dims, dtype="float32", settled=True, wide=1e6, keep=False, to=1)
    d.op("Mul", [f, d.number(2.0**-14)], y.dims, settled=True, wide=4)
