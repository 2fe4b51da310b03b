"""Integers in training: constants that are codes of real numbers, rounded on the way forward and not on the way back.

Gradients pass a rounding as if it were not there (the straight-through estimator: Bengio et al. 2013, arXiv 1308.3432;
Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", arXiv
1712.05877); where a code saturates, nothing passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from passes.kit.match import attribute, given
from passes.kit.model import Model, constant
from passes.quantize.blocks import pack, split, unpack

Array = np.ndarray[Any, Any]

PACKED = "MatMulNBits"
SCALES = {"QuantizeLinear": (1,), "DequantizeLinear": (1,), PACKED: (2, 3)}
"""Inputs that hold the parameters of grids, by operator: what was chosen for them stays."""

WIDE_BITS = 16
"""Codes of more bits are biases: they may use the whole range of their type, others the range that was used already."""


@dataclass(frozen=True, eq=False)
class Coded:
    """A constant of codes, which stand for ``scale * (code - zero)`` with codes from ``low`` to ``high``.

    ``scale`` and ``zero`` are float32 arrays that broadcast to ``real``, the numbers that it stands for now; ``stored``
    makes of codes (float32, like ``real``) what the constant holds.
    """

    real: Array
    scale: Array
    zero: Array
    low: float
    high: float
    stored: Callable[[Array], Array]

    def on_grid(self, real: Any) -> Any:
        """Real numbers (a tensor) as their codes give them back."""
        scale, zero = self._tensors()
        return scale * (straight(real / scale + zero, self.low, self.high) - zero)

    def array(self, real: Any) -> Array:
        """What the constant holds for real numbers (a tensor)."""
        scale, zero = self._tensors()
        return self.stored(straight(real / scale + zero, self.low, self.high).numpy())

    def _tensors(self) -> tuple[Any, Any]:
        import torch

        return torch.from_numpy(self.scale), torch.from_numpy(self.zero)


def straight(value: Any, low: float, high: float) -> Any:
    """A tensor rounded to whole numbers from ``low`` to ``high``; gradients pass where it lies between them."""
    import torch

    held = torch.clamp(value, low, high)
    return held + (torch.round(held) - held).detach()


def rounds(model: Model) -> bool:
    """Whether a model holds quantizers."""
    return any(node.op_type in SCALES for node in model.graph)


def coded(value: ir.Value) -> Coded | None:
    """What a constant stands for when all that read it take it for codes of one grid, else ``None``."""
    readers = [use.node for use in value.uses() if use.idx == (1 if use.node.op_type == PACKED else 0)]
    codes = constant(value)
    if codes is None or not readers or len(readers) != len(list(value.uses())) or value.is_graph_output():
        return None
    kinds = {_key(node) for node in readers}
    if len(kinds) != 1 or readers[0].op_type not in ("DequantizeLinear", PACKED):
        return None
    grid = [constant(given(readers[0], i)) for i in ((2, 3) if readers[0].op_type == PACKED else (1, 2))]
    if grid[0] is None or codes.dtype.name.startswith("float"):
        return None
    return (_blocks if readers[0].op_type == PACKED else _linear)(readers[0], codes, grid[0], grid[1])


def _key(node: ir.Node) -> tuple[object, ...]:
    numbers = tuple(sorted((n, a.value) for n, a in node.attributes.items() if n != "accuracy_level"))
    return node.op_type, tuple(node.inputs[2 if node.op_type == PACKED else 1 : 4]), numbers


def _linear(node: ir.Node, codes: Array, scale: Array, zero: Array | None) -> Coded:
    axis, block = attribute(node, "axis", 1), attribute(node, "block_size", 0)
    wide = codes.astype(np.float32)
    steps = spread(scale.astype(np.float32), axis, wide.shape, block)
    offset = spread(np.zeros((), np.float32) if zero is None else zero.astype(np.float32), axis, wide.shape, block)
    low, high = float(wide.min(initial=0)), float(wide.max(initial=0))
    if codes.dtype.itemsize * 8 > WIDE_BITS:
        low, high = float(np.iinfo(codes.dtype).min), float(np.iinfo(codes.dtype).max)
    elif zero is None or not zero.any():
        low, high = (min(low, -high) if low < 0 else low), max(high, -low)
    kind = np.int8 if low < 0 else np.uint8
    stored = codes.dtype if codes.dtype.itemsize > 1 else kind
    return Coded((wide - offset) * steps, steps, offset, low, high, lambda new: np.rint(new).astype(stored))


def _blocks(node: ir.Node, codes: Array, scale: Array, zero: Array | None) -> Coded | None:
    bits, size = attribute(node, "bits", 4), attribute(node, "block_size", 32)
    outputs, inputs = attribute(node, "N", 0), attribute(node, "K", 0)
    blocks = -(-inputs // size)
    if zero is not None and zero.dtype != np.uint8:
        return None

    def each(part: Array) -> Array:
        return np.repeat(part.reshape(outputs, blocks), size, axis=1)[:, :inputs].astype(np.float32)

    steps = each(scale)
    middle = np.full((outputs, blocks), 2 ** (bits - 1)) if zero is None else unpack(zero.reshape(outputs, -1), bits)
    offset = each(middle[:, :blocks])
    wide = unpack(codes.reshape(outputs, blocks, -1), bits).reshape(outputs, -1)[:, :inputs].astype(np.float32)

    def stored(new: Array) -> Array:
        padded = split(new, size)
        padded.reshape(outputs, -1)[:, inputs:] = np.repeat(middle[:, blocks - 1 : blocks], blocks * size - inputs, 1)
        return pack(np.rint(padded).astype(np.uint8), bits).reshape(codes.shape)

    return Coded((wide - offset) * steps, steps, offset, 0.0, 2.0**bits - 1, stored)


def spread(part: Array, axis: int, shape: Sequence[int], block: int = 0) -> Array:
    """Parameters of a grid so that they broadcast to ``shape``: one for all, one for each position of ``axis``, or one
    for each ``block`` of them."""
    if part.size == 1:
        return part.reshape(())
    if block:
        return np.repeat(part, block, axis=axis).take(range(shape[axis]), axis=axis)
    sizes = [1] * len(shape)
    sizes[axis] = -1
    return part.reshape(sizes)
