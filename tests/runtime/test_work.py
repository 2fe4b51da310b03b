"""Multiply-accumulates from the shapes that a profile tells."""

from __future__ import annotations

import pytest

from optimizer.runtime.work import macs


@pytest.mark.parametrize(
    ("op", "inputs", "outputs", "wanted"),
    [
        ("Conv", [[2, 3, 8, 8], [16, 3, 3, 3], [16]], [[2, 16, 8, 8]], 2 * 16 * 64 * 27),
        ("ConvTranspose", [[1, 4, 8, 8], [4, 2, 2, 2]], [[1, 2, 16, 16]], 4 * 64 * 8),
        ("QLinearConv", [[1, 3, 8, 8], [], [], [16, 3, 3, 3], [], []], [[1, 16, 8, 8]], 16 * 64 * 27),
        ("MatMul", [[5, 2, 3], [5, 3, 4]], [[5, 2, 4]], 5 * 2 * 3 * 4),
        ("MatMul", [[7, 2, 3], [3, 4]], [[7, 2, 4]], 7 * 2 * 3 * 4),
        ("MatMul", [[3], [3, 4]], [[4]], 12),
        ("Gemm", [[3, 2], [4, 3], [4]], [[2, 4]], 2 * 3 * 4),
        ("MatMulNBits", [[1, 6, 32], [64, 1, 16], [64]], [[1, 6, 64]], 6 * 32 * 64),
        ("Relu", [[1, 6]], [[1, 6]], 0),
        ("MatMul", [[2, 3]], [[2, 4]], 0),
    ],
)
def test_layers_are_counted_whatever_is_transposed(
    op: str, inputs: list[list[int]], outputs: list[list[int]], wanted: int
) -> None:
    assert macs(op, inputs, outputs) == wanted
