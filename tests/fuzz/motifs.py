"""Steps that write what the passes look for, in the spellings of different exporters."""

from __future__ import annotations

import math

import numpy as np

from tests.fuzz.draft import Dim, Draft, Dull, Held, step
from tests.fuzz.linear import batchnorm, conv, image, last_fixed, matmul

F32 = ("float32",)


def swap(d: Draft, op: str, left: Held, right: Held, dims: tuple[Dim, ...], wide: float, keep: bool = False) -> Held:
    """A commutative operator with its operands in either order."""
    pair = [left, right] if d.chance(0.5) else [right, left]
    return d.op(op, pair, dims, keep=keep, wide=wide)


@step(3, since=7)
def conv_batchnorm(d: Draft) -> None:
    """Convolutions, each with its BatchNormalization and an activation."""
    x = image(d)
    for _ in range(d.between(1, 2)):
        y = batchnorm(d, conv(d, x, keep=d.chance(0.05)), keep=True)
        if d.chance(0.2):
            y = batchnorm(d, y)
        x = d.op("Relu", [y], y.dims) if d.chance(0.6) else y


@step(1.5, since=7)
def conv_bias(d: Draft) -> None:
    """A bias that is added behind the convolution."""
    x = conv(d, image(d, (4,)), bias=False, keep=False)
    shift = d.weight(d.normal(1, int(x.dims[1]), 1, 1))
    swap(d, "Add", x, shift, x.dims, x.wide + 2, keep=True)


@step(1.5, since=9)
def dense_batchnorm(d: Draft) -> None:
    x = d.pick(lambda v: v.rank == 2 and isinstance(v.dims[1], int) and v.dims[1] >= 2, F32)
    y = matmul(d, x, d.one([4, 8]), bias=d.chance(0.3), keep=False)
    batchnorm(d, y)


@step(3.5, since=9)
def gelu(d: Draft) -> None:
    """0.5 x (1 + erf(x / sqrt 2)) or its tanh form, in many groupings."""
    x = d.pick(lambda v: v.wide < 30, ("float32", "float64") if d.opset >= 13 else F32)
    s, w = x.dims, x.wide
    rank = d.one([0, 0, min(1, x.rank)])

    def times(v: Held, factor: float) -> Held:
        if d.chance(0.4) and factor != 0.044715:
            return d.op("Div", [v, d.number(1 / factor, kind=x.kind, rank=rank)], s, keep=False, wide=w)
        return swap(d, "Mul", v, d.number(factor, kind=x.kind, rank=rank), s, w)

    if d.chance(0.5):
        if x.kind != "float32":
            raise Dull
        inner = d.op("Erf", [times(x, 1 / math.sqrt(2))], s, keep=False, wide=1)
    else:
        if d.chance(0.5) and d.opset >= 13:
            cube = d.op("Pow", [x, d.number(3.0, x.kind)], s, keep=False, wide=w**3)
        else:
            cube = swap(d, "Mul", d.op("Mul", [x, x], s, keep=False, wide=w**2), x, s, w**3)
        total = swap(d, "Add", x, times(cube, 0.044715), s, w**3)
        inner = d.op("Tanh", [times(total, math.sqrt(2 / math.pi))], s, keep=False, wide=1)
    plus = swap(d, "Add", inner, d.number(1.0, kind=x.kind, rank=rank), s, 2)
    form = d.between(0, 2)
    if form == 0:
        times_keep(d, swap(d, "Mul", x, plus, s, w), rank)
    elif form == 1:
        swap(d, "Mul", x, times(plus, 0.5), s, w, keep=True)
    else:
        swap(d, "Mul", times(x, 0.5), plus, s, w, keep=True)


def times_keep(d: Draft, v: Held, rank: int) -> None:
    if d.chance(0.3):
        d.op("Div", [v, d.number(2.0, v.kind, rank)], v.dims)
    else:
        swap(d, "Mul", v, d.number(0.5, v.kind, rank), v.dims, v.wide, keep=True)


