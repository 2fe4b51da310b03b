"""The model handle: forks are islands, digests are stable, and nothing of a file gets lost on the way."""

from __future__ import annotations

import contextlib

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.kit.model import Model, ModelTooLarge, SharedTensor, constant, names_in, scalar, tensor_digest
from tests.support.corpus import CASES
from tests.support.runtime import model, run

WITH_FUNCTION = """<ir_version: 8, opset_import: ["": 17, "local": 1]>
g (float[n, 3] x) => (float[n, 3] y) {
  k = Constant<value = float[3] {1, 2, 3}>()
  a = Add(x, w)
  b = local.twice(a)
  y = Mul(b, k)
}
<domain: "local", opset_import: ["": 17]>
twice (a) => (b) {
  two = Constant<value = float {2}>()
  b = Mul(a, two)
}"""


def _function_model() -> Model:
    return model(WITH_FUNCTION, w=np.arange(3, dtype=np.float32))


SOURCES = {case.name: case.build for case in CASES} | {"function": _function_model}


# -- forks ----------------------------------------------------------------------------------------------------------
def _values(subject: Model) -> list[ir.Value]:
    holders: list[ir.Graph | ir.Function] = [*subject.graphs(), *subject.ir.functions.values()]
    found: list[ir.Value] = []
    for holder in holders:
        found.extend(holder.inputs)
        if isinstance(holder, ir.Graph):
            found.extend(holder.initializers.values())
        found.extend(o for node in list(holder) for o in node.outputs)
    return list(dict.fromkeys(found))


def _nodes(subject: Model) -> list[ir.Node]:
    holders: list[ir.Graph | ir.Function] = [*subject.graphs(), *subject.ir.functions.values()]
    return [node for holder in holders for node in list(holder)]


def _rename(subject: Model) -> None:
    for index, value in enumerate(_values(subject)):
        value.name = f"renamed{index}"
    for index, node in enumerate(_nodes(subject)):
        node.name = f"node{index}"
    subject.graph.name = "other"


def _retype(subject: Model) -> None:
    for value in _values(subject):
        if isinstance(value.type, ir.TensorType):
            value.type.dtype = ir.DataType.DOUBLE
        value.type = ir.TensorType(ir.DataType.INT8)


def _reshape(subject: Model) -> None:
    for value in _values(subject):
        if value.shape is not None and not value.shape.frozen and len(value.shape):
            value.shape[0] = 77
        value.shape = ir.Shape([5, "z"])


def _annotate(subject: Model) -> None:
    subject.ir.metadata_props["k"] = "v"
    subject.ir.producer_name = "me"
    subject.ir.doc_string = "doc"
    for thing in (*_values(subject), *_nodes(subject), *subject.graphs(), *subject.ir.functions.values()):
        thing.metadata_props["k"] = "v"
        thing.doc_string = "doc"


def _read_constants(subject: Model) -> None:
    """Reading names a tensor after its value, in onnx_ir."""
    for value in _values(subject):
        with contextlib.suppress(ValueError):  # another mutation may have taken the attribute away
            constant(value)


def _change_weights(subject: Model) -> None:
    for graph in subject.graphs():
        for name in list(graph.initializers):
            value = graph.initializers[name]
            if value.const_value is not None:
                value.const_value.name = "tensor"
            value.const_value = ir.tensor(np.zeros(1, np.float32), name=name)


def _change_attributes(subject: Model) -> None:
    for node in _nodes(subject):
        for key, held in list(node.attributes.items()):
            if held.type == ir.AttributeType.TENSOR and not held.is_ref():
                held.as_tensor().name = "tensor"
            if held.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
                node.attributes.pop(key)
        node.attributes.add(ir.AttrInt64("added", 1))


def _change_opsets(subject: Model) -> None:
    subject.ir.opset_imports[""] = 99
    subject.ir.ir_version = 42
    for function in subject.ir.functions.values():
        function.opset_imports[""] = 99
    subject.map_types["y"] = b"x"


def _tear_down(subject: Model) -> None:
    for node in reversed(_nodes(subject)):
        for index in range(len(node.inputs)):
            node.replace_input_with(index, None)
        node.op_type = "Gone"
    subject.ir.functions.clear()
    subject.graph.outputs.clear()
    subject.graph.initializers.clear()


