"""Taking units out of a model: constants are cut, and what names sizes by number follows."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from passes.kit.contract import Edit
from passes.kit.match import allow_unlisted_initializers, discard, given, is_free
from passes.kit.model import Model, constant
from passes.prune.follow import Bounds, Dim, Groups, Sizes
from passes.prune.groups import Structure, study
from passes.prune.labels import Array
from passes.prune.sizes import number_in

KEPT = "lathe.kept/"
"""Prefix of the model's metadata that names, for each value that lost positions, how many it had and which stayed."""


class NotValid(ValueError):
    """Cutting gave a model that shape inference does not accept."""


@dataclass
class _Cut:
    """A cut in progress on a graph that was studied."""

    structure: Structure
    edit: Edit
    graph: ir.Graph
    gone: frozenset[int]

    def kept(self, labels: Array) -> Array:
        """Which positions stay, bool [positions]."""
        return np.array([int(r) not in self.gone for r in self.structure.trail.labels.roots(labels)], bool)

    def left(self, labels: Array) -> int:
        """How many positions stay."""
        return int(self.kept(labels).sum())


def take_out(edit_from: Model, units: Collection[int]) -> Model:
    """``edit_from`` (a fork that nobody else holds) without ``units``; it is changed and handed back.

    ``units`` are labels that :func:`study` found in it, or in another fork of the same model: they are alike. Raises
    :class:`NotValid` when the result does not fit together; ``edit_from`` is spoilt then.
    """
    structure = study(edit_from)
    sound = not _contradiction(edit_from)
    cut = _Cut(structure, Edit(edit_from), edit_from.graph, frozenset(units))
    lost = _lost(cut)
    for fix in structure.trail.fixes:
        _follow_up(cut, fix)
    for value, axes in lost.items():
        _shrink(cut, value, axes)
    allow_unlisted_initializers(edit_from)
    edit_from.forget_digest()
    _note(cut, edit_from, lost)
    if sound and (contradiction := _contradiction(edit_from)):
        raise NotValid(f"the parts do not fit together any more: {contradiction}")
    return edit_from


def _lost(cut: _Cut) -> dict[ir.Value, dict[int, Array]]:
    """For every value that loses positions, by axis which of them stay."""
    found: dict[ir.Value, dict[int, Array]] = {}
    for value, axes in cut.structure.trail.labels.held.items():
        for axis, labels in enumerate(axes):
            if labels is None:
                continue
            kept = cut.kept(labels)
            if not kept.all():
                found.setdefault(value, {})[axis] = kept
    return found


def _shrink(cut: _Cut, value: ir.Value, axes: Mapping[int, Array]) -> None:
    array = constant(value)
    maker = value.producer()
    if array is None or (maker is not None and maker.op_type != "Constant"):
        if value.shape is not None:
            value.shape = ir.Shape([int(axes[i].sum()) if i in axes else d for i, d in enumerate(value.shape)])
        return
    for axis, kept in axes.items():
        array = np.compress(kept, array, axis=axis)
    if value.is_initializer() and value.name:
        tensor = ir.Tensor(np.ascontiguousarray(array), name=value.name)
        value.const_value, value.shape = tensor, ir.Shape(array.shape)
        return
    new = cut.edit.initializer(cut.graph, f"{value.name}_cut", array)
    value.replace_all_uses_with(new)
    if maker is not None:
        discard(maker)


def _follow_up(cut: _Cut, fix: Dim | Sizes | Bounds | Groups) -> None:
    """Rewrite one place that names a size by number, if the size has changed."""
    if isinstance(fix, Dim):
        if not cut.kept(fix.labels).all():
            _write_dim(cut, fix)
    elif isinstance(fix, Sizes):
        _write_sizes(cut, fix)
    elif isinstance(fix, Bounds):
        if not cut.kept(fix.labels).all():
            kept = cut.kept(fix.labels)
            start, stop = int(kept[: fix.start].sum()), int(kept[: fix.stop].sum())
            _write_bound(cut, fix.node, 1, "starts", fix.entry, start)
            _write_bound(cut, fix.node, 2, "ends", fix.entry, stop)
    elif not cut.kept(fix.labels).all():
        fix.node.attributes["group"] = ir.AttrInt64("group", cut.left(fix.labels))


