"""Multiply-accumulates of a node by the shapes that it met, as the runtime's profile tells them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from passes.kit.work import CONV_WEIGHT, MATMUL_RIGHT

Shape = Sequence[int]


def macs(op: str, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> int:
    """Of one call; 0 for operators that neither convolve nor multiply matrices.

    Conv: output elements times weights per output channel. ConvTranspose: input elements times weights per input
    channel. Matrix products: with the left matrix [..., m, k], the right one [..., k, n] and the output [..., m, n],
    m * k * n for each product: sqrt(|left| * |right| * |output|) of one product whichever of them is transposed.
    """
    if not outputs or len(inputs) < 2:
        return 0
    if op == "ConvTranspose":
        return math.prod(inputs[0]) * math.prod(inputs[1][1:])
    if op == "MatMulNBits":
        return math.prod(inputs[0]) * outputs[0][-1]
    if op in CONV_WEIGHT and len(inputs) > CONV_WEIGHT[op]:
        return math.prod(outputs[0]) * math.prod(inputs[CONV_WEIGHT[op]][1:])
    if op in MATMUL_RIGHT and len(inputs) > MATMUL_RIGHT[op]:
        return _product(inputs[0], inputs[MATMUL_RIGHT[op]], outputs[0])
    return 0


def _product(left: Shape, right: Shape, output: Shape) -> int:
    if len(left) < 2 or len(right) < 2 or len(output) < 2:
        return math.prod(output) * (left[-1] if left else 0)
    one = math.prod(left[-2:]) * math.prod(right[-2:]) * math.prod(output[-2:])
    return math.isqrt(one) * math.prod(output[:-2])
