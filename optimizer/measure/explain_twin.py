"""The float twin of a quantized model: the same function without rounding, made from the quantized model alone.

An artifact does not carry its source. What its integers cost can still be told: weights are dequantized and the
rounding of activations is taken out, so that both models share every weight and differ by nothing but that rounding.

- ``QuantizeLinear`` becomes a ``Clip`` to the range of its grid, because a grid may stand for a Relu or Clip that was
  taken out of the graph; ``DequantizeLinear`` goes; operators between the two that moved integers move floats.
- ``DynamicQuantizeLinear`` hands its input on; ``MatMulInteger`` and ``ConvInteger`` become MatMul and Conv.
- ``MatMulNBits`` becomes a MatMul with its weight unpacked.

The error of the weights themselves, and of values beyond the grids, is not seen this way: that takes the source.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from passes.kit.contract import Edit
from passes.kit.model import Model, constant

Array = np.ndarray[Any, Any]

LIMITS = {
    "INT8": (-128, 127), "UINT8": (0, 255), "INT16": (-(2**15), 2**15 - 1), "UINT16": (0, 2**16 - 1),
    "INT4": (-8, 7), "UINT4": (0, 15),
}  # fmt: skip
"""Smallest and largest integer of each grid type; other types (fp8) are not clipped."""

STUCK_PREFIXES = ("QLinear", "QGemm", "QAttention", "QMoE", "QEmbed")
"""Operators on integers that have no twin here."""


@dataclass(frozen=True)
class Twin:
    """``model`` computes in float. ``replaced`` quantized nodes went, ``activations`` of them on activations;
    ``stuck`` names operators that have no twin: then ``model`` is the model that was given."""

    model: Model
    replaced: int
    activations: int
    stuck: tuple[str, ...] = ()


def float_twin(model: Model) -> Twin:
    """The float twin of ``model``, which is not touched."""
    fork = model.fork()
    stuck = {n.op_type for n in fork.nodes() if n.op_type.startswith(STUCK_PREFIXES)}
    stuck |= {f"{n.op_type} in a nested graph" for g in fork.graph.subgraphs() for n in g if n.op_type in _RULES}
    if stuck:
        return Twin(model, 0, 0, tuple(sorted(stuck)))
    maker = _Maker(fork)
    maker.run()
    fork.forget_digest()
    return Twin(fork if maker.replaced else model, maker.replaced, maker.activations)


def dequantized(integers: Array, scale: Array, zero: Array | None, axis: int, block: int = 0) -> Array:
    """float32 values of a grid: per tensor, along ``axis``, or in blocks of ``block`` along it (ONNX 21)."""
    scale = scale.astype(np.float64)
    offset: Array = np.zeros_like(scale) if zero is None else zero.astype(np.float64)
    if block:
        scale, offset = (np.repeat(v, block, axis).take(range(integers.shape[axis]), axis) for v in (scale, offset))
    elif scale.size == 1:
        scale, offset = scale.reshape(()), offset.reshape(())
    else:
        shape = [1] * integers.ndim
        shape[axis] = -1
        scale, offset = scale.reshape(shape), offset.reshape(shape)
    return np.asarray((integers.astype(np.float64) - offset) * scale, np.float32)


def unpacked(packed: Array, scales: Array, zeros: Array | None, k: int, n: int, bits: int, block: int) -> Array:
    """The float32 weight [k, n] of a MatMulNBits node.

    ``packed`` holds uint8 [n, blocks, bytes], lowest bits first; ``scales`` [n * blocks]; ``zeros`` is packed like the
    weight along blocks, or holds one float per block; without it the zero is the middle of the range.
    """
    blocks = -(-k // block)
    integers = _bits(packed.reshape(n, blocks, -1), bits)[:, :, :block].astype(np.float64)
    zero: Array = np.full((n, blocks), float(2 ** (bits - 1)))
    if zeros is not None and zeros.dtype == np.uint8:
        zero = _bits(zeros.reshape(n, -1), bits)[:, :blocks].astype(np.float64)
    elif zeros is not None:
        zero = zeros.reshape(n, blocks).astype(np.float64)
    real = (integers - zero[:, :, None]) * scales.reshape(n, blocks, 1).astype(np.float64)
    return np.ascontiguousarray(real.reshape(n, -1)[:, :k].T, np.float32)


def _bits(packed: Array, bits: int) -> Array:
    """The last axis of bytes as numbers of ``bits`` bits, lowest first."""
    single = np.unpackbits(packed.astype(np.uint8), axis=-1, bitorder="little")
    whole = single[..., : single.shape[-1] // bits * bits].reshape(*packed.shape[:-1], -1, bits)
    return np.asarray(whole @ (1 << np.arange(bits)))


class _Maker:
    """Rewrites ``fork`` node by node in graph order, so that what a node reads is float already.

    ``_real`` maps every value that was integers and is float now to its grid (zero, scale), ``None`` for a dynamic one.
    """

    def __init__(self, fork: Model) -> None:
        self._graph, self._edit, self._opset = fork.graph, Edit(fork), fork.opset
        self._real: dict[ir.Value, tuple[Array, Array] | None] = {}
        self.replaced = self.activations = 0

    def run(self) -> None:
        for node in list(self._graph):
            rule = _RULES.get(node.op_type)
            if rule is not None:
                self.replaced += bool(rule(self, node))
            elif any(v in self._real for v in node.inputs):
                self._carry(node)

    # -- activations ---------------------------------------------------------------------------------------------
    def quantize(self, node: ir.Node) -> bool:
        x, scale, zero = node.inputs[0], _known(node, 1), _known(node, 2)
        assert x is not None
        kind = _grid_type(node)
        if scale is None or node.outputs[0].is_graph_output():
            return False
        offset: Array = np.zeros_like(scale) if zero is None else zero
        value = self._clipped(node, x, scale, offset, kind) if scale.size == 1 and kind in LIMITS else x
        if value is x:
            value = self._new("Identity", [x], node, f"{x.name}_as_float")
        self._real[value] = (offset, scale)
        node.outputs[0].replace_all_uses_with(value)
        self._graph.remove(node, safe=True)
        self.activations += 1
        return True

    def _clipped(self, node: ir.Node, x: ir.Value, scale: Array, zero: Array, kind: str) -> ir.Value:
        ends = [(q - float(zero.reshape(-1)[0])) * float(scale.reshape(-1)[0]) for q in LIMITS[kind]]
        if self._opset < 11:
            return self._new("Clip", [x], node, f"{x.name}_clipped", min=ends[0], max=ends[1])
        limits = [
            self._edit.initializer(self._graph, f"{x.name}_{name}", np.array(end, np.float32))
            for name, end in zip(("low", "high"), ends, strict=True)
        ]
        return self._new("Clip", [x, *limits], node, f"{x.name}_clipped")

    def dequantize(self, node: ir.Node) -> bool:
        x = node.inputs[0]
        if x in self._real:
            self._replace(node, x)
            return True
        integers, scale, zero = (_known(node, i) for i in range(3))
        if integers is None or scale is None:
            return False  # integers that the model is given: there is nothing to take out
        real = dequantized(integers, scale, zero, _int(node, "axis", 1), _int(node, "block_size", 0))
        self._replace(node, self._edit.initializer(self._graph, f"{node.outputs[0].name}_real", real))
        return True

    def dynamic(self, node: ir.Node) -> bool:
        x = node.inputs[0]
        assert x is not None
        real = self._new("Identity", [x], node, f"{x.name}_as_float")
        self._real[real] = None
        one = self._edit.initializer(self._graph, f"{x.name}_one", np.array(1, np.float32))
        zero = self._edit.initializer(self._graph, f"{x.name}_zero", np.array(0, np.uint8))
        for output, value in zip(node.outputs, (real, one, zero), strict=True):
            output.replace_all_uses_with(value)
        self._graph.remove(node, safe=True)
        self.activations += 1
        return True

    def _carry(self, node: ir.Node) -> None:
        """An operator that moved integers moves floats; integer constants of its grid (a padding, a limit) too."""
        grid = next((self._real[v] for v in node.inputs if v in self._real), None)
        for i, value in enumerate(node.inputs):
            array = constant(value) if value is not None and value not in self._real else None
            if grid is not None and array is not None and str(array.dtype) in ("int8", "uint8"):
                real = dequantized(array, grid[1], grid[0], 0)
                node.replace_input_with(i, self._edit.initializer(self._graph, f"{node.name}_real", real))
        for output in node.outputs:
            self._real[output] = grid
            output.type = ir.TensorType(ir.DataType.FLOAT)

    # -- weights -------------------------------------------------------------------------------------------------
    def integer(self, node: ir.Node) -> bool:
        """A product of integers: the real product, in the unit of the steps that its caller scales afterwards."""
        x, weight, zero = node.inputs[0], _known(node, 1), _known(node, 3)
        if weight is None or x is None or x not in self._real:
            return False
        offset: Array = np.zeros(()) if zero is None else zero.astype(np.float64)
        if node.op_type == "ConvInteger" and offset.ndim == 1:
            offset = offset.reshape(-1, *[1] * (weight.ndim - 1))
        grid = self._real[x]
        if grid is not None:
            scale = self._edit.initializer(self._graph, f"{x.name}_step", np.asarray(grid[1], np.float32))
            x = self._new("Div", [x, scale], node, f"{x.name}_steps")
        real = np.asarray(weight.astype(np.float64) - offset, np.float32)
        w = self._edit.initializer(self._graph, f"{node.outputs[0].name}_weight", real)
        attributes = {k: a.value for k, a in node.attributes.items()}
        product = self._new(node.op_type.removesuffix("Integer"), [x, w], node, f"{node.name}_real", **attributes)
        self._called(product, (node.name or "").removesuffix("_integer"))
        for reader, _ in node.outputs[0].uses():
            for output in reader.outputs:
                output.name = self._edit.fresh(f"{output.name}_as_float")  # it counts in other steps than its original
        self._replace(node, product)
        return True

    def packed(self, node: ir.Node) -> bool:
        x, blob, scales, zeros = node.inputs[0], _known(node, 1), _known(node, 2), _known(node, 3)
        order = node.inputs[4] if len(node.inputs) > 4 else None
        if blob is None or scales is None or x is None or order is not None:
            return False
        k, n, bits, block = (_int(node, name, 0) for name in ("K", "N", "bits", "block_size"))
        real = unpacked(blob, scales, zeros, k, n, bits or 4, block)
        old = node.outputs[0]
        name, is_output = old.name, old.is_graph_output()
        w = self._edit.initializer(self._graph, f"{name}_weight", real)
        result = self._new("MatMul", [x, w], node, f"{name}_real")
        self._called(result, node.name or "")
        if len(node.inputs) > 5 and node.inputs[5] is not None:
            result = self._new("Add", [result, node.inputs[5]], node, f"{name}_biased")
        self._replace(node, result)
        if not is_output:
            result.name = name
        return True

    @staticmethod
    def _called(value: ir.Value, name: str) -> None:
        """The node that gives ``value`` goes by the name of the node that it stands for."""
        maker = value.producer()
        if maker is not None and name:
            maker.name = name

    # -- small tools ---------------------------------------------------------------------------------------------
    def _new(self, op: str, inputs: list[ir.Value], before: ir.Node, wish: str, **attributes: Any) -> ir.Value:
        node = ir.node(op, inputs, attributes, name=self._edit.fresh(wish))
        self._graph.insert_before(before, node)
        node.outputs[0].name = self._edit.fresh(wish)
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        return node.outputs[0]

    def _replace(self, node: ir.Node, value: ir.Value) -> None:
        """``value`` is read instead of the node's output; where that is an output of the graph, it keeps its name."""
        old = node.outputs[0]
        if old.is_graph_output():
            name, value = old.name, self._new("Identity", [value], node, f"{old.name}_as_float")
            old.name = self._edit.fresh(f"{name}_was")
            value.name, value.type = name, old.type
            value.shape = None if old.shape is None else ir.Shape(list(old.shape))
            for i, output in enumerate(self._graph.outputs):
                if output is old:
                    self._graph.outputs[i] = value
        old.replace_all_uses_with(value)
        self._graph.remove(node, safe=True)


_RULES = {
    "QuantizeLinear": _Maker.quantize,
    "DequantizeLinear": _Maker.dequantize,
    "DynamicQuantizeLinear": _Maker.dynamic,
    "MatMulInteger": _Maker.integer,
    "ConvInteger": _Maker.integer,
    "MatMulNBits": _Maker.packed,
}


def _known(node: ir.Node, index: int) -> Array | None:
    return constant(node.inputs[index]) if index < len(node.inputs) else None


def _int(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else int(attribute.value)


def _grid_type(node: ir.Node) -> str:
    """The integer type that a QuantizeLinear gives: that of its zero point, else of its attribute, else UINT8."""
    zero = _known(node, 2)
    if zero is not None:
        return str(zero.dtype).upper()
    return ir.DataType(_int(node, "output_dtype", 0) or ir.DataType.UINT8).name
