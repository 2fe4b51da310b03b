"""Operators evaluated on constants, bit for bit as the CPU runtime evaluates them.

Only operators whose result follows from their definition to the last bit are here: data movement, integer and boolean
arithmetic, comparisons, and the float operations that IEEE 754 rounds correctly (+ - * / sqrt) in float32 and
float64. Exp, Erf, Pow, reductions over floats and the like depend on the library that computes them and are left.
``onnx.reference`` is not used: its integer division rounds down where runtimes truncate, and its casts to 8-bit floats
saturate by other rules.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from passes.kit.match import attribute

Array = np.ndarray[Any, Any]
Inputs = Sequence[Array | None]

_EXACT_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


class NotFoldable(ValueError):
    """The operator, a type or a value is outside of what can be evaluated exactly."""


class TooLarge(ValueError):
    """The result would be larger than allowed."""


class _Call:
    """One evaluation: the node, the version of the default domain, and the bytes that the result may take."""

    def __init__(self, node: ir.Node, opset: int, limit: int) -> None:
        self.node, self.opset, self.limit = node, opset, limit

    def get(self, name: str, default: Any = None) -> Any:
        return attribute(self.node, name, default)

    def room(self, dims: Sequence[int], dtype: np.dtype[Any]) -> tuple[int, ...]:
        """``dims`` as a shape, once it is sure that so many elements fit."""
        shape = tuple(int(d) for d in dims)
        if any(d < 0 for d in shape):
            raise NotFoldable("negative dimension")
        if math.prod(shape) * dtype.itemsize > self.limit:
            raise TooLarge(f"{math.prod(shape) * dtype.itemsize:,} bytes")
        return shape


Operator = Callable[[_Call, Inputs], Array]


def can_evaluate(node: ir.Node) -> bool:
    """Whether the operator is in the table."""
    return node.domain in ("", "ai.onnx") and node.op_type in _TABLE and len(node.outputs) == 1


def evaluate(node: ir.Node, inputs: Sequence[Array | None], opset: int, limit: int) -> Array:
    """The output of ``node`` for constant ``inputs`` (``None`` where one is left out).

    ``opset`` is the version of the default domain, ``limit`` the most bytes the result may take.
    Raises :class:`NotFoldable` or :class:`TooLarge`; nothing larger than ``limit`` is ever allocated.
    """
    try:
        with np.errstate(all="ignore"):
            result = np.asarray(_TABLE[node.op_type](_Call(node, opset, limit), list(inputs)))
    except (IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        if isinstance(error, (NotFoldable, TooLarge)):
            raise
        raise NotFoldable(str(error)) from error  # the node is invalid: leave it for the runtime to refuse
    if result.nbytes > limit:
        raise TooLarge(f"{result.nbytes:,} bytes")
    return result


def _need(arrays: Inputs, index: int) -> Array:
    held = arrays[index] if index < len(arrays) else None
    if held is None:
        raise NotFoldable("an input is left out")
    return held


def _ints(arrays: Inputs, index: int) -> list[int]:
    return [int(i) for i in _need(arrays, index).reshape(-1)]


# -- shapes and movement ------------------------------------------------------------------------------------------
def _axes(at: _Call, a: Inputs) -> list[int] | None:
    held = at.get("axes")
    if held is not None:
        return [int(i) for i in held]
    return _ints(a, 1) if len(a) > 1 and a[1] is not None else None


def _reshape(at: _Call, a: Inputs) -> Array:
    x = _need(a, 0)
    wanted = _ints(a, 1) if len(a) > 1 else list(at.get("shape"))
    if not at.get("allowzero", 0):
        wanted = [x.shape[i] if d == 0 else d for i, d in enumerate(wanted)]
    return x.reshape(wanted)


def _expand(at: _Call, a: Inputs) -> Array:
    x = _need(a, 0)
    shape = np.broadcast_shapes(x.shape, tuple(_ints(a, 1)))
    return np.broadcast_to(x, at.room(shape, x.dtype))


def _squeeze(at: _Call, a: Inputs) -> Array:
    x, axes = _need(a, 0), _axes(at, a)
    return np.squeeze(x) if axes is None else np.squeeze(x, axis=tuple(axes))


def _unsqueeze(at: _Call, a: Inputs) -> Array:
    axes = _axes(at, a)
    if axes is None:
        raise NotFoldable("no axes")
    return np.expand_dims(_need(a, 0), axis=tuple(axes))


def _flatten(at: _Call, a: Inputs) -> Array:
    x, axis = _need(a, 0), int(at.get("axis", 1))
    axis += x.ndim if axis < 0 else 0
    return x.reshape(math.prod(x.shape[:axis]), -1 if x.size else math.prod(x.shape[axis:]))


def _transpose(at: _Call, a: Inputs) -> Array:
    return np.transpose(_need(a, 0), at.get("perm"))


def _concat(at: _Call, a: Inputs) -> Array:
    parts = [_need(a, i) for i in range(len(a))]
    if sum(p.nbytes for p in parts) > at.limit:
        raise TooLarge("the joined parts")
    return np.concatenate(parts, axis=int(at.get("axis", 1)))


def _slice(at: _Call, a: Inputs) -> Array:
    x = _need(a, 0)
    if at.opset < 10:
        starts, ends, axes = at.get("starts"), at.get("ends"), at.get("axes")
        steps = None
    else:
        starts, ends = _ints(a, 1), _ints(a, 2)
        axes = _ints(a, 3) if len(a) > 3 and a[3] is not None else None
        steps = _ints(a, 4) if len(a) > 4 and a[4] is not None else None
    picks = [slice(None)] * x.ndim
    steps = steps or [1] * len(starts)
    for axis, start, end, step in zip(axes or range(len(starts)), starts, ends, steps, strict=True):
        picks[axis] = _range(x.shape[axis], int(start), int(end), int(step))
    return x[tuple(picks)]


def _range(size: int, start: int, end: int, step: int) -> slice:
    """ONNX's bounds as Python's: a negative step that runs past the first element has no Python number for its end."""
    if step == 0:
        raise NotFoldable("a step of zero")
    start, end = (i + size if i < 0 else i for i in (start, end))
    if step > 0:
        return slice(max(start, 0), max(end, 0), step)
    return slice(min(start, size - 1), None if end < 0 else end, step) if start >= 0 else slice(0, 0)


def _gather(at: _Call, a: Inputs) -> Array:
    x, index, axis = _need(a, 0), _need(a, 1), int(at.get("axis", 0))
    axis += x.ndim if axis < 0 else 0
    at.room((*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]), x.dtype)
    return np.take(x, index.astype(np.int64), axis=axis)


def _tile(at: _Call, a: Inputs) -> Array:
    x, repeats = _need(a, 0), _ints(a, 1)
    at.room([d * r for d, r in zip(x.shape, repeats, strict=True)], x.dtype)
    return np.tile(x, repeats)


def _constant_of_shape(at: _Call, a: Inputs) -> Array:
    held = at.get("value")
    fill = np.zeros(1, np.float32) if held is None else held.numpy()
    return np.full(at.room(_ints(a, 0), fill.dtype), fill.reshape(-1)[0], fill.dtype)


def _arange(at: _Call, a: Inputs) -> Array:
    start, limit, delta = (_need(a, i).reshape(()) for i in range(3))
    if start.dtype.kind not in "iu" or not int(delta):
        raise NotFoldable("only integer ranges are exact")
    count = max(math.ceil((int(limit) - int(start)) / int(delta)), 0)
    at.room((count,), start.dtype)
    return (np.arange(count, dtype=np.int64) * int(delta) + int(start)).astype(start.dtype)


def _trilu(at: _Call, a: Inputs) -> Array:
    x, k = _need(a, 0), (_ints(a, 1)[0] if len(a) > 1 and a[1] is not None else 0)
    return np.triu(x, k) if at.get("upper", 1) else np.tril(x, k)


def _where(at: _Call, a: Inputs) -> Array:
    condition, x, y = (_need(a, i) for i in range(3))
    at.room(np.broadcast_shapes(condition.shape, x.shape, y.shape), x.dtype)
    return np.where(condition, x, y).astype(x.dtype, copy=False)


def _shape(at: _Call, a: Inputs) -> Array:
    dims = _need(a, 0).shape
    return np.array(dims[at.get("start", 0) : at.get("end", len(dims))], np.int64)


def _size(at: _Call, a: Inputs) -> Array:
    return np.array(_need(a, 0).size, np.int64)


# -- types ------------------------------------------------------------------------------------------------------------
def _cast(at: _Call, a: Inputs) -> Array:
    return cast(_need(a, 0), ir.DataType(int(at.get("to", 0))).numpy(), at)


def _cast_like(at: _Call, a: Inputs) -> Array:
    return cast(_need(a, 0), _need(a, 1).dtype, at)


def cast(x: Array, to: np.dtype[Any], at: _Call) -> Array:
    """``x`` as ``to`` when every runtime agrees on it: no narrow floats, no float outside of an integer's range.

    Not to float16 either: runtimes that compute float16 in float32 drop such a cast together with the one back, and
    with them the rounding.
    """
    if x.dtype == to:
        return x
    if not _is_numpys(x.dtype) or not _is_numpys(to) or to == np.float16:
        raise NotFoldable(f"a cast from {x.dtype} to {to} depends on the runtime")
    at.room(x.shape, to)
    if x.dtype.kind == "f" and to.kind in "iu" and x.size:
        info = np.iinfo(to)
        if not np.isfinite(x).all() or x.min() < info.min or x.max() >= float(info.max):
            raise NotFoldable(f"a value does not fit into {to}")
    return x.astype(to)


def _is_numpys(dtype: np.dtype[Any]) -> bool:
    """Whether it is a number type of numpy's own: float8_e5m2 calls itself a float too, and rounds by other rules."""
    return dtype.isbuiltin != 2 and dtype.kind in "fiub"