@step(3.5, since=13)
def layernorm(d: Draft) -> None:
    """LayerNorm or RMSNorm, spelled out; sometimes behind a residual sum."""
    x = last_fixed(d, ranks=(2, 3))
    s, size = x.dims, int(x.dims[-1])
    axes, given = d.axes(18, [d.one([-1, x.rank - 1])])
    one = (*s[:-1], 1)
    centred = d.chance(0.6)
    spread = x
    if centred:
        mean = d.op("ReduceMean", [x, *axes], one, keep=False, **given)
        spread = d.op("Sub", [x, mean], s, keep=False, wide=2 * x.wide)
    if d.chance(0.5):
        square = d.op("Pow", [spread, d.number(2.0)], s, keep=False, wide=x.wide**2)
    else:
        square = d.op("Mul", [spread, spread], s, keep=False, wide=x.wide**2)
    axes, given = d.axes(18, [-1])
    variance = d.op("ReduceMean", [square, *axes], one, keep=False, **given)
    safe = swap(d, "Add", variance, d.number(d.one([1e-5, 1e-3])), one, variance.wide)
    form = d.between(0, 2)
    if form == 2:
        root = d.op("Pow", [safe, d.number(-0.5)], one, keep=False, wide=30)
    else:
        root = d.op("Sqrt", [safe], one, keep=False, wide=x.wide)
    if form == 0:
        y = d.op("Div", [spread, root], s, keep=False, wide=4)
    else:
        if form == 1:
            root = d.op("Reciprocal", [root], one, keep=False, wide=30)
        y = swap(d, "Mul", spread, root, s, 4)
    y = swap(d, "Mul", y, d.weight(d.positive(size)), s, 4)
    if centred:
        y = swap(d, "Add", y, d.weight(d.normal(size)), s, 5)
    d.values.append(y)


@step(2.5, since=17)
def residual_norm(d: Draft) -> None:
    """x + f(x) before a LayerNormalization."""
    x = last_fixed(d, ranks=(2, 3))
    size = int(x.dims[-1])
    y = matmul(d, x, size, keep=False)
    if d.chance(0.5):
        y = d.op("Tanh", [y], y.dims, keep=False, wide=1)
    total = swap(d, "Add", x, y, x.dims, x.wide + y.wide, keep=d.chance(0.3))
    inputs = [total, d.weight(d.positive(size)), d.weight(d.normal(size))]
    d.op("LayerNormalization", inputs, x.dims, wide=4, axis=-1, epsilon=d.one([1e-5, 1e-6]))


@step(2.5, since=9)
def hard_activation(d: Draft) -> None:
    """Relu6, hard sigmoid and hard swish, Max / Min clamps, SiLU."""
    x = d.pick(lambda v: v.rank >= 1 and v.wide < 100, ("float32", "float64") if d.opset >= 13 else F32)
    s = x.dims
    form = d.one(["relu6", "max", "clamp", "sigmoid", "swish", "swish", "silu", "relu-clip", "relu-relu"])
    if form == "max":
        swap(d, "Max", x, d.number(0.0, x.kind), s, x.wide, keep=True)
    elif form == "clamp":
        low = swap(d, "Max", x, d.number(0.0, x.kind), s, x.wide)
        swap(d, "Min", low, d.number(6.0, x.kind), s, 6, keep=True)
    elif form == "silu":
        gate = d.op("Sigmoid", [x], s, keep=False, wide=1)
        swap(d, "Mul", x, gate, s, x.wide, keep=True)
    elif form in ("relu6", "relu-clip"):
        y = d.op("Relu", [x], s, keep=False) if form == "relu-clip" else x
        clip_between(d, y, d.one([0.0, -1.0]) if form == "relu-clip" else 0.0, 6.0, keep=True)
    elif form == "relu-relu":
        y = d.op(d.one(["Sigmoid", "Relu", "Softplus", "Abs"]), [x], s, keep=False)
        d.op("Relu", [y], s)
    else:
        plus = swap(d, "Add", x, d.number(3.0, x.kind), s, x.wide + 3)
        gate = clip_between(d, plus, 0.0, 6.0)
        if form == "sigmoid":
            sixth(d, gate, keep=True)
        elif d.chance(0.5):
            swap(d, "Mul", x, sixth(d, gate), s, x.wide, keep=True)
        else:
            sixth(d, swap(d, "Mul", x, gate, s, x.wide), keep=True)


def clip_between(d: Draft, x: Held, low: float, high: float, *, keep: bool = False) -> Held:
    if d.opset < 11:
        return d.op("Clip", [x], x.dims, keep=keep, wide=high, min=low, max=high)
    return d.op("Clip", [x, d.number(low, x.kind), d.number(high, x.kind)], x.dims, keep=keep, wide=high)


def sixth(d: Draft, x: Held, *, keep: bool = False) -> Held:
    if d.chance(0.6):
        return d.op("Div", [x, d.number(6.0, x.kind)], x.dims, keep=keep)
    return swap(d, "Mul", x, d.number(1 / 6, x.kind), x.dims, x.wide, keep=keep)


@step(2, since=9)
def mean_pool(d: Draft) -> None:
    """ReduceMean over the positions of an image, with or without kept axes."""
    x = image(d, (4, 4, 3))
    axes = list(range(2, x.rank))
    if d.chance(0.1):
        axes = axes[:-1] or [1]
    spelled = [a - x.rank if d.chance(0.5) else a for a in axes]
    keep = d.between(0, 1)
    extra, given = d.axes(18, spelled)
    dims = tuple(1 if i in axes else n for i, n in enumerate(x.dims) if keep or i not in axes)
    d.op("ReduceMean", [x, *extra], dims, keepdims=keep, **given)


