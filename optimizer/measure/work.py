"""What a model has the runtime do, whatever its weights hold: two models with the same work take the same time."""

from __future__ import annotations

import hashlib

import onnx_ir as ir

from passes.kit.model import Model, constant


def work_of(model: Model) -> str:
    """A digest of the operators in order, their attributes, what they read from whom, and the types and shapes of all
    constants: everything but names and the numbers in float constants."""
    digest = hashlib.sha256()
    for graph in model.fork().graphs():  # reading a Constant names its tensor
        places = {v: f"in{i}" for i, v in enumerate(graph.inputs)}
        for number, node in enumerate(n for n in graph if n.op_type != "Constant"):
            places.update({o: f"{number}.{i}" for i, o in enumerate(node.outputs)})
            reads = [_read(v, places) for v in node.inputs]
            attributes = sorted(f"{a.name}={_said(a)}" for a in node.attributes.values())
            digest.update(repr((node.domain, node.op_type, attributes, reads)).encode())
        digest.update(repr([_read(v, places) for v in graph.outputs]).encode())
    return digest.hexdigest()


def _read(value: ir.Value | None, places: dict[ir.Value, str]) -> str:
    if value is None:
        return ""
    array = constant(value)
    if array is None:
        return places.get(value, "outer")
    held = "" if array.dtype.kind == "f" and array.size > 1 else hashlib.sha256(array.tobytes()).hexdigest()
    return f"{array.dtype}{array.shape}{held}"


def _said(attribute: ir.Attr) -> str:
    return "body" if attribute.type == ir.AttributeType.GRAPH else str(attribute.value)
