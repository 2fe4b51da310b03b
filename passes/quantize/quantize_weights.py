"""The pass ``quantize-weights``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from passes.kit.context import Context
from passes.kit.contract import Edit, Exactness, Pass, PassResult
from passes.kit.model import Model
from passes.kit.options import OptionError, option
from passes.quantize import awq
from passes.quantize.blocks import Array, Form, Quantized, round_to_nearest
from passes.quantize.gptq import gptq
from passes.quantize.hqq import hqq
from passes.quantize.input_scales import InputScales, Observed, looks
from passes.quantize.weight_units import BlockWriter, Unit, Wish, units

METHODS = ("rtn", "hqq", "gptq", "awq", "gptq-awq")


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Store the weights of MatMul and Gemm in 4, 8 or 2 bits, in blocks with a scale each; activations stay float.

    What it does
        Every such layer becomes a ``MatMulNBits`` of domain com.microsoft, which only onnxruntime runs. Method ``rtn``
        rounds to nearest; ``hqq`` (Badri & Shaji 2023) fits grids that bear outliers, from the weights alone; ``gptq``
        (Frantar et al. 2022, arXiv 2210.17323) lets later inputs make up for the error of earlier ones; ``awq`` (Lin et
        al. 2023, arXiv 2306.00978) gives inputs with large activations finer codes and clips blocks; ``gptq-awq`` does
        both, each scale only where it lowers GPTQ's own error. AWQ's scales go into what makes the value (a
        normalization's gain, another weight); where nothing can take them, a Mul is put in front if it pays. Layers
        that share a weight share its blocks.
        ``accuracy-level`` 4 lets the kernel round activations to 8 bits, block by block, as it runs: the fast way. At 0
        activations stay float32; 8- and 2-bit weights are then 20 times slower than float32 on the CPU provider.

    When it applies
        To float32 MatMul and Gemm with constant weights, by name (``only``, ``exclude``): where weights are read more
        than used, as in decoding one token at a time. A tied embedding keeps its float table. ``rtn`` and ``hqq`` need
        no data and enter the bodies of If, Loop and Scan.

    When it refuses
        Weights that are computed, overridable, not finite, of another type, or too small to shrink. With the methods
        that need data: layers in the bodies of If, Loop and Scan, more than 16384 inputs, inputs that are not finite.

    Exactness
        LOSSY. 8 bits are nearly free; 4 bits cost more the smaller the model, 2 bits a lot.
    """

    name = "quantize-weights"
    exactness = Exactness.LOSSY

    method: str = option("gptq", "how codes are found", choices=METHODS)
    bits: int = option(4, "bits of a weight: 2, 4 or 8", low=2, high=8)
    block: int = option(32, "weights that share a scale: a power of two", low=16, high=256)
    symmetric: bool = option(False, "zero in the middle of the codes: no zero points are stored")
    accuracy_level: int = option(4, "what the kernel may do to activations: 0 or 1 nothing, 4 8 bits", low=0, high=4)
    damping: float = option(0.01, "share of the mean diagonal added to the Gram matrix (gptq)", low=1e-6, high=1)
    only: tuple[str, ...] = option((), "names or patterns of the nodes to quantize (none: all)")
    exclude: tuple[str, ...] = option((), "names or patterns of nodes to leave float")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits not in (2, 4, 8):
            raise OptionError(f"option 'bits' is {self.bits}; it can be 2, 4 or 8")
        if self.block & (self.block - 1):
            raise OptionError(f"option 'block' is {self.block}, not a power of two")

    def apply(self, model: Model, context: Context) -> PassResult:
        return _Run(self, model, context).result()


class _Run:
    """One application: choose, observe, scale, quantize, write."""

    def __init__(self, options: QuantizeWeights, model: Model, context: Context) -> None:
        self._options, self._source = options, model
        self._form = Form(options.bits, options.block, options.symmetric)
        self._scales = options.method in ("awq", "gptq-awq")
        self._observes = options.method not in ("rtn", "hqq")
        self._fork = model.fork()
        self._edit = Edit(self._fork)
        self._seen = Observed(model, context)
        self._scaler = InputScales(self._fork, self._form, self._edit, self._codes_by_gram)

    def result(self) -> PassResult:
        edit = self._edit
        found = self._units()
        if self._scales and found:
            for part in looks(found):
                grams = self._seen.grams(part)
                magnitudes = self._seen.magnitudes(list(grams))
                for name, gram in grams.items():
                    readers = [u for u in part if name in u.data]
                    self._scaler.settle(name, readers, gram, magnitudes[name])
            found = self._units()  # their weights are other ones now
        writer = BlockWriter(self._fork, edit, self._options.accuracy_level)
        for part in looks(found) if self._observes else [found]:
            if self._observes:
                self._seen.grams(part, self._scaler.source)
            for unit in part:
                codes = self._codes(unit)
                if codes is not None:
                    writer.write(unit, codes, self._note())
        if not any(change.rule == "layer" for change in edit.changes):
            return PassResult(self._source, (), tuple(edit.skips))
        writer.finish()
        return PassResult(self._fork, tuple(edit.changes), tuple(edit.skips))

    def _units(self) -> list[Unit]:
        wish = Wish(self._form, self._options.only, self._options.exclude, self._observes)
        return units(self._fork, wish, self._edit)

    def _note(self) -> str:
        return f"{self._options.bits}-bit weights in blocks of {self._options.block}, {self._options.method}"

    def _codes(self, unit: Unit) -> Quantized | None:
        """The unit's codes, or ``None`` with a skip when its inputs say nothing."""
        if self._options.method == "rtn":
            return round_to_nearest(unit.matrix, self._form)
        if self._options.method == "hqq":
            return hqq(unit.matrix, self._form)
        gram = self._gram(unit)
        if isinstance(gram, str):
            for layer in unit.layers:
                self._edit.skip("layer", layer.node, gram)
            return None
        return self._codes_by_gram(unit.matrix, gram)

    def _codes_by_gram(self, matrix: Array, gram: Array) -> Quantized:
        if self._options.method == "awq":
            return awq.clipped(matrix, gram, self._form)
        return gptq(matrix, gram, self._form, self._options.damping)

    def _gram(self, unit: Unit) -> Array | str:
        """The mean Gram matrix of everything that the unit's layers read, as they read it now."""
        total = np.zeros((unit.inputs, unit.inputs))
        for name in unit.data:
            gram = self._seen.gram(self._scaler.source(name))
            if isinstance(gram, str):
                return gram
            total += self._scaler.divided(name, gram)
        return total
