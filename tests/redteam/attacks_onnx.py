"""ONNX files that attack whoever opens them: external data in every carrier, graphs that unfold, lies and loops."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from tests.redteam.seeds import seeds
from tests.source.onnx_models import BOOL, FLOAT, INFO, add_weights, model, node, outside, save, tensor

Build = Callable[[Path], Path]
Proto = onnx.ModelProto
SECRET = "secret.bin"
OUT = INFO("y", FLOAT, None)


# -- external data -------------------------------------------------------------------------------------------------
def lay_traps(folder: Path) -> None:
    """Beside a secret outside of the model's folder: links of both kinds to it, and a pipe."""
    (folder / "link.bin").symlink_to(folder.parent / SECRET)
    (folder / "away").symlink_to(folder.parent)
    os.link(folder.parent / SECRET, folder / "hard.bin")
    os.mkfifo(folder / "pipe.bin")


def _in_initializer(evil: onnx.TensorProto) -> Proto:
    evil.name = "w"
    return model([node("Add", ["x", "w"], ["y"])], [evil])


def _in_attribute(evil: onnx.TensorProto) -> Proto:
    return model([node("Constant", [], ["w"], value=evil), node("Add", ["x", "w"], ["y"])])


def _in_tensors(evil: onnx.TensorProto) -> Proto:
    proto = model([node("Add", ["x", "x"], ["y"])])
    proto.graph.node[0].attribute.append(helper.make_attribute("more", [evil, evil]))
    return proto


def _in_sparse_values(evil: onnx.TensorProto) -> Proto:
    proto = model([node("Add", ["x", "x"], ["y"])])
    sparse = onnx.SparseTensorProto(dims=[4], values=evil, indices=tensor("i", [0], np.int64))
    proto.graph.sparse_initializer.append(sparse)
    return proto


def _in_sparse_indices(evil: onnx.TensorProto) -> Proto:
    proto = model([node("Constant", [], ["w"]), node("Add", ["x", "w"], ["y"])])
    sparse = onnx.SparseTensorProto(dims=[4], values=tensor("v", [1.0]), indices=evil)
    proto.graph.node[0].attribute.append(helper.make_attribute("sparse_value", sparse))
    return proto


def _in_sparse_list(evil: onnx.TensorProto) -> Proto:
    proto = model([node("Add", ["x", "x"], ["y"])])
    attribute = proto.graph.node[0].attribute.add(name="s", type=onnx.AttributeProto.SPARSE_TENSORS)
    attribute.sparse_tensors.add(dims=[4]).values.CopyFrom(evil)
    return proto


def _body(evil: onnx.TensorProto, constant: bool = False) -> onnx.GraphProto:
    name = "w" if constant else evil.name
    inner = [node("Constant", [], ["w"], value=evil)] if constant else []
    weights = [] if constant else [evil]
    nodes = [*inner, node("Add", ["x", name], ["r"])]
    return helper.make_graph(nodes, "b", [], [INFO("r", FLOAT, None)], weights)


def _in_branch(evil: onnx.TensorProto) -> Proto:
    body = _body(evil)
    nodes = [node("If", ["c"], ["y"], then_branch=body, else_branch=body)]
    return model(nodes, inputs=[INFO("x", FLOAT, [4]), INFO("c", BOOL, [])], outputs=[OUT])


def _in_branch_constant(evil: onnx.TensorProto) -> Proto:
    body = _body(evil, constant=True)
    nodes = [node("If", ["c"], ["y"], then_branch=body, else_branch=body)]
    return model(nodes, inputs=[INFO("x", FLOAT, [4]), INFO("c", BOOL, [])], outputs=[OUT])


def _in_graph_list(evil: onnx.TensorProto) -> Proto:
    proto = model([node("Add", ["x", "x"], ["y"])])
    proto.graph.node[0].attribute.append(helper.make_attribute("bodies", [_body(evil)]))
    return proto


def _in_function(evil: onnx.TensorProto) -> Proto:
    inner = [node("Constant", [], ["w"], value=evil), node("Add", ["a", "w"], ["b"])]
    function = helper.make_function("own", "F", ["a"], ["b"], inner, [helper.make_opsetid("", 18)])
    return model([node("F", ["x"], ["y"], domain="own")], opset=[("", 18), ("own", 1)], functions=[function])


