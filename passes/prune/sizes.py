"""Lists of sizes that a graph computes: where each entry comes from, so that shapes follow what is cut.

Exporters write ``Reshape(x, Concat(Shape(x)[0:1], [4, 32]))`` and longer detours. An entry of such a list is a number
that stands in a constant, the size of an axis that can be cut (its labels), or a size that stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from passes.kit.match import ONNX, attribute, given
from passes.kit.model import constant
from passes.kit.shapes import Dims
from passes.prune.labels import Array

Entry = int | str | Array | None
"""A number, the labels of an axis that can be cut, or a size that no cut changes: its symbol, ``None`` without one."""

Lists = dict[ir.Value, tuple[Entry, ...]]


def of_shape(node: ir.Node, axes: Sequence[Array | None], dims: Dims | None) -> tuple[Entry, ...]:
    """What a Shape node gives for a value with these labels and sizes."""
    known = dims if dims is not None and len(dims) == len(axes) else (None,) * len(axes)
    found: list[Entry] = [size if axis is None else axis for axis, size in zip(axes, known, strict=True)]
    return tuple(found[slice(attribute(node, "start", 0), attribute(node, "end", None))])


def entries(value: ir.Value | None, known: Lists) -> tuple[Entry, ...] | None:
    """The entries of a list (or of one size), ``None`` when it is not a list of sizes."""
    if value is None:
        return None
    if value in known:
        return known[value]
    array = constant(value)
    if array is None or array.ndim > 1 or array.dtype.kind != "i":
        return None
    return tuple(int(v) for v in array.reshape(-1))


def moved(node: ir.Node, known: Lists) -> tuple[Entry, ...] | None:
    """The entries of a node's result when it only moves sizes about, else ``None``."""
    if node.domain not in ONNX or not any(v in known for v in node.inputs if v is not None):
        return None
    held = entries(node.inputs[0], known)
    if node.op_type == "Concat":
        parts = [entries(v, known) for v in node.inputs]
        return None if any(p is None for p in parts) else tuple(e for p in parts if p is not None for e in p)
    if held is None or any(v in known for v in node.inputs[1:] if v is not None):
        return None
    if node.op_type in ("Unsqueeze", "Squeeze", "Identity", "Cast"):
        return held
    if node.op_type == "Reshape":
        return held if len(held) == 1 else None
    if node.op_type == "Gather":
        return _gathered(held, constant(given(node, 1)))
    return _sliced(node, held) if node.op_type == "Slice" else None


def _gathered(held: tuple[Entry, ...], indices: Array | None) -> tuple[Entry, ...] | None:
    if indices is None or any(not -len(held) <= i < len(held) for i in indices.reshape(-1)):
        return None
    return tuple(held[int(i)] for i in indices.reshape(-1))


def _sliced(node: ir.Node, held: tuple[Entry, ...]) -> tuple[Entry, ...] | None:
    bounds = [constant(given(node, i)) for i in (1, 2)]
    step = constant(given(node, 4))
    if any(b is None or b.size != 1 for b in bounds) or (step is None and given(node, 4) is not None):
        return None
    start, stop = (int(np.asarray(b).reshape(-1)[0]) for b in bounds)
    return held[slice(start, stop, int(step.reshape(-1)[0]) if step is not None else 1)]


def number_in(shape: ir.Value, entry: int, known: Lists) -> tuple[int, ir.Value, int] | None:
    """Where the number at ``entry`` of a list stands, when it is written out: index of the part of the Concat that
    makes the list (-1: the list is the constant), that constant, and the index in it."""
    array = constant(shape)
    if array is not None:
        return (-1, shape, entry) if entry < array.size else None
    maker = shape.producer()
    if maker is None or maker.op_type != "Concat" or maker.domain not in ONNX:
        return None
    start = 0
    for index, part in enumerate(maker.inputs):
        held = entries(part, known)
        if held is None or part is None:
            return None
        if start <= entry < start + len(held):
            return (index, part, entry - start) if constant(part) is not None else None
        start += len(held)
    return None
