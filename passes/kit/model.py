"""The model that a pass receives and hands back: a thin handle on one :class:`onnx_ir.Model`."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

SMALL_TENSOR_BYTES = 1024
"""Tensors up to this size stay inside the graph file: shape inference must be able to read them there."""

LARGEST_PROTO_BYTES = 2**31 - 2**20
"""One protobuf message cannot pass 2 GiB; a margin is left for the graph itself."""

_DIGEST = "lathe.digest"
_LONG_DOMAIN = "ai.onnx"

Place = Callable[[ir.TensorProtocol, str], ir.ExternalTensor]


class ModelTooLarge(ValueError):
    """The model does not fit into one protobuf message (2 GiB)."""


@dataclass(frozen=True)
class Port:
    """One input or output: its name, its type as text (``FLOAT``, ``Sequence(FLOAT)``, ``map``) and its dimensions."""

    name: str
    type: str
    dims: tuple[int | str | None, ...] | None

    def __str__(self) -> str:
        dims = "" if self.dims is None else "[" + ", ".join("?" if d is None else str(d) for d in self.dims) + "]"
        return f"{self.name}: {self.type}{dims}"


@dataclass(frozen=True)
class Signature:
    """What a caller sees of a model. Initializers that an old file also lists as inputs are not part of it."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


class SharedTensor(ir.LazyTensor):
    """A tensor that belongs to several models: the data is shared and read-only, the name is its holder's own.

    ``onnx_ir`` renames a tensor together with the value that holds it; without this view, renaming an
    initializer in a fork would rename it in the original.
    """

    __slots__ = ("base",)

    def __init__(self, base: ir.TensorProtocol, name: str | None) -> None:
        super().__init__(lambda: base, base.dtype, ir.Shape(base.shape.numpy()), name=name)
        self.base: Any = base


class Model:
    """A handle on one ``onnx_ir`` model.

    A pass works on a :meth:`fork`. Once a model has been handed on it is not changed any more, so its digest is
    computed once. Weights stay memory-mapped until someone reads them.
    """

    __slots__ = ("_digest", "ir", "map_types")

    def __init__(self, ir_model: ir.Model, map_types: Mapping[str, bytes] | None = None) -> None:
        self.ir = ir_model
        # onnx_ir has no map type (ONNX-ML's ZipMap); such types ride along as bytes, by value name.
        self.map_types: dict[str, bytes] = dict(map_types or {})
        self._digest: str | None = None

    # -- to and from protobuf ------------------------------------------------------------------------------------
    @classmethod
    def from_proto(cls, proto: onnx.ModelProto, base_dir: str = "") -> Model:
        """Wrap a protobuf model. ``base_dir`` is the folder that its external data lies in.

        The protobuf belongs to the model afterwards. Raises ``ValueError`` when it has no graph.
        """
        if not proto.HasField("graph"):
            raise ValueError("the file holds no graph")
        map_types = _take_map_types(proto.graph)
        _settle(proto.graph)
        _settle_domain(proto.opset_import)
        for function in proto.functions:
            _settle_domain(function.opset_import)
            _settle_nodes(function.node)
        model = ir.from_proto(proto)
        if base_dir:
            ir.external_data.set_base_dir(model.graph, base_dir)
        return cls(model, map_types)

    @classmethod
    def from_bytes(cls, data: bytes) -> Model:
        """Parse a serialized model without external data."""
        proto = onnx.ModelProto()
        proto.ParseFromString(data)
        return cls.from_proto(proto)

    def to_proto(self, place: Place | None = None) -> onnx.ModelProto:
        """The protobuf form. ``place`` may move a large tensor (given with its digest) out of the graph file.

        Raises :class:`ModelTooLarge` when the weights would have to stand inside a message of more than 2 GiB.
        """
        if place is None and self.weight_bytes() > LARGEST_PROTO_BYTES:
            raise ModelTooLarge(f"{self.weight_bytes():,} bytes of weights do not fit into one protobuf message")
        written = Model(_with_tensors(self.ir, place), self.map_types)
        proto = ir.to_proto(written.ir)
        _put_map_types(proto.graph, self.map_types)
        _drop_repeated_types(proto.graph)
        return proto

    def to_bytes(self) -> bytes:
        """Deterministic serialized form with all weights inside."""
        return bytes(self.to_proto().SerializeToString(deterministic=True))

    # -- identity ------------------------------------------------------------------------------------------------
    def fork(self) -> Model:
        """A copy whose every part can be changed freely; only the read-only tensor data is shared."""
        return Model(_with_tensors(self.ir, None), self.map_types)

    def digest(self) -> str:
        """SHA-256 over the graph with every large tensor replaced by its own digest (a Merkle tree)."""
        if self._digest is None:
            skeleton = self.to_proto(lambda tensor, digest: _external(tensor, f"sha256/{digest}"))
            self._digest = hashlib.sha256(skeleton.SerializeToString(deterministic=True)).hexdigest()
        return self._digest

    def forget_digest(self) -> None:
        """Compute the digest anew next time: a pass may have asked about its fork before it was done with it."""
        self._digest = None

    @property
    def signature(self) -> Signature:
        """Required inputs and all outputs."""
        graph = self.ir.graph
        inputs = tuple(self._port(v) for v in graph.inputs if v.name not in graph.initializers)
        return Signature(inputs, tuple(self._port(v) for v in graph.outputs))

    def _port(self, value: ir.Value) -> Port:
        name = value.name or ""
        if name in self.map_types:
            return Port(name, "map", None)
        dims: tuple[int | str | None, ...] | None = None
        if value.shape is not None:
            dims = tuple(d if isinstance(d, int) else d.value for d in value.shape)
        return Port(name, str(value.type) if value.type is not None else "unknown", dims)

    # -- looking around ------------------------------------------------------------------------------------------
    @property
    def graph(self) -> ir.Graph:
        return self.ir.graph

    @property
    def opset(self) -> int:
        """Version of the default ONNX domain (0 when the model does not import it)."""
        return self.ir.opset_imports.get("", 0)

    def graphs(self) -> Iterator[ir.Graph]:
        """The main graph and every graph nested in it (bodies of If, Loop, Scan), outermost first."""
        yield self.ir.graph
        yield from self.ir.graph.subgraphs()

    def nodes(self) -> Iterator[ir.Node]:
        """Every node of the main graph and of nested graphs."""
        yield from self.ir.graph.all_nodes()

    def file_bytes(self) -> int:
        """Bytes of the model as one file: the graph without large tensors, and those tensors."""
        moved: list[int] = []

        def place(tensor: ir.TensorProtocol, digest: str) -> ir.ExternalTensor:
            moved.append(tensor.nbytes)
            return _external(tensor, "")

        return int(self.to_proto(place).ByteSize()) + sum(moved)

    def weight_bytes(self) -> int:
        """Bytes of all initializers and constants, each shared tensor counted once per holder."""
        total = sum(v.const_value.nbytes for g in self.graphs() for v in g.initializers.values() if v.const_value)
        return total + sum(a.as_tensor().nbytes for a in _tensor_attributes(self.ir))


