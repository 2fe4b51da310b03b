"""Single weights set to zero, chosen by what was seen on calibration data: what the unstructured passes share.

- ``magnitude``: the smallest weights of each layer (Han et al. 2015, arXiv 1506.02626).
- ``wanda``: the smallest ``|w| * norm of its input``, compared within each output (Sun et al. 2024, "A Simple and
  Effective Pruning Approach for Large Language Models", arXiv 2306.11695).
- ``sparsegpt``: column by column the weights whose loss leaves the least squared error, by the inverse of the inputs'
  Gram matrix, and the columns after them make up for it (Frantar & Alistarh 2023, "SparseGPT", arXiv 2301.00774; the
  update is Hassibi & Stork's Optimal Brain Surgeon, 1992).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from passes.kit.context import Context
from passes.kit.contract import Edit, Exactness, Pass, PassResult, place
from passes.kit.model import Model, constant
from passes.kit.options import option
from passes.prune.cut import THINNED
from passes.prune.follow import Product
from passes.prune.groups import study
from passes.prune.importance import second_moments
from passes.prune.labels import Array
from passes.prune.names import chosen
from passes.prune.rows import matrix, weight_from, why_not

METHODS = ("sparsegpt", "wanda", "magnitude")

BLOCK = 128
"""Columns (inputs) that SparseGPT chooses among at once where any pattern will do."""

DAMP = 1e-2
"""Share of the mean diagonal added to a Gram matrix, as SparseGPT has it."""

Choose = Callable[[Array], Array]
"""Which of a block of weights go (bool [outputs, inputs]), by their scores (float64 [outputs, inputs])."""


@dataclass(frozen=True)
class Thin(Pass):
    """Base of the passes that set single weights to zero."""

    exactness: ClassVar[Exactness] = Exactness.LOSSY

    method: str = option("sparsegpt", "what tells which weights matter least", choices=METHODS)
    only: tuple[str, ...] = option((), "names or patterns of the layers to thin (none: all)")
    exclude: tuple[str, ...] = option((), "names or patterns of layers to leave as they are")

    def pattern(self) -> tuple[Choose, int, str]:
        """How weights of a block are chosen, how many inputs make a block, and what kernels call the form."""
        raise NotImplementedError

    def apply(self, model: Model, context: Context) -> PassResult:
        fork = model.fork()
        edit = Edit(fork)
        choose, block, form = self.pattern()
        layers = self._layers(fork, edit, block if form else 1)
        needs = [p for p in layers if self.method != "magnitude"]
        grams = second_moments(model, needs, context) if needs else {}
        for product in layers:
            weight = constant(product.weight)
            assert weight is not None
            name = str(product.node.outputs[0].name)
            rows = matrix(product, weight).T.copy()  # [outputs, inputs]
            thinned = thin(rows, grams.get(name), self.method, choose, block)
            if not np.isfinite(thinned).all() or np.array_equal(thinned, rows):
                edit.skip(self.name, product.node, "nothing to set to zero, or its fit is not finite")
                continue
            value = weight_from(product, thinned.T, weight)
            tensor = ir.Tensor(value, name=product.weight.name)
            product.weight.const_value = tensor
            fork.ir.metadata_props[THINNED + name] = form or "any"
            zeros = float((value == 0).mean())
            edit.change(self.name, product.node, f"{zeros:.0%} zeros{self._kernels(context, form)}")
        if edit.changes and form not in context.target.sparse:
            edit.skip("speed", "graph", f"no faster here: {context.target.name} has no kernels that skip zeros")
        return PassResult(fork if edit.changes else model, tuple(edit.changes), tuple(edit.skips))

    def _kernels(self, context: Context, form: str) -> str:
        return f", for the {form} kernels of {context.target.name}" if form in context.target.sparse else ""

    def _layers(self, fork: Model, edit: Edit, divisor: int) -> list[Product]:
        found = []
        for product in study(fork).trail.products:
            weight = constant(product.weight)
            if weight is None or not chosen(place(product.node), self.only, self.exclude):
                continue
            why = why_not(product)
            if not product.weight.is_initializer() or len(product.weight.uses()) > 1:
                why = why or "its weight is shared, or computed"
            elif weight.dtype.kind != "f" or not np.isfinite(weight).all():
                why = why or "its weight is not made of finite floats"
            elif matrix(product, weight).shape[0] % divisor:
                why = why or f"its inputs are no multiple of {divisor}"
            if why:
                edit.skip(self.name, product.node, why)
            else:
                found.append(product)
        return found


def thin(weight: Array, gram: Array | None, method: str, choose: Choose, block: int) -> Array:
    """``weight`` (float64 [outputs, inputs]) with some entries at zero; ``gram`` is float64 [inputs, inputs]."""
    if method == "sparsegpt" and gram is not None:
        return _surgery(weight, gram, choose, block)
    scale = np.sqrt(np.maximum(np.diag(gram), 0.0)) if method == "wanda" and gram is not None else 1.0
    score = np.abs(weight) * scale
    gone = np.concatenate([choose(part) for part in _blocks(score, block)], axis=1)
    return np.where(gone, 0.0, weight)


def _blocks(array: Array, block: int) -> Sequence[Array]:
    width = block or array.shape[1]
    return [array[:, i : i + width] for i in range(0, array.shape[1], width)]


def _surgery(weight: Array, gram: Array, choose: Choose, block: int) -> Array:
    """SparseGPT: ``weight`` [outputs, inputs] with the columns behind each zero fitted anew."""
    size = len(gram)
    dead = np.diag(gram) <= 0
    damp = DAMP * max(float(np.mean(np.diag(gram))), 1e-12)
    inverse = np.linalg.inv(gram + np.diag(np.where(dead, 1.0, 0.0)) + damp * np.eye(size))
    upper = np.linalg.cholesky(inverse).T  # inverse = upper' upper: row j holds what column j says of those behind it
    found = weight.copy()
    step = block or BLOCK
    for start in range(0, size, step):
        stop = min(start + step, size)
        root = np.diag(upper)[start:stop]
        gone = choose((found[:, start:stop] / root) ** 2)
        for column in range(start, stop):
            error = np.where(gone[:, column - start], found[:, column], 0.0) / upper[column, column]
            found[:, column:] -= np.outer(error, upper[column, column:])
            found[gone[:, column - start], column] = 0.0
    return found
