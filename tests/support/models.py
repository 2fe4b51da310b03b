"""Models and data on disk for journeys: small, seeded, with a teacher's labels so that accuracy means something."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper as h

Array = np.ndarray[Any, Any]


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: Mapping[str, tuple[int, list[Any]]],
    outputs: Mapping[str, tuple[int, list[Any] | None]],
    weights: Mapping[str, Array],
    *,
    opset: int = 17,
    ir: int = 8,
    listed: bool = False,
) -> Path:
    """Write a checked model; ``listed`` also lists the initializers as inputs, as files of IR 3 must."""
    ports = [h.make_tensor_value_info(n, t, s) for n, (t, s) in inputs.items()]
    if listed:
        ports += [h.make_tensor_value_info(n, h.np_dtype_to_tensor_dtype(w.dtype), w.shape) for n, w in weights.items()]
    results = [h.make_tensor_value_info(n, t, s) for n, (t, s) in outputs.items()]
    tensors = [onnx.numpy_helper.from_array(w, n) for n, w in weights.items()]
    graph = h.make_graph(nodes, "graph", ports, results, tensors)
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", opset)], ir_version=ir)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def cnn(path: Path, *, opset: int = 17, ir: int = 8, listed: bool = False, width: int = 48) -> Path:
    """Two Conv-BatchNormalization-Relu blocks, pooling, Gemm: input x [n,3,16,16], output y [n,10]."""
    rng = np.random.default_rng(0)
    weights: dict[str, Array] = {}
    nodes: list[onnx.NodeProto] = []
    last = "x"
    for i, (cin, cout) in enumerate([(3, width), (width, width), (width, width)]):
        weights[f"w{i}"] = (rng.normal(size=(cout, cin, 3, 3)) * np.sqrt(2 / (9 * cin))).astype(np.float32)
        for name, array in (
            ("s", np.full(cout, 1.1)),
            ("b", rng.normal(size=cout) * 0.1),
            ("m", np.zeros(cout)),
            ("v", np.ones(cout)),
        ):
            weights[f"{name}{i}"] = array.astype(np.float32)
        nodes += [
            h.make_node("Conv", [last, f"w{i}"], [f"c{i}"], f"conv{i}", kernel_shape=[3, 3], pads=[1] * 4),
            h.make_node("BatchNormalization", [f"c{i}", f"s{i}", f"b{i}", f"m{i}", f"v{i}"], [f"n{i}"], f"bn{i}"),
            h.make_node("Relu", [f"n{i}"], [f"r{i}"], f"relu{i}"),
        ]
        last = f"r{i}"
    weights["fw"] = rng.normal(size=(width, 10)).astype(np.float32)
    weights["fb"] = np.zeros(10, np.float32)
    nodes += [
        h.make_node("GlobalAveragePool", [last], ["p"], "pool"),
        h.make_node("Flatten", ["p"], ["f"], "flat"),
        h.make_node("Gemm", ["f", "fw", "fb"], ["y"], "head"),
    ]
    batch: list[Any] = ["n"]
    return save(
        path, nodes, {"x": (T.FLOAT, [*batch, 3, 16, 16])}, {"y": (T.FLOAT, [*batch, 10])}, weights,
        opset=opset, ir=ir, listed=listed,
    )  # fmt: skip


def images(path: Path, model: Path, count: int = 240, *, labelled: bool = True) -> Path:
    """Smooth random images with the labels that ``model`` itself gives them, a few of them flipped."""
    import onnxruntime as ort

    rng = np.random.default_rng(1)
    coarse = rng.normal(size=(count, 3, 4, 4)) * 1.5
    x = (
        np.kron(coarse, np.ones((4, 4))).astype(np.float32)
        + rng.normal(size=(count, 3, 16, 16)).astype(np.float32) * 0.3
    )
    arrays = {"x": x.astype(np.float32)}
    if labelled:
        session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
        labels = session.run(None, {"x": arrays["x"]})[0].argmax(1)
        labels[::11] = (labels[::11] + 1) % 10
        arrays["labels"] = labels
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def branches(path: Path) -> Path:
    """A model whose work lies inside an If: x [n,32], c scalar bool, y [n,10]."""
    rng = np.random.default_rng(0)

    def branch(name: str, act: str) -> onnx.GraphProto:
        nodes = [
            h.make_node("MatMul", ["x", "w1"], [f"{name}h"]),
            h.make_node(act, [f"{name}h"], [f"{name}a"]),
            h.make_node("Identity", [f"{name}a"], [f"{name}i"]),
            h.make_node("MatMul", [f"{name}i", "w2"], [f"{name}y"]),
        ]
        return h.make_graph(nodes, name, [], [h.make_tensor_value_info(f"{name}y", T.FLOAT, None)])

    node = h.make_node("If", ["c"], ["y"], "if", then_branch=branch("t", "Relu"), else_branch=branch("e", "Tanh"))
    weights = {"w1": rng.normal(size=(32, 64)).astype(np.float32), "w2": rng.normal(size=(64, 10)).astype(np.float32)}
    return save(path, [node], {"x": (T.FLOAT, ["n", 32]), "c": (T.BOOL, [])}, {"y": (T.FLOAT, ["n", 10])}, weights)


def recurrent(path: Path) -> Path:
    """A step with a scalar rate and carried state: x and state [b,32], rate int64 -> p [b,1], next [b,32]."""
    rng = np.random.default_rng(0)
    weights = {
        "k": np.float32(16000).reshape(()),
        "W": (rng.normal(size=(64, 128)) * 0.1).astype(np.float32),
        "V": (rng.normal(size=(128, 32)) * 0.1).astype(np.float32),
    }
    nodes = [
        h.make_node("Cast", ["rate"], ["r"], to=T.FLOAT),
        h.make_node("Div", ["r", "k"], ["f"]),
        h.make_node("Mul", ["x", "f"], ["xs"]),
        h.make_node("Concat", ["xs", "state"], ["cat"], axis=1),
        h.make_node("MatMul", ["cat", "W"], ["z"]),
        h.make_node("Tanh", ["z"], ["t"]),
        h.make_node("MatMul", ["t", "V"], ["next"]),
        h.make_node("ReduceMean", ["next"], ["m"], axes=[1], keepdims=1),
        h.make_node("Sigmoid", ["m"], ["p"]),
    ]
    inputs = {"x": (T.FLOAT, ["b", 32]), "state": (T.FLOAT, ["b", 32]), "rate": (T.INT64, [])}
    return save(path, nodes, inputs, {"p": (T.FLOAT, ["b", 1]), "next": (T.FLOAT, ["b", 32])}, weights, opset=13, ir=7)


def several_inputs(path: Path) -> Path:
    """ids and mask int64 [b,s], extra float [b,?] -> logits [b,2]."""
    rng = np.random.default_rng(0)
    weights = {
        "E": rng.normal(size=(100, 64)).astype(np.float32),
        "P": (rng.normal(size=(64, 64)) * 0.12).astype(np.float32),
        "Q": rng.normal(size=(68, 2)).astype(np.float32),
        "qb": np.zeros(2, np.float32),
        "ax": np.array([2]),
    }
    nodes = [
        h.make_node("Gather", ["E", "ids"], ["e"]),
        h.make_node("Cast", ["mask"], ["mf"], to=T.FLOAT),
        h.make_node("Unsqueeze", ["mf", "ax"], ["mu"]),
        h.make_node("Mul", ["e", "mu"], ["em"]),
        h.make_node("MatMul", ["em", "P"], ["p"]),
        h.make_node("Relu", ["p"], ["pr"]),
        h.make_node("ReduceMean", ["pr"], ["pool"], axes=[1], keepdims=0),
        h.make_node("Concat", ["pool", "extra"], ["cc"], axis=1),
        h.make_node("Gemm", ["cc", "Q", "qb"], ["logits"]),
    ]
    inputs = {"ids": (T.INT64, ["b", "s"]), "mask": (T.INT64, ["b", "s"]), "extra": (T.FLOAT, ["b", None])}
    return save(path, nodes, inputs, {"logits": (T.FLOAT, ["b", 2])}, weights, opset=13)


def tree(path: Path) -> Path:
    """An ONNX-ML decision tree with a ZipMap: x [n,2] -> label int64 [n], probabilities seq(map(int64, float))."""
    tree_node = h.make_node(
        "TreeEnsembleClassifier",
        ["x"],
        ["label", "scores"],
        domain="ai.onnx.ml",
        nodes_treeids=[0] * 5,
        nodes_nodeids=[0, 1, 2, 3, 4],
        nodes_featureids=[0, 0, 1, 0, 0],
        nodes_values=[0.0, 0.0, 0.5, 0.0, 0.0],
        nodes_modes=["BRANCH_LEQ", "LEAF", "BRANCH_LEQ", "LEAF", "LEAF"],
        nodes_truenodeids=[1, 0, 3, 0, 0],
        nodes_falsenodeids=[2, 0, 4, 0, 0],
        class_treeids=[0, 0, 0],
        class_nodeids=[1, 3, 4],
        class_ids=[0, 1, 2],
        class_weights=[1.0, 1.0, 1.0],
        classlabels_int64s=[0, 1, 2],
        post_transform="NONE",
    )
    zipmap = h.make_node("ZipMap", ["scores"], ["probabilities"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2])
    kind = h.make_map_type_proto(T.INT64, h.make_tensor_type_proto(T.FLOAT, None))
    outputs = [
        h.make_tensor_value_info("label", T.INT64, [None]),
        h.make_value_info("probabilities", h.make_sequence_type_proto(kind)),
    ]
    graph = h.make_graph([tree_node, zipmap], "tree", [h.make_tensor_value_info("x", T.FLOAT, [None, 2])], outputs)
    opsets = [h.make_opsetid("", 17), h.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(h.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path