MUTATIONS = [
    _rename,
    _retype,
    _reshape,
    _annotate,
    _read_constants,
    _change_weights,
    _change_attributes,
    _change_opsets,
    _tear_down,
]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(SOURCES)), st.permutations(MUTATIONS), st.integers(1, len(MUTATIONS)))
def test_whatever_is_done_to_a_fork_the_original_keeps_its_bytes(name: str, order: list, count: int) -> None:  # type: ignore[type-arg]
    original = SOURCES[name]()
    before = original.to_bytes()
    fork = original.fork()
    assert fork.to_bytes() == before
    for mutate in order[:count]:
        mutate(fork)
    assert original.to_bytes() == before
    assert original.fork().to_bytes() == before


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda m: m.__name__)
def test_each_mutation_alone_leaves_the_original(mutate) -> None:  # type: ignore[no-untyped-def]
    for build in SOURCES.values():
        original = build()
        before, digest = original.to_bytes(), original.digest()
        mutate(original.fork())
        assert original.to_bytes() == before
        assert Model(original.ir, original.map_types).digest() == digest


def test_a_fork_shares_the_data_of_its_tensors() -> None:
    weight = np.ones((64, 64), np.float32)
    original = model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[1, 64] x) => (float[1, 64] y) { y = MatMul(x, w) }', w=weight
    )
    fork = original.fork().fork()
    theirs, mine = fork.graph.initializers["w"].const_value, original.graph.initializers["w"].const_value
    assert isinstance(theirs, SharedTensor)
    assert theirs.base is mine
    array = constant(fork.graph.initializers["w"])
    assert array is not None
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0] = 5


# -- digests --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", sorted(SOURCES))
def test_a_digest_survives_forks_and_files(name: str) -> None:
    original = SOURCES[name]()
    digest = original.digest()
    assert len(digest) == 64
    assert original.fork().digest() == digest
    assert Model.from_bytes(original.to_bytes()).digest() == digest
    assert SOURCES[name]().digest() == digest


def test_a_digest_sees_every_weight_and_every_name() -> None:
    digests = set()
    for scale in (1.0, np.nextafter(np.float32(1), np.float32(2))):
        for kept in (10, 1000):  # inside and outside of the graph file
            digests.add(_product(np.full((1, kept), scale, np.float32)).digest())
    renamed = _product(np.ones((1, 10), np.float32))
    renamed.ir.graph[0].name = "n"
    digests.add(renamed.digest())
    assert len(digests) == 5


def _product(k: np.ndarray) -> Model:  # type: ignore[type-arg]
    return model('<ir_version: 8, opset_import: ["": 17]> g (float[n, m] x) => (float[n, m] y) { y = Mul(x, k) }', k=k)


def test_a_tensors_digest_tells_type_and_shape_apart() -> None:
    arrays = [
        np.zeros((2, 2), np.float32),
        np.zeros(4, np.float32),
        np.zeros((2, 2), np.int32),
        np.zeros((1, 4), np.int32),
    ]
    assert len({tensor_digest(ir.tensor(a)) for a in arrays}) == 4
    assert tensor_digest(ir.tensor(arrays[0])) == tensor_digest(ir.tensor(arrays[0].copy(), name="other"))


# -- what files hold ------------------------------------------------------------------------------------------------
def _zip_map() -> onnx.ModelProto:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17, "ai.onnx.ml": 3]> g (float[n, 2] x) => (float[n, 2] y)'
        " { p = Softmax(x)\n y = ai.onnx.ml.ZipMap<classlabels_int64s=[3, 5]>(p) }"
    )
    kind = onnx.helper.make_map_type_proto(onnx.TensorProto.INT64, onnx.helper.make_tensor_type_proto(1, []))
    proto.graph.output[0].type.CopyFrom(onnx.helper.make_sequence_type_proto(kind))
    return proto


def test_map_types_ride_along() -> None:
    proto = _zip_map()
    kind = proto.graph.output[0].type.SerializeToString()
    subject = Model.from_proto(proto).fork()
    assert subject.signature.outputs[0].type == "map"
    assert subject.to_proto().graph.output[0].type.SerializeToString() == kind
    feeds = {"x": np.zeros((1, 2), np.float32)}
    assert run(subject, feeds)["y"] == [{3: 0.5, 5: 0.5}]
    assert Model.from_bytes(subject.to_bytes()).digest() == subject.digest()