def _in_function_default(evil: onnx.TensorProto) -> Proto:
    proto = _in_function(tensor("", [1.0]))
    proto.functions[0].attribute_proto.append(helper.make_attribute("w", evil))
    return proto


def _in_training(evil: onnx.TensorProto) -> Proto:
    proto = model([node("Relu", ["x"], ["y"])])
    proto.training_info.add().initialization.initializer.append(evil)
    return proto


CARRIERS = (
    _in_initializer, _in_attribute, _in_tensors, _in_sparse_values, _in_sparse_indices, _in_sparse_list, _in_branch,
    _in_branch_constant, _in_graph_list, _in_function, _in_function_default, _in_training,
)  # fmt: skip
LOCATIONS = {
    "absolute": "{secret}", "parent": f"../{SECRET}", "parent-inside": f"sub/../../{SECRET}", "symlink": "link.bin",
    "symlinked-folder": f"away/{SECRET}", "hard-link": "hard.bin", "pipe": "pipe.bin", "folder": ".", "nul": "a\0b",
    "windows": "C:\\secret.bin", "share": "\\\\host\\share\\w", "backslashes": f"sub\\..\\..\\{SECRET}",
    "proc": "/proc/self/mem",
    "memory": "*/_ORT_MEM_ADDR_/*", "file-url": "file:///etc/hostname", "climbing-length": "link.bin/../good.bin",
}  # fmt: skip


def external() -> dict[str, Build]:
    """Every location in an initializer, and the ways out in every carrier."""

    def write(carrier: Callable[[onnx.TensorProto], Proto], location: str) -> Build:
        def build(folder: Path) -> Path:
            where = location.format(secret=folder.parent / SECRET)
            return save(carrier(outside("evil", where)), folder)

        return build

    found = {f"external: {name} in an initializer": write(_in_initializer, LOCATIONS[name]) for name in LOCATIONS}
    for carrier in CARRIERS[1:]:
        for name in ("parent", "hard-link"):
            found[f"external: {name} {carrier.__name__[1:].replace('_', ' ')}"] = write(carrier, LOCATIONS[name])
    return found


# -- what unfolds --------------------------------------------------------------------------------------------------
def _nested_ifs(depth: int) -> Proto:
    body = helper.make_graph([node("Relu", ["x"], ["r0"])], "b", [], [INFO("r0", FLOAT, None)])
    for level in range(1, depth):
        chosen = node("If", ["c"], [f"r{level}"], then_branch=body, else_branch=body if level < 4 else _leaf(level))
        body = helper.make_graph([chosen], "b", [], [INFO(f"r{level}", FLOAT, None)])
    nodes = [node("If", ["c"], ["y"], then_branch=body, else_branch=_leaf(depth))]
    return model(nodes, inputs=[INFO("x", FLOAT, [4]), INFO("c", BOOL, [])], outputs=[OUT])


def _leaf(level: int) -> onnx.GraphProto:
    return helper.make_graph([node("Relu", ["x"], [f"q{level}"])], "l", [], [INFO(f"q{level}", FLOAT, None)])


def _functions(count: int, fan: int = 2, circle: bool = False) -> Proto:
    """Functions of which each calls the next ``fan`` times: fan**count nodes in a few kilobytes."""
    made = []
    for i in range(count):
        names = ["a", *(f"t{k}" for k in range(fan - 1)), "b"]
        inner = [node(f"F{i + 1}", [names[k]], [names[k + 1]], domain="own") for k in range(fan)]
        if i == count - 1:
            inner = [node("F0" if circle else "Relu", ["a"], ["b"], domain="own" if circle else "")]
        ops = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
        made.append(helper.make_function("own", f"F{i}", ["a"], ["b"], inner, ops))
    nodes = [node("F0", ["x"], ["y"], domain="own")]
    return model(nodes, opset=[("", 18), ("own", 1)], functions=made)


def _of_shape(op: str, size: int) -> Proto:
    """A constant of ``size`` elements in a hundred bytes."""
    dims = tensor("d", [size], np.int64)
    if op == "ConstantOfShape":
        made = [node("ConstantOfShape", ["d"], ["z"])]
    elif op == "Range":
        made = [node("Range", ["a", "b", "s"], ["i"]), node("Cast", ["i"], ["z"], to=FLOAT)]
    elif op == "Pad":
        made = [node("Pad", ["one", "dd"], ["z"])]
    else:
        made = [node(op, ["one", "d"], ["z"])]
    numbers = [tensor(n, v, np.int64) for n, v in {"a": 0, "b": size, "s": 1, "dd": [0, size]}.items()]
    nodes = [*made, node("ReduceSum", ["z"], ["h"], keepdims=0), node("Add", ["x", "h"], ["y"])]
    return model(nodes, [dims, tensor("one", [1.0]), *numbers], outputs=[OUT])


