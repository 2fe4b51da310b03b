"""A model as a torch function of its float weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from optimizer.recover.codes import SCALES, Coded, coded
from optimizer.recover.torch_ops import operators
from passes.kit.model import Model, constant

Array = np.ndarray[Any, Any]

SMALLEST = 2
"""Constants with fewer elements are parameters of formulas, not weights."""


class Unfollowed(ValueError):
    """The graph holds something that has no torch form; the text says what."""


@dataclass(frozen=True)
class Step:
    """One node: its function, attributes, and the names that it reads and makes."""

    op: str
    run: Any
    attributes: Mapping[str, Any]
    reads: tuple[str | None, ...]
    makes: tuple[str, ...]


@dataclass
class TorchGraph:
    """``weights`` are the constants that can be trained, ``fixed`` all other constants, both as tensors.

    What a constant of integers stands for is a weight too; ``codes`` says by which grid, and it is rounded to that
    wherever it is read.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    steps: list[Step]
    weights: dict[str, Any]
    fixed: dict[str, Any]
    codes: dict[str, Coded] = field(default_factory=dict)
    means: dict[str, list[Any]] = field(default_factory=dict)

    def __call__(self, feeds: Mapping[str, Any], fetch: Collection[str] = (), gather: bool = False) -> dict[str, Any]:
        """The outputs and the values named in ``fetch``. With ``gather`` every BatchNormalization uses the mean and
        variance of this batch, which are added to ``means`` by the names of its own."""
        held: dict[str, Any] = {**self.fixed, **self.weights, **self._rounded()}
        held |= {name: feeds[name] for name in self.inputs}
        wanted = {*self.outputs, *fetch}
        for step in self.steps:
            read = [held[n] if n else None for n in step.reads]
            if gather and step.op == "BatchNormalization":
                read = self._own_moments(step, read)
            made = step.run(step.attributes, read)
            for name, value in zip(step.makes, made if isinstance(made, list) else [made], strict=False):
                held[name] = value
        return {name: held[name] for name in wanted}

    def _rounded(self) -> dict[str, Any]:
        return {name: grid.on_grid(self.weights[name]) for name, grid in self.codes.items()}

    def arrays(self) -> dict[str, Array]:
        """What the constants of the model hold with the weights as they are now, by name."""
        found = {n: w.detach() for n, w in self.weights.items()} | {n: self.fixed[n].detach() for n in self.means}
        return {n: self.codes[n].array(v) if n in self.codes else v.numpy().copy() for n, v in found.items()}

    def _own_moments(self, step: Step, read: list[Any]) -> list[Any]:
        axes = [i for i in range(read[0].dim()) if i != 1]
        found = [read[0].mean(axes), read[0].var(axes, unbiased=False)]
        for name, value in zip(step.reads[3:5], found, strict=True):
            self.means.setdefault(str(name), []).append(value.detach())
        return [*read[:3], *found]


def read(path: str) -> Model:
    """The model at ``path``, its large tensors left in their files."""
    import onnx

    return Model.from_proto(onnx.load(path, load_external_data=False), str(Path(path).parent))


def torch_graph(model: Model) -> TorchGraph:
    """Build it. Raises :class:`Unfollowed` for operators that are not known, bodies and functions."""
    import torch

    graph = model.fork().graph  # reading a Constant names its tensor
    known = operators(model.opset)
    given = _not_trained(graph)
    codes: dict[str, Coded] = {}
    weights: dict[str, Any] = {}
    fixed: dict[str, Any] = {}
    steps: list[Step] = []
    for value in (*graph.initializers.values(), *(o for n in graph if n.op_type == "Constant" for o in n.outputs)):
        array = constant(value)
        if array is None or value.name is None:
            raise Unfollowed(f"the value '{value.name}' is no constant of numbers")
        if (grid := coded(value)) is not None:
            codes[value.name], weights[value.name] = grid, torch.tensor(grid.real)
            continue
        trained = array.dtype == np.float32 and array.size >= SMALLEST and value.name not in given
        (weights if trained else fixed)[value.name] = torch.tensor(np.array(array.astype(_known(array))))
    for node in graph:
        if node.op_type == "Constant":
            continue
        if node.op_type not in known or node.domain not in ("", "ai.onnx", "com.microsoft"):
            raise Unfollowed(f"{node.domain + '.' if node.domain else ''}{node.op_type} cannot be trained")
        attributes = {name: _plain(a) for name, a in node.attributes.items()} | {"_outputs": len(node.outputs)}
        reads = tuple(v.name if v is not None else None for v in node.inputs)
        op = "Identity" if node.op_type == "DequantizeLinear" and reads[0] in codes else node.op_type
        steps.append(Step(op, known[op], attributes, reads, tuple(str(o.name) for o in node.outputs)))
    inputs = tuple(str(v.name) for v in graph.inputs if v.name not in graph.initializers)
    return TorchGraph(inputs, tuple(str(v.name) for v in graph.outputs), steps, weights, fixed, codes)


def _not_trained(graph: ir.Graph) -> set[str]:
    """Names of means and variances of BatchNormalization, which are estimated, and of scales of grids."""
    places = {**SCALES, "BatchNormalization": (3, 4)}
    found = [n.inputs[i] for n in graph for i in places.get(n.op_type, ()) if i < len(n.inputs)]
    return {str(v.name) for v in found if v is not None}


def _known(array: Array) -> Any:
    """A type that torch has for an array. Raises :class:`Unfollowed` for floats that it has not."""
    name = array.dtype.name
    if array.dtype.kind != "V":
        return array.dtype
    if not name.startswith(("int", "uint")):
        raise Unfollowed(f"{name} cannot be trained")
    return np.int8 if name.startswith("int") else np.uint8


def _plain(attribute: ir.Attr) -> Any:
    if attribute.type == ir.AttributeType.GRAPH:
        raise Unfollowed("a body cannot be trained")
    if attribute.type == ir.AttributeType.TENSOR:
        return np.asarray(attribute.as_tensor().numpy())
    value = attribute.value
    return list(value) if isinstance(value, (tuple, list)) else value


def with_weights(model: Model, arrays: Mapping[str, Array]) -> Model:
    """A fork of ``model`` whose constants of these names hold these arrays, each in the type that it has."""
    fork = model.fork()
    values = {
        **fork.graph.initializers,
        **{str(n.outputs[0].name): n.outputs[0] for n in fork.graph if n.op_type == "Constant"},
    }
    for name, value in values.items():
        held = constant(value)
        if name not in arrays or held is None:
            continue
        tensor = ir.Tensor(np.ascontiguousarray(arrays[name].astype(held.dtype)), name=name)
        if (maker := value.producer()) is not None:
            maker.attributes["value"] = ir.AttrTensor("value", tensor)
        value.const_value = None if maker is not None else tensor
    fork.forget_digest()
    return fork