# -- arithmetic -------------------------------------------------------------------------------------------------------
def _elementwise(function: Callable[..., Any], kinds: str, *, floats: bool = False, boolean: bool = False) -> Operator:
    """A broadcasting operator over arrays whose kinds are all in ``kinds``; float32 and float64 where ``floats``."""

    def run(at: _Call, a: Inputs) -> Array:
        arrays = [_need(a, i) for i in range(len(a))]
        for x in arrays:
            if not (x.dtype.kind in kinds or (floats and x.dtype in _EXACT_FLOATS)):
                raise NotFoldable(f"{at.node.op_type} of {x.dtype}")
        if at.opset < 7 and any(x.shape != arrays[0].shape for x in arrays):
            raise NotFoldable("broadcasting by attribute")
        dtype = np.dtype(bool) if boolean else arrays[0].dtype
        at.room(np.broadcast_shapes(*(x.shape for x in arrays)), dtype)
        result = functools.reduce(function, arrays) if len(arrays) > 1 else function(arrays[0])
        return np.asarray(result).astype(dtype, copy=False)

    return run


def _smallest(x: Array, *others: Array) -> Array:
    return functools.reduce(np.minimum, others, x)


def _largest(x: Array, *others: Array) -> Array:
    return functools.reduce(np.maximum, others, x)


