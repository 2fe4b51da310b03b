"""How much each layer suffers from being quantized, in one sweep: one session whose layers can be switched.

The float model is given, at every layer, the rounding that the quantized model has there (of its input, its weight
and its result), each behind a switch. One more input, ``switches``, says layer by layer whether it rounds. The session
is opened once; a run with one switch on tells what that layer alone costs at the outputs, a run with several on what
they cost together. Nothing is built, checked or loaded for a layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from optimizer.data.samples import Samples
from optimizer.measure.explain_twin import dequantized
from optimizer.runtime import sessions
from optimizer.runtime.sessions import Site
from optimizer.store.store import Store, key_of
from passes.kit.contract import Edit
from passes.kit.model import Model, constant
from passes.quantize.layers import Names, settled
from passes.quantize.placement import clamp_behind

Array = np.ndarray[Any, Any]

INSIDE = "optimizer.runtime.inside:"
SWITCHES = "switches"
LAYERS = ("Conv", "Gemm", "MatMul")
SAMPLES = 16
SECONDS = 20.0
"""A sweep takes fewer samples when it would take longer."""


@dataclass(frozen=True)
class Switched:
    """The float model with switches; ``layers`` names them in the order of the input ``switches`` (bool [layers])."""

    model: Model
    layers: tuple[str, ...]
    switches: str


@dataclass(frozen=True)
class _Rounding:
    """What the quantized model does at one layer: its weight as rounded, and the grids of input and result."""

    weight: Array
    source: tuple[Array, Array] | None
    result: tuple[Array, Array] | None


def sweep(
    floating: Model, quantized: Model, samples: Samples, site: Site, store: Store, seconds: float = SECONDS
) -> dict[str, float]:
    """For every layer that ``quantized`` rounds statically: the relative squared error ||y - r||^2 / ||r||^2 over all
    float outputs when it alone rounds, on at most :data:`SAMPLES` samples. Empty when there is no such layer."""
    made = switched(floating, quantized)
    masks = np.eye(len(made.layers), dtype=bool)
    errors = switched_errors(made, masks, samples, site, store, seconds)
    return dict(zip(made.layers, map(float, errors), strict=True))


def switched_errors(
    made: Switched, masks: Array, samples: Samples, site: Site, store: Store, seconds: float = SECONDS
) -> Array:
    """Relative squared error at the outputs for each row of ``masks`` (bool [settings, layers]): float64 [settings].

    The answer is remembered. Samples are taken one by one until they are through or ``seconds`` have passed.
    """
    if not len(masks) or not made.layers:
        return np.zeros(len(masks))
    few = samples.take(np.arange(min(SAMPLES, len(samples))))
    key = key_of("switched", made.model.digest(), few.digest(), masks.astype(int).tolist(), seconds, site.runtime)
    errors = store.get_answer(key)
    if errors is None:
        with sessions.worker() as worker:
            errors = sessions.ask(
                worker,
                INSIDE + "switch",
                site,
                path=str(store.put_model(made.model)),
                name=made.switches,
                masks=masks,
                feeds=[feed for feed, _ in few.feeds(1)],
                seconds=seconds,
            )
        store.put_answer(key, errors)
    return np.asarray(errors)


def switched(floating: Model, quantized: Model) -> Switched:
    """``floating`` with a switch at every layer that ``quantized``, the same model quantized, rounds statically."""
    roundings = _roundings(quantized)
    fork = floating.fork()
    graph, edit = fork.graph, Edit(fork)
    names = Names(graph)
    found = [(n, names.of(n)) for n in graph if n.op_type in LAYERS and names.of(n) in roundings]
    name = edit.fresh(SWITCHES)
    made = _Writer(graph, edit, ir.Value(name=name, type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([len(found)])))
    kept = [label for i, (node, label) in enumerate(found) if made.write(node, roundings[label], i)]
    graph.inputs.append(made.switches)
    fork.forget_digest()
    return Switched(fork, tuple(kept), name)


def _roundings(quantized: Model) -> dict[str, _Rounding]:
    graph = quantized.fork().graph
    names = Names(graph)
    found = {}
    for node in graph:
        if node.op_type not in LAYERS or len(node.inputs) < 2:
            continue
        weight = _dequantized(node.inputs[1])
        if weight is not None:
            found[names.of(node)] = _Rounding(weight, _grid_behind(node.inputs[0]), _grid_after(node))
    return found


def _dequantized(value: ir.Value | None) -> Array | None:
    """The constant behind a DequantizeLinear, as the floats that it stands for."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "DequantizeLinear":
        return None
    integers, scale = constant(node.inputs[0]), constant(node.inputs[1])
    if integers is None or scale is None:
        return None
    zero = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    axis, block = (node.attributes.get(k) for k in ("axis", "block_size"))
    return dequantized(integers, scale, zero, axis.as_int() if axis else 1, block.as_int() if block else 0)


