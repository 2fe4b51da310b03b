"""Steps that move data, ask for shapes, reduce and sort."""

from __future__ import annotations

import numpy as np

from tests.fuzz.draft import FLOATS, Draft, Dull, Held, step

ANY = (*FLOATS, "int64", "int32", "bool", "uint8", "int8")
COMMON = ("float32", "int64", "float64", "float16")
F32 = ("float32",)


def _axis(d: Draft, x: Held) -> int:
    """An axis of fixed size."""
    return int(d.one([i for i, n in enumerate(x.dims) if isinstance(n, int)]))


def _spelled(d: Draft, axis: int, rank: int) -> int:
    return axis - rank if d.chance(0.5) else axis


@step(3)
def transpose(d: Draft) -> None:
    x = d.pick(lambda v: v.rank >= 2, ANY)
    perm = [int(i) for i in d.rng.permutation(x.rank)]
    d.op("Transpose", [x], tuple(x.dims[i] for i in perm), settled=x.settled, perm=perm)


@step(2, since=9)
def flatten(d: Draft) -> None:
    x = d.pick(lambda v: v.rank >= 2 and all(isinstance(n, int) for n in v.dims[1:]), COMMON)
    d.op("Flatten", [x], (x.dims[0], int(np.prod(x.dims[1:]))), settled=x.settled)