@pytest.mark.parametrize("flat", [True, False])
def test_sparse_initializers_become_dense(flat: bool) -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[2, 3] x) => (float[2, 3] y) { y = Add(x, s) }'
    )
    indices = np.array([1, 5], np.int64) if flat else np.array([[0, 1], [1, 2]], np.int64)
    proto.graph.sparse_initializer.append(
        onnx.helper.make_sparse_tensor(
            onnx.numpy_helper.from_array(np.array([7, 9], np.float32), "s"),
            onnx.numpy_helper.from_array(indices),
            [2, 3],
        )
    )
    subject = Model.from_proto(proto)
    wanted = np.array([[0, 7, 0], [0, 0, 9]], np.float32)
    np.testing.assert_array_equal(constant(subject.graph.initializers["s"]), wanted)
    np.testing.assert_array_equal(run(subject, {"x": np.zeros((2, 3), np.float32)})["y"], wanted)


def test_the_signature_leaves_listed_initializers_out_and_keeps_symbols() -> None:
    subject = SOURCES["old"]()
    assert [str(p) for p in subject.signature.inputs] == ["x: FLOAT[n, 3, 4, 4]"]
    assert [str(p) for p in subject.signature.outputs] == ["y: FLOAT[n, 6]"]
    assert subject.signature != SOURCES["cnn"]().signature


def test_a_negative_size_is_a_size_that_is_not_known() -> None:
    proto = model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[7, 3] x) => (float[7, 3] y) { y = Relu(x) }'
    ).to_proto()
    for info in (*proto.graph.input, *proto.graph.output):
        info.type.tensor_type.shape.dim[0].dim_value = -1
    signature = Model.from_proto(proto).signature
    assert [p.dims for p in (*signature.inputs, *signature.outputs)] == [(None, 3), (None, 3)]


def test_a_file_without_a_graph_is_refused() -> None:
    with pytest.raises(ValueError, match="no graph"):
        Model.from_proto(onnx.ModelProto())


def test_more_than_a_message_holds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = _product(np.ones((1, 1000), np.float32))
    monkeypatch.setattr("passes.kit.model.LARGEST_PROTO_BYTES", 3999)
    with pytest.raises(ModelTooLarge, match="4,000 bytes"):
        subject.to_proto()
    assert len(subject.digest()) == 64


def test_weights_are_counted_in_initializers_constants_and_bodies() -> None:
    assert _function_model().weight_bytes() == 12 + 12
    subject = SOURCES["branch"]()
    assert subject.weight_bytes() == 2 * 4 * 4


def test_what_a_caller_may_override_is_no_constant() -> None:
    graph = SOURCES["old"]().graph
    assert constant(graph.initializers["w"]) is None
    held = constant(SOURCES["shared"]().graph.initializers["w"])
    assert held is not None
    assert not held.flags.writeable
    assert constant(None) is None


def _sparse(name: str) -> onnx.SparseTensorProto:
    values = onnx.numpy_helper.from_array(np.array([4.0], np.float32), name)
    return onnx.helper.make_sparse_tensor(values, onnx.numpy_helper.from_array(np.array([1], np.int64)), [3])


def test_sparse_constants_and_those_of_nested_graphs_become_dense() -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[3] x, bool f) => (float[3] y) {
          y = If (f) <
            then_branch = a () => (float[3] p) { k = Constant<value_float=0.0>()
              p = Add(x, k) },
            else_branch = b () => (float[3] q) { q = Sub(x, s) }
          >
        }"""
    )
    branches = {a.name: a.g for a in proto.graph.node[0].attribute}
    branches["then_branch"].node[0].CopyFrom(onnx.helper.make_node("Constant", [], ["k"], sparse_value=_sparse("v")))
    branches["else_branch"].sparse_initializer.append(_sparse("s"))
    subject = Model.from_proto(proto)
    for flag, wanted in ((True, 4), (False, -4)):
        feeds = {"x": np.zeros(3, np.float32), "f": np.array(flag)}
        np.testing.assert_array_equal(run(subject, feeds)["y"], [0, wanted, 0])


def test_a_scalar_is_a_one_element_constant() -> None:
    head = '<ir_version: 8, opset_import: ["": 17]> g (float[n, m] x) => (float[n, m] y)'
    graph = model(head + " { k = Constant<value_float=2.5>()\n y = Mul(x, k) }").graph
    assert scalar(graph[1].inputs[1]) == 2.5
    assert scalar(graph[1].inputs[0]) is None


def test_names_of_nested_graphs_are_taken() -> None:
    assert {"x", "k", "outer", "then_y", "twin0", "else_y"} <= names_in(SOURCES["branch"]())
