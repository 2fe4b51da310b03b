"""Small ONNX files, right and wrong, for the tests of loading."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

FLOAT, BOOL = TensorProto.FLOAT, TensorProto.BOOL
INFO = helper.make_tensor_value_info


def model(
    nodes: Sequence[onnx.NodeProto],
    initializers: Sequence[onnx.TensorProto] = (),
    *,
    inputs: Sequence[onnx.ValueInfoProto] = (INFO("x", FLOAT, ["n", 4]),),
    outputs: Sequence[onnx.ValueInfoProto] = (INFO("y", FLOAT, ["n", 4]),),
    opset: Sequence[tuple[str, int]] = (("", 18),),
    ir_version: int = 10,
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    """A model of one graph."""
    graph = helper.make_graph(list(nodes), "g", list(inputs), list(outputs), list(initializers))
    imports = [helper.make_opsetid(domain, version) for domain, version in opset]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version, functions=list(functions))


def node(op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> onnx.NodeProto:
    """A node."""
    return helper.make_node(op, list(inputs), list(outputs), **attributes)


def tensor(name: str, values: Any, dtype: Any = np.float32) -> onnx.TensorProto:
    """A tensor of values."""
    return onnx.numpy_helper.from_array(np.asarray(values, dtype), name)


def add_weights() -> onnx.ModelProto:
    """``y = x + w`` with ``w`` of 4 numbers."""
    return model([node("Add", ["x", "w"], ["y"], name="add")], [tensor("w", [1, 2, 3, 4])])


def outside(name: str, location: str, *, shape: Sequence[int] = (4,), **more: object) -> onnx.TensorProto:
    """A float32 tensor whose data is said to stand elsewhere."""
    made = TensorProto(name=name, data_type=FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **more}.items():
        made.external_data.add(key=key, value=str(value))
    return made


def save(proto: onnx.ModelProto, folder: Path, name: str = "m.onnx") -> Path:
    """Write the bytes as they are."""
    path = folder / name
    path.write_bytes(proto.SerializeToString())
    return path