def tensor_digest(tensor: ir.TensorProtocol) -> str:
    """SHA-256 of a tensor's dtype, shape and little-endian bytes, cached on the immutable tensor."""
    base = _base(tensor)
    cached = base.meta.get(_DIGEST)
    if cached is None:
        head = f"{base.dtype.name}{tuple(base.shape.numpy())}".encode()
        payload = b"\0".join(base.string_data()) if base.dtype == ir.DataType.STRING else base.tobytes()
        cached = hashlib.sha256(head + b"|" + payload).hexdigest()
        base.meta[_DIGEST] = cached
    return str(cached)


def constant(value: ir.Value | None) -> np.ndarray[Any, Any] | None:
    """The array that a value is known to hold (initializer or Constant node), else ``None``. Read-only.

    A graph input with a default is not constant: a caller may override it.
    """
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None or tensor.dtype == ir.DataType.STRING:
        return None
    array = np.asarray(tensor.numpy()).view()
    array.flags.writeable = False
    return array


def scalar(value: ir.Value | None) -> float | None:
    """The number that a one-element constant holds, else ``None``."""
    array = constant(value)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def names_in(model: Model) -> set[str]:
    """Every value and node name in use anywhere in the model."""
    taken: set[str] = set()
    for graph in model.graphs():
        taken.update(v.name for v in graph.inputs if v.name)
        taken.update(graph.initializers)
        for node in graph:
            taken.update(o.name for o in node.outputs if o.name)
            if node.name:
                taken.add(node.name)
    return taken


def _with_tensors(source: ir.Model, place: Place | None) -> ir.Model:
    """A clone in which types, shapes and metadata are its own, and tensors are views (or placed elsewhere)."""
    clone = source.clone()
    for graph in (clone.graph, *clone.graph.subgraphs()):
        _own_values(graph, place)
    for function in clone.functions.values():
        for graph in (function.graph, *function.graph.subgraphs()):
            _own_values(graph, place)
    return clone


def _own_values(graph: ir.Graph, place: Place | None) -> None:
    for value in (*graph.inputs, *graph.initializers.values(), *(o for n in graph for o in n.outputs)):
        value.type = _own_type(value.type)
    for name, value in graph.initializers.items():
        if value.const_value is not None:
            value.const_value = _view(value.const_value, name, place)
    for node in graph:
        for key, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                tensor = attribute.as_tensor()  # onnx_ir names it after the value as soon as someone reads it
                node.attributes[key] = ir.AttrTensor(key, _view(tensor, tensor.name or "", None))


