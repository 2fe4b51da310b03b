"""What the runtime made of a model: which nodes run on integers, which pairs did not fuse, and where time goes.

Reads the graph that the runtime itself writes after optimizing, and its own profile: nothing is guessed from the file.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from optimizer.runtime import sessions
from optimizer.runtime.sessions import Site
from passes.kit.model import Model
from passes.quantize.layers import Names

Array = np.ndarray[Any, Any]

INSIDE = "optimizer.runtime.inside:"
RUNS = 200

_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_INTEGER = re.compile(
    r"QLinear\w*|QGemm|QAttention|MatMulInteger\w*|ConvInteger\w*|DynamicQuantizeMatMul|DynamicQuantizeLSTM|"
    r"QLinearGlobalAveragePool|NhwcMaxPool"
)
_KERNELS = re.compile(r"(Fused|QLinear)?(Conv|Gemm|MatMul)\w*|QGemm|\w*MatMul\w*|ConvTranspose|ConvInteger")
_MOVERS = frozenset(
    ("Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Pad", "Reshape", "Resize",
     "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "ReorderInput", "ReorderOutput")
)  # fmt: skip
_SUFFIX = re.compile(r"(_token_\d+|_nchwc|_integer|_quant|_quantized|/MatMulAddFusion|/\w+Fusion/?)+$")


@dataclass(frozen=True)
class Kernel:
    """One node of the runtime's optimized graph with its median milliseconds in one run."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    ms: float

    @property
    def plain(self) -> str:
        """The operator without its domain."""
        return self.op.rpartition(".")[2]

    @property
    def base(self) -> str:
        """The name without what the runtime hung onto it."""
        return _SUFFIX.sub("", self.name)


@dataclass(frozen=True)
class Unfused:
    """A float operator that reads a DequantizeLinear: quantized in the file, computed in float by the runtime.

    ``weight`` says that what is dequantized is a constant, on every run anew.
    """

    node: str
    op: str
    weight: bool
    ms: float


@dataclass(frozen=True)
class Island:
    """Float operators between integers: what goes in is dequantized, what comes out is quantized again.

    ``ms`` counts the conversions too.
    """

    nodes: tuple[str, ...]
    ops: tuple[str, ...]
    conversions: int
    ms: float


@dataclass(frozen=True)
class OpTime:
    """One operator type: how many nodes, and milliseconds of one run in all of them."""

    op: str
    count: int
    ms: float


def kernels(path: Path, feeds: dict[str, Array], site: Site, runs: int = RUNS) -> tuple[Kernel, ...]:
    """The nodes that the runtime runs for the model at ``path``, timed on ``feeds``. Raises a Fault when it cannot."""
    with sessions.worker() as worker:
        found = sessions.ask(worker, INSIDE + "look_inside", site, path=str(path), feeds=feeds, runs=runs)
    return kernels_of(found)


def kernels_of(found: Mapping[str, Any]) -> tuple[Kernel, ...]:
    """The nodes in the answer of :func:`optimizer.runtime.inside.look_inside`, each with its median time."""
    times = {name: (found["ops"][name], float(np.median(ms))) for name, ms in found["taken"].items()}
    seen: set[str] = set()
    made = []
    for node in found["nodes"]:
        ms = 0.0 if node["name"] in seen else times.get(node["name"], ("", 0.0))[1]
        seen.add(node["name"])
        made.append(Kernel(node["name"], node["op"], tuple(node["inputs"]), tuple(node["outputs"]), ms))
    if made:
        return tuple(made)
    # A provider that compiles whole graphs writes none: the profile's nodes are all there is to tell.
    return tuple(Kernel(name, op, (), (), ms) for name, (op, ms) in times.items())


def by_op(found: Iterable[Kernel]) -> tuple[OpTime, ...]:
    """Time by operator type, the most expensive first."""
    counts: dict[str, list[float]] = defaultdict(list)
    for kernel in found:
        counts[kernel.plain].append(kernel.ms)
    rows = [OpTime(op, len(times), sum(times)) for op, times in counts.items()]
    return tuple(sorted(rows, key=lambda r: (-r.ms, r.op)))


def unfused(found: Sequence[Kernel]) -> tuple[Unfused, ...]:
    """Float operators with an integer kernel of their own (layers, joiners) that nevertheless read dequantized values.

    A DequantizeLinear that feeds an operator without an integer kernel is the edge of an island or of a float end,
    which :func:`islands` tells.
    """
    makers = {o: k for k in found for o in k.outputs}
    rows = []
    for kernel in found:
        read = [makers[i] for i in kernel.inputs if i in makers and makers[i].plain == _DEQUANTIZE]
        if not read or not _could_be_integer(kernel):
            continue
        weight = any(r.inputs[0] not in makers for r in read) and len(kernel.inputs) > 1
        rows.append(
            Unfused(kernel.base or kernel.outputs[0], kernel.plain, weight, kernel.ms + sum(r.ms for r in read))
        )
    return tuple(sorted(rows, key=lambda r: (-r.ms, r.node)))