def _doubling(times: int) -> Proto:
    """A vector that is joined to itself again and again: every step doubles it."""
    nodes = [node("Concat", [f"c{i}", f"c{i}"], [f"c{i + 1}"], axis=0) for i in range(times)]
    nodes += [node("Cast", [nodes[-1].output[0]], ["f"], to=FLOAT), node("ReduceSum", ["f"], ["h"], keepdims=0)]
    return model([*nodes, node("Add", ["x", "h"], ["y"])], [tensor("c0", [1, 2], np.int64),
                 tensor("zero", [1], np.int64)], outputs=[OUT])  # fmt: skip


def _many_foldings() -> Proto:
    """A hundred constants of just under the limit for one: 100 MB in all."""
    nodes = [node("ConstantOfShape", ["d"], [f"z{i}"], value=tensor("", [float(i)])) for i in range(100)]
    nodes += [node("ReduceSum", [f"z{i}"], [f"h{i}"], keepdims=0) for i in range(100)]
    nodes.append(node("Sum", ["x", *(f"h{i}" for i in range(100))], ["y"]))
    return model(nodes, [tensor("d", [2**18 - 4], np.int64)], outputs=[OUT])


def _sparse(size: int, index: int) -> Proto:
    proto = model([node("Add", ["x", "s"], ["y"])], outputs=[OUT])
    values, indices = tensor("s", [1.0]), tensor("", [index], np.int64)
    proto.graph.sparse_initializer.append(onnx.SparseTensorProto(dims=[size], values=values, indices=indices))
    return proto


def _changed(change: Callable[[Proto], object]) -> Proto:
    proto = add_weights()
    change(proto)
    return proto


def _circle(length: int) -> Proto:
    nodes = [node("Add", ["x", f"v{(i - 1) % length}"], [f"v{i}"]) for i in range(length)]
    return model([*nodes, node("Relu", ["v0"], ["y"])])


def _endless() -> Proto:
    body = helper.make_graph(
        [node("Identity", ["cond"], ["go"]), node("Identity", ["v"], ["w"])], "body",
        [INFO("i", onnx.TensorProto.INT64, []), INFO("cond", BOOL, []), INFO("v", FLOAT, None)],
        [INFO("go", BOOL, []), INFO("w", FLOAT, None)],
    )  # fmt: skip
    numbers = [tensor("m", 2**62, np.int64), tensor("t", True, bool)]
    return model([node("Loop", ["m", "t", "x"], ["y"], body=body)], numbers, outputs=[OUT])


def _deep_type(depth: int) -> Proto:
    kind = helper.make_tensor_type_proto(FLOAT, None)
    for _ in range(depth):
        kind = helper.make_sequence_type_proto(kind)
    return _changed(lambda m: m.graph.input.append(helper.make_value_info("deep", kind)))


def _set_raw(proto: Proto, data: bytes) -> None:
    proto.graph.initializer[0].raw_data = data


