"""Placement: which values become 8-bit integers, so that layers join up and no float island is left between them.

Four roles. *Layers* (Conv, Gemm, MatMul with constant weights) have integer kernels that pay for themselves. *Joiners*
(Add, Concat, pools ...) have integer kernels too, but pay only between layers: they are taken when a layer reads their
result and their inputs are integers already (or some are, and only operators that can be integer read the result).
*Carriers* (Reshape, Slice, Pad, MaxPool ...) move or pick values without computing; they work on the integers as they
are and share the grid of their input. *Clamps* (Relu, Clip) right behind a layer or joiner disappear: the grid of the
result saturates exactly where they would.

A Conv always gives integers. Gemm and MatMul give integers only when nothing but layers reads them, else float:
integer in, float out needs no second grid and is the form in which transformers are fastest and most accurate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir

from passes.quantize.layers import Layer, settled

JOINERS = ("Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid")
"""Operators that onnxruntime fuses into an integer kernel between Dequantize- and QuantizeLinear."""

CARRIERS = {
    "DepthToSpace": 13,
    "Expand": 13,
    "Flatten": 9,
    "Gather": 1,
    "Identity": 1,
    "MaxPool": 12,
    "Pad": 13,
    "Relu": 12,
    "Reshape": 5,
    "Resize": 10,
    "Slice": 1,
    "SpaceToDepth": 13,
    "Split": 2,
    "Squeeze": 1,
    "Tile": 6,
    "Transpose": 1,
    "Unsqueeze": 1,
}
"""Operators that only move or pick values, with the opset from which they take 8-bit integers."""


@dataclass(frozen=True)
class Plan:
    """Where integers go. ``root`` names for every integer value the value whose grid it has (often itself).

    ``giving`` are the layers and joiners that give integers, and ``clamps`` maps such a node to the Relu or Clip that
    the grid of its result replaces.
    """

    layers: Mapping[ir.Node, Layer]
    joiners: frozenset[ir.Node]
    carriers: frozenset[ir.Node]
    clamps: Mapping[ir.Node, ir.Node]
    root: Mapping[ir.Value, ir.Value]
    giving: tuple[ir.Node, ...]

    def result(self, node: ir.Node) -> ir.Value:
        """The value that a node gives once its clamp is counted in."""
        return self.clamps.get(node, node).outputs[0]

    def made_of_integers(self, value: ir.Value) -> bool:
        """Whether an integer kernel or a carrier gives this value; otherwise it is a float that gets quantized."""
        return value in self._made

    @cached_property
    def _made(self) -> frozenset[ir.Value]:
        return frozenset([*map(self.result, self.giving), *(o for n in self.carriers for o in n.outputs)])

    def roots(self) -> tuple[ir.Value, ...]:
        """Values whose range must be known, each once, in graph order."""
        return tuple(dict.fromkeys(self.root.values()))


@dataclass(frozen=True)
class Rules:
    """What placement may use: operators, the opset, nodes left out by name, and values that cannot be integers."""

    ops: frozenset[str]
    opset: int
    left_out: Callable[[ir.Node], bool]
    banned: frozenset[str] = frozenset()


def place(graph: ir.Graph, layers: Mapping[ir.Node, Layer], rules: Rules) -> Plan:
    """Decide for every node of ``graph`` (nested graphs stay float). Pure: the graph is only read."""
    return _Placement(graph, layers, rules).plan()


class _Placement:
    """One forward look (what could be integer) and one backward (what is worth it)."""

    def __init__(self, graph: ir.Graph, layers: Mapping[ir.Node, Layer], rules: Rules) -> None:
        self.graph, self.rules = graph, rules
        self.layers = {n: layer for n, layer in layers.items() if self._allowed(layer)}
        self.wanted = {layer.data for layer in self.layers.values()}
        self._data = frozenset(self.wanted)
        self._reset()

    def _reset(self) -> None:
        self.made: set[ir.Value] = set()
        self.clamps: dict[ir.Node, ir.Node] = {}
        self.root: dict[ir.Value, ir.Value] = {}
        self.carriers: set[ir.Node] = set()
        self.joiners: set[ir.Node] = set()
        self.giving: list[ir.Node] = []

    def plan(self) -> Plan:
        count = -1
        while count != len(self.wanted):
            # A joiner may take float values along; what reads those is looked at again.
            count = len(self.wanted)
            self._reset()
            for value in self.graph.inputs:
                self._want(value)
            for node in self.graph:
                self._look(node)
        self._prune()
        giving = tuple(n for n in self.giving if n in self.layers or n in self.joiners)
        clamps = {n: c for n, c in self.clamps.items() if n in giving}
        joiners, carriers = frozenset(self.joiners), frozenset(self.carriers)
        return Plan(self.layers, joiners, carriers, clamps, self._needed(), giving)

    # -- forward: what could be integer --------------------------------------------------------------------------
    def _look(self, node: ir.Node) -> None:
        if node in self.layers:
            if self._feeds_integers(node):
                self._give(node)
        elif self._is_joiner(node):
            self.joiners.add(node)
            self._give(node)
        elif self._is_carrier(node):
            data = node.inputs[0]
            assert data is not None
            self.carriers.add(node)
            for output in node.outputs:
                self.root[output] = self.root[data]
                if data in self.made:
                    self.made.add(output)
        for output in node.outputs:
            self._want(output)

    def _want(self, value: ir.Value) -> None:
        """A float value that a layer reads becomes integer where it is made."""
        if value in self.wanted and value not in self.root:
            self.root[value] = value

    def _give(self, node: ir.Node) -> None:
        clamp = clamp_behind(node)
        if clamp is not None:
            self.clamps[node] = clamp
        result = (clamp or node).outputs[0]
        self.root[result] = result
        self.made.add(result)
        self.giving.append(node)

    def _allowed(self, layer: Layer) -> bool:
        """A layer whose input cannot be integer stays float; so does a Conv whose result cannot."""
        result = (clamp_behind(layer.node) or layer.node).outputs[0]
        banned = self.rules.banned
        return layer.data.name not in banned and (layer.node.op_type != "Conv" or result.name not in banned)

    def _feeds_integers(self, node: ir.Node) -> bool:
        if node.op_type == "Conv":
            return True
        result = (clamp_behind(node) or node).outputs[0]
        return result.name not in self.rules.banned and self._only_layers_read(result)

    def _only_layers_read(self, value: ir.Value) -> bool:
        if value.is_graph_output() or not value.uses():
            return False
        for reader, index in value.uses():
            if reader in self.layers and index == 0:
                continue
            if not (index == 0 and self._can_carry(reader)) or not all(map(self._only_layers_read, reader.outputs)):
                return False
        return True

    def _is_joiner(self, node: ir.Node) -> bool:
        if node.op_type not in JOINERS or not self._permitted(node) or len(node.outputs) != 1:
            return False
        result = (clamp_behind(node) or node).outputs[0]
        if result.name in self.rules.banned or any(v is None or settled(v) is not None for v in node.inputs):
            return False
        floats = [v for v in node.inputs if v is not None and v not in self.root]
        return not floats or self._takes_along(node, floats)

    def _takes_along(self, node: ir.Node, floats: list[ir.Value]) -> bool:
        """Whether a joiner may have ``floats`` quantized for it.

        An integer kernel gives some input already, and only operators that can be integer read the result: the
        additions of a transformer have neither.
        """
        banned = any(v.name in self.rules.banned for v in floats)
        if banned or not any(v in self.made for v in node.inputs):
            return False
        result = (clamp_behind(node) or node).outputs[0]
        known = all(n in self.layers or n.op_type in JOINERS or n.op_type in CARRIERS for n, _ in result.uses())
        if not known or result.is_graph_output():
            return False
        for value in floats:
            self.wanted.add(value)
            self.root[value] = value
        return True

    def _is_carrier(self, node: ir.Node) -> bool:
        return bool(node.inputs) and node.inputs[0] in self.root and self._can_carry(node)

    def _can_carry(self, node: ir.Node) -> bool:
        least = CARRIERS.get(node.op_type)
        if least is None or self.rules.opset < least or not self._permitted(node):
            return False
        return _moves_only(node) and not any(v in self.root for v in node.inputs[1:])

    def _permitted(self, node: ir.Node) -> bool:
        known = node.op_type in self.rules.ops and node.domain in ("", "ai.onnx")
        return known and node.graph is self.graph and not self.rules.left_out(node)

    # -- backward: what is worth it ------------------------------------------------------------------------------
    def _prune(self) -> None:
        for node in reversed(list(self.graph)):
            if node in self.joiners:
                result = self.clamps.get(node, node).outputs[0]
                if not self._read(result):
                    self.joiners.discard(node)
                    self._forget([result])
            elif node in self.carriers and not any(map(self._read, node.outputs)):
                source = self.root[node.outputs[0]].producer()
                made = source is not None and any(n is source or self.clamps.get(n) is source for n in self.layers)
                if not made or node.op_type == "Identity":
                    self.carriers.discard(node)
                    self._forget(node.outputs)

    def _read(self, value: ir.Value) -> bool:
        readers = {n for n, _ in value.uses()}
        return value in self._data or any(n in self.joiners or n in self.carriers for n in readers)

    def _forget(self, values: Iterable[ir.Value]) -> None:
        for value in values:
            self.root.pop(value, None)

    def _needed(self) -> dict[ir.Value, ir.Value]:
        """The integer values that someone reads or makes, in graph order."""
        needed = {layer.data for layer in self.layers.values()}
        for node in self.joiners:
            needed.update(v for v in node.inputs if v is not None)
        for node in self.carriers:
            needed.update(v for v in (node.inputs[0], *node.outputs) if v is not None)
        needed.update(self.clamps.get(n, n).outputs[0] for n in self.giving if n in self.layers or n in self.joiners)
        return {value: root for value, root in self.root.items() if value in needed}


def clamp_behind(node: ir.Node) -> ir.Node | None:
    """The Relu or Clip that alone reads the node's output and that an unsigned grid can stand for, else ``None``.

    A Clip qualifies when zero lies inside its limits: the observed range, widened to hold zero, then stays inside too.
    """
    if len(node.outputs) != 1 or node.outputs[0].is_graph_output():
        return None
    uses = list(node.outputs[0].uses())
    reader: ir.Node | None = uses[0][0] if len(uses) == 1 and uses[0][1] == 0 else None
    if reader is None or reader.domain not in ("", "ai.onnx") or reader.graph is not node.graph:
        return None
    if reader.op_type == "Relu":
        return reader
    limits = clip_limits(reader) if reader.op_type == "Clip" else None
    return reader if limits is not None and limits[0] <= 0.0 <= limits[1] else None


def clip_limits(node: ir.Node) -> tuple[float, float] | None:
    """The constant limits of a Clip, by attribute (opset 6) or input (opset 11), else ``None``."""
    found = [-np.inf, np.inf]
    for i, name in enumerate(("min", "max")):
        if name in node.attributes:
            found[i] = float(node.attributes[name].value)
        elif len(node.inputs) > i + 1 and node.inputs[i + 1] is not None:
            array = settled(node.inputs[i + 1])
            if array is None or array.size != 1:
                return None
            found[i] = float(array.reshape(-1)[0])
    return found[0], found[1]


def _moves_only(node: ir.Node) -> bool:
    """Whether this node keeps every value on its input's grid."""
    if node.op_type == "MaxPool":
        return sum(1 for o in node.outputs if o.name) == 1
    if node.op_type == "Pad":
        return _text(node, "mode", "constant") != "constant" or _pads_zero(node)
    if node.op_type == "Resize":
        return _text(node, "mode", "nearest") == "nearest" and _text(node, "coordinate_transformation_mode", "") != (
            "tf_crop_and_resize"
        )
    return True


def _pads_zero(node: ir.Node) -> bool:
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return True
    value = settled(node.inputs[2])
    return value is not None and value.size == 1 and float(value.reshape(-1)[0]) == 0.0


def _text(node: ir.Node, name: str, default: str) -> str:
    attribute = node.attributes.get(name)
    return default if attribute is None else str(attribute.value)