def _divide(x: Array, y: Array) -> Array:
    if x.dtype.kind == "f":
        return np.asarray(x / y)
    if not np.all(y):
        raise NotFoldable("division by zero")
    quotient = np.floor_divide(x, y)
    truncated = (np.remainder(x, y) != 0) & ((x < 0) != (y < 0))
    return np.asarray(quotient + truncated)


def _modulo(at: _Call, a: Inputs) -> Array:
    x, y = _need(a, 0), _need(a, 1)
    if x.dtype.kind not in "iu" or not np.all(y):
        raise NotFoldable("remainder")
    at.room(np.broadcast_shapes(x.shape, y.shape), x.dtype)
    return np.asarray(np.fmod(x, y) if at.get("fmod", 0) else np.mod(x, y))


def _reduce(function: Callable[..., Any]) -> Operator:
    def run(at: _Call, a: Inputs) -> Array:
        x, axes = _need(a, 0), _axes(at, a)
        if x.dtype.kind not in "iu":
            raise NotFoldable("the order of a float reduction is the runtime's")
        if not axes and at.get("noop_with_empty_axes", 0):
            return x
        keep = bool(at.get("keepdims", 1))
        return np.asarray(function(x, axis=tuple(axes) if axes else None, keepdims=keep)).astype(x.dtype)

    return run


_TABLE: dict[str, Operator] = {
    "Identity": lambda at, a: _need(a, 0),
    "Shape": _shape,
    "Size": _size,
    "Reshape": _reshape,
    "Expand": _expand,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Concat": _concat,
    "Slice": _slice,
    "Gather": _gather,
    "Tile": _tile,
    "ConstantOfShape": _constant_of_shape,
    "Range": _arange,
    "Trilu": _trilu,
    "Where": _where,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Add": _elementwise(np.add, "iu", floats=True),
    "Sub": _elementwise(np.subtract, "iu", floats=True),
    "Mul": _elementwise(np.multiply, "iu", floats=True),
    "Div": _elementwise(_divide, "iu", floats=True),
    "Mod": _modulo,
    "Neg": _elementwise(np.negative, "i", floats=True),
    "Abs": _elementwise(np.abs, "iu", floats=True),
    "Sqrt": _elementwise(np.sqrt, "", floats=True),
    "Min": _elementwise(_smallest, "iu"),
    "Max": _elementwise(_largest, "iu"),
    "Equal": _elementwise(np.equal, "iub", floats=True, boolean=True),
    "Less": _elementwise(np.less, "iu", floats=True, boolean=True),
    "LessOrEqual": _elementwise(np.less_equal, "iu", floats=True, boolean=True),
    "Greater": _elementwise(np.greater, "iu", floats=True, boolean=True),
    "GreaterOrEqual": _elementwise(np.greater_equal, "iu", floats=True, boolean=True),
    "And": _elementwise(np.logical_and, "b", boolean=True),
    "Or": _elementwise(np.logical_or, "b", boolean=True),
    "Xor": _elementwise(np.logical_xor, "b", boolean=True),
    "Not": _elementwise(np.logical_not, "b", boolean=True),
    "ReduceSum": _reduce(np.sum),
    "ReduceProd": _reduce(np.prod),
    "ReduceMax": _reduce(np.max),
    "ReduceMin": _reduce(np.min),
}
