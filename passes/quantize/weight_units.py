"""Units of weight-only quantization: which matrices of a model become blocks, and which nodes read each of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from passes.kit.contract import Edit
from passes.kit.match import allow_unlisted_initializers, attribute, compute, made_by
from passes.kit.model import Model, constant
from passes.quantize.blocks import Array, Form, Quantized
from passes.quantize.layers import Layer, Names, read_layer

OPERATORS = ("MatMul", "Gemm")
DOMAIN = "com.microsoft"
LARGEST_INPUTS = 16384
"""The Gram matrix of that many inputs takes 2 GiB."""


@dataclass(frozen=True, eq=False)
class Unit:
    """One weight and the layers that read it as the same matrix [outputs, inputs]."""

    layers: tuple[Layer, ...]

    @property
    def matrix(self) -> Array:
        """float32 [outputs, inputs], Gemm's ``alpha`` included."""
        layer = self.layers[0]
        return layer.weight if layer.axis == 0 else layer.weight.T

    @property
    def inputs(self) -> int:
        """How many numbers each output is made of."""
        layer = self.layers[0]
        return int(layer.weight.shape[1 - layer.axis])

    @property
    def data(self) -> tuple[str, ...]:
        """Names of the values that its layers read, each once."""
        return tuple(dict.fromkeys(layer.reads.name or "" for layer in self.layers))


@dataclass(frozen=True)
class Wish:
    """What the options ask for: the form of blocks, name patterns, and whether activations must be observed."""

    form: Form
    only: Sequence[str]
    exclude: Sequence[str]
    observes: bool


def units(fork: Model, wish: Wish, edit: Edit) -> list[Unit]:
    """The weights of ``fork`` that can become blocks, in graph order; refusals are noted in ``edit``.

    A MatMul that reads a transposed constant (the head of a model whose embedding is tied to it) gets the transposed
    matrix as its own; the table stays what it is for its other readers.
    """
    groups: dict[tuple[object, ...], list[Layer]] = {}
    for graph in list(fork.graphs()):
        names = Names(graph)
        for node in list(graph):
            if node.op_type not in OPERATORS or node.domain not in ("", "ai.onnx"):
                continue
            if names.match(node, wish.exclude) or (wish.only and not names.match(node, wish.only)):
                continue
            layer = _layer(node, fork, wish, edit)
            if layer is not None:
                groups.setdefault((layer.weight_value, layer.axis, attribute(node, "alpha", 1.0)), []).append(layer)
    return [Unit(tuple(layers)) for layers in groups.values()]


def _layer(node: ir.Node, fork: Model, wish: Wish, edit: Edit) -> Layer | None:
    if wish.observes and node.graph is not fork.graph:
        if isinstance(read_layer(node), Layer):
            reason = "it lies in the body of an If, Loop or Scan, whose values cannot be observed"
            edit.skip("nested", node, f"{reason}; method rtn or hqq can take it")
        return None
    found = read_layer(_own_matrix(node, edit))
    if not isinstance(found, Layer):
        if not found.quiet:
            edit.skip("layer", node, found.reason)
        return None
    reason = _unfit(found, wish)
    if reason:
        edit.skip("layer", node, reason)
        return None
    return found


def _own_matrix(node: ir.Node, edit: Edit) -> ir.Node:
    """``node``, after a transposition of a constant that it reads became a constant of its own."""
    turn = made_by(node.inputs[1], "Transpose") if node.op_type == "MatMul" else None
    table = constant(turn.inputs[0]) if turn is not None else None
    if turn is None or table is None or table.ndim != 2 or table.dtype != np.float32:
        return node
    if attribute(turn, "perm", (1, 0)) != (1, 0) or not isinstance(turn.graph, ir.Graph):
        return node
    # Every reader of the transposition takes the constant over, so they are one unit still.
    own = edit.initializer(turn.graph, f"{turn.outputs[0].name}_matrix", table.T)
    for reader, index in list(turn.outputs[0].uses()):
        if reader.op_type == "MatMul" and index == 1:
            reader.replace_input_with(1, own)
    if not turn.outputs[0].uses() and not turn.outputs[0].is_graph_output():
        turn.graph.remove(turn, safe=True)
    return node


def _unfit(layer: Layer, wish: Wish) -> str:
    outputs, inputs = layer.channels, int(layer.weight.shape[1 - layer.axis])
    if wish.form.packed_bytes(outputs, inputs) >= layer.weight.nbytes:
        return f"its {outputs} x {inputs} weight would not shrink in blocks of {wish.form.size}"
    if wish.observes and inputs > LARGEST_INPUTS:
        return f"the Gram matrix of its {inputs} inputs would take {inputs**2 * 8 / 2**30:.1f} GiB"
    return ""


class BlockWriter:
    """Replaces layers of ``fork`` by ``MatMulNBits``. Packed weights go to the main graph, where bodies see them."""

    def __init__(self, fork: Model, edit: Edit, accuracy_level: int) -> None:
        self._fork, self._edit, self._level = fork, edit, accuracy_level
        fork.ir.opset_imports.setdefault(DOMAIN, 1)

    def write(self, unit: Unit, found: Quantized, note: str) -> None:
        """Every layer of ``unit`` reads ``found``; the float weight goes when nobody else needs it."""
        wish = unit.layers[0].weight_value.name or "weight"
        parts: list[ir.Value | None] = [
            self._edit.initializer(self._fork.graph, f"{wish}_q{found.form.bits}", found.packed()),
            self._edit.initializer(self._fork.graph, f"{wish}_scale", found.scale),
        ]
        if not found.form.symmetric:
            zeros = self._edit.initializer(self._fork.graph, f"{wish}_zero_point", found.packed_zeros())
            parts.append(zeros)
        for layer in unit.layers:
            self._edit.change("layer", layer.node, f"{layer.node.op_type} with {note}")
            self._replace(layer, parts, found)

    def _replace(self, layer: Layer, parts: Sequence[ir.Value | None], found: Quantized) -> None:
        node, name = layer.node, layer.node.name
        inputs: list[ir.Value | None] = [layer.reads, *parts]
        if layer.bias is not None:
            inputs += [None] * (5 - len(inputs))
            bias = np.ascontiguousarray(layer.bias, np.float32)
            inputs.append(self._edit.initializer(self._fork.graph, f"{name or 'layer'}_bias", bias))
        numbers = {"K": found.inputs, "N": len(found.scale), "bits": found.form.bits, "block_size": found.form.size}
        attributes = _attributes({**numbers, "accuracy_level": self._level}.items())
        new = compute(self._edit, node.outputs[0], "MatMulNBits", inputs, domain=DOMAIN, attributes=attributes)
        if name:
            new.name = name  # what is known of the layer by its name stays known

    def finish(self) -> None:
        """Raise the IR version where initializers that are no inputs need it."""
        allow_unlisted_initializers(self._fork)


def _attributes(numbers: Iterable[tuple[str, int]]) -> list[ir.Attr]:
    return [ir.AttrInt64(name, value) for name, value in numbers]
