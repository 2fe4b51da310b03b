"""The pass ``quantize-static``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from passes.kit.context import Context
from passes.kit.contract import Edit, Exactness, Pass, PassResult
from passes.kit.model import Model
from passes.kit.options import option
from passes.kit.target import Target
from passes.quantize import opset
from passes.quantize.correct_bias import correct_bias
from passes.quantize.grid import LIMITS, Array, Grid, activation_grid, symmetric_grid
from passes.quantize.layers import Choice, Layer, Names, choose, nested_layers
from passes.quantize.lower import Lowering
from passes.quantize.observers import OBSERVERS, Observer, Range
from passes.quantize.placement import Plan, Rules, place
from passes.quantize.ranges import observe
from passes.quantize.weights import WeightWriter, drop_unused

TYPES = ("target", "uint8", "int8")

NOTHING: Array = np.empty((0, 0), np.float32)
"""Stands for the weight of a layer while only its place in the graph matters."""


@dataclass(frozen=True)
class QuantizeStatic(Pass):
    """Quantize weights and activations to 8 bits, with ranges observed on calibration data.

    What it does
        Conv, Gemm and MatMul with constant weights run on integers, and so does what lies between them: additions,
        concatenations and pools get integer kernels, shape operators move the integers as they are, and a Relu or Clip
        is taken over by the grid of its result. Weights are symmetric with one scale per output channel, activations
        asymmetric with zero on the grid, biases 32-bit with the product of both scales (Jacob et al. 2018, arXiv
        1712.05877; Krishnamoorthi 2018, arXiv 1806.08342). A weight scale is raised where its bias would overflow.
        The form is QuantizeLinear and DequantizeLinear around standard operators. A MatMul gives floats unless only
        other layers read it; the Add behind it is spelled Sum, else onnxruntime would make a float Gemm of the two.
        Below opset 13 the model is raised to 13; where that fails, weights get one scale each (opset 10 on).
        Ranges hold all values seen (``minmax``), the mean of each sample's extremes (``moving-average``; the plain mean
        of Krishnamoorthi's moving one, so that no order matters), all but a share of the values (``percentile``), what
        keeps most information (``entropy``, Migacz 2017), what has the least squared error (``mse``), or for each
        tensor the whole range unless clipping pays (``auto``). Types, symmetry and biases follow the target; a target
        whose activations are symmetric (TensorRT) keeps its Relus and adds biases in float.

    When it applies
        To float32 layers with constant weights in the main graph, by operators of the target (or ``ops``), by name
        (``only``, ``exclude``). It wants a clean graph: a BatchNormalization or a hidden bias leaves float islands.

    When it refuses
        Weights or biases that are computed, overridable, not finite, of another type, or quantized already; three
        spatial dimensions; layers in the bodies of If, Loop and Scan; tensors with non-finite values or never seen.
        Attention products, Softmax and normalization stay float. A constant that others read stays beside its integers.

    Exactness
        LOSSY. Judge it on data: small and depthwise networks may lose quality and gain no time.
    """

    name = "quantize-static"
    exactness = Exactness.LOSSY

    observer: str = option("minmax", "how ranges are taken from the data", choices=OBSERVERS)
    percentile: float = option(99.999, "percentage of values below the high end (percentile)", low=90, high=100)
    per_channel: str = option("target", "one scale per output channel of a weight", choices=("target", "yes", "no"))
    ops: tuple[str, ...] = option((), "operators to quantize (none: those of the target)")
    only: tuple[str, ...] = option((), "names or patterns of the weight-bearing nodes to quantize (none: all)")
    exclude: tuple[str, ...] = option((), "names or patterns of nodes to leave float")
    activation: str = option("target", "integer type of activations", choices=TYPES)
    weight: str = option("target", "integer type of weights", choices=TYPES)
    weight_range: int = option(0, "largest absolute quantized weight (0: that of the target)", low=0, high=127)

    correct_bias: bool = option(False, "add to each bias what quantization shifts its channel by on average")

    def apply(self, model: Model, context: Context) -> PassResult:
        result = _Run(self, model, context).result()
        return correct_bias(model, result, context) if self.correct_bias else result


@dataclass(frozen=True)
class Settings:
    """The options of one run, with what the target says filled in."""

    ops: tuple[str, ...]
    activation: str
    weight: str
    reach: int
    per_channel: bool
    symmetric: bool
    float_bias: bool
    observer: Observer

    @classmethod
    def of(cls, options: QuantizeStatic, target: Target) -> Settings:
        """Options first, the target for what they leave open."""
        per_channel = target.per_channel if options.per_channel == "target" else options.per_channel == "yes"
        activation = target.activation if options.activation == "target" else options.activation
        levels = LIMITS[activation][1] - LIMITS[activation][0] + 1
        symmetric = target.symmetric_activations
        return cls(
            options.ops or target.static_ops,
            activation,
            target.weight if options.weight == "target" else options.weight,
            options.weight_range or target.weight_range,
            per_channel,
            symmetric,
            target.float_bias,
            Observer(options.observer, options.percentile, levels, symmetric),
        )

    def grid(self, seen: Range) -> Grid:
        """The grid of an activation with that range."""
        make = symmetric_grid if self.symmetric else activation_grid
        return make(seen.low, seen.high, self.activation)


class _Run:
    """One application: choose, place, observe, lower."""

    def __init__(self, options: QuantizeStatic, model: Model, context: Context) -> None:
        self._options, self._source, self._context = options, model, context
        self._settings = Settings.of(options, context.target)

    def result(self) -> PassResult:
        edit = Edit(self._source)
        for node in nested_layers(self._source):
            edit.skip("nested", node, "it lies in the body of an If, Loop or Scan, whose values cannot be observed")
        first = self._choose(self._source.fork().graph)
        if not first.layers:
            self._note_refused(first, edit)
            return PassResult(self._source, (), tuple(edit.skips))
        del first  # it holds a copy of every weight, and calibration is next
        start = self._raised(edit)
        if start is None:
            return PassResult(self._source, (), tuple(edit.skips))
        fork, per_channel = start
        edit = opset.continued(edit, fork)
        choice = self._choose(fork.graph)
        self._note_refused(choice, edit)
        # Weights are read again when they are written: no copy of them all waits for calibration to end.
        outline = {node: replace(layer, weight=NOTHING, bias=None) for node, layer in choice.layers.items()}
        del choice
        plan, grids = self._settle(fork, outline, edit)
        if not plan.layers:
            return PassResult(self._source, (), tuple(edit.skips))
        full = self._choose(fork.graph).layers
        plan = replace(plan, layers={node: full[node] for node in plan.layers})
        self._write(fork, plan, grids, edit, per_channel)
        fork.ir.ir_version = max(fork.ir.ir_version, opset.LEAST_IR)
        return PassResult(fork, tuple(edit.changes), tuple(edit.skips))

    def _choose(self, graph: ir.Graph) -> Choice:
        return choose(graph, self._settings.ops, self._options.exclude, self._options.only)

    def _note_refused(self, choice: Choice, edit: Edit) -> None:
        for node, reason in choice.refused.items():
            edit.skip("layer", node, reason)

    def _raised(self, edit: Edit) -> tuple[Model, bool] | None:
        """A fork at an opset that will do and whether weights may be per channel, or ``None`` with a skip."""
        model, per_channel = self._source, self._settings.per_channel
        if model.opset >= opset.PER_CHANNEL:
            return model.fork(), per_channel
        converted = opset.raised(model, opset.PER_CHANNEL)
        if isinstance(converted, Model):
            edit.change("opset", "model", f"raised from {model.opset} to {opset.PER_CHANNEL}")
            return converted, per_channel
        if model.opset >= opset.PER_TENSOR:
            edit.skip("opset", "model", f"{converted}; weights get one scale per tensor instead of per channel")
            return model.fork(), False
        edit.skip("opset", "model", f"{converted}; 8-bit operators exist from opset {opset.PER_TENSOR} on")
        return None

    def _settle(self, fork: Model, layers: Mapping[ir.Node, Layer], edit: Edit) -> tuple[Plan, dict[str, Grid]]:
        """Place and observe until every value that is to be integer has a usable range."""
        names = Names(fork.graph)
        banned: set[str] = set()
        grids: dict[str, Grid] = {}
        chosen: dict[str, Range] = {}
        while True:
            rules = Rules(
                frozenset(self._settings.ops),
                fork.opset,
                lambda node: names.match(node, self._options.exclude),
                frozenset(banned),
            )
            plan = place(fork.graph, layers, rules)
            wanted = [root.name for root in plan.roots() if root.name and root.name not in grids]
            bad = []
            for name, seen in observe(fork, self._context, wanted, self._settings.observer).items():
                if seen.trouble:
                    bad.append(name)
                    edit.skip("activation", name, seen.trouble)
                else:
                    chosen[name], grids[name] = seen, self._settings.grid(seen)
            if not bad:
                _note_ranges(plan, chosen, edit)
                return plan, grids
            if banned.issuperset(bad):
                raise RuntimeError(f"placement keeps values that cannot be integer: {', '.join(sorted(bad))}")
            banned.update(bad)

    def _write(self, fork: Model, plan: Plan, grids: Mapping[str, Grid], edit: Edit, per_channel: bool) -> None:
        settings = self._settings
        lowering = Lowering(fork.graph, plan, grids, edit, keep_clamps=settings.symmetric)
        scales = {n: float(lowering.grid(layer.data).scale) for n, layer in plan.layers.items()}
        writer = WeightWriter(
            fork.graph, edit, settings.weight, settings.reach, per_channel, float_bias=settings.float_bias
        )
        read_before = (*(layer.node for layer in plan.layers.values()), *plan.carriers)
        old = [v for node in read_before for v in node.inputs[1:] if v is not None]
        _note_changes(plan, edit, clamps=not settings.symmetric)
        lowering.run()
        for node, layer in plan.layers.items():
            writer.write(layer, scales[node])
        drop_unused(old)


def _note_ranges(plan: Plan, chosen: Mapping[str, Range], edit: Edit) -> None:
    """Ranges that leave something out: by which observer, and where they end."""
    for root in plan.roots():
        seen = chosen.get(root.name or "")
        if seen is not None and seen.observer != "minmax":
            edit.change("range", root, f"[{seen.low:.6g}, {seen.high:.6g}] by {seen.observer}")


def _note_changes(plan: Plan, edit: Edit, *, clamps: bool) -> None:
    for node in plan.layers:
        edit.change(
            "layer", node, f"{node.op_type} with 8-bit weights, {'8-bit' if node in plan.giving else 'float'} result"
        )
    for node in plan.giving:
        if node in plan.joiners:
            edit.change("joiner", node, node.op_type)
        if clamps and node in plan.clamps:
            edit.change("clamp", plan.clamps[node], "the grid of the result saturates where it would")
    for node in plan.carriers:
        edit.change("carrier", node, f"{node.op_type} of integers")