def _own_type(kind: ir.TypeProtocol | None) -> ir.TypeProtocol | None:
    """A copy; that of a plain tensor, by far the most frequent, without the detour through ``copy``."""
    if type(kind) is ir.TensorType:
        return ir.TensorType(kind.dtype, denotation=kind.denotation)
    return copy.deepcopy(kind)


def _base(tensor: ir.TensorProtocol) -> Any:
    return tensor.base if isinstance(tensor, SharedTensor) else tensor


def _view(tensor: ir.TensorProtocol, name: str, place: Place | None) -> ir.TensorProtocol:
    base = _base(tensor)
    if base.dtype == ir.DataType.STRING:
        return ir.StringTensor(base.string_data(), shape=ir.Shape(base.shape.numpy()), name=name)
    if place is not None and base.nbytes > SMALL_TENSOR_BYTES:
        moved = place(base, tensor_digest(base))
        moved.name = name
        return moved
    return SharedTensor(base, name)


def _external(tensor: ir.TensorProtocol, location: str) -> ir.ExternalTensor:
    return ir.ExternalTensor(location, 0, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name="")


def _tensor_attributes(model: ir.Model) -> Iterator[ir.Attr]:
    for node in model.graph.all_nodes():
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                yield attribute


def _take_map_types(graph: onnx.GraphProto) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for info in (*graph.input, *graph.output, *graph.value_info):
        if _has_map(info.type):
            found[info.name] = info.type.SerializeToString()
            info.ClearField("type")
    return found


def _drop_repeated_types(graph: onnx.GraphProto) -> None:
    """Initializers carry their own type and shape; onnx_ir repeats them as value_info, which only costs bytes."""
    held = {tensor.name for tensor in graph.initializer}
    kept = [info for info in graph.value_info if info.name not in held]
    if len(kept) < len(graph.value_info):
        del graph.value_info[:]
        graph.value_info.extend(kept)
    for node in graph.node:
        for attribute in node.attribute:
            for nested in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _drop_repeated_types(nested)


def _put_map_types(graph: onnx.GraphProto, types: Mapping[str, bytes]) -> None:
    for info in (*graph.input, *graph.output, *graph.value_info):
        if info.name in types:
            info.type.ParseFromString(types[info.name])


def _has_map(kind: onnx.TypeProto) -> bool:
    while True:
        if kind.HasField("map_type"):
            return True
        if kind.HasField("sequence_type"):
            kind = kind.sequence_type.elem_type
        elif kind.HasField("optional_type"):
            kind = kind.optional_type.elem_type
        else:
            return False


def _settle(graph: onnx.GraphProto) -> None:
    """What onnx_ir would take literally, or not at all, is put in terms that it knows, nested graphs included."""
    for info in (*graph.input, *graph.output, *graph.value_info):
        _open_negative_dims(info.type)
    for sparse in graph.sparse_initializer:
        # onnx_ir drops them without a word
        graph.initializer.append(_dense(sparse, sparse.values.name))
    graph.ClearField("sparse_initializer")
    _settle_nodes(graph.node)


def _settle_domain(imports: Any) -> None:
    """``ai.onnx`` is another name of the default domain: its version must be found under the empty one."""
    plain = any(not held.domain for held in imports)
    for held in [held for held in imports if held.domain == _LONG_DOMAIN]:
        if plain:
            imports.remove(held)
        else:
            held.domain, plain = "", True


def _open_negative_dims(kind: onnx.TypeProto) -> None:
    """Some exporters (PaddlePaddle) write -1 for a size that is not known; onnxruntime reads it so as well."""
    if kind.HasField("tensor_type"):
        for dim in kind.tensor_type.shape.dim:
            if dim.dim_value < 0:
                dim.ClearField("dim_value")


def _settle_nodes(nodes: Iterable[onnx.NodeProto]) -> None:
    """The default domain under its short name, sparse constants dense (onnx_ir raises on them), bodies settled."""
    for node in nodes:
        if node.domain == _LONG_DOMAIN:
            node.domain = ""
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.SPARSE_TENSOR and attribute.name == "sparse_value":
                attribute.CopyFrom(onnx.helper.make_attribute("value", _dense(attribute.sparse_tensor, "")))
            elif attribute.type == onnx.AttributeProto.GRAPH:
                _settle(attribute.g)


def _dense(sparse: onnx.SparseTensorProto, name: str) -> onnx.TensorProto:
    values = onnx.numpy_helper.to_array(sparse.values)
    indices = onnx.numpy_helper.to_array(sparse.indices)
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    if indices.ndim == 1:
        dense.reshape(-1)[indices] = values
    else:
        dense[tuple(indices.T)] = values
    return onnx.numpy_helper.from_array(dense, name)
