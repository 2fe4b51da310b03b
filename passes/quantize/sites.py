"""Finding sites: from the input of a layer to everything that would have to be scaled with it, or why it cannot be."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import onnx_ir as ir

from passes.kit.match import attribute, given, number
from passes.kit.model import constant
from passes.kit.shapes import Shapes
from passes.quantize.layers import Array
from passes.quantize.scaling import LAYERS, Part, Site, View

NORMS = {
    "LayerNormalization": (1, 2),
    "BatchNormalization": (1, 2),
    "RMSNormalization": (1, 1),
    "SimplifiedLayerNormalization": (1, 1),
    "SkipLayerNormalization": (2, 3),
    "SkipSimplifiedLayerNormalization": (2, 2),
}
"""Normalizations with a gain per channel: the index of the gain, and of the shift (the gain's own without one)."""

HOMOGENEOUS: tuple[str, ...] = (
    "Relu",
    "LeakyRelu",
    "PRelu",
    "Identity",
    "Dropout",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
)
HOMOGENEOUS += ("GlobalMaxPool", "Pad", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Reshape", "Neg")


def sites(graph: ir.Graph, shapes: Shapes, *, clips: bool = False) -> list[Site]:
    """Every site of ``graph`` that has a taker, usable ones and refused ones (with ``trouble``), in graph order.

    With ``clips`` a Clip that starts at zero counts as homogeneous and stands in ``Site.clips``: the caller must give
    it one upper limit per channel.
    """
    found: list[Site] = []
    done: set[ir.Value] = set()
    for node in graph:
        if node.op_type not in LAYERS or node.domain not in ("", "ai.onnx"):
            continue
        data, view = node.inputs[0], input_view(node, shapes)
        weight = given(node, 1)
        if data is None or view is None or weight is None or constant(weight) is None or data in done:
            continue
        dims = shapes.of(data)
        count = dims[view.axis] if dims is not None and -len(dims) <= view.axis < len(dims) else None
        channels = count if isinstance(count, int) else _input_channels(node, np.asarray(constant(weight)))
        site = Explorer(graph, shapes, channels, clips).site(data, view)
        done.update(site.views)
        found.append(site)
    return found


def input_view(node: ir.Node, shapes: Shapes) -> View | None:
    """Where the input channels of a layer lie, or ``None`` when that is not known."""
    if node.op_type in ("Conv", "ConvTranspose"):
        return View(1)
    if node.op_type == "Gemm":
        return None if attribute(node, "transA", 0) else View(1)
    rank = rank_of(node.inputs[0], shapes)
    return None if rank is None or rank < 2 else View(rank - 1)


def rank_of(value: ir.Value | None, shapes: Shapes) -> int | None:
    """Number of dimensions; behind onnxruntime's own normalizations, of which inference knows nothing, that of x."""
    known = shapes.rank(value)
    maker = value.producer() if value is not None else None
    if known is not None or maker is None or maker.op_type not in NORMS or value is not maker.outputs[0]:
        return known
    return rank_of(maker.inputs[0], shapes)


def _input_channels(node: ir.Node, weight: Array) -> int:
    if node.op_type == "Conv":
        return int(weight.shape[1]) * int(attribute(node, "group", 1))
    axis = 1 if node.op_type == "Gemm" and attribute(node, "transB", 0) else 0
    return int(weight.shape[axis])


class Refused(ValueError):
    """Why a site cannot be scaled."""


class Explorer:
    """Follows one value to everything that would have to be scaled with it."""

    def __init__(self, graph: ir.Graph, shapes: Shapes, channels: int, clips: bool) -> None:
        self._graph, self._shapes, self._clips = graph, shapes, clips
        self._site = Site(channels)
        self._queue: list[tuple[ir.Value, View]] = []
        self._carries: dict[ir.Node, ir.Value | None] = {}  # the operand through which a Mul is scaled

    def site(self, start: ir.Value, view: View) -> Site:
        """The site of ``start``, with its trouble."""
        self._site.where = start.name or "?"
        # A layer behind a Flatten sees each channel of the image several times: start from the image's own count.
        try:
            self._restart(start, view)
        except Refused as refusal:
            self._site.trouble = str(refusal)
        return self._site

    def _restart(self, start: ir.Value, view: View) -> None:
        view = self._unfolded(start, view)
        self._queue = [(start, view)]
        while self._queue:
            self._visit(*self._queue.pop())
        if not self._site.givers:
            raise Refused("nothing constant gives its channels")

    def _unfolded(self, start: ir.Value, view: View) -> View:
        """Count channels as the image has them, when ``start`` is an image laid flat."""
        maker = start.producer()
        if maker is None or maker.op_type not in ("Flatten", "Reshape") or maker.inputs[0] is None:
            return view
        dims = self._shapes.of(maker.inputs[0])
        if dims is None or len(dims) < 3 or not all(isinstance(d, int) for d in dims[1:]):
            return view
        inner = [d for d in dims[1:] if isinstance(d, int)]
        if prod(inner) != self._site.channels or view.axis != 1:
            return view
        self._site.channels = inner[0]
        return View(1, prod(inner[1:]))

    def _visit(self, value: ir.Value, view: View) -> None:
        known = self._site.views.get(value)
        if known is not None:
            if known != view:
                raise Refused("its channels meet at different axes")
            return
        if value.is_graph_input() or value.is_graph_output():
            raise Refused("it is an input or output of the model")
        self._site.views[value] = view
        maker = value.producer()
        if maker is None:
            raise Refused("it is a constant")
        self._made(maker, value, view)
        for node, index in list(value.uses()):
            self._read(node, index, value, view)

    # -- who makes it --------------------------------------------------------------------------------------------
    def _made(self, node: ir.Node, value: ir.Value, view: View) -> None:
        kind = node.op_type
        if kind in LAYERS and node.domain in ("", "ai.onnx"):
            return self._given_by_layer(node, view)
        if kind in NORMS and value is node.outputs[0]:
            return self._given_by_norm(node, view)
        if kind in ("Add", "Sum", "Mul") and node.domain in ("", "ai.onnx"):
            return self._combined(node, view)
        if kind == "Clip":
            self._clip(node, view)
            return self._go(node.inputs[0], view)
        if kind in HOMOGENEOUS and value is node.outputs[0] and node.inputs[0] is not None:
            self._slope(node)
            source = self._before(node, view)
            return self._go(node.inputs[0], source)
        raise Refused(f"{kind} makes it, which does not let a factor through")

    def _given_by_layer(self, node: ir.Node, view: View) -> None:
        rank = self._shapes.rank(node.outputs[0])
        axis = 1 if node.op_type in ("Conv", "ConvTranspose", "Gemm") else (-1 if rank is None else rank - 1)
        if view != View(axis):
            raise Refused("its channels are not those of the layer that makes it")
        weight = self._weight(node)
        transposed = node.op_type == "Gemm" and attribute(node, "transB", 0)
        along = 0 if node.op_type == "Conv" or transposed else 1
        if node.op_type == "MatMul" and weight.ndim != 2:
            raise Refused("the weight that makes it has not two dimensions")
        self._part(node, 1, along, view)
        bias = given(node, 2) if node.op_type != "MatMul" else None
        if bias is not None:
            self._shift(node, 2)

    def _given_by_norm(self, node: ir.Node, view: View) -> None:
        gain, shift = NORMS[node.op_type]
        rank = rank_of(node.outputs[0], self._shapes)
        last = node.op_type != "BatchNormalization"
        if rank is None or view != View(rank - 1 if last else 1):
            raise Refused("its channels are not those of the normalization that makes it")
        axis = attribute(node, "axis", -1)
        if last and node.op_type in ("LayerNormalization", "RMSNormalization") and axis not in (-1, rank - 1):
            raise Refused("the normalization goes over more than channels")
        if len([o for o in node.outputs if o.uses()]) > 1 and node.op_type == "BatchNormalization":
            raise Refused("the normalization is in training mode")
        self._part(node, gain, 0, view)
        if shift != gain and given(node, shift) is not None:
            self._shift(node, shift)

    def _combined(self, node: ir.Node, view: View) -> None:
        """Add scales with all of its operands; Mul with one of them."""
        self._site.path.append(node)
        constants = [i for i, v in enumerate(node.inputs) if v is not None and constant(v) is not None]
        others = [i for i in range(len(node.inputs)) if i not in constants]
        if node.op_type in ("Add", "Sum"):
            for i in constants:
                self._constant_operand(node, i, view, self._site.shifts)
            for i in others:
                self._operand(node, i, view)
            return None
        return self._product(node, constants, others, view)

    def _product(self, node: ir.Node, constants: list[int], others: list[int], view: View) -> None:
        """A product scales with just one of its operands: one that does already, a constant, or what a layer made."""
        if node in self._carries:
            return None
        if constants and number(node.inputs[constants[0]]) is None:
            self._carries[node] = None
            return self._constant_operand(node, constants[0], view, self._site.givers)
        chosen = others if constants else [i for i in others if _layer_made(node.inputs[i])]
        if not chosen:
            raise Refused("neither factor of the product that makes it comes from a layer")
        self._carries[node] = node.inputs[chosen[-1]]
        return self._operand(node, chosen[-1], view)

    def _operand(self, node: ir.Node, index: int, view: View) -> None:
        value = node.inputs[index]
        mine, whole = self._shapes.rank(value), self._shapes.rank(node.outputs[0])
        if value is None or mine is None or mine != whole:
            raise Refused("an operand is spread over other axes")
        dims, result = self._shapes.of(value), self._shapes.of(node.outputs[0])
        if dims is None or result is None or dims[view.axis] != result[view.axis]:
            raise Refused("an operand is spread over the channels")
        self._go(value, view)

    def _constant_operand(self, node: ir.Node, index: int, view: View, where: list[Part]) -> None:
        array = np.asarray(constant(node.inputs[index]))
        rank = self._shapes.rank(node.outputs[0])
        axis = None if rank is None else view.axis - (rank - array.ndim)
        if axis is None or axis < 0 or array.shape[axis] != self._site.channels * view.repeat:
            raise Refused("a constant operand has not one number per channel")
        self._own(node, index)
        where.append(Part(node, index, axis, view.repeat))

    # -- who reads it --------------------------------------------------------------------------------------------
    def _read(self, node: ir.Node, index: int, value: ir.Value, view: View) -> None:
        kind = node.op_type
        if node.graph is not self._graph:
            raise Refused("it is read inside the body of an If, Loop or Scan")
        if kind in ("Shape", "Size"):
            return None
        if kind in LAYERS and node.domain in ("", "ai.onnx") and index == 0:
            return self._taken_by_layer(node, view)
        if kind in ("Add", "Sum", "Mul") and node.domain in ("", "ai.onnx"):
            if kind == "Mul" and (
                self._carries.setdefault(node, value) is not value or node.inputs[0] is node.inputs[1]
            ):
                raise Refused("both factors of a product come from it")
            self._operand_rank(node, value)
            return self._go(node.outputs[0], view)
        if kind == "Clip" and index == 0:
            self._clip(node, view)
            return self._go(node.outputs[0], view)
        if kind in HOMOGENEOUS and index == 0:
            self._slope(node)
            return self._go(node.outputs[0], self._after(node, view))
        raise Refused(f"{kind} reads it, which does not let a factor through")

    def _operand_rank(self, node: ir.Node, value: ir.Value) -> None:
        mine, whole = self._shapes.of(value), self._shapes.of(node.outputs[0])
        if mine is None or whole is None or len(mine) != len(whole):
            raise Refused("it is spread over other axes")

    def _taken_by_layer(self, node: ir.Node, view: View) -> None:
        wanted = input_view(node, self._shapes)
        if wanted is None or wanted.axis != view.axis or (view.repeat > 1 and node.op_type not in ("Gemm", "MatMul")):
            raise Refused("a layer reads it along another axis")
        weight = self._weight(node)
        if node.op_type == "ConvTranspose":
            along = 0
        elif node.op_type == "Conv":
            along = 1
        else:
            along = 1 if attribute(node, "transB", 0) else 0
        if node.op_type == "MatMul" and weight.ndim != 2:
            raise Refused("the weight of a layer that reads it has not two dimensions")
        self._part(node, 1, along, view, taker=True)

    # -- small rules ---------------------------------------------------------------------------------------------
    def _go(self, value: ir.Value | None, view: View) -> None:
        if value is None:
            raise Refused("an input is missing")
        self._queue.append((value, view))

    def _weight(self, node: ir.Node) -> Array:
        weight = constant(given(node, 1))
        if weight is None:
            raise Refused(f"the weight of {node.name or node.op_type} is not constant")
        return weight

    def _part(self, node: ir.Node, index: int, axis: int, view: View, *, taker: bool = False) -> None:
        array = constant(given(node, index))
        if array is None:
            raise Refused(f"a parameter of {node.name or node.op_type} is not constant")
        self._own(node, index)
        part = Part(node, index, axis, view.repeat, taker)
        if part.held() != self._site.channels * view.repeat:
            raise Refused(f"{node.name or node.op_type} has another number of channels")
        if not np.isfinite(array).all() or array.dtype.kind != "f":
            raise Refused(f"a parameter of {node.name or node.op_type} is not a finite float")
        (self._site.takers if taker else self._site.givers).append(part)

    def _shift(self, node: ir.Node, index: int) -> None:
        array = constant(given(node, index))
        if array is None or array.size != self._site.channels or array.shape[-1] != array.size:
            raise Refused(f"the bias of {node.name or node.op_type} is not one constant per channel")
        self._own(node, index)
        self._site.shifts.append(Part(node, index, array.ndim - 1))

    def _own(self, node: ir.Node, index: int) -> None:
        """A constant that someone else reads, too, would be scaled for both."""
        value = given(node, index)
        if value is None or len(value.uses()) != 1 or value.is_graph_output():
            raise Refused(f"a parameter of {node.name or node.op_type} is shared")

    def _slope(self, node: ir.Node) -> None:
        self._site.path.append(node)
        if node.op_type == "PRelu" and constant(given(node, 1)) is None:
            raise Refused("the slope of PRelu is computed")
        if node.op_type == "Pad":
            filling = given(node, 2)
            if attribute(node, "mode", "constant") == "constant" and (
                (filling is not None and number(filling) != 0.0) or attribute(node, "value", 0.0) != 0.0
            ):
                raise Refused("it is padded with other values than zero")

    def _clip(self, node: ir.Node, view: View) -> None:
        low, high = clip_limits(node)
        if low == 0.0 and high == np.inf:
            return
        rank = self._shapes.rank(node.inputs[0])
        if low != 0.0 or high is None or not self._clips or rank is None or view.repeat > 1:
            raise Refused("Clip limits it: one limit for all channels does not let a factor per channel through")
        self._site.clips[node] = rank - 1 - view.axis

    def _after(self, node: ir.Node, view: View) -> View:
        return self._moved(node, view, node.inputs[0], node.outputs[0], forward=True)

    def _before(self, node: ir.Node, view: View) -> View:
        return self._moved(node, view, node.outputs[0], node.inputs[0], forward=False)

    def _moved(self, node: ir.Node, view: View, old: ir.Value | None, new: ir.Value | None, *, forward: bool) -> View:
        """Where the channels lie on the other side of an operator."""
        kind = node.op_type
        if kind == "Pad" and self._pads_channels(node, view):
            raise Refused("Pad adds channels")
        if kind == "Transpose":
            order = attribute(node, "perm", None)
            rank = self._shapes.rank(old)
            if order is None or rank is None:
                raise Refused("the order of a Transpose is not known")
            return View(tuple(order).index(view.axis) if forward else order[view.axis], view.repeat)
        if kind in ("Flatten", "Reshape", "Squeeze", "Unsqueeze"):
            return self._reshaped(view, old, new)
        return view

    def _reshaped(self, view: View, old: ir.Value | None, new: ir.Value | None) -> View:
        """Channels stay one axis, or become (or stop being) the outer part of one that is laid flat."""
        before, after = self._shapes.of(old), self._shapes.of(new)
        total = self._site.channels * view.repeat
        if before is None or after is None:
            raise Refused("a Reshape of unknown shape")
        flat = self._laid_flat(before, after, view)
        if flat is not None:
            return flat
        for axis, size in enumerate(after):
            same_before = _inner(after[axis + 1 :]) == _inner(before[view.axis + 1 :]) is not None
            if size == total and same_before and view.repeat == 1:
                return View(axis)
        raise Refused("a Reshape mixes its channels with other axes")

    def _laid_flat(self, before: Sequence[object], after: Sequence[object], view: View) -> View | None:
        """[N, C, ...] to [N, C * ...] and back, where all but the batch is known."""
        inner_before, inner_after = _inner(before[1:]), _inner(after[1:])
        if view.axis != 1 or inner_before is None or inner_before != inner_after:
            return None
        if len(after) == 2 and view.repeat == 1 and before[1] == self._site.channels:
            return View(1, inner_before // self._site.channels)
        if len(before) == 2 and view.repeat > 1 and after[1] == self._site.channels:
            return View(1)
        return None

    def _pads_channels(self, node: ir.Node, view: View) -> bool:
        rank = self._shapes.rank(node.inputs[0])
        pads = attribute(node, "pads", None)
        held = np.asarray(pads) if pads is not None else constant(given(node, 1))
        if held is None or rank is None or len(held) != 2 * rank or given(node, 3) is not None:
            raise Refused("what Pad adds is not known")
        return bool(held[view.axis] or held[view.axis + rank])


def _inner(dims: Sequence[object]) -> int | None:
    numbers = [d for d in dims if isinstance(d, int)]
    return prod(numbers) if len(numbers) == len(dims) else None


def _layer_made(value: ir.Value | None) -> bool:
    """Whether a layer makes this value, straight or with an addition behind it."""
    maker = value.producer() if value is not None else None
    if maker is not None and maker.op_type in ("Add", "Sum") and any(constant(v) is not None for v in maker.inputs):
        return any(_layer_made(v) for v in maker.inputs)
    return maker is not None and maker.op_type in LAYERS and constant(given(maker, 1)) is not None


def clip_limits(node: ir.Node) -> tuple[float | None, float | None]:
    """The limits of a Clip: numbers, infinite where open, ``None`` where computed."""
    found: list[float | None] = [-np.inf, np.inf]
    for i, name in enumerate(("min", "max")):
        if name in node.attributes:
            found[i] = float(attribute(node, name, 0.0))
        elif (value := given(node, i + 1)) is not None:
            found[i] = number(value)
    if found[1] is not None and found[1] >= np.finfo(np.float32).max:
        found[1] = np.inf
    return found[0], found[1]
