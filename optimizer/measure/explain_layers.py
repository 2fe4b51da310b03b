"""How far each layer of a quantized model is from the float model's: values side by side, in one pair of runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from optimizer.data.samples import Samples
from optimizer.runtime import sessions
from optimizer.runtime.answers import exposing
from optimizer.runtime.sessions import Site
from optimizer.store.store import Store, key_of
from passes.kit.model import Model
from passes.quantize.layers import Names, settled
from passes.quantize.placement import clamp_behind

Array = np.ndarray[Any, Any]

INSIDE = "optimizer.runtime.inside:"
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
SAMPLES = 16
AT_ONCE = 32
"""Values that one pair of runs hands over: with many layers the runs are repeated, so that memory stays bounded."""

_RESULT_GRIDS = {"QLinearConv": 6, "QLinearMatMul": 6, "QGemm": 7}
"""Operators on integers, with the index of the input that holds the scale of their result; its zero follows."""

_INTEGERS = ("QuantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger")

MOST_DB = 120.0
"""Better than this is float32's own rounding; it is told as this."""


@dataclass(frozen=True)
class LayerError:
    """How far the result of one layer is from the float model's, over all samples.

    ``sqnr_db`` is 10 log10(signal / noise), ``cosine`` that of the angle between both. They hold the errors of all
    layers before this one too, and are ``None`` where the layer's result could not be found in the other model.
    """

    layer: str
    op: str
    sqnr_db: float | None = None
    cosine: float | None = None


@dataclass(frozen=True)
class _Place:
    """Where a layer stands: the names of its result in both models (``None`` when there is no pair)."""

    layer: str
    op: str
    result: tuple[str, str] | None


def layer_errors(
    floating: Model, quantized: Model, samples: Samples, site: Site, store: Store, most: int = SAMPLES
) -> list[LayerError]:
    """The error of every layer with weights of ``floating``, in graph order, on at most ``most`` samples.

    Values are matched by their names. The answer is remembered.
    """
    few = samples.take(np.arange(min(most, len(samples))))
    pairing = _Pairing(floating, quantized)
    places = pairing.places()
    wanted = list(dict.fromkeys(place.result for place in places if place.result is not None))
    key = key_of("layers", floating.digest(), quantized.digest(), few.digest(), wanted, site.runtime)
    sums = store.get_answer(key)
    if sums is None:
        sums = _summed(floating, pairing.probed, wanted, few, site, store)
        store.put_answer(key, sums)
    found = dict(zip(wanted, np.asarray(sums).reshape(-1, 4), strict=True))
    return [_error(place, found) for place in places]


def output_sqnr(
    floating: Model, quantized: Model, samples: Samples, site: Site, store: Store, most: int = SAMPLES
) -> float:
    """Signal over noise of all float outputs together, in dB: the mean over outputs, each at most :data:`MOST_DB`."""
    few = samples.take(np.arange(min(most, len(samples))))
    dicts = {p.name for p in floating.signature.outputs if p.type == "map"}  # what ZipMap puts out
    names = [(v.name, v.name) for v in floating.graph.outputs if v.name and _is_float(v) and v.name not in dicts]
    key = key_of("outputs", floating.digest(), quantized.digest(), few.digest(), names, site.runtime)
    sums = store.get_answer(key)
    if sums is None:
        sums = _summed(floating, quantized, names, few, site, store)
        store.put_answer(key, sums)
    decibels = [sqnr(row[0], row[1]) for row in np.asarray(sums).reshape(-1, 4)]
    return float(np.mean([d for d in decibels if d is not None] or [MOST_DB]))


def sqnr(signal: float, noise: float) -> float | None:
    """10 log10(signal / noise) in dB, within ±:data:`MOST_DB`; ``None`` when either is not a number."""
    if math.isnan(signal) or math.isnan(noise):
        return None
    if noise <= 0 or signal <= 0:
        return MOST_DB if noise <= 0 else -MOST_DB
    return float(np.clip(10 * math.log10(signal / noise), -MOST_DB, MOST_DB))


def _summed(
    left: Model, right: Model, pairs: Sequence[tuple[str, str]], samples: Samples, site: Site, store: Store
) -> Array:
    parts = []
    with sessions.worker() as worker:
        for start in range(0, len(pairs), AT_ONCE):
            some = pairs[start : start + AT_ONCE]
            (a, names), (b, others) = (
                exposing(model, list(dict.fromkeys(p[side] for p in some))) for side, model in ((0, left), (1, right))
            )
            asked = [[names[x], others[y]] for x, y in some]
            paths = [str(store.put_model(m)) for m in (a, b)]
            total = np.zeros((len(some), 4))
            for feed, _ in samples.feeds(1):
                total += sessions.ask(
                    worker, INSIDE + "compare_values", site, left=paths[0], right=paths[1], pairs=asked, feeds=[feed]
                )
            parts.append(total)
    return np.concatenate(parts) if parts else np.zeros((0, 4))


