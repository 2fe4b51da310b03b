"""Models run in this process, their outputs remembered; the context of the passes; how much rounding alone moves."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from optimizer.verify.numerics import noise
from passes.kit.context import Feeds
from passes.kit.model import Model
from passes.kit.reducers import Reducer
from passes.kit.target import Target

Array = np.ndarray[Any, Any]
Outputs = list[dict[str, Array]]

HALF_FLOOR = 1e-2
"""What float16 may move an output by, as a share of the largest: a few of its rounding steps, one after another."""

JITTER = 2.0**-22
"""Inputs and weights are shaken by two of their last bits to see how much rounding alone can move an output."""


@dataclass
class Runs:
    """A :class:`passes.kit.context.Context` over feeds in memory, which opens one session for one model."""

    feeds: Sequence[Feeds]
    target: Target
    seed: int
    _known: dict[tuple[bytes, bool, tuple[str, ...]], ort.InferenceSession] = field(default_factory=dict)
    _answers: dict[tuple[bytes, bool, int], dict[str, Array]] = field(default_factory=dict)

    def outputs(self, model: bytes, feeds: Sequence[Feeds], *, optimize: bool = False) -> Outputs:
        """Outputs by name for each feed, on one thread of the CPU."""
        digest = hashlib.sha256(model).digest()
        found = []
        for feed in feeds:
            key = digest, optimize, id(feed)
            if key not in self._answers:
                session = self._session(model, digest, optimize)
                names = [o.name for o in session.get_outputs()]
                wanted = {i.name for i in session.get_inputs()}
                got = session.run(names, {k: v for k, v in feed.items() if k in wanted})
                self._answers[key] = dict(zip(names, got, strict=True))
            found.append(self._answers[key])
        return found

    def _session(self, model: bytes, digest: bytes, optimize: bool) -> ort.InferenceSession:
        key = digest, optimize, ()
        if key not in self._known:
            self._known.clear()
            self._known[key] = _open(model, optimize)
        return self._known[key]

    # -- the passes' questions ------------------------------------------------------------------------------------
    def stats(self, model: Model, reducers: Mapping[str, Reducer]) -> dict[str, Reducer]:
        for outputs in self.run(model, self.feeds, list(reducers)):
            for name, value in outputs.items():
                reducers[name].fold(value)
        return dict(reducers)

    def run(self, model: Model, feeds: Sequence[Feeds], fetch: Sequence[str]) -> Outputs:
        proto = model.to_proto()
        known = {o.name for o in proto.graph.output}
        proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in fetch if name not in known)
        session = _open(proto.SerializeToString(), False)
        names = list(fetch) or [o.name for o in session.get_outputs()]
        return [dict(zip(names, session.run(names, dict(feed)), strict=True)) for feed in feeds]

    def cost(self, model: Model) -> float:
        return 0.0


def _open(model: bytes, optimize: bool) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if not optimize:  # a constant weight is packed for other kernels than a computed one
        options.add_session_config_entry("session.disable_prepacking", "1")
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def finite(outputs: Mapping[str, Array]) -> bool:
    return all(a.dtype.kind != "f" or bool(np.isfinite(a).all()) for a in outputs.values())


def noises(runs: Runs, feeds: Sequence[Feeds], *models: onnx.ModelProto) -> dict[str, float]:
    """How much the runtime's own optimizer moves the outputs of either model."""
    found: dict[str, float] = {}
    for proto in models:
        data = proto.SerializeToString()
        off = runs.outputs(data, feeds)
        try:
            on = runs.outputs(data, feeds, optimize=True)
        except Exception:
            continue
        for name, size in noise(off, on).items():
            found[name] = max(found.get(name, 0.0), size)
    return found


def jittered(
    runs: Runs, feeds: Sequence[Feeds], proto: onnx.ModelProto, wanted: Outputs, rng: np.random.Generator
) -> dict[str, float]:
    """How much the outputs move when inputs and weights move by rounding: what no algebra can keep still."""
    found: dict[str, float] = {}
    for _ in range(3):
        shaken = onnx.ModelProto()
        shaken.CopyFrom(proto)
        for tensor in shaken.graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT:
                array = _shake(onnx.numpy_helper.to_array(tensor), rng)
                tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        moved = [{k: _shake(v, rng) for k, v in feed.items()} for feed in feeds]
        for name, size in noise(wanted, runs.outputs(shaken.SerializeToString(), moved)).items():
            found[name] = max(found.get(name, 0.0), size)
    return found


def _shake(array: Array, rng: np.random.Generator) -> Array:
    if array.dtype.kind != "f":
        return array
    return np.asarray(array * (1 + rng.uniform(-JITTER, JITTER, array.shape))).astype(array.dtype)