@step(3, since=5)
def reshape(d: Draft) -> None:
    """To a constant target, with the first dimension copied (0) or left over (-1)."""
    x = d.pick(lambda v: v.rank >= 2 and all(isinstance(n, int) for n in v.dims[1:]), ANY)
    rest = [int(n) for n in x.dims[1:]]
    total = int(np.prod(rest))
    if total < 1:
        raise Dull
    part = d.one([n for n in range(1, total + 1) if total % n == 0])
    new = d.one([[total], [part, total // part], [*rest, 1], rest])
    first = d.one([0, -1])
    d.op("Reshape", [x, d.ints(first, *new)], (x.dims[0], *new), settled=x.settled)


@step(2.5, since=13)
def computed_reshape(d: Draft) -> None:
    """To a target put together from the value's own shape, as exporters write it."""
    x = d.pick(lambda v: v.rank >= 2, COMMON)
    shape = d.op("Shape", [x], (x.rank,), dtype="int64", settled=True, keep=False)
    parts: list[Held] = []
    for axis in range(x.rank):
        i = d.number(axis, "int64")
        one = d.op("Gather", [shape, i], (), settled=True, keep=False, axis=0)
        parts.append(d.op("Unsqueeze", [one, d.ints(0)], (1,), settled=True, keep=False))
    dims = list(x.dims)
    if x.rank >= 3 and isinstance(dims[-1], int) and isinstance(dims[-2], int) and d.chance(0.6):
        dims[-2:] = [dims[-2] * dims[-1]]
        parts = [*parts[:-2], d.ints(int(dims[-1]))]
    elif d.chance(0.5):
        dims.append(1)
        parts.append(d.ints(1))
    target = d.op("Concat", parts, (len(parts),), settled=True, keep=False, axis=0)
    d.op("Reshape", [x, target], tuple(dims), settled=x.settled)


@step(1.5, since=9)
def unsqueeze(d: Draft) -> None:
    x = d.pick(lambda v: v.rank <= 3, ANY)
    axis = d.between(0, x.rank)
    extra, given = d.axes(13, [axis])
    d.op("Unsqueeze", [x, *extra], (*x.dims[:axis], 1, *x.dims[axis:]), settled=x.settled, **given)


@step(1.5, since=9)
def squeeze(d: Draft) -> None:
    x = d.pick(lambda v: 1 in v.dims, ANY)
    axis = d.one([i for i, n in enumerate(x.dims) if n == 1])
    extra, given = d.axes(13, [axis])
    d.op("Squeeze", [x, *extra], x.dims[:axis] + x.dims[axis + 1 :], settled=x.settled, **given)


@step(2.5, since=9)
def concat(d: Draft) -> None:
    x = d.pick(lambda v: v.rank >= 1 and any(isinstance(n, int) for n in v.dims), COMMON)
    axis = _axis(d, x)

    def fits(v: Held) -> bool:
        same = v.rank == x.rank and v.dims[:axis] == x.dims[:axis] and v.dims[axis + 1 :] == x.dims[axis + 1 :]
        return same and isinstance(v.dims[axis], int)

    parts = [x, *(d.pick(fits, (x.kind,)) for _ in range(d.between(0, 2)))]
    dims = (*x.dims[:axis], sum(int(v.dims[axis]) for v in parts), *x.dims[axis + 1 :])
    d.op("Concat", parts, dims, settled=d.settles(*parts), axis=_spelled(d, axis, x.rank))


@step(1.5, since=11)
def split(d: Draft) -> None:
    x = d.pick(lambda v: any(isinstance(n, int) and n >= 2 for n in v.dims), COMMON)
    axis = d.one([i for i, n in enumerate(x.dims) if isinstance(n, int) and n >= 2])
    size = int(x.dims[axis])
    cut = d.between(1, size - 1)
    outputs = [("", (*x.dims[:axis], n, *x.dims[axis + 1 :])) for n in (cut, size - cut)]
    if d.opset >= 13:
        d.ops("Split", [x, d.ints(cut, size - cut)], outputs, settled=x.settled, axis=axis)
    else:
        d.ops("Split", [x], outputs, settled=x.settled, axis=axis, split=[cut, size - cut])


@step(2.5, since=9)
def slices(d: Draft) -> None:
    x = d.pick(lambda v: any(isinstance(n, int) for n in v.dims), COMMON)
    axis = _axis(d, x)
    size = int(x.dims[axis])
    start, end, pace = d.one([(0, size, 1), (0, 2**31, 1), (0, max(1, size - 1), 1), (-1, -(2**31), -1), (0, size, 2)])
    found = len(range(size)[start : end if abs(end) < 2**31 else None : pace])
    if found < 1:
        raise Dull
    dims = (*x.dims[:axis], found, *x.dims[axis + 1 :])
    if d.opset < 10:
        if pace != 1:
            raise Dull
        d.op("Slice", [x], dims, settled=x.settled, starts=[start], ends=[end], axes=[axis])
        return
    more = [d.ints(start), d.ints(end), d.ints(axis)] + ([d.ints(pace)] if pace != 1 or d.chance(0.3) else [])
    d.op("Slice", [x, *more], dims, settled=x.settled)


@step(1.5, since=11)
def pad(d: Draft) -> None:
    x = d.pick(lambda v: v.rank >= 2 and isinstance(v.dims[-1], int) and int(v.dims[-1]) > 2, F32)
    before, after = d.one([(0, 0), (1, 1), (0, 2), (1, 0)])
    pads = [0] * (x.rank - 1) + [before] + [0] * (x.rank - 1) + [after]
    mode = d.one(["constant", "constant", "reflect", "edge"])
    more = [d.number(d.one([0.0, 1.5]))] if mode == "constant" and d.chance(0.5) else []
    dims = (*x.dims[:-1], int(x.dims[-1]) + before + after)
    d.op("Pad", [x, d.ints(*pads), *more], dims, settled=x.settled, wide=max(x.wide, 1.5), mode=mode)


@step(1, since=9)
def old_pad(d: Draft) -> None:
    if d.opset >= 11:
        raise Dull
    x = d.pick(lambda v: v.rank >= 2 and isinstance(v.dims[-1], int), F32)
    pads = [0] * (2 * x.rank)
    pads[-1] = d.one([0, 1])
    d.op("Pad", [x], (*x.dims[:-1], int(x.dims[-1]) + pads[-1]), settled=x.settled, pads=pads)


@step(1.5, since=11)
def gather(d: Draft) -> None:
    x = d.pick(lambda v: any(isinstance(n, int) for n in v.dims), COMMON)
    axis = _axis(d, x)
    shape = d.one([(), (1,), (2,)])
    indices = d.weight(d.rng.integers(-int(x.dims[axis]), int(x.dims[axis]), shape))
    d.op("Gather", [x, indices], (*x.dims[:axis], *shape, *x.dims[axis + 1 :]), settled=x.settled, axis=axis)


@step(0.7, since=13)
def gather_elements(d: Draft) -> None:
    x = d.pick(lambda v: v.rank >= 1 and all(isinstance(n, int) for n in v.dims), COMMON)
    axis = _axis(d, x)
    shape = tuple(int(n) for n in x.dims)
    indices = d.weight(d.rng.integers(0, shape[axis], shape))
    if d.chance(0.5):
        d.op("GatherElements", [x, indices], shape, settled=x.settled, axis=axis)
    else:
        order = np.argsort(d.rng.random(shape), axis=axis).astype(np.int64)
        update = d.pick(lambda v: v.dims == x.dims, (x.kind,))
        places = d.weight(order)
        d.op("ScatterElements", [x, places, update], shape, settled=d.settles(x, update), axis=axis)


@step(0.7, since=13)
def gather_nd(d: Draft) -> None:
    x = d.pick(lambda v: v.rank >= 2 and isinstance(v.dims[0], int), COMMON)
    rows = d.weight(d.rng.integers(0, int(x.dims[0]), (3, 1)))
    d.op("GatherND", [x, rows], (3, *x.dims[1:]), settled=x.settled)


@step(1, since=13)
def expand(d: Draft) -> None:
    x = d.pick(lambda v: 1 <= v.rank <= 3, COMMON)
    if d.chance(0.5):  # of the same shape: nothing happens
        d.op("Expand", [x, d.ints(*(1,) * x.rank)], x.dims, settled=x.settled)
    else:
        d.op("Expand", [x, d.ints(2, *(1,) * x.rank)], (2, *x.dims), settled=x.settled)


@step(0.7, since=13)
def tile(d: Draft) -> None:
    x = d.pick(lambda v: v.rank >= 1 and isinstance(v.dims[-1], int), COMMON)
    count = d.between(1, 2)
    repeats = d.ints(*(1,) * (x.rank - 1), count)
    d.op("Tile", [x, repeats], (*x.dims[:-1], int(x.dims[-1]) * count), settled=x.settled)


@step(0.7, since=13)
def space(d: Draft) -> None:
    x = d.pick(lambda v: v.rank == 4 and isinstance(v.dims[1], int), F32)
    n, c, high, wide = x.dims
    if isinstance(c, int) and c % 4 == 0 and isinstance(high, int) and isinstance(wide, int):
        d.op("DepthToSpace", [x], (n, c // 4, high * 2, wide * 2), settled=x.settled, blocksize=2)
    elif isinstance(c, int) and all(isinstance(s, int) and s % 2 == 0 for s in (high, wide)):
        d.op("SpaceToDepth", [x], (n, c * 4, int(high) // 2, int(wide) // 2), settled=x.settled, blocksize=2)
    else:
        raise Dull


@step(0.6, since=14)
def trilu(d: Draft) -> None:
    x = d.pick(lambda v: v.rank >= 2, ("float32", "int64"))
    d.op("Trilu", [x, d.number(d.between(-1, 1), "int64")], x.dims, settled=x.settled, upper=d.between(0, 1))


@step(0.7, since=13)
def resize(d: Draft) -> None:
    x = d.pick(lambda v: v.rank == 4 and all(isinstance(n, int) for n in v.dims[2:]), F32)
    scales = d.weight(np.array([1, 1, 2, 2], np.float32))
    mode = d.one(["nearest", "linear"])
    dims = (*x.dims[:2], int(x.dims[2]) * 2, int(x.dims[3]) * 2)
    d.op("Resize", [x, "", scales], dims, settled=x.settled and mode == "nearest", mode=mode)


@step(1.5, since=13)
def shapes(d: Draft) -> None:
    """Values that only depend on shapes: sizes, ranges, filled tensors."""
    x = d.pick(lambda v: 1 <= v.rank <= 3 and all(n != 0 for n in v.dims), COMMON)
    name = d.one(["Shape", "Size", "ConstantOfShape", "Range"])
    if name == "Size":
        d.op("Size", [x], (), dtype="int64", settled=True, wide=d.elements(x.dims))
        return
    shape = d.op("Shape", [x], (x.rank,), dtype="int64", settled=True, wide=64, keep=name == "Shape")
    if name == "ConstantOfShape":
        import onnx

        fill = onnx.numpy_helper.from_array(np.array([d.one([0.0, 1.0])], np.float32))
        zeros = d.op("ConstantOfShape", [shape], x.dims, dtype="float32", settled=True, wide=1, value=fill)
        if x.kind == "float32":
            d.op("Add", [x, zeros], x.dims, settled=x.settled)
    elif name == "Range":
        end = d.op("Gather", [shape, d.number(0, "int64")], (), settled=True, keep=False)
        d.op("Range", [d.number(0, "int64"), end, d.number(1, "int64")], (x.dims[0],), settled=True, wide=64)


@step(0.5, since=11)
def one_hot(d: Draft) -> None:
    x = d.pick(lambda v: 1 <= v.rank <= 2, ("int64",))
    values = d.weight(np.array([0, 1], np.float32))
    depth = d.number(4, "int64")
    d.op("OneHot", [x, depth, values], (*x.dims, 4), dtype="float32", settled=True, wide=1)


@step(0.4, since=9)
def eye(d: Draft) -> None:
    x = d.pick(lambda v: v.rank == 2, F32)
    d.op("EyeLike", [x], x.dims, settled=True, wide=1)


# -- reductions and orders ------------------------------------------------------------------------------------------
@step(3, since=13)
def reduce(d: Draft) -> None:
    name = d.one(["Mean", "Sum", "Max", "Min", "L1", "L2", "SumSquare", "LogSumExp", "Mean"])
    x = d.pick(lambda v: v.rank >= 2 and v.wide < 30, ("float32", "float64", "float32"))
    if name in ("L1", "L2", "SumSquare", "LogSumExp") and x.kind == "float64":
        raise Dull
    count = d.between(1, x.rank - 1)
    axes = sorted(int(i) for i in d.rng.permutation(x.rank)[:count])
    keep = d.between(0, 1)
    dims = tuple(1 if i in axes else n for i, n in enumerate(x.dims) if keep or i not in axes)
    extra, given = d.axes(13 if name == "Sum" else 18, [_spelled(d, a, x.rank) for a in axes])
    wide = x.wide if name in ("Mean", "Max", "Min") else min(x.wide**2 * d.elements(x.dims), 999.0)
    exact = name in ("Max", "Min") and x.settled
    d.op(f"Reduce{name}", [x, *extra], dims, settled=exact, wide=wide, keepdims=keep, **given)


@step(2, since=9)
def softmax(d: Draft) -> None:
    x = d.pick(lambda v: v.rank >= 2, ("float32", "float64"))
    name = d.one(["Softmax", "LogSoftmax", "Softmax"])
    d.op(name, [x], x.dims, wide=10 if name == "LogSoftmax" else 1, axis=-1 if d.opset >= 11 else x.rank - 1)


@step(0.5, since=11)
def cumulate(d: Draft) -> None:
    x = d.pick(lambda v: v.rank >= 1 and v.wide < 30, ("float32", "int64"))
    axis = _axis(d, x)
    wide = x.wide * int(x.dims[axis])
    d.op("CumSum", [x, d.number(axis, "int64")], x.dims, settled=x.kind == "int64", wide=wide)


@step(1, since=11)
def order(d: Draft) -> None:
    x = d.pick(lambda v: v.settled and v.rank >= 1 and isinstance(v.dims[-1], int), F32)
    name = d.one(["ArgMax", "ArgMin", "TopK", "Hardmax"])
    size = int(x.dims[-1])
    if name == "TopK":
        count = d.between(1, size)
        outputs = [("", (*x.dims[:-1], count)), ("int64", (*x.dims[:-1], count))]
        d.ops("TopK", [x, d.ints(count)], outputs, settled=True, wide=max(x.wide, size))
    elif name == "Hardmax":
        if x.rank < 2 or (d.opset < 13 and x.rank != 2):
            raise Dull
        d.op("Hardmax", [x], x.dims, settled=True, wide=1, axis=-1)
    else:
        d.op(name, [x], x.dims[:-1], dtype="int64", settled=True, wide=size, axis=-1, keepdims=0)
