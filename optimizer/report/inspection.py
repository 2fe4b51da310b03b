"""What a model is: its inputs and outputs, operators, weights and work, read from the graph alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from optimizer.records import PassNote
from passes.kit.model import Model, Port
from passes.kit.shapes import Shapes

_NOT_PARAMETERS = (ir.DataType.INT64, ir.DataType.BOOL, ir.DataType.STRING)  # shapes, indices, masks, words

_CONV_WEIGHT = {"Conv": 1, "FusedConv": 1, "ConvInteger": 1, "QLinearConv": 3}
_MATMUL_RIGHT = {
    "MatMul": 1,
    "Gemm": 1,
    "FusedMatMul": 1,
    "FusedGemm": 1,
    "MatMulInteger": 1,
    "MatMulIntegerToFloat": 1,
    "DynamicQuantizeMatMul": 1,
    "QLinearMatMul": 3,
    "QGemm": 3,
}
_UNCOUNTED = frozenset(
    ("Attention", "Einsum", "GRU", "GroupQueryAttention", "LSTM", "MultiHeadAttention", "QAttention", "RNN")
)


@dataclass(frozen=True)
class Work:
    """Multiply-accumulates of one run: in all, by operator, and operators whose work could not be counted."""

    total: int
    by_op: Mapping[str, int]
    unknown: Mapping[str, int]


@dataclass(frozen=True)
class Inspection:
    """A model as it lies there. ``assumed`` are the sizes that open dimensions were given to count ``work``."""

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    opsets: Mapping[str, int]
    ir_version: int
    producer: str
    nodes: int
    ops: Mapping[str, int]
    subgraphs: int
    functions: int
    parameters: int
    weight_bytes: int
    weight_types: Mapping[str, int]
    quantized: str
    work: Work
    assumed: Mapping[str, int]
    external: tuple[str, ...] = ()
    passes: tuple[PassNote, ...] = ()
    warnings: tuple[str, ...] = ()


def inspect_model(
    model: Model, *, name: str = "", sizes: Mapping[str, int] | None = None, passes: Sequence[PassNote] = ()
) -> Inspection:
    """Read ``model``. ``sizes`` gives open dimensions a size by name (1 otherwise); ``passes`` says what each pass
    would do, as found by whoever ran them."""
    ops = Counter(_op(node) for node in model.nodes())
    tensors = list(_weights(model))
    types: Counter[str] = Counter()
    for tensor in tensors:
        types[tensor.dtype.name] += tensor.nbytes
    fixed, assumed = with_sizes(model, sizes or {})
    return Inspection(
        name=name,
        inputs=model.signature.inputs,
        outputs=model.signature.outputs,
        opsets={domain or "ai.onnx": version for domain, version in model.ir.opset_imports.items()},
        ir_version=model.ir.ir_version,
        producer=" ".join(filter(None, (model.ir.producer_name, model.ir.producer_version))),
        nodes=sum(ops.values()),
        ops=dict(sorted(ops.items(), key=lambda item: (-item[1], item[0]))),
        subgraphs=sum(1 for _ in model.graphs()) - 1,
        functions=len(model.ir.functions),
        parameters=sum(math.prod(t.shape.numpy()) for t in tensors if t.dtype not in _NOT_PARAMETERS),
        weight_bytes=sum(types.values()),
        weight_types=dict(types.most_common()),
        quantized=quantization(ops),
        work=count_work(fixed, assumed),
        assumed=assumed,
        external=tuple(sorted({str(t.location) for t in map(_base, tensors) if isinstance(t, ir.ExternalTensor)})),
        passes=tuple(passes),
    )


def quantization(ops: Mapping[str, int]) -> str:
    """How a model is quantized, by its operators: an empty text, or kinds joined by commas."""
    kinds = (
        ("operators on integers", ("QLinear", "QGemm", "QAttention")),
        ("quantize/dequantize pairs", ("DequantizeLinear",)),
        ("dynamic", ("DynamicQuantize", "MatMulInteger", "ConvInteger")),
        ("packed weights", ("MatMulNBits", "MatMulBnb4", "GatherBlockQuantized")),
    )
    names = [op.rpartition(".")[2] for op in ops]
    return ", ".join(kind for kind, heads in kinds if any(name.startswith(heads) for name in names))


def with_sizes(model: Model, sizes: Mapping[str, int]) -> tuple[Model, dict[str, int]]:
    """``model`` with every open input dimension given a size, and which ones were: ``name`` or ``input:axis``."""
    fork = model.fork()
    assumed: dict[str, int] = {}
    for value in fork.graph.inputs:
        if value.shape is None:
            continue
        dims: list[int] = []
        for axis, dim in enumerate(value.shape):
            if isinstance(dim, int):
                dims.append(dim)
                continue
            key = dim.value or f"{value.name}:{axis}"
            assumed[key] = sizes.get(key, sizes.get(f"{value.name}:{axis}", 1))
            dims.append(assumed[key])
        value.shape = ir.Shape(dims)
    return fork, assumed


def count_work(model: Model, sizes: Mapping[str, int] | None = None) -> Work:
    """Multiply-accumulates of convolutions and matrix products, bodies of If, Loop and Scan counted once each.

    Where a shape cannot be derived, what the file declares of it is believed, ``sizes`` filling in named dimensions.
    Conv: output elements times weights per output channel. ConvTranspose: input elements times weights per input
    channel. Matrix products: output elements times the inner dimension.
    """
    shapes = _Sizes(Shapes(model), sizes or {})
    by_op: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    for node in model.nodes():
        if not _does_work(node):
            continue
        work = _work_of(node, shapes)
        if work is None:
            unknown[_op(node)] += 1
        else:
            by_op[_op(node)] += work
    return Work(sum(by_op.values()), dict(by_op.most_common()), dict(unknown.most_common()))


@dataclass(frozen=True)
class _Sizes:
    """Derived shapes, or else declared ones."""

    derived: Shapes
    sizes: Mapping[str, int]

    def static(self, value: ir.Value | None) -> tuple[int, ...] | None:
        found = self.derived.static(value)
        if found is not None or value is None or value.shape is None:
            return found
        dims = [d if isinstance(d, int) else self.sizes.get(d.value or "") for d in value.shape]
        known = tuple(d for d in dims if d is not None)
        return known if len(known) == len(dims) else None


def _does_work(node: ir.Node) -> bool:
    op = node.op_type
    return op in _CONV_WEIGHT or op in _MATMUL_RIGHT or op in _UNCOUNTED or op in ("ConvTranspose", "MatMulNBits")


def _work_of(node: ir.Node, shapes: _Sizes) -> int | None:
    op = node.op_type
    left = shapes.static(_input(node, 0))
    out = shapes.static(node.outputs[0])
    if op in _CONV_WEIGHT:
        weight = shapes.static(_input(node, _CONV_WEIGHT[op]))
        return None if weight is None or out is None else math.prod(out) * math.prod(weight[1:])
    if op == "ConvTranspose":
        weight = shapes.static(_input(node, 1))
        return None if weight is None or left is None else math.prod(left) * math.prod(weight[1:])
    if op == "MatMulNBits":
        return None if left is None else math.prod(left) * node.attributes["N"].as_int()
    if op in _MATMUL_RIGHT:
        return _product(node, left, shapes.static(_input(node, _MATMUL_RIGHT[op])), out)
    return None


def _product(
    node: ir.Node, left: tuple[int, ...] | None, right: tuple[int, ...] | None, out: tuple[int, ...] | None
) -> int | None:
    if not left:
        return None
    turned = "transA" in node.attributes and node.attributes["transA"].as_int() == 1
    if out is not None:
        return math.prod(out) * (left[0] if turned else left[-1])
    if right is None or len(right) != 2 or "transB" in node.attributes:
        return None
    return math.prod(left) * right[-1]  # operators that shape inference does not know


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _op(node: ir.Node) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type


def _weights(model: Model) -> Iterator[ir.TensorProtocol]:
    """Every tensor that the model carries, a shared one once."""
    seen: set[int] = set()
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None and id(_base(value.const_value)) not in seen:
                seen.add(id(_base(value.const_value)))
                yield value.const_value
    for node in model.nodes():
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                yield attribute.as_tensor()


def _base(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return getattr(tensor, "base", tensor)
