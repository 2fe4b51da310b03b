"""Gradients of a graph's outputs, for passes that ask: torch follows the graph in a worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from optimizer.recover.graph import TorchGraph, read, torch_graph
from optimizer.recover.parity import disagreement
from optimizer.runtime import sessions
from optimizer.runtime.sessions import Site
from optimizer.store.store import Store
from optimizer.workers.pool import CallFailed
from passes.kit.context import Feeds, NoGradients
from passes.kit.model import Model

Array = np.ndarray[Any, Any]

JOB = "optimizer.recover.slopes:differentiate"
SECONDS = 1800.0

PARCEL = 32
"""Feeds that go to the worker in one message."""


def gradients(
    model: Model, feeds: Sequence[Feeds], of: Sequence[str], seed: int, *, site: Site, store: Store
) -> list[dict[str, Array]]:
    """What :meth:`passes.kit.context.Context.gradients` promises. Raises :class:`NoGradients`."""
    path = store.put_model(model)
    found: list[dict[str, Array]] = []
    with sessions.worker() as worker:
        for start in range(0, len(feeds), PARCEL):
            part = [dict(f) for f in feeds[start : start + PARCEL]]
            asked: dict[str, Any] = {"feeds": part, "of": list(of), "seed": [seed, start]}
            try:
                told = worker.call(JOB, timeout=SECONDS, path=str(path), threads=site.threads, **asked)
            except CallFailed as failure:
                missing = failure.kind == ModuleNotFoundError.__name__
                text = "they need PyTorch: pip install 'lathe[torch]'" if missing else str(failure)
                raise NoGradients(f"there are no gradients: {text}") from failure
            if not found and (message := disagreement(path, part[0], told["outputs"], site)):
                raise NoGradients(f"there are no gradients: {message}")
            found += told["gradients"]
    return found


def differentiate(
    path: str, feeds: Sequence[Mapping[str, Array]], of: Sequence[str], seed: Sequence[int], threads: int
) -> dict[str, Any]:
    """In the worker: the ``gradients`` of each feed's projection, and the ``outputs`` for the first feed."""
    import torch

    torch.set_num_threads(threads)
    graph = torch_graph(read(path))
    generator = np.random.default_rng(list(seed))
    found = [projected(graph, feed, of, generator) for feed in feeds]
    with torch.no_grad():
        outputs = graph({k: torch.tensor(np.asarray(v)) for k, v in feeds[0].items()})
    return {"gradients": found, "outputs": {k: v.detach().numpy() for k, v in outputs.items()}}


def projected(
    graph: TorchGraph, feed: Mapping[str, Array], of: Sequence[str], generator: np.random.Generator
) -> dict[str, Array]:
    """The gradient of one drawn projection of the outputs for ``feed`` with respect to the constants ``of``."""
    import torch

    held = {name: (graph.weights if name in graph.weights else graph.fixed)[name] for name in of}
    for value in held.values():
        value.requires_grad_(True)
    outputs = graph({k: torch.tensor(np.asarray(v)) for k, v in feed.items()})
    total: Any = 0.0
    for name in graph.outputs:
        value = outputs[name]
        if value.is_floating_point():
            signs = torch.tensor(generator.choice([-1.0, 1.0], tuple(value.shape)), dtype=value.dtype)
            total = total + (signs * value).sum() / (value.detach().norm() + 1e-12)
    found = torch.autograd.grad(total, list(held.values()), allow_unused=True)
    pairs = zip(held.items(), found, strict=True)
    return {n: (g if g is not None else torch.zeros_like(v)).detach().numpy().copy() for (n, v), g in pairs}
