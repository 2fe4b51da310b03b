"""Empirical bias correction: what quantization shifts on average, the biases take back.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction" (arXiv 1906.04721, section
4.2 and appendix D); Finkelstein et al. 2019, "Fighting Quantization Bias With Bias" (arXiv 1906.03193). For each output
channel of each quantized layer, from input to output, the mean over calibration data and positions of the float model
minus that of the quantized one is added to the bias. A layer is measured when everything before it has been corrected,
so no shift is made up for twice.

It is an option of ``quantize-static`` and no pass of its own: the float means can only come from the float model, and
that is the one place where both models are at hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from passes.kit.context import Context
from passes.kit.contract import Edit, PassResult
from passes.kit.match import given, sole_consumer
from passes.kit.model import Model, constant
from passes.kit.reducers import ChannelMoments
from passes.quantize.grid import LARGEST_BIAS
from passes.quantize.layers import WEIGHTED, Array, Names

MOST_SWEEPS = 24
"""Deeper networks are corrected several layers at a time: each sweep runs the calibration data once."""

RULE = "correct-bias"


@dataclass(frozen=True, eq=False)
class Twin:
    """A quantized layer: its node, the names of its result in both models, and the axis of its channels there."""

    node: ir.Node
    name: str
    reference: str
    axis: int
    depth: int


def correct_bias(reference: Model, quantized: PassResult, context: Context) -> PassResult:
    """``quantized`` (made from ``reference``, float) with the biases of its layers corrected.

    Raises :class:`passes.kit.context.NoData` without calibration data.
    """
    if not quantized.changes:
        return quantized
    fork = quantized.model.fork()
    edit = Edit(fork)
    edit.changes, edit.skips = list(quantized.changes), list(quantized.skips)
    twins = _twins(reference, fork, edit)
    before = len(edit.changes)
    if twins:
        wanted = _means(reference, {t.reference: t.axis for t in twins}, context)
        for group in sweeps(twins):
            found = _means(fork, {t.name: t.axis for t in group}, context)
            for twin in group:
                shift = wanted[twin.reference] - found[twin.name]
                _shift(twin, shift, fork.graph, edit)
            fork.forget_digest()
    changed = len(edit.changes) > before
    return PassResult(fork if changed else quantized.model, tuple(edit.changes), tuple(edit.skips))


def sweeps(twins: Sequence[Twin]) -> list[list[Twin]]:
    """Layers that are measured together, in order: those of equal depth, or of neighbouring ones in deep networks."""
    depths = sorted({t.depth for t in twins})
    parts = np.array_split(np.array(depths), min(len(depths), MOST_SWEEPS))
    return [[t for t in twins if t.depth in set(part.tolist())] for part in parts]


def _twins(reference: Model, fork: Model, edit: Edit) -> list[Twin]:
    float_graph = reference.fork().graph
    mine, theirs = Names(fork.graph), Names(float_graph)
    known = {theirs.of(node): node for node in float_graph if node.op_type in WEIGHTED}
    depth: dict[ir.Value, int] = {}
    found = []
    for node in fork.graph:
        level = max((depth.get(v, 0) for v in node.inputs if v is not None), default=0)
        layered = _is_quantized(node)
        for output in node.outputs:
            depth[output] = level + layered
        if not layered:
            continue
        original, name = known.get(mine.of(node)), node.outputs[0].name
        if original is None or not name or not original.outputs[0].name:
            edit.skip(RULE, node, "the layer is not found in the float model")
        elif _bias_place(node) is None:
            edit.skip(RULE, node, "it has no bias that is its own")
        else:
            axis = -1 if node.op_type == "MatMul" else 1
            found.append(Twin(node, name, original.outputs[0].name, axis, level))
    return found


def _is_quantized(node: ir.Node) -> bool:
    if node.op_type not in WEIGHTED or node.domain not in ("", "ai.onnx"):
        return False
    return (
        all(_dequantizer(given(node, i)) is not None for i in (0, 1)) and constant(_eight(given(node, 1))) is not None
    )


def _dequantizer(value: ir.Value | None) -> ir.Node | None:
    maker = value.producer() if value is not None else None
    return maker if maker is not None and maker.op_type == "DequantizeLinear" else None


def _eight(value: ir.Value | None) -> ir.Value | None:
    node = _dequantizer(value)
    return given(node, 0) if node is not None else None


def _means(model: Model, axes: Mapping[str, int], context: Context) -> dict[str, Array]:
    """Mean of each channel of the named values, float64, of the part of ``model`` that makes them."""
    seen = context.stats(_trimmed(model, set(axes)), {name: ChannelMoments(axis) for name, axis in axes.items()})
    return {name: m.mean() for name, m in seen.items() if isinstance(m, ChannelMoments)}


def _trimmed(model: Model, names: set[str]) -> Model:
    """A fork that computes only the named values: the first layers of a network do not cost a run of all of it."""
    fork = model.fork()
    graph = fork.graph
    values = {o.name: o for node in graph for o in node.outputs}
    graph.outputs.clear()
    graph.outputs.extend(values[name] for name in sorted(names))
    for node in reversed(list(graph)):
        if not any(o.uses() or o.is_graph_output() for o in node.outputs):
            graph.remove(node, safe=True)
    return fork


def _bias_place(node: ir.Node) -> tuple[ir.Node, int] | None:
    """The node and input that hold the layer's bias: its own third input, or the constant of the addition behind it."""
    if node.op_type != "MatMul":
        return node, 2
    reader = sole_consumer(node.outputs[0])
    if reader is None or reader.op_type not in ("Add", "Sum") or len(reader.inputs) != 2:
        return None
    index = 1 if reader.inputs[0] is node.outputs[0] else 0
    held = constant(given(reader, index))
    if held is None or held.dtype != np.float32 or held.ndim == 0 or held.shape[-1] != held.size:
        return None
    return reader, index


