"""Steps that compute element by element: activations, arithmetic, comparisons, casts."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.fuzz.draft import FLOATS, INTS, Draft, Dull, Held, step

F32 = ("float32",)
F32_F64 = ("float32", "float64")

# name: (opset, types, how large the result is for inputs up to w, whether a bit-equal input gives bit-equal results
# whatever a pass may do, whether the input must be settled because the operator jumps)
UNARY: dict[str, tuple[int, tuple[str, ...], Any, bool, bool]] = {
    "Relu": (6, FLOATS, lambda w: w, True, False),
    "LeakyRelu": (6, F32, lambda w: w, True, False),
    "Elu": (6, F32, lambda w: w, False, False),
    "Selu": (6, F32, lambda w: 2 * w, False, False),
    "Celu": (12, F32, lambda w: w, False, False),
    "Sigmoid": (6, FLOATS, lambda w: 1, False, False),
    "HardSigmoid": (6, F32, lambda w: 1, False, False),
    "HardSwish": (14, F32, lambda w: w, False, False),
    "Mish": (18, F32, lambda w: w, False, False),
    "Tanh": (6, FLOATS, lambda w: 1, False, False),
    "Softsign": (1, F32, lambda w: 1, False, False),
    "Softplus": (1, F32, lambda w: w + 1, False, False),
    "Abs": (6, FLOATS + INTS, lambda w: w, True, False),
    "Neg": (6, (*FLOATS, "int64", "int32", "int8"), lambda w: w, True, False),
    "Sin": (7, F32_F64, lambda w: 1, False, False),
    "Cos": (7, F32_F64, lambda w: 1, False, False),
    "Atan": (7, F32, lambda w: 2, False, False),
    "Asinh": (9, F32, lambda w: w, False, False),
    "Erf": (9, F32, lambda w: 1, False, False),
    "Gelu": (20, F32, lambda w: w, False, False),
    "Identity": (1, (*FLOATS, *INTS, "bool"), lambda w: w, True, False),
    "Floor": (6, FLOATS, lambda w: w + 1, True, True),
    "Ceil": (6, FLOATS, lambda w: w + 1, True, True),
    "Round": (11, F32_F64, lambda w: w + 1, True, True),
    "Sign": (9, (*F32_F64, "int64", "int32"), lambda w: 1, True, True),
    "ThresholdedRelu": (10, F32, lambda w: w, True, True),
}


@step(6)
def unary(d: Draft) -> None:
    name = d.one([n for n, row in UNARY.items() if row[0] <= d.opset])
    _, kinds, grow, exact, jumps = UNARY[name]
    x = d.pick(lambda v: (v.settled or not jumps) and v.wide < 100, kinds)
    d.op(name, [x], x.dims, settled=exact and x.settled, wide=grow(x.wide))


@step(1)
def guarded(d: Draft) -> None:
    """Functions that need a domain: exp of small numbers, log, sqrt and reciprocal of positive ones."""
    name = d.one(["Exp", "Log", "Sqrt", "Reciprocal", "Div"])
    x = d.pick(lambda v: v.wide < 100, F32_F64)
    if name == "Exp":
        small = d.op("Tanh", [x], x.dims, wide=1)
        d.op("Exp", [small], x.dims, wide=3)
        return
    size = d.op("Abs", [x], x.dims, settled=x.settled, keep=False)
    safe = d.op("Add", [size, d.number(d.one([0.5, 1.0]), x.kind)], x.dims, keep=False, wide=x.wide + 1)
    if name == "Div":
        y = d.pick(lambda v: v.dims == x.dims and v.kind == x.kind)
        d.op("Div", [y, safe], x.dims, wide=2 * y.wide)
    else:
        d.op(name, [safe], x.dims, wide=2 + x.wide)


@step(2)
def clip(d: Draft) -> None:
    x = d.pick(kinds=FLOATS)
    low, high = d.one([(0.0, 6.0), (-1.0, 1.0), (0.0, 1.0), (0.0, None), (None, 2.0), (0.0, np.inf), (-0.5, 4.0)])
    wide = min(x.wide, max(abs(low or 0), abs(high if high is not None else x.wide)))
    if d.opset < 11:
        given = {k: v for k, v in (("min", low), ("max", high)) if v is not None}
        if x.kind != "float32":
            raise Dull
        d.op("Clip", [x], x.dims, settled=x.settled, wide=wide, **given)
        return
    bounds: list[Held | str] = ["" if b is None else d.number(b, x.kind) for b in (low, high)]
    while bounds and bounds[-1] == "":
        bounds.pop()
    if d.opset < 12 and x.kind != "float32":
        raise Dull
    d.op("Clip", [x, *bounds], x.dims, settled=x.settled, wide=wide)


def _other(d: Draft, x: Held, *, tame: float = 1e3) -> Held:
    """A second operand: a value of the same shape, a number, or a constant over the last axes."""
    if d.chance(0.5):
        try:
            return d.pick(lambda v: v.dims == x.dims and v.wide < tame and v is not x, (x.kind,))
        except Dull:
            pass
    tail = x.dims[d.between(0, x.rank) :]
    if not tail or any(isinstance(n, str) for n in tail) or d.chance(0.3):
        return d.number(d.one([0.5, 1.0, 2.0, -1.0, 3.0, 6.0]), x.kind, d.one([0, 0, min(1, x.rank)]))
    shape = [n if d.chance(0.7) else 1 for n in tail if isinstance(n, int)]
    return d.weight(d.normal(*shape, kind=x.kind), shared=True)


@step(6, since=7)
def arithmetic(d: Draft) -> None:
    name = d.one(["Add", "Sub", "Mul", "Max", "Min", "Sum", "Mean", "Add", "Mul"])
    x = d.pick(lambda v: v.wide < 30)
    if (name in ("Max", "Min", "Sum", "Mean") and x.kind == "float16") or (name == "Mean" and x.kind == "float64"):
        raise Dull
    y = _other(d, x, tame=30)
    wide = x.wide * y.wide if name == "Mul" else max(x.wide, y.wide) if name in ("Max", "Min") else x.wide + y.wide
    pair = [y, x] if d.chance(0.5) else [x, y]
    d.op(name, pair, x.dims, settled=d.settles(x, y) and name in ("Max", "Min", "Add", "Mul", "Sub"), wide=wide)


@step(2, since=13)
def integers(d: Draft) -> None:
    x = d.pick(lambda v: v.wide < 1e3, ("int64", "int32"))
    name = d.one(["Add", "Sub", "Mul", "Div", "Mod", "Max", "Min"])
    value = d.between(1, 5)
    d.op(name, [x, d.number(value, x.kind)], x.dims, settled=True, wide=x.wide * value + value)


@step(1, since=18)
def bits(d: Draft) -> None:
    x = d.pick(kinds=("int64", "int32", "uint8", "int8"))
    name = d.one(["BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot"])
    others = [] if name == "BitwiseNot" else [d.number(d.between(1, 31), x.kind)]
    d.op(name, [x, *others], x.dims, settled=True, wide=x.wide + 32)


@step(1.5, since=9)
def compare(d: Draft) -> None:
    x = d.pick(lambda v: v.settled, ("float32", "int64", "int32"))
    name = d.one(["Greater", "Less", "Equal"] + (["GreaterOrEqual", "LessOrEqual"] if d.opset >= 12 else []))
    if name == "Equal" and x.kind == "float32" and d.opset < 11:
        raise Dull
    d.op(name, [x, d.number(0.0, x.kind)], x.dims, dtype="bool", settled=True, wide=1)


@step(0.7, since=10)
def odd_numbers(d: Draft) -> None:
    x = d.pick(lambda v: v.settled, F32_F64)
    d.op(d.one(["IsNaN", "IsInf"]), [x], x.dims, dtype="bool", settled=True, wide=1)


@step(1, since=7)
def logic(d: Draft) -> None:
    x = d.pick(kinds=("bool",))
    name = d.one(["Not", "And", "Or", "Xor"])
    y = [] if name == "Not" else [d.pick(lambda v: v.dims == x.dims, ("bool",))]
    d.op(name, [x, *y], x.dims, settled=True, wide=1)


@step(1.5, since=9)
def where(d: Draft) -> None:
    test = d.pick(kinds=("bool",))
    x = d.pick(lambda v: v.dims == test.dims, ("float32", "int64"))
    y = d.number(d.one([0.0, 1.0]), x.kind)
    pair = [x, y] if d.chance(0.5) else [y, x]
    d.op("Where", [test, *pair], x.dims, dtype=x.kind, settled=x.settled, wide=max(x.wide, 1))


@step(2, since=9)
def cast(d: Draft) -> None:
    """To another float, or to integers where the number is settled."""
    x = d.pick(lambda v: v.wide < 100, (*FLOATS, "int64", "int32", "bool", "uint8", "int8"))
    wanted = [t for t in (*FLOATS, "float32", "int64", "int32", "bool") if t != x.kind]
    if x.kind in FLOATS and not x.settled:
        wanted = [t for t in FLOATS if t != x.kind]
    if x.kind not in FLOATS:
        wanted = [t for t in wanted if t != "float16"]
    to = d.one(wanted)
    if x.kind in FLOATS and to in ("int64", "int32"):  # out of an integer's range the result is the runtime's own
        low, high = d.number(-100, x.kind), d.number(100, x.kind)
        if d.opset < 12:
            raise Dull
        x = d.op("Clip", [x, low, high], x.dims, settled=True, keep=False)
    d.op("Cast", [x], x.dims, dtype=to, settled=x.settled, to=_code(to))


@step(0.6, since=15)
def cast_like(d: Draft) -> None:
    x = d.pick(kinds=("float32", "int64", "float64"))
    like = d.pick(kinds=("float32", "float64"))
    d.op("CastLike", [x, like], x.dims, dtype=like.kind, settled=x.settled)


@step(0.7, since=9)
def prelu(d: Draft) -> None:
    x = d.pick(lambda v: v.rank >= 2 and isinstance(v.dims[1], int), F32)
    slope = d.weight(d.normal(int(x.dims[1]), *(1,) * (x.rank - 2), scale=0.3))
    d.op("PRelu", [x, slope], x.dims)


@step(0.7, since=13)
def power(d: Draft) -> None:
    x = d.pick(lambda v: v.wide < 10, F32_F64)
    d.op("Pow", [x, d.number(d.one([2.0, 3.0]), x.kind)], x.dims, wide=x.wide**3)


def _code(kind: str) -> int:
    import onnx

    return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind)))
