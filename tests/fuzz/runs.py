"""Models run in this process, their outputs remembered; and the context of the passes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from passes.kit.context import Feeds, NoGradients
from passes.kit.model import Model
from passes.kit.reducers import Reducer
from passes.kit.target import Target

Array = np.ndarray[Any, Any]
Outputs = list[dict[str, Array]]

DEADLY = ["MatmulTransposeFusion"]
"""What onnxruntime 1.31's own optimizer dies of by a signal: a float16 Transpose [1, 0, 2] before a MatMul. A compile
loses the worker that opens such a model and drops the candidate; here the other models of the process would be lost."""


@dataclass
class Runs:
    """A :class:`passes.kit.context.Context` over feeds in memory, which opens one session for one model."""

    feeds: Sequence[Feeds]
    target: Target
    seed: int
    _known: dict[tuple[bytes, bool, tuple[str, ...]], ort.InferenceSession] = field(default_factory=dict)
    _answers: dict[tuple[bytes, bool, int], tuple[Feeds, dict[str, Array]]] = field(default_factory=dict)

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
                self._answers[key] = feed, dict(zip(names, got, strict=True))  # a feed that lives keeps its id
            found.append(self._answers[key][1])
        return found

    def _session(self, model: bytes, digest: bytes, optimize: bool) -> ort.InferenceSession:
        key = digest, optimize, ()
        if key not in self._known:
            self._known.clear()
            if optimize and b"QuantizeLinear" in model and not _survives(model):
                raise RuntimeError("onnxruntime's optimizer dies of it")
            self._known[key] = _open(model, optimize)
        return self._known[key]

    # -- the passes' questions ------------------------------------------------------------------------------------
    original: Model | None = None

    def sampled(self, count: int) -> list[Feeds]:
        return list(self.feeds[:count])

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

    def gradients(self, model: Model, feeds: Sequence[Feeds], of: Sequence[str]) -> Outputs:
        raise NoGradients("no gradients here")

    def cost(self, model: Model) -> float:
        return 0.0


def _survives(model: bytes) -> bool:
    """Whether a child lives through opening ``model`` with the runtime's optimizer: in quantized graphs it reads past
    the inputs of a node now and then."""
    pid = os.fork()
    if not pid:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            _open(model, True)
        finally:
            os._exit(0)
    return not os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def _open(model: bytes, optimize: bool) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if not optimize:  # a constant weight is packed for other kernels than a computed one
        options.add_session_config_entry("session.disable_prepacking", "1")
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    provider = "CPUExecutionProvider"
    return ort.InferenceSession(model, options, providers=[provider], disabled_optimizers=DEADLY)