def _shift(twin: Twin, shift: Array, graph: ir.Graph, edit: Edit) -> None:
    """Add ``shift`` (float64 [channels]) to the bias of a layer."""
    place = _bias_place(twin.node)
    assert place is not None
    node, index = place
    old = given(node, index)
    if not np.isfinite(shift).all():
        edit.skip(RULE, twin.node, "its means are not finite")
        return
    if old is not None and (held := constant(old)) is not None:
        moved = (held.astype(np.float64) + shift).astype(held.dtype)
        node.replace_input_with(index, edit.initializer(graph, f"{old.name}_corrected", moved))
    else:
        steps = _integer_shift(twin.node, old, shift)
        if steps is None:
            edit.skip(RULE, twin.node, "its bias is written in another form, or would overflow")
            return
        if not steps.any():
            return
        _write_integers(twin.node, old, steps, graph, edit)
    _drop(old, graph)
    edit.change(RULE, twin.node, f"by up to {np.abs(shift).max():.3g}")


def _scale(node: ir.Node) -> Array | None:
    """The bias grid's scale per channel or for all, float64: the product of the scales of input and weight."""
    scales = []
    for value in (given(node, 0), given(node, 1)):
        maker = _dequantizer(value)
        scales.append(constant(given(maker, 1)) if maker is not None else None)
    if scales[0] is None or scales[1] is None or scales[0].size != 1:
        return None
    return np.asarray(scales[0].astype(np.float32).reshape(-1)[0] * scales[1].astype(np.float32), np.float64)


def _integer_shift(node: ir.Node, old: ir.Value | None, shift: Array) -> Array | None:
    """What the int32 bias becomes, int64 [channels] relative to the old one; ``None`` when it cannot."""
    scale, held = _scale(node), constant(_eight(old)) if old is not None else np.zeros(len(shift), np.int32)
    if scale is None or held is None or held.dtype != np.int32 or held.size != len(shift):
        return None
    steps = np.rint(shift / scale)
    if np.abs(held + steps).max(initial=0.0) > LARGEST_BIAS * 2.0 - 1:
        return None
    return steps.astype(np.int64)


def _write_integers(node: ir.Node, old: ir.Value | None, steps: Array, graph: ir.Graph, edit: Edit) -> None:
    """A new int32 bias on the grid of the old one; a layer without a bias gets the grid that one would have."""
    name = node.name or node.outputs[0].name
    maker, scale = _dequantizer(old), _scale(node)
    assert scale is not None
    held = np.zeros(len(steps), np.int32) if maker is None else constant(given(maker, 0))
    assert held is not None
    moved = edit.initializer(graph, f"{name}_bias_corrected", (held + steps).astype(np.int32))
    if maker is not None:
        parts, attributes = [moved, *maker.inputs[1:]], {k: a.value for k, a in maker.attributes.items()}
    else:
        wide = np.asarray(scale, np.float32)
        zero = np.zeros(wide.shape, np.int32)
        parts = [moved, edit.initializer(graph, f"{name}_bias_scale", wide)]
        parts.append(edit.initializer(graph, f"{name}_bias_zero_point", zero))
        attributes = {"axis": 0} if wide.ndim else {}
    twin = ir.node("DequantizeLinear", parts, attributes, name=edit.fresh(f"{name}_bias_DequantizeLinear"))
    twin.outputs[0].name = edit.fresh(f"{name}_bias_dequantized")
    twin.outputs[0].type, twin.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([len(steps)])
    graph.insert_before(graph[0], twin)
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    node.replace_input_with(2, twin.outputs[0])


def _drop(value: ir.Value | None, graph: ir.Graph) -> None:
    """Remove what made the old bias, when nobody else reads it."""
    if value is None or value.uses() or value.is_graph_output() or value.is_graph_input():
        return
    maker = value.producer()
    if maker is None:
        if value.name and value.name in graph.initializers:
            del graph.initializers[value.name]
        return
    sources = list(maker.inputs)
    graph.remove(maker, safe=True)
    for source in sources:
        _drop(source, graph)
