"""The pass ``prune-magnitude``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from passes.kit.options import option
from passes.prune.labels import Array
from passes.prune.thin import Choose, Thin


@dataclass(frozen=True)
class PruneMagnitude(Thin):
    """Set the weights that matter least to zero, wherever they stand.

    What it does
        Gives each layer the same share of zeros. Which weights go is told by SparseGPT (arXiv 2301.00774), which also
        fits the weights that stay, by Wanda (arXiv 2306.11695) or by magnitude alone (arXiv 1506.02626).

    When it applies
        To convolutions without groups, Gemm and MatMul by a constant. Zeros make a model smaller only where the file
        is compressed, and faster only where kernels skip them: onnxruntime's own have none, so on its providers the
        result runs as fast as before, and the compile says so.

    When it refuses
        Shared weights, weights that are not finite, layers with more inputs than a Gram matrix can hold.

    Exactness
        LOSSY.
    """

    name: ClassVar[str] = "prune-magnitude"

    sparsity: float = option(0.5, "share of each layer's weights that become zero", low=0.01, high=0.99)

    def pattern(self) -> tuple[Choose, int, str]:
        return self._choose, 0, ""

    def _choose(self, score: Array) -> Array:
        if self.method == "wanda":  # compared within each output
            count = round(self.sparsity * score.shape[1])
            order = np.argsort(score, axis=1, kind="stable")
            gone = np.zeros(score.shape, bool)
            np.put_along_axis(gone, order[:, :count], True, axis=1)
            return gone
        order = np.argsort(score, axis=None, kind="stable")
        gone = np.zeros(score.size, bool)
        gone[order[: round(self.sparsity * score.size)]] = True
        return gone.reshape(score.shape)
