"""The pass ``prune-nm``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from passes.kit.options import option
from passes.prune.labels import Array
from passes.prune.thin import Choose, Thin


@dataclass(frozen=True)
class PruneNm(Thin):
    """Keep N of every M neighbouring weights of an output, as sparse tensor cores want it (2 of 4).

    What it does
        Along the inputs of each output, of every `m` neighbours the `m - n` that matter least become zero
        (Mishra et al. 2021, "Accelerating Sparse Deep Neural Networks", arXiv 2104.08378), told by SparseGPT
        (arXiv 2301.00774), which also fits the weights that stay, by Wanda (arXiv 2306.11695) or by magnitude.

    When it applies
        To convolutions without groups, Gemm and MatMul by a constant whose inputs are a multiple of `m`. A target says
        which forms its kernels skip (`sparse` in its file; 2:4 for TensorRT, which must be built with sparse weights
        allowed). Elsewhere the result runs as fast as before, and the compile says so.

    When it refuses
        Shared weights, weights that are not finite, layers whose inputs are no multiple of `m`; and everything where
        `n` is not smaller than `m`.

    Exactness
        LOSSY.
    """

    name: ClassVar[str] = "prune-nm"

    n: int = option(2, "weights of every m neighbours that stay", low=1, high=31)
    m: int = option(4, "neighbours that are looked at together", low=2, high=32)

    def pattern(self) -> tuple[Choose, int, str]:
        return self._choose, self.m, f"{self.n}:{self.m}"

    def _choose(self, score: Array) -> Array:
        order = np.argsort(score, axis=1, kind="stable")
        gone = np.zeros(score.shape, bool)
        np.put_along_axis(gone, order[:, : max(0, self.m - self.n)], True, axis=1)
        return gone
