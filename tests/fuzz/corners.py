"""Steps for what is legal but seldom: optional outputs, narrow floats, text, sequences, odd bounds and shapes."""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import TensorProto as T

from tests.fuzz.draft import Draft, Dull, step
from tests.fuzz.linear import batchnorm, image, last_fixed

F32 = ("float32",)
F8 = {"float8_e4m3fn": T.FLOAT8E4M3FN, "float8_e5m2": T.FLOAT8E5M2}


@step(0.6, since=12)
def extra_outputs(d: Draft) -> None:
    """A second output that is named and may be read: a mask, indices, the mean of a normalization."""
    name = d.one(["Dropout", "MaxPool", "TopK"])
    if name == "Dropout":
        x = d.pick(kinds=F32)
        outputs = [("", x.dims), ("bool", x.dims)]
        y, mask = d.ops("Dropout", [x], outputs, settled=x.settled, keep=False)
        d.values += [y, mask] if d.chance(0.5) else [y]
    elif name == "MaxPool":
        x = image(d, (4,))
        if not x.settled or not all(isinstance(n, int) and n >= 2 for n in x.dims[2:]):
            raise Dull
        outputs = [("", x.dims), ("int64", x.dims)]
        d.ops("MaxPool", [x], outputs, settled=True, wide=max(x.wide, 1e4), kernel_shape=[3, 3], pads=[1] * 4)
    else:
        x = last_fixed(d)
        if not x.settled:
            raise Dull
        dims = (*x.dims[:-1], 1)
        y, _ = d.ops("TopK", [x, d.ints(1)], [("", dims), ("int64", dims)], settled=True, keep=False)
        d.values.append(y)


@step(0.6, since=19)
def narrow_floats(d: Draft) -> None:
    """To an 8-bit float and back, with and without saturation."""
    x = d.pick(lambda v: v.settled, F32)
    code = d.one(list(F8.values()))
    given = {"saturate": d.between(0, 1)}
    if d.chance(0.5):
        like = d.weight(np.zeros(1, np.float32))
        narrow = d.op("Cast", [like], (1,), dtype="float32", keep=False, to=code)
        y = d.op("CastLike", [x, narrow], x.dims, keep=False, **given)
    else:
        y = d.op("Cast", [x], x.dims, keep=False, to=code, **given)
    d.op("Cast", [y], x.dims, dtype="float32", settled=True, wide=x.wide, to=T.FLOAT)


@step(0.5, since=13)
def brain_floats(d: Draft) -> None:
    """To bfloat16 and back: sixteen bits of rounding that must stay."""
    x = d.pick(lambda v: v.settled, F32)
    y = d.op("Cast", [x], x.dims, keep=False, to=T.BFLOAT16)
    d.op("Cast", [y], x.dims, dtype="float32", settled=True, to=T.FLOAT)


@step(0.4, since=13)
def text(d: Draft) -> None:
    """Words picked by numbers, and compared."""
    x = d.pick(lambda v: v.settled and v.rank >= 1, ("int64",))
    words = onnx.helper.make_tensor(d.fresh("words"), T.STRING, [3], [b"a", b"b", "\u00e9".encode()])
    d.tensors.append(words)
    zero = d.number(0, "int64")
    index = d.op("Clip", [x, zero, d.number(2, "int64")], x.dims, settled=True, keep=False)
    picked = d.op("Gather", [words.name, index], x.dims, dtype="object", settled=True, keep=False, axis=0)
    picked = d.op("Identity", [picked], x.dims, dtype="object", settled=True, keep=False)
    if d.opset >= 19:
        other = onnx.helper.make_tensor(d.fresh("word"), T.STRING, [1], [b"b"])
        d.tensors.append(other)
        d.op("Equal", [picked, other.name], x.dims, dtype="bool", settled=True, wide=1)
    else:
        d.op("Shape", [picked], (x.rank,), dtype="int64", settled=True, wide=64)


@step(0.5, since=11)
def sequences(d: Draft) -> None:
    """Values put into a sequence and taken out again."""
    x = d.pick(lambda v: v.rank >= 1, F32)
    y = d.pick(lambda v: v.dims == x.dims, F32)
    held = d.op("SequenceConstruct", [x, y], x.dims, keep=False)
    if d.chance(0.5):
        d.op("SequenceAt", [held, d.number(d.one([0, 1, -1]), "int64")], x.dims, settled=d.settles(x, y))
    else:
        d.op("ConcatFromSequence", [held], (2, *x.dims), settled=d.settles(x, y), axis=0, new_axis=1)