def _protos() -> dict[str, Callable[[], Proto]]:
    weight = lambda m: m.graph.initializer[0]  # noqa: E731
    found: dict[str, Callable[[], Proto]] = {
        "if: 17 deep": lambda: _nested_ifs(17),
        "if: 30 deep": lambda: _nested_ifs(30),
        "functions: 10**12 nodes": lambda: _functions(12, 10),
        "functions: 60 deep": lambda: _functions(60),
        "functions: in a circle": lambda: _functions(3, circle=True),
        "doubling: Concat 40 times": lambda: _doubling(40),
        "doubling: Concat 24 times": lambda: _doubling(24),
        "many foldings": _many_foldings,
        "sparse: 2**33 elements": lambda: _sparse(2**33, 5),
        "sparse: 2**62 elements": lambda: _sparse(2**62, 5),
        "sparse: index outside": lambda: _sparse(4, 7),
        "sparse: negative index": lambda: _sparse(4, -9),
        "circle: of one": lambda: _circle(1),
        "circle: of nine": lambda: _circle(9),
        "loop without end": _endless,
        "twice: initializer": lambda: _changed(lambda m: m.graph.initializer.append(weight(m))),
        "twice: input": lambda: _changed(lambda m: m.graph.input.append(m.graph.input[0])),
        "twice: node": lambda: _changed(lambda m: m.graph.node.append(m.graph.node[0])),
        "a node writes an input": lambda: _changed(lambda m: m.graph.node[0].output.append("x")),
        "a node writes a weight": lambda: _changed(lambda m: m.graph.node[0].output.append("w")),
        "dims: 2**62 twice": lambda: _changed(lambda m: weight(m).dims.extend([2**62, 2**62])),
        "dims: zero and 2**63-1": lambda: _changed(lambda m: weight(m).dims.extend([0, 2**63 - 1])),
        "dims: negative": lambda: _changed(lambda m: weight(m).dims.append(-4)),
        "dims: input of 2**62": lambda: _changed(
            lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[1], "dim_value", 2**62)
        ),
        "dims: ten thousand of them": lambda: _changed(lambda m: weight(m).dims.extend([1] * 10_000)),
        "raw data: too short": lambda: _changed(lambda m: _set_raw(m, b"\0" * 3)),
        "raw data: too long": lambda: _changed(lambda m: _set_raw(m, b"\0" * 4096)),
        "raw data: none": lambda: _changed(lambda m: weight(m).ClearField("raw_data")),
        "typed data: too few": lambda: _changed(
            lambda m: (weight(m).ClearField("raw_data"), weight(m).float_data.append(1.0))
        ),
        "typed data: in the wrong field": lambda: _changed(
            lambda m: (weight(m).ClearField("raw_data"), weight(m).int64_data.extend([1] * 4))
        ),
        "type: unknown": lambda: _changed(lambda m: setattr(weight(m), "data_type", 77)),
        "type: nested 25 deep": lambda: _deep_type(25),
        "type: string with raw data": lambda: _changed(lambda m: setattr(weight(m), "data_type", 8)),
        "opset: 2**62": lambda: _changed(lambda m: setattr(m.opset_import[0], "version", 2**62)),
        "opset: negative": lambda: _changed(lambda m: setattr(m.opset_import[0], "version", -1)),
        "attribute: of every kind at once": lambda: _changed(
            lambda m: m.graph.node[0].attribute.add(name="a", i=1, f=2.0, s=b"x", ints=[1], floats=[1.0])
        ),
        "attribute: refers to nothing": lambda: _changed(
            lambda m: m.graph.node[0].attribute.add(name="a", ref_attr_name="b")
        ),
        "name: a megabyte long": lambda: _changed(lambda m: setattr(m.graph.node[0], "name", "n" * 2**20)),
        "name: with escapes": lambda: _changed(lambda m: setattr(m.graph.node[0], "op_type", "\x1b[2J\x07../..")),
    }
    for op in ("ConstantOfShape", "Expand", "Tile", "Range", "Pad"):
        for power in (33, 50):
            found[f"unfolds: {op} to 2**{power}"] = lambda op=op, power=power: _of_shape(op, 2**power)
    return found


def graphs() -> dict[str, Build]:
    """Files whose graph is the attack."""
    return {name: lambda folder, make=make: save(make(), folder) for name, make in _protos().items()}


# -- damage --------------------------------------------------------------------------------------------------------
def damaged() -> dict[str, Build]:
    """Truncated and bit-flipped files, and messages nested as deep as protobuf lets them."""

    def cut(share: float) -> Build:
        return lambda folder: _bytes(folder, seeds()[1][: int(len(seeds()[1]) * share)])

    def flip(number: int) -> Build:
        def build(folder: Path) -> Path:
            data = bytearray(seeds()[number % len(seeds())])
            for k in range(3):
                at = (number * 7919 + k * 104729) % len(data)
                data[at] ^= 1 << (number % 8)
            return _bytes(folder, bytes(data))

        return build

    found = {f"cut at {share:.0%}": cut(share) for share in (0.02, 0.25, 0.5, 0.75, 0.99)}
    found |= {f"flipped bits {number}": flip(number) for number in range(8)}
    found["groups nested without end"] = lambda folder: _bytes(folder, b"\x08\x08" + b"\x3b" * 5000)
    found["a length of 2**63"] = lambda folder: _bytes(folder, b"\x08\x08\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f")
    return found


def _bytes(folder: Path, data: bytes) -> Path:
    path = folder / "m.onnx"
    path.write_bytes(data)
    return path
