"""Labels: which positions along which axes must stay or go together.

Every axis that can be cut carries an array of labels, one for each position; positions that can only go together
carry labels that were joined (a union-find). A label is pinned, with the reason, when its position cannot go. Following
the labels through a graph (:mod:`passes.prune.follow`) gives the coupled groups of Fang et al. 2023, "DepGraph: Towards
Any Structural Pruning" (arXiv 2301.12900), one channel at a time instead of one layer at a time, so Concat, Split,
Flatten and the splitting of heads need no rules of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from passes.kit.model import constant
from passes.kit.shapes import Shapes

Array = np.ndarray[Any, Any]
Axes = list[Array | None]
"""The labels of each axis of a value, int64 [size of the axis]; ``None``: the axis cannot be cut."""

MOST_LABELS = 1 << 20
"""Axes that are longer are not followed: no layer is that wide, and every label is an object of its own."""


class Labels:
    """The labels of all values of one graph, and which of them belong together."""

    def __init__(self, shapes: Shapes) -> None:
        self.shapes = shapes
        self.held: dict[ir.Value, Axes] = {}
        self._parent: list[int] = []
        self._why: dict[int, str] = {}

    # -- labels ------------------------------------------------------------------------------------------------------
    def fresh(self, count: int, why: str = "") -> Array:
        """``count`` new labels, pinned when there is a reason ``why``."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        if why:
            self._why.update((i, why) for i in range(start, start + count))
        return np.arange(start, start + count)

    def root(self, label: int) -> int:
        """The label that stands for all that were joined with ``label``."""
        parent = self._parent
        while parent[label] != label:
            parent[label] = parent[parent[label]]
            label = parent[label]
        return label

    def roots(self, labels: Array) -> Array:
        """The same for an array."""
        return np.array([self.root(int(i)) for i in labels], np.int64)

    def why(self, label: int) -> str:
        """Why a position cannot go; empty when it can."""
        return self._why.get(self.root(label), "")

    def pin(self, labels: Array | None, why: str) -> None:
        """These positions cannot go."""
        for label in labels if labels is not None else ():
            self._why.setdefault(self.root(int(label)), why)

    def join(self, left: Array | None, right: Array | None, why: str) -> Array | None:
        """The positions of two axes of one length go together. One that cannot be cut pins the other, because of
        ``why``."""
        if left is None or right is None or len(left) != len(right):
            self.pin(left, why)
            self.pin(right, why)
            return None
        for a, b in zip(left, right, strict=True):
            self._join(int(a), int(b))
        return left

    def together(self, labels: Sequence[int] | Array) -> int:
        """All of these go together; returns the label that stands for them."""
        first = int(labels[0])
        for other in labels[1:]:
            self._join(first, int(other))
        return first

    def _join(self, a: int, b: int) -> None:
        a, b = self.root(a), self.root(b)
        if a != b:
            keep, gone = min(a, b), max(a, b)
            self._parent[gone] = keep
            if gone in self._why:
                self._why.setdefault(keep, self._why.pop(gone))

    # -- values ------------------------------------------------------------------------------------------------------
    def of(self, value: ir.Value | None) -> Axes:
        """The labels of a value's axes. Those of a constant can be cut until somebody pins them."""
        if value is None:
            return []
        if value not in self.held:
            array = constant(value)
            if array is not None and (value.producer() is None or value.producer().op_type == "Constant"):  # type: ignore[union-attr]
                self.held[value] = [self.fresh(n) if 0 < n <= MOST_LABELS else None for n in array.shape]
            else:
                self.held[value] = [None] * (self.shapes.rank(value) or 0)
        return self.held[value]

    def pin_all(self, value: ir.Value | None, why: str) -> None:
        """Nothing of this value can be cut."""
        for axis in self.of(value):
            self.pin(axis, why)

    def set(self, value: ir.Value, axes: Axes) -> None:
        """What is known of a value now. Labels whose number is not the size of their axis are let go."""
        dims = self.shapes.of(value)
        if dims is None or len(dims) != len(axes):
            for axis in axes:
                self.pin(axis, f"the shape of '{value.name}' is not known")
            self.held[value] = [None] * (self.shapes.rank(value) or 0)
            return
        kept: Axes = []
        for size, axis in zip(dims, axes, strict=True):
            fits = axis is not None and size == len(axis)
            if not fits:
                self.pin(axis, f"the shape of '{value.name}' is not known")
            kept.append(axis if fits else None)
        self.held[value] = kept
