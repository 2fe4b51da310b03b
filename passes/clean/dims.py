"""Small integer values that are made of dimensions, followed element by element."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from passes.clean.evaluate import NotFoldable, TooLarge, can_evaluate, evaluate
from passes.kit.match import attribute, given, is_op
from passes.kit.model import constant
from passes.kit.shapes import Dim, Shapes

_MOST = 64
"""Longer integer vectors are data, not shapes."""

_MOVES = ("Gather", "Slice", "Squeeze", "Unsqueeze", "Reshape", "Concat")


@dataclass(frozen=True)
class Known:
    """An int64 value of rank 0 or 1: each element a number, a symbol of :class:`Shapes`, or unknown."""

    items: tuple[Dim, ...]
    shape: tuple[int, ...]


class KnownDims:
    """Answers what is known of an integer value, by following it back to the shapes that it was read from.

    Elements are only moved (picked, joined, reshaped), never calculated with, so a symbol stays what it is.
    """

    def __init__(self, shapes: Shapes) -> None:
        self._shapes = shapes
        self._memo: dict[ir.Value, Known | None] = {}

    def of(self, value: ir.Value | None) -> Known | None:
        if value is None:
            return None
        if value not in self._memo:
            self._memo[value] = None  # a graph has no cycles, but a stranger's file may
            self._memo[value] = self._trace(value)
        return self._memo[value]

    def port(self, graph: ir.Graph, symbol: Dim) -> tuple[ir.Value, int] | None:
        """The input of the main graph, and its axis, that a symbol stands for; ``None`` inside nested graphs."""
        return self._shapes.port(symbol) if graph is self._shapes.main else None

    def _trace(self, value: ir.Value) -> Known | None:
        held = constant(value)
        if held is not None:
            if held.dtype != np.int64 or held.ndim > 1 or held.size > _MOST:
                return None
            return Known(tuple(int(i) for i in held.reshape(-1)), held.shape)
        node = value.producer()
        if node is None or node.graph is None:
            return None
        if is_op(node, "Shape"):
            return self._read_shape(node)
        if is_op(node, "Cast") and attribute(node, "to", 0) == ir.DataType.INT64.value:
            return self.of(node.inputs[0])
        if is_op(node, *_MOVES) and can_evaluate(node):
            return self._move(node)
        return None

    def _read_shape(self, node: ir.Node) -> Known | None:
        dims = self._shapes.of(node.inputs[0])
        if dims is None:
            return None
        items = dims[attribute(node, "start", 0) : attribute(node, "end", len(dims))]
        return Known(items, (len(items),))

    def _move(self, node: ir.Node) -> Known | None:
        """Move the elements' numbers in place of the elements, by the operator's own evaluation."""
        movers = len(node.inputs) if is_op(node, "Concat") else 1
        pool: list[Dim] = []
        arrays: list[np.ndarray | None] = []  # type: ignore[type-arg]
        for index in range(len(node.inputs)):
            source = given(node, index)
            if index >= movers:
                arrays.append(constant(source))
                if source is not None and arrays[-1] is None:
                    return None
                continue
            known = self.of(source)
            if known is None:
                return None
            arrays.append(np.arange(len(pool), len(pool) + len(known.items)).reshape(known.shape))
            pool.extend(known.items)
        try:
            order = evaluate(node, arrays, self._shapes.opset, 8 * _MOST)
        except (NotFoldable, TooLarge):
            return None
        if order.ndim > 1:
            return None
        return Known(tuple(pool[int(i)] for i in order.reshape(-1)), order.shape)
