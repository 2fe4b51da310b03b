"""ReduceMean over all positions of an image is GlobalAveragePool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from passes.kit.context import Context
from passes.kit.contract import Edit, Exactness, Pass, PassResult
from passes.kit.match import attribute, compute, given, is_op, rewrite
from passes.kit.model import Model, constant
from passes.kit.shapes import Shapes

_RANKS = (3, 4, 5)


@dataclass(frozen=True)
class PoolReduceMean(Pass):
    """Write the mean over all spatial axes as GlobalAveragePool.

    What it does
        For x of shape [N, C, D1 ... Dk] the mean over the axes 2 ... k+1 is GlobalAveragePool(x). Where ReduceMean
        drops the axes (``keepdims = 0``), a Flatten to [N, C] follows.

    When it applies
        To float32 values of rank 3, 4 or 5, at any opset (axes as attribute or as constant input). GlobalAveragePool
        reads the runtime's blocked convolution layout and has an int8 kernel; a float ReduceMean between integer
        layers is an island that costs two conversions.

    When it refuses
        Unknown or other ranks, axes that are not constant or leave a spatial axis out or take the batch or the
        channels in, and types without a pooling kernel. A mean over the last axes of a transformer's [N, S, D] is
        none: there it is [N, D] that is dropped or kept, not all spatial axes of an image; only the axis 2 of a
        rank-3 value that a convolution or pooling made counts.

    Exactness
        NUMERIC. The same sum in another order.
    """

    name: ClassVar[str] = "pool-reduce-mean"
    exactness: ClassVar[Exactness] = Exactness.NUMERIC

    def apply(self, model: Model, context: Context) -> PassResult:
        return rewrite(model, _pool, context)


def _pool(graph: ir.Graph, edit: Edit, shapes: Shapes) -> None:
    for node in list(graph):
        if not is_op(node, "ReduceMean") or node.inputs[0] is None:
            continue
        reason = _refusal(node, shapes)
        if reason is not None:
            if reason:
                edit.skip("pool", node, reason)
            continue
        if not edit.allows("pool", node):
            continue
        keep = bool(attribute(node, "keepdims", 1))
        edit.change("pool", node, "GlobalAveragePool" if keep else "GlobalAveragePool + Flatten")
        _replace(node, keep, edit)


def _refusal(node: ir.Node, shapes: Shapes) -> str | None:
    """Why not, ``""`` when the node is not about images at all, ``None`` when it is to be done."""
    source, rank = node.inputs[0], shapes.rank(node.inputs[0])
    if rank is None:
        return "the rank of its input is not known"
    if rank not in _RANKS:
        return ""
    axes = _axes(node)
    if axes is None:
        return "its axes are not constant"
    if sorted(a % rank for a in axes) != list(range(2, rank)):
        return ""
    if rank == 3 and not _is_image(source):
        return ""
    if shapes.dtype(source) != ir.DataType.FLOAT:
        return f"no pooling kernel for {shapes.dtype(source)}"
    return None


def _axes(node: ir.Node) -> list[int] | None:
    held = attribute(node, "axes", None)
    if held is None and given(node, 1) is not None:
        held = constant(given(node, 1))
    return None if held is None else [int(i) for i in held]


def _is_image(value: ir.Value | None) -> bool:
    """Whether a rank-3 value is [N, C, L], which only what made it can tell."""
    for _ in range(4):
        maker = value.producer() if value is not None else None
        if maker is None:
            return False
        if is_op(maker, "Conv", "ConvTranspose", "MaxPool", "AveragePool", "BatchNormalization"):
            return True
        value = maker.inputs[0] if maker.inputs else None
    return False


def _replace(node: ir.Node, keep: bool, edit: Edit) -> None:
    source, old, graph = node.inputs[0], node.outputs[0], node.graph
    if keep:
        compute(edit, old, "GlobalAveragePool", [source])
        return
    assert isinstance(graph, ir.Graph) and source is not None
    name = edit.fresh(f"{old.name}_pooled")
    pooled = ir.Value(name=name, type=source.type)
    pool = ir.Node("", "GlobalAveragePool", [source], outputs=[pooled], name=edit.fresh(f"{name}/GlobalAveragePool"))
    graph.insert_before(node, pool)
    compute(edit, old, "Flatten", [pooled], attributes=[ir.AttrInt64("axis", 1)])