def _write_dim(cut: _Cut, fix: Dim) -> None:
    value = given(fix.node, 1)
    assert value is not None
    found = number_in(value, fix.entry, cut.structure.trail.sizes)
    assert found is not None  # or the axis would be pinned
    part, held, index = found
    numbers = np.array(constant(held))
    numbers.reshape(-1)[index] = cut.left(fix.labels)
    if part < 0:
        _replace(cut, fix.node, 1, numbers)
        return
    maker = value.producer()
    assert maker is not None
    parts = list(maker.inputs)
    parts[part] = cut.edit.initializer(cut.graph, f"{held.name}_cut", numbers)
    twin = ir.node("Concat", parts, {"axis": 0}, name=cut.edit.fresh(f"{maker.name or 'shape'}_cut"))
    twin.outputs[0].name = cut.edit.fresh(f"{value.name}_cut")
    twin.outputs[0].type, twin.outputs[0].shape = value.type, value.shape
    cut.graph.insert_before(fix.node, twin)
    fix.node.replace_input_with(1, twin.outputs[0])
    discard(maker)
    cut.structure.trail.sizes[twin.outputs[0]] = cut.structure.trail.sizes[value]


def _write_sizes(cut: _Cut, fix: Sizes) -> None:
    if all(cut.kept(part).all() for part in fix.parts):
        return
    sizes = np.array([cut.left(part) for part in fix.parts], np.int64)
    fix.node.attributes.pop("num_outputs", None)
    if cut.structure.trail.labels.shapes.opset >= 13:
        if len(fix.node.inputs) < 2:
            fix.node.resize_inputs(2)
        _replace(cut, fix.node, 1, sizes)
    else:
        fix.node.attributes["split"] = ir.AttrInt64s("split", sizes.tolist())


def _write_bound(cut: _Cut, node: ir.Node, index: int, attribute_name: str, entry: int, number: int) -> None:
    array = constant(given(node, index))
    if array is not None:
        numbers = array.copy()
        numbers.reshape(-1)[entry] = number
        _replace(cut, node, index, numbers)
        return
    numbers = np.array(node.attributes[attribute_name].value)
    numbers[entry] = number
    node.attributes[attribute_name] = ir.AttrInt64s(attribute_name, numbers.tolist())


def _replace(cut: _Cut, node: ir.Node, index: int, array: Array) -> None:
    old = given(node, index)
    wish = f"{old.name}_cut" if old is not None else f"{node.name or node.outputs[0].name}_sizes"
    node.replace_input_with(index, cut.edit.initializer(cut.graph, wish, array))
    if old is not None and is_free(old) and not old.is_graph_input():
        maker = old.producer()
        if maker is not None:
            discard(maker)
        elif old.is_initializer() and old.name:
            cut.graph.initializers.pop(old.name)


THINNED = "lathe.thinned/"
"""Prefix of the model's metadata that names the results of layers which lost single weights."""


# -- what stayed, for those who come after -----------------------------------------------------------------------------
def _note(cut: _Cut, model: Model, lost: Mapping[ir.Value, Mapping[int, Array]]) -> None:
    """Write down which positions of the layers' results stayed: ``refit`` compares them with the original's."""
    products = {p.node.outputs[0] for p in cut.structure.trail.products}
    for value, axes in lost.items():
        if value in products and value.name:
            for axis, kept in axes.items():
                _write_kept(model, value.name, axis, kept)


def _write_kept(model: Model, name: str, axis: int, kept: Array) -> None:
    key = f"{KEPT}{axis}/{name}"
    before = kept_of(model, name, axis)
    if before is not None:  # it was cut before: positions count in the original
        wide = np.zeros(len(before), bool)
        wide[np.flatnonzero(before)[kept]] = True
        kept = wide
    model.ir.metadata_props[key] = f"{len(kept)}:{np.packbits(kept).tobytes().hex()}"


def kept_of(model: Model, name: str, axis: int) -> Array | None:
    """Which positions of the original value stayed along an axis (bool), ``None`` when all did."""
    text = model.ir.metadata_props.get(f"{KEPT}{axis}/{name}")
    if text is None:
        return None
    count, _, bits = text.partition(":")
    try:
        return np.unpackbits(np.frombuffer(bytes.fromhex(bits), np.uint8))[: int(count)].astype(bool)
    except ValueError:
        return None


def _contradiction(model: Model) -> str:
    """What shape inference finds wrong, empty when nothing is."""

    def elsewhere(tensor: ir.TensorProtocol, digest: str) -> ir.ExternalTensor:
        shape = ir.Shape(tensor.shape.numpy())
        return ir.ExternalTensor("elsewhere", 0, tensor.nbytes, tensor.dtype, shape=shape, name="")

    try:
        onnx.shape_inference.infer_shapes(model.to_proto(elsewhere), strict_mode=True, data_prop=True)
    except Exception as error:
        return (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
    return ""