@step(2.5, since=9)
def net(d: Draft) -> None:
    """Layers in a row that only positively homogeneous operators part, with channels of different size."""
    x = image(d, (4,))
    for _ in range(d.between(2, 3)):
        channels = d.one([4, 8])
        spread = np.exp2(d.rng.uniform(-3, 3, channels)).astype(np.float32)
        k = d.one([1, 1, 1, 3])
        fan = int(x.dims[1]) * k * k
        weight = d.normal(channels, int(x.dims[1]), k, k, scale=1 / math.sqrt(fan)) * spread.reshape(-1, 1, 1, 1)
        bias = d.normal(channels) + d.one([0.0, 0.0, 5.0, 5.0]) * spread
        inputs = [x, d.weight(weight), d.weight(bias.astype(np.float32))]
        y = d.op("Conv", inputs, (x.dims[0], channels, *x.dims[2:]), keep=False, wide=9, pads=[k // 2] * 4)
        form = d.one(["Relu", "Relu", "Relu", "Clip", ""])
        x = (
            y
            if not form
            else clip_between(d, y, 0.0, d.one([6.0, 60.0]))
            if form == "Clip"
            else d.op(form, [y], y.dims)
        )
    d.values.append(x)


@step(1.2, since=9)
def high_bias(d: Draft) -> None:
    """Two pointwise layers whose channels in between stay far above zero: what absorb-bias is for."""
    x = d.pick(lambda v: v.rank in (2, 4) and isinstance(v.dims[1], int) and 2 <= v.dims[1] <= 16 and v.wide < 10, F32)
    y = x
    for last in (False, True):
        size, out = int(y.dims[1]), d.one([4, 8])
        shape = (out, size, 1, 1) if x.rank == 4 else (out, size)
        weight = d.weight(d.normal(*shape, scale=1 / size))
        bias = d.weight(d.normal(out) if last else d.positive(out) * 10)
        dims = (x.dims[0], out, *x.dims[2:])
        given = {} if x.rank == 4 else {"transB": 1}
        y = d.op("Conv" if x.rank == 4 else "Gemm", [y, weight, bias], dims, keep=last, wide=20, **given)
        if not last:
            y = d.op("Relu", [y], dims, keep=False)


@step(2, since=11)
def mlp(d: Draft) -> None:
    """The feed-forward half of a transformer: two products around an activation, wide enough to be quantized."""
    x = last_fixed(d, ranks=(2, 3))
    y = matmul(d, x, d.one([16, 32]), keep=False)
    y = d.op(d.one(["Relu", "Tanh", "Relu"]), [y], y.dims, keep=False)
    matmul(d, y, int(x.dims[-1]))


@step(2, since=17)
def normed_product(d: Draft) -> None:
    """A LayerNormalization with outlying channels before a product: what smoothing is for."""
    x = last_fixed(d, ranks=(2, 3))
    size = int(x.dims[-1])
    gain = d.positive(size)
    gain[d.between(0, size - 1)] *= 30
    y = d.op("LayerNormalization", [x, d.weight(gain), d.weight(d.normal(size))], x.dims, keep=False, wide=90, axis=-1)
    matmul(d, y, d.one([8, 16]))


@step(4, since=13)
def attention(d: Draft) -> None:
    """Self-attention over [N, S, D] with one to four heads, projected together or apart."""
    x = d.pick(lambda v: v.rank == 3 and isinstance(v.dims[2], int) and v.dims[2] % 4 == 0 and v.dims[2] <= 32, F32)
    n, s, size = x.dims[0], x.dims[1], int(x.dims[2])
    heads = d.one([1, 2, 2, 4])
    each = size // heads
    split = d.ints(0, 0, heads, each)
    parts = []
    perms = ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
    for y, perm in zip(_projections(d, x, size), perms, strict=True):
        y = d.op("Reshape", [y, split], (n, s, heads, each), keep=False)
        dims: tuple[Dim, ...] = (n, heads, each, s) if perm[2] == 3 else (n, heads, s, each)
        parts.append(d.op("Transpose", [y], dims, keep=False, perm=perm))
    scores = d.op("MatMul", parts[:2], (n, heads, s, s), keep=False, wide=4)
    scores = d.op("Mul", [scores, d.number(1 / math.sqrt(each))], scores.dims, keep=False)
    share = d.op("Softmax", [scores], scores.dims, keep=False, wide=1, axis=-1)
    mixed = d.op("MatMul", [share, parts[2]], (n, heads, s, each), keep=False)
    back = d.op("Transpose", [mixed], (n, s, heads, each), keep=False, perm=[0, 2, 1, 3])
    joined = d.op("Reshape", [back, d.ints(0, 0, size)], x.dims, keep=False)
    y = matmul(d, joined, size, keep=False)
    swap(d, "Add", x, y, x.dims, x.wide + 3, keep=True)


def _projections(d: Draft, x: Held, size: int) -> list[Held]:
    """Queries, keys and values: three products, or one that is split."""
    if d.chance(0.5):
        return [matmul(d, x, size, bias=d.chance(0.7), keep=False) for _ in range(3)]
    y = matmul(d, x, 3 * size, bias=d.chance(0.7), keep=False)
    third = (*x.dims[:2], size)
    return d.ops("Split", [y, d.ints(size, size, size)], [("", third)] * 3, keep=False, axis=2)


@step(2.5, since=9)
def junk(d: Draft) -> None:
    """Nodes that do nothing."""
    x = d.pick(kinds=("float32", "float32", "int64", "float64"))
    form = d.one(["Identity", "Dropout", "Cast", "Mul", "Transposes", "Twin", "Dead"])
    if form == "Dropout" and x.kind == "float32":
        given = {} if d.opset >= 12 else {"ratio": 0.3}
        d.op("Dropout", [x], x.dims, settled=x.settled, **given)
    elif form == "Cast":
        code = {"float32": 1, "int64": 7, "float64": 11}[x.kind]
        d.op("Cast", [x], x.dims, settled=x.settled, to=code)
    elif form == "Mul":
        d.op(d.one(["Mul", "Div"]), [x, d.number(1, x.kind)], x.dims, settled=x.settled)
    elif form == "Transposes" and x.rank >= 2:
        perm = [int(i) for i in d.rng.permutation(x.rank)]
        y = d.op("Transpose", [x], tuple(x.dims[i] for i in perm), settled=x.settled, keep=False, perm=perm)
        back = [int(i) for i in np.argsort(perm)]
        d.op("Transpose", [y], x.dims, settled=x.settled, perm=back)
    elif form == "Twin":
        if x.kind == "int64":
            raise Dull
        twins = [d.op("Abs", [x], x.dims, settled=x.settled, keep=False) for _ in range(2)]
        d.op("Add", twins, x.dims, settled=x.settled, wide=2 * x.wide)
    elif form == "Dead":
        d.op("Abs", [x], x.dims, settled=x.settled, keep=False)
    else:
        d.op("Identity", [x], x.dims, settled=x.settled)


@step(2, since=13)
def constants(d: Draft) -> None:
    """A subgraph of constants: arithmetic on weights, a shape that is written out."""
    x = d.pick(lambda v: v.rank >= 1 and isinstance(v.dims[-1], int), ("float32", "float64", "float32"))
    size = int(x.dims[-1])
    left, right = d.weight(d.normal(size, kind=x.kind)), d.weight(d.positive(size, kind=x.kind))
    name = d.one(["Add", "Mul", "Sub", "Div", "Sqrt", "Concat", "Expand", "Exp", "Cast"])
    if name == "Sqrt":
        y = d.op("Sqrt", [right], (size,), settled=True, keep=False)
    elif name == "Exp":
        y = d.op("Tanh", [left], (size,), settled=False, keep=False)
    elif name == "Concat":
        half = d.op("Concat", [left, right], (2 * size,), settled=True, keep=False, axis=0)
        y = d.op("Slice", [half, d.ints(size // 2), d.ints(size // 2 + size)], (size,), settled=True, keep=False)
    elif name == "Expand":
        y = d.op("Expand", [d.number(1.5, x.kind), d.ints(size)], (size,), settled=True, keep=False)
    elif name == "Cast":
        whole = d.weight(d.rng.integers(-5, 5, (size,)))
        y = d.op(
            "Cast", [whole], (size,), dtype=x.kind, settled=True, keep=False, to={"float32": 1, "float64": 11}[x.kind]
        )
    else:
        y = d.op(name, [left, right], (size,), settled=True, keep=False)
    d.op(d.one(["Add", "Mul"]), [x, y], x.dims, settled=False, wide=x.wide * 3 + 3)


@step(1, since=9)
def big_twins(d: Draft) -> None:
    """Two equal initializers of more than 1 KiB."""
    x = last_fixed(d, ranks=(2, 3))
    size = int(x.dims[-1])
    out = -(-300 // size)
    array = d.normal(size, out, scale=1 / math.sqrt(size))
    for _ in range(2):
        y = d.op("MatMul", [x, d.weight(array)], (*x.dims[:-1], out), keep=False, wide=2 * x.wide)
        d.op("Tanh", [y], y.dims, wide=1)