def _could_be_integer(kernel: Kernel) -> bool:
    own = ("Add", "Mul", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid", "Softmax")
    if _INTEGER.fullmatch(kernel.plain):
        return False
    return kernel.plain in own or bool(_KERNELS.fullmatch(kernel.plain))


def islands(found: Sequence[Kernel]) -> tuple[Island, ...]:
    """Regions of float operators whose only ways in are dequantized values and whose ways out are quantized again."""
    eight = _integers(found)
    makers = {o: i for i, k in enumerate(found) for o in k.outputs}
    group = list(range(len(found)))

    def root(i: int) -> int:
        while group[i] != i:
            i = group[i]
        return i

    for i, kernel in enumerate(found):
        for name in kernel.inputs:
            maker = makers.get(name)
            if maker is not None and name not in eight and not _is_integer(kernel) and not _is_integer(found[maker]):
                group[root(i)] = root(maker)
    regions: dict[int, list[int]] = defaultdict(list)
    for i, kernel in enumerate(found):
        if not _is_integer(kernel) and not (kernel.outputs and all(o in eight for o in kernel.outputs) and
                                            kernel.plain != _QUANTIZE):  # fmt: skip
            regions[root(i)].append(i)
    read = {name for k in found for name in k.inputs}
    rows = [_island([found[i] for i in region], makers, eight, read) for region in regions.values()]
    return tuple(sorted((r for r in rows if r is not None), key=lambda r: (-r.ms, r.nodes)))


def _island(
    region: Sequence[Kernel], makers: Mapping[str, int], eight: frozenset[str], read: set[str]
) -> Island | None:
    entries = [k for k in region if k.plain == _DEQUANTIZE and k.inputs[0] in eight]
    exits = [k for k in region if k.plain == _QUANTIZE]
    body = [k for k in region if k.plain not in (_QUANTIZE, _DEQUANTIZE)]
    if not entries or not exits or not body:
        return None
    inside = {o for k in region for o in k.outputs}
    for kernel in body:
        if any(i and i in makers and i not in inside for i in kernel.inputs):
            return None  # floats flow in from elsewhere: this is no island but a shore
        if any(o and o not in read for o in kernel.outputs[:1]):
            return None  # what it computes leaves the model as a float
    ms = sum(k.ms for k in region)
    names = tuple(k.base or k.outputs[0] for k in body)
    return Island(names, tuple(k.plain for k in body), len(entries) + len(exits), ms)


def runs_on_integers(kernel: Kernel) -> bool:
    """Whether a node computes with integer weights."""
    return _is_integer(kernel) or kernel.plain == "MatMulNBits"


def _is_integer(kernel: Kernel) -> bool:
    return bool(_INTEGER.fullmatch(kernel.plain))


def _integers(found: Sequence[Kernel]) -> frozenset[str]:
    """Names of values that hold 8-bit integers, seen through whatever only moves them."""
    eight: set[str] = set()
    for kernel in found:
        gives = (
            kernel.plain == _QUANTIZE
            or kernel.plain.startswith("QLinear")
            or (kernel.plain == "QGemm" and len(kernel.inputs) > 7 and bool(kernel.inputs[7]))
            or (kernel.plain in _MOVERS and bool(kernel.inputs) and kernel.inputs[0] in eight)
        )
        if gives:
            eight.update(kernel.outputs)
    return frozenset(eight)


def layer_times(model: Model, found: Sequence[Kernel], layers: Sequence[str]) -> dict[str, float]:
    """Milliseconds of one run in the kernel of each layer; see :func:`layer_kernels`."""
    return {name: kernel.ms for name, kernel in layer_kernels(model, found, layers).items()}


def layer_kernels(model: Model, found: Sequence[Kernel], layers: Sequence[str]) -> dict[str, Kernel]:
    """The kernel that runs each layer of ``model`` (names as :class:`Names` gives them).

    A kernel is a layer's when it carries its name, or the name of a value that the layer's result becomes through
    additions and activations, which the runtime joins with it. Layers whose kernel is not found are left out.
    """
    graph = model.fork().graph
    names = Names(graph)
    wanted = set(layers)
    values = {o.name: o for n in graph for o in n.outputs if o.name}
    kernels: dict[str, Kernel] = {}
    for kernel in found:
        if kernel.base in wanted and kernel.base not in kernels and _KERNELS.fullmatch(kernel.plain):
            kernels[kernel.base] = kernel
    for kernel in found:
        if kernel.base in wanted or not _KERNELS.fullmatch(kernel.plain):
            continue
        value = values.get(kernel.base) or next((values[o] for o in kernel.outputs if o in values), None)
        layer = _behind(value, names, wanted - set(kernels)) if value is not None else None
        if layer is not None:
            kernels[layer] = kernel
    return kernels


def _behind(value: ir.Value, names: Names, wanted: set[str]) -> str | None:
    """The layer nearest behind a value, through operators that runtimes join with a layer."""
    front = [value]
    for _ in range(4):
        makers = [m for v in front if (m := v.producer()) is not None]
        for maker in reversed(makers):
            if names.of(maker) in wanted:
                return names.of(maker)
        front = [v for m in makers for v in m.inputs if v is not None and m.op_type in _JOINED]
    return None


_JOINED = frozenset(("Add", "Sum", "Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "Identity", "Mul"))
