"""Small valid ONNX files (at most 8 KB) that mutations start from: every carrier of tensors and graphs is in one."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.source.onnx_models import BOOL, FLOAT, INFO, add_weights, model, node, outside, tensor
from tests.support.corpus import CASES

MOST_BYTES = 8192
WEIGHTS_FILE = "weights.bin"
WEIGHTS = np.arange(64, dtype=np.float32).tobytes()
"""What lies beside every mutated file, so that external data can be right."""

INT64 = TensorProto.INT64
_OUT = INFO("y", FLOAT, None)


def _branches() -> onnx.ModelProto:
    inner = [
        helper.make_graph([node("Add", ["x", "w"], ["r"]), node(op, ["r"], ["s"])], op, [], [INFO("s", FLOAT, None)])
        for op in ("Relu", "Tanh")
    ]
    chosen = node("If", ["c"], ["y"], then_branch=inner[0], else_branch=inner[1])
    return model([chosen], [tensor("w", [1, 2, 3, 4])], inputs=[INFO("x", FLOAT, ["n", 4]), INFO("c", BOOL, [])])


def _loop() -> onnx.ModelProto:
    body = helper.make_graph(
        [node("Identity", ["cond"], ["go"]), node("Add", ["v", "v"], ["w"])],
        "body",
        [INFO("i", INT64, []), INFO("cond", BOOL, []), INFO("v", FLOAT, None)],
        [INFO("go", BOOL, []), INFO("w", FLOAT, None)],
    )
    times = [tensor("m", 3, np.int64), tensor("t", True, bool)]
    return model([node("Loop", ["m", "t", "x"], ["y"], body=body)], times, outputs=[_OUT])


def _function() -> onnx.ModelProto:
    inner = [node("Constant", [], ["w"], value=tensor("", [2.0])), node("Mul", ["a", "w"], ["b"])]
    made = helper.make_function("own", "Twice", ["a"], ["b"], inner, [helper.make_opsetid("", 18)])
    nodes = [node("Twice", ["x"], ["h"], domain="own"), node("Twice", ["h"], ["y"], domain="own")]
    return model(nodes, opset=[("", 18), ("own", 1)], functions=[made])


def _external() -> onnx.ModelProto:
    weights = [outside("w", WEIGHTS_FILE, offset=16, length=16), outside("v", WEIGHTS_FILE)]
    return model([node("Add", ["x", "w"], ["h"]), node("Mul", ["h", "v"], ["y"])], weights)


def _sparse() -> onnx.ModelProto:
    proto = model([node("Add", ["x", "s"], ["y"])])
    sparse = onnx.SparseTensorProto(dims=[4], values=tensor("s", [5.0]), indices=tensor("", [2], np.int64))
    proto.graph.sparse_initializer.append(sparse)
    return proto


def _shapes() -> onnx.ModelProto:
    nodes = [
        node("ConstantOfShape", ["d"], ["z"], value=tensor("", [1.5])),
        node("Expand", ["one", "d"], ["e"]),
        node("Tile", ["e", "r"], ["t"]),
        node("Range", ["a", "b", "s"], ["k"]),
        node("Cast", ["k"], ["f"], to=FLOAT),
        node("Reshape", ["t", "q"], ["u"]),
        node("Concat", ["u", "f"], ["p"], axis=0),
        node("ReduceSum", ["p"], ["h"], keepdims=0),
        node("Slice", ["z", "a1", "b1"], ["c"]),
        node("Add", ["x", "c"], ["i"]),
        node("Mul", ["i", "h"], ["y"]),
    ]
    numbers = {"d": [4], "r": [2], "q": [8], "a1": [0], "b1": [4]}
    held = [tensor(name, values, np.int64) for name, values in numbers.items()]
    held += [tensor(name, value, np.int64) for name, value in {"a": 0, "b": 6, "s": 2}.items()]
    return model(nodes, [*held, tensor("one", [1.0])])


def _texts() -> onnx.ModelProto:
    words = onnx.TensorProto(name="w", data_type=TensorProto.STRING, dims=[2], string_data=[b"a", b"\xff"])
    nodes = [node("Identity", ["w"], ["q"]), node("Relu", ["x"], ["y"])]
    return model(nodes, [words], outputs=[INFO("y", FLOAT, None), INFO("q", TensorProto.STRING, None)])


def _quantized() -> onnx.ModelProto:
    scale, zero = tensor("s", 0.1), tensor("z", 3, np.uint8)
    nodes = [node("QuantizeLinear", ["x", "s", "z"], ["q"]), node("DequantizeLinear", ["q", "s", "z"], ["y"])]
    return model(nodes, [scale, zero])


@cache
def seeds() -> tuple[bytes, ...]:
    """The files as bytes."""
    makers = (add_weights, _branches, _loop, _function, _external, _sparse, _shapes, _texts, _quantized)
    made = [maker().SerializeToString() for maker in makers]
    made += [case.build().to_proto().SerializeToString() for case in CASES]
    return tuple(data for data in made if len(data) <= MOST_BYTES)