@step(1, since=11)
def odd_bounds(d: Draft) -> None:
    """Clips and clamps whose bounds cross, are equal, infinite, or computed."""
    x = d.pick(lambda v: v.rank >= 1, F32)
    low, high = d.one([(1.0, -1.0), (0.5, 0.5), (-np.inf, 3.0), (-2.0, -1.0), (0.0, 3.4028234663852886e38)])
    if d.chance(0.3):
        x = d.op("Relu", [x], x.dims, settled=x.settled, keep=False)
    if d.chance(0.5):
        bounds = [d.number(low), d.number(high)]
        if d.chance(0.3):
            bounds[0] = d.op("Neg", [bounds[0]], (), settled=True, keep=False)
        d.op("Clip", [x, *bounds], x.dims, settled=x.settled, wide=max(3.0, x.wide))
    else:
        first, second = d.one([("Max", "Min"), ("Min", "Max"), ("Max", "Max")])
        inner = d.op(first, [x, d.number(low)], x.dims, settled=x.settled, keep=False)
        d.op(second, [d.number(high), inner], x.dims, settled=x.settled, wide=1e3)


@step(1, since=11)
def odd_gemm(d: Draft) -> None:
    """Gemm with factors, both sides transposed, and biases of every shape; a BatchNormalization may follow."""
    x = d.pick(lambda v: v.rank == 2 and all(isinstance(n, int) for n in v.dims) and v.wide < 100, (*F32, "float64"))
    rows, size = (int(n) for n in x.dims)
    flip = d.chance(0.3)
    inner, outer = (rows, size) if flip else (size, rows)
    out = d.one([3, 8])
    weight = d.weight(d.normal(inner, out, scale=1 / math.sqrt(inner), kind=x.kind))
    shape = d.one([(), (1,), (out,), (1, out), (outer, 1), (outer, out)])
    given = {"transA": int(flip), "alpha": d.one([1.0, 0.5]), "beta": d.one([1.0, 3.0, 0.0])}
    y = d.op("Gemm", [x, weight, d.weight(d.normal(*shape, kind=x.kind))], (outer, out), wide=4 * x.wide, **given)
    if d.chance(0.6):
        batchnorm(d, y)


@step(1, since=9)
def odd_matmul(d: Draft) -> None:
    """A constant on the left, a weight with batch axes, a vector."""
    x = last_fixed(d, ranks=(2, 3))
    size = int(x.dims[-1])
    form = d.one(["left", "batched", "vector", "batched"])
    scale = 1 / math.sqrt(size)
    if form == "left" and isinstance(x.dims[-2], int):
        weight = d.weight(d.normal(3, int(x.dims[-2]), scale=scale))
        d.op("MatMul", [weight, x], (*x.dims[:-2], 3, size), wide=4 * x.wide)
    elif form == "vector":
        d.op("MatMul", [x, d.weight(d.normal(size, scale=scale))], x.dims[:-1], wide=4 * x.wide)
    else:
        weight = d.weight(d.normal(1, size, 4, scale=scale))
        dims = (*x.dims[:-1], 4) if x.rank == 3 else (1, x.dims[0], 4)
        d.op("MatMul", [x, weight], dims, wide=4 * x.wide)


@step(0.8, since=11)
def odd_conv(d: Draft) -> None:
    """Dilation, strides, paddings that differ from side to side; a BatchNormalization may follow."""
    x = image(d, (4,))
    high, wide = x.dims[2:]
    if not (isinstance(high, int) and isinstance(wide, int) and high >= 5 and wide >= 5):
        raise Dull
    out = d.one([2, 4])
    weight = d.weight(d.normal(out, int(x.dims[1]), 3, 2, scale=0.3))
    given = {"dilations": [2, 1], "strides": [1, 2], "pads": [1, 0, 2, 1]}
    dims = (x.dims[0], out, high + 3 - 4, (wide + 1 - 2) // 2 + 1)
    y = d.op("Conv", [x, weight], dims, wide=4 * x.wide, **given)
    if d.chance(0.6):
        batchnorm(d, y)


@step(0.6, since=13)
def whole_reductions(d: Draft) -> None:
    """Down to a scalar, with no axes given or an empty list of them."""
    x = d.pick(lambda v: v.rank >= 1 and v.wide < 30 and not any(isinstance(n, str) for n in v.dims), F32)
    name = d.one(["ReduceMean", "ReduceMax", "ReduceSum"])
    if name == "ReduceSum" and d.chance(0.5):
        y = d.op(name, [x, d.weight(np.zeros(0, np.int64))], x.dims, noop_with_empty_axes=1)
    else:
        y = d.op(name, [x], (), wide=x.wide * 4, keepdims=0)
    d.op("Tanh", [y], y.dims, wide=1)


@step(0.4, since=9)
def litter(d: Draft) -> None:
    """What exporters write beside the graph."""
    if not d.nodes:
        raise Dull
    node = d.one(d.nodes)
    node.doc_string = d.one(['File "/home/someone/model.py", line 3', "a note"])
    if d.opset >= 21:
        node.metadata_props.add(key="pkg.torch.onnx.stack_trace", value='File "x.py", line 1')