def _grid_behind(value: ir.Value | None) -> tuple[Array, Array] | None:
    node = value.producer() if value is not None else None
    return _parameters(node) if node is not None and node.op_type == "DequantizeLinear" else None


def _grid_after(node: ir.Node) -> tuple[Array, Array] | None:
    readers = [n for n, i in node.outputs[0].uses() if n.op_type == "QuantizeLinear" and i == 0]
    return _parameters(readers[0]) if len(readers) == 1 else None


def _parameters(node: ir.Node) -> tuple[Array, Array] | None:
    """Scale and zero point of a grid for a whole tensor."""
    scale, zero = constant(node.inputs[1]), constant(node.inputs[2]) if len(node.inputs) > 2 else None
    return (scale, zero) if scale is not None and zero is not None and scale.size == 1 else None


class _Writer:
    """Puts switches into ``graph``."""

    def __init__(self, graph: ir.Graph, edit: Edit, switches: ir.Value) -> None:
        self._graph, self._edit, self.switches = graph, edit, switches

    def write(self, node: ir.Node, rounding: _Rounding, index: int) -> bool:
        """The switch of one layer. False when the layer is not the one that was quantized (another weight's shape)."""
        weight, data = settled(node.inputs[1]), node.inputs[0]
        if weight is None or data is None or weight.shape != rounding.weight.shape:
            return False
        number = self._edit.initializer(self._graph, f"switch_{index}", np.array(index, np.int64))
        on = self._new("Gather", [self.switches, number], node, f"on_{index}", ir.DataType.BOOL)
        rounded = self._edit.initializer(self._graph, f"{node.inputs[1].name}_rounded", rounding.weight)  # type: ignore[union-attr]
        node.replace_input_with(1, self._new("Where", [on, rounded, node.inputs[1]], node, f"weight_{index}"))  # type: ignore[list-item]
        if rounding.source is not None:
            node.replace_input_with(0, self._rounded(data, rounding.source, on, node, f"source_{index}"))
        if rounding.result is not None:
            self._switch_result(node, rounding.result, on, index)
        return True

    def _switch_result(self, node: ir.Node, grid: tuple[Array, Array], on: ir.Value, index: int) -> None:
        last = clamp_behind(node) or node
        value = last.outputs[0]
        if value.is_graph_output():
            return
        readers = list(value.uses())
        after = next(iter(self._after(last)), None)
        if after is None:
            return
        rounded = self._rounded(value, grid, on, after, f"result_{index}")
        for reader, i in readers:
            reader.replace_input_with(i, rounded)

    def _after(self, node: ir.Node) -> list[ir.Node]:
        nodes = list(self._graph)
        return nodes[nodes.index(node) + 1 :]

    def _rounded(
        self, value: ir.Value, grid: tuple[Array, Array], on: ir.Value, before: ir.Node, wish: str
    ) -> ir.Value:
        scale, zero = (
            self._edit.initializer(self._graph, f"{wish}_{part}", array.reshape(()))
            for part, array in zip(("scale", "zero"), grid, strict=True)
        )
        kind = ir.DataType[str(zero.const_value.dtype.name)]  # type: ignore[union-attr]
        eight = self._new("QuantizeLinear", [value, scale, zero], before, f"{wish}_eight", kind)
        real = self._new("DequantizeLinear", [eight, scale, zero], before, f"{wish}_real")
        return self._new("Where", [on, real, value], before, f"{wish}_switched")

    def _new(
        self, op: str, inputs: Sequence[ir.Value], before: ir.Node, wish: str, kind: ir.DataType = ir.DataType.FLOAT
    ) -> ir.Value:
        node = ir.node(op, list(inputs), name=self._edit.fresh(wish))
        self._graph.insert_before(before, node)
        node.outputs[0].name = self._edit.fresh(wish)
        node.outputs[0].type = ir.TensorType(kind)
        return node.outputs[0]


def grouped(sensitivity: Mapping[str, float], groups: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """The sum over the layers of each group: rounding errors of different layers are close to uncorrelated."""
    return {name: sum(sensitivity.get(layer, 0.0) for layer in layers) for name, layers in groups.items()}
