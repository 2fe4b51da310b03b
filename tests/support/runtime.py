"""An in-process onnxruntime for tests of passes (the product itself runs models in workers)."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from passes.kit.context import Feeds, NoData, NoGradients
from passes.kit.model import Model
from passes.kit.reducers import Reducer
from passes.kit.target import Target

Array = np.ndarray[Any, Any]
TARGETS = Path(__file__).parents[2] / "optimizer" / "targets"


def target(name: str = "x86-vnni") -> Target:
    return Target.from_toml(tomllib.loads((TARGETS / f"{name}.toml").read_text()))


def model(text: str, **initializers: Array) -> Model:
    """A model from ONNX text syntax; ``initializers`` fill values that the text's graph leaves open by name."""
    proto = onnx.parser.parse_model(text)
    for name, array in initializers.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return Model.from_proto(proto)


def run(subject: Model, feeds: Feeds, fetch: Sequence[str] = (), *, optimize: bool = False) -> dict[str, Array]:
    """Outputs (or the named values) of one run on the CPU, with the runtime's own optimizer off by default."""
    proto = subject.to_proto()
    known = {o.name for o in proto.graph.output}
    for name in fetch:
        if name not in known:
            proto.graph.output.append(onnx.ValueInfoProto(name=name))
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = list(fetch) or [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


@dataclass
class LocalContext:
    """A :class:`passes.kit.context.Context` over feeds held in memory."""

    feeds: Sequence[Feeds] = ()
    target: Target = field(default_factory=target)
    seed: int = 0
    original: Model | None = None
    costs: Callable[[Model], float] = lambda model: 0.0

    def sampled(self, count: int) -> list[Feeds]:
        if not self.feeds:
            raise NoData("no calibration data")
        return list(self.feeds[:count])

    def stats(self, model: Model, reducers: Mapping[str, Reducer]) -> dict[str, Reducer]:
        if not self.feeds:
            raise NoData("no calibration data")
        for feeds in self.feeds:
            for name, value in run(model, feeds, list(reducers)).items():
                reducers[name].fold(value)
        return dict(reducers)

    def run(self, model: Model, feeds: Sequence[Feeds], fetch: Sequence[str]) -> list[dict[str, Array]]:
        return [run(model, f, fetch) for f in feeds]

    def gradients(self, model: Model, feeds: Sequence[Feeds], of: Sequence[str]) -> list[dict[str, Array]]:
        raise NoGradients("no gradients here")

    def cost(self, model: Model) -> float:
        return self.costs(model)


def op_types(subject: Model) -> list[str]:
    """Operator types in graph order, nested graphs after their node."""
    return [n.op_type for n in subject.nodes()]