def _error(place: _Place, found: Mapping[tuple[str, str], Array]) -> LayerError:
    if place.result is None:
        return LayerError(place.layer, place.op)
    signal, noise, energy, product = (float(v) for v in found[place.result])
    decibels = sqnr(signal, noise)
    if decibels is None:
        return LayerError(place.layer, place.op)
    norm = math.sqrt(signal * energy)
    return LayerError(place.layer, place.op, decibels, product / norm if norm else 1.0)


class _Pairing:
    """Finds the values of a float model in a quantized one. ``probed`` is the quantized model with the results that
    only integers hold made visible as floats."""

    def __init__(self, floating: Model, quantized: Model) -> None:
        self._float = floating.fork().graph  # reading constants names their tensors, and the models are not ours
        self.probed = quantized.fork()
        self._names = Names(self._float)
        graph = self.probed.graph
        self._known = {
            v.name: v for v in (*graph.inputs, *(o for n in graph for o in n.outputs)) if v.name and _is_float(v)
        }
        self._probes: dict[str, str] = {}

    def places(self) -> list[_Place]:
        found = []
        for node in list(self._float):
            if node.op_type not in LAYERS or len(node.inputs) < 2 or settled(node.inputs[1]) is None:
                continue
            found.append(_Place(self._names.of(node), node.op_type, self._locate(node.outputs[0], clamp_behind(node))))
        self.probed.forget_digest()
        return found

    def _locate(self, value: ir.Value, clamp: ir.Node | None) -> tuple[str, str] | None:
        """Names in both models of ``value`` as it is read: behind its clamp, and rounded where it is rounded."""
        own, kept = value.name or "", clamp.outputs[0].name or "" if clamp is not None else ""
        if kept and kept in self._known:
            return kept, self._seen(kept)
        if own not in self._known:
            return self._integers(kept, kept) or self._integers(own, kept) or self._scaled(value)
        seen = self._seen(own)
        return (kept if kept and seen != own else own), seen

    def _integers(self, name: str, clamped: str) -> tuple[str, str] | None:
        """A value that only an operator on integers gives (QLinearConv and its like), made visible as floats. Where no
        clamp reads it there, its grid has taken the clamp over."""
        for node in self.probed.graph:
            grid = _RESULT_GRIDS.get(node.op_type)
            if grid is None or node.outputs[0].name not in (name, f"{name}_quantized") or len(node.inputs) <= grid + 1:
                continue
            key = str(node.outputs[0].name)
            if clamped and not any(reader.op_type in ("Relu", "Clip") for reader, _ in node.outputs[0].uses()):
                name = clamped
            if key not in self._probes:
                self._probes[key] = self._dequantized(node, [node.outputs[0], *node.inputs[grid : grid + 2]], {})
            return name, self._probes[key]
        return None

    def _scaled(self, value: ir.Value) -> tuple[str, str] | None:
        """The next value behind one that the other model does not have: a product of integers before it is scaled."""
        for _ in range(3):
            readers = list(value.uses())
            if len(readers) != 1 or readers[0][0].op_type not in ("Cast", "Mul"):
                return None
            value = readers[0][0].outputs[0]
            if value.name and value.name in self._known:
                return value.name, value.name
        return None

    def _seen(self, name: str) -> str:
        value = self._known[name]
        readers = {n for n, i in value.uses() if n.op_type == "QuantizeLinear" and i == 0}
        if len(readers) != 1 or value.is_graph_output():
            return name
        (quantize,) = readers
        return self._probe(quantize)

    def _probe(self, quantize: ir.Node) -> str:
        eight = quantize.outputs[0]
        existing = next((n for n, _ in eight.uses() if n.op_type == "DequantizeLinear"), None)
        if existing is not None and existing.outputs[0].name:
            return str(existing.outputs[0].name)
        key = str(eight.name)
        if key not in self._probes:
            attributes = {k: a.value for k, a in quantize.attributes.items() if k == "axis"}
            self._probes[key] = self._dequantized(quantize, [eight, *quantize.inputs[1:]], attributes)
        return self._probes[key]

    def _dequantized(self, after: ir.Node, inputs: list[ir.Value | None], attributes: dict[str, int]) -> str:
        """The name of what a new DequantizeLinear makes of ``inputs``."""
        key = str(after.outputs[0].name)
        node = ir.node("DequantizeLinear", inputs, attributes, name=f"{key}/probe")
        node.outputs[0].name = f"{key}/probed"
        self.probed.graph.insert_after(after, node)
        return f"{key}/probed"


def _is_float(value: ir.Value) -> bool:
    producer = value.producer()
    if producer is not None and (producer.op_type in _INTEGERS or producer.op_type.startswith("QLinear")):
        return False
    if _gives_integers(producer):
        return False
    return value.type is None or value.type.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def _gives_integers(node: ir.Node | None) -> bool:
    """A QGemm gives integers when it is told their scale."""
    return node is not None and node.op_type == "QGemm" and len(node.inputs) > 7 and node.inputs[7] is not None
