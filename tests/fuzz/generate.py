"""From a seed to a valid random model, feeds for it, and a variant that computes the same another way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper as h

from tests.fuzz import bodies, corners, elementwise, linear, motifs, movement, quantized
from tests.fuzz.draft import FLOATS, Draft, Held
from tests.fuzz.variants import vary

Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]

KINDS_OF_STEPS = (bodies, corners, elementwise, linear, motifs, movement, quantized)
OPSETS = (9, 10, 11, 12, 13, 13, 14, 15, 16, 17, 17, 18, 18, 19, 20, 20, 21, 21, 22, 23, 24, 25)
MOST_OUTPUTS = 5


@dataclass(frozen=True)
class Made:
    """A model, another spelling of the same function, and feeds.

    ``feeds`` are random and in range; ``hard`` are zeros, ones, large numbers, and numbers that are not finite.
    """

    seed: int
    model: onnx.ModelProto
    variant: onnx.ModelProto
    feeds: tuple[Feeds, ...]
    hard: tuple[Feeds, ...]


def make(seed: int) -> Made:
    """The model of a seed; the same seed gives the same bytes."""
    rng = np.random.default_rng(seed)
    opset = int(rng.choice(OPSETS))
    sizes = {"N": (2, 3), "S": (5, 3), "H": (6, 5), "W": (6, 7)}
    d = Draft(rng, opset, sizes)
    _ports(d)
    for _ in range(d.between(4, 14)):
        bodies.fill(d, 1)
    while len(d.nodes) < 4:
        bodies.fill(d, 1)
    model = _finish(d, seed)
    feeds = tuple(_feeds(d, i, "random") for i in (0, 1))
    hard = tuple(_feeds(d, 0, kind) for kind in ("zeros", "ones", "large", "odd"))
    return Made(seed, model, vary(model, rng), feeds, hard)


def _ports(d: Draft) -> None:
    """Inputs: an image, a sequence or a matrix, and now and then others."""
    batch = d.one(["N", "N", 1, 2])
    channels, size = d.one([2, 3, 4, 8]), d.one([4, 8, 16])
    high, wide = d.one([(6, 6), (4, 4), ("H", "W"), (5, 6)])
    kind = d.one(["float32"] * 7 + ["float16", "float64"])
    shapes = {
        "image": (batch, channels, high, wide),
        "sequence": (batch, d.one(["S", 4]), size),
        "matrix": (batch, size),
    }
    first = d.one(["image", "image", "sequence", "matrix", "image"])
    wanted = [(first, kind)]
    if d.chance(0.5):
        wanted.append((d.one(list(shapes)), "float32"))
    if d.chance(0.25):
        wanted.append(("ids", d.one(["int64", "int32"])))
    if d.chance(0.2):
        wanted.append(("flag", "bool"))
    if d.chance(0.1):
        wanted.append(("scalar", "float32"))
    if d.chance(0.08):
        wanted.append(("bytes", d.one(["uint8", "int8"])))
    shapes |= {"ids": (batch, 4), "flag": (), "scalar": (), "bytes": (batch, 8)}
    for i, (what, dtype) in enumerate(wanted):
        d.inputs.append(Held(f"{what}_{i}", dtype, shapes[what], True, 3.0 if dtype in FLOATS else 10.0))
    d.values += d.inputs


def _finish(d: Draft, seed: int) -> onnx.ModelProto:
    read = {i for n in d.nodes for i in n.input} | _captured(d.nodes)
    made = {o for n in d.nodes for o in n.output if n.op_type != "Constant"}
    leaves = [v for v in d.values if v.name in made and v.name not in read]
    inside = [v for v in d.values if v.name in made and v.name in read]
    outputs = leaves[-MOST_OUTPUTS:] if len(leaves) > 1 and d.chance(0.7) else leaves[-1:]
    if inside and d.chance(0.25):
        outputs.append(d.one(inside))
    if not outputs:
        outputs = inside[-1:] or [d.op("Identity", [d.inputs[0]], d.inputs[0].dims)]
    outputs = list({v.name: v for v in outputs}.values())
    if d.chance(0.05):
        outputs.append(d.op("Identity", [d.inputs[0]], d.inputs[0].dims))
    if d.chance(0.03):
        outputs.append(d.inputs[0])
    if d.chance(0.03):
        listed = {t.name for t in d.tensors}
        outputs += [v for known in d.weights.values() for v in known if v.name in listed][:1]

    def port(v: Held, free: float) -> onnx.ValueInfoProto:
        dims: list[Any] = list(v.dims)
        if d.chance(free):
            dims = [n if isinstance(n, int) else None for n in dims]
        return h.make_tensor_value_info(v.name, h.np_dtype_to_tensor_dtype(np.dtype(v.kind)), dims)

    ports, results = [port(v, 0.1) for v in d.inputs], [port(v, 0.2) for v in outputs]
    graph = h.make_graph(d.nodes, f"made_up_{seed}", ports, results, d.tensors)
    domains = sorted({x for x in _domains(d.nodes) if x} | ({bodies.DOMAIN} if d.functions else set()))
    opsets = [h.make_opsetid("", d.opset), *(h.make_opsetid(x, 1) for x in domains)]
    ir = max(h.find_min_ir_version_for(opsets[:1]), 8 if d.functions else 3)
    if d.opset < 21 and d.chance(0.3):
        ir = max(ir, 8)
    model = h.make_model(graph, opset_imports=opsets, functions=d.functions, ir_version=ir)
    if ir < 4 or (d.chance(0.05) and d.tensors):
        listed = [h.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in d.tensors]
        model.graph.input.extend(listed)
    return model


def _domains(nodes: Any) -> set[str]:
    found = {n.domain for n in nodes}
    for n in nodes:
        for a in n.attribute:
            if a.type == onnx.AttributeProto.GRAPH:
                found |= _domains(a.g.node)
    return found


def _captured(nodes: Any) -> set[str]:
    """Names that the bodies of ``nodes`` read."""
    found: set[str] = set()
    for n in nodes:
        for a in n.attribute:
            if a.type == onnx.AttributeProto.GRAPH:
                found |= {i for m in a.g.node for i in m.input} | {o.name for o in a.g.output} | _captured(a.g.node)
    return found


def _feeds(d: Draft, which: int, how: str) -> Feeds:
    return {v.name: _array(d, v, which, how) for v in d.inputs}


def _array(d: Draft, v: Held, which: int, how: str) -> Array:
    shape = tuple(d.sizes[n][which] if isinstance(n, str) else n for n in v.dims)
    if v.kind == "bool":
        return np.array(d.rng.random(shape) < 0.5)
    if v.kind not in FLOATS:
        low = 0 if v.kind == "uint8" else -4
        return np.asarray(d.rng.integers(low, 8, shape)).astype(v.kind)
    if how in ("zeros", "ones"):
        return np.full(shape, how == "ones", v.kind)
    array = np.asarray(d.rng.standard_normal(shape))
    if how == "large":
        array = array * 1e3
    elif how == "odd" and array.size:
        flat = array.reshape(-1)
        flat[int(d.rng.integers(flat.size))] = d.one([np.nan, np.inf, -np.inf])
        array = flat.reshape(shape)
    return np.asarray(array.astype(v.kind))
