"""What a model is: its inputs and outputs, operators, weights and work, read from the graph alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from optimizer.records import PassNote
from passes.kit.model import Model, Port
from passes.kit.work import Work, count_work, op_name, with_sizes

_NOT_PARAMETERS = (ir.DataType.INT64, ir.DataType.BOOL, ir.DataType.STRING)  # shapes, indices, masks, words


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
    ops = Counter(op_name(node) for node in model.nodes())
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
