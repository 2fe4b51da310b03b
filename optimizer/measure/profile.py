"""Where the time of one run goes, and how much work there is in it: the runtime's profile beside the counted graph.

The profile is the runtime's own, so it names the nodes that really run, after fusion. Its clock ticks in microseconds
and its bookkeeping takes time: it says how a run divides, not how long it is.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.measure.explain_graph import INSIDE, Kernel, kernels_of, layer_kernels, runs_on_integers
from optimizer.measure.stats import CONFIDENCE, student
from optimizer.plan import ProviderText
from optimizer.records import Interval, LayerWork, NodeCost, OpCost, Profile
from optimizer.runtime import sessions
from optimizer.runtime.sessions import Site
from passes.kit.model import Model
from passes.kit.work import node_work, traffic, with_sizes

Array = np.ndarray[Any, Any]

RUNS = 200
SECONDS = 0.5
TRIM = 0.25
MOST_NODES = 12
GRAPH_BELOW_BYTES = 256_000_000
"""The runtime writes its graph down, to tell layers and kernels apart, for models with fewer bytes of weights."""

LAUNCHED_ELSEWHERE = frozenset(
    ("CUDAExecutionProvider", "TensorrtExecutionProvider", "ROCMExecutionProvider", "DmlExecutionProvider",
     "WebGpuExecutionProvider")
)  # fmt: skip
"""Providers whose profile holds the time to start a kernel, not that to run it."""


@dataclass(frozen=True)
class Anatomy:
    """One model looked into while it runs: its profile, and the kernels that the profile is of."""

    profile: Profile
    kernels: tuple[Kernel, ...]


@dataclass(frozen=True)
class Counted:
    """The work of one run. ``unknown`` are the operators whose work, or bytes, could not be counted."""

    float_macs: int
    int8_macs: int
    bytes: Interval
    unknown: tuple[str, ...]
    layers: tuple[LayerWork, ...]


def anatomy(
    path: Path, model: Model, feed: dict[str, Array], site: Site, *, runs: int = RUNS, seconds: float = SECONDS
) -> Anatomy | None:
    """Profile ``model``, which lies at ``path``, on one feed. ``None`` where the provider's profile tells nothing.

    Raises as :func:`optimizer.runtime.sessions.ask` does.
    """
    if ProviderText.parse(site.provider).name in LAUNCHED_ELSEWHERE:
        return None
    with sessions.worker() as worker:
        found = sessions.ask(
            worker,
            INSIDE + "look_inside",
            site,
            path=str(path),
            feeds=feed,
            runs=runs,
            most_seconds=seconds,
            graph=model.weight_bytes() < GRAPH_BELOW_BYTES,
        )
    return Anatomy(profile_of(found), kernels_of(found))


def profile_of(found: Mapping[str, Any]) -> Profile:
    """The answer of :func:`optimizer.runtime.inside.look_inside` by operator type and by node."""
    taken = {name: np.asarray(ms, np.float64) for name, ms in found["taken"].items()}
    whole = np.asarray(found["whole"], np.float64)
    by_op: dict[str, list[str]] = defaultdict(list)
    for name in taken:
        by_op[found["ops"][name]].append(name)
    in_kernels = np.sum(list(taken.values()), axis=0) if taken else np.zeros(len(whole))
    ops = [OpCost(op, len(names), midmean(np.sum([taken[n] for n in names], axis=0))) for op, names in by_op.items()]
    nodes = [NodeCost(name, found["ops"][name], midmean(ms)) for name, ms in taken.items()]
    return Profile(
        len(whole),
        midmean(in_kernels),
        midmean(np.maximum(whole - in_kernels, 0.0)),
        tuple(sorted(ops, key=lambda o: (-o.ms.value, o.op))),
        tuple(sorted(nodes, key=lambda n: (-n.ms.value, n.node))[:MOST_NODES]),
    )


def midmean(values: Array) -> Interval:
    """The mean of the middle half of ``values`` [runs] with its 95 % interval.

    A median of whole microseconds cannot tell 0.4 from 0; the mean of the middle half can, and outliers do not move
    it. The interval is Student's t on the winsorized variance (Tukey & McLaughlin 1963). Of fewer than eight values
    nothing is trimmed.
    """
    ordered = np.sort(np.asarray(values, np.float64))
    n = len(ordered)
    cut = int(TRIM * n) if n >= 8 else 0
    middle = ordered[cut : n - cut]
    value = float(middle.mean())
    if n < 2:
        return Interval(value, 0.0, math.inf)
    spread = float(np.clip(ordered, middle[0], middle[-1]).std(ddof=1))
    reach = student(0.5 + CONFIDENCE / 2, len(middle) - 1) * spread / ((1 - 2 * cut / n) * math.sqrt(n))
    return Interval(value, max(0.0, value - reach), value + reach)


def counted(model: Model, feed: Mapping[str, Array], kernels: Sequence[Kernel] = ()) -> Counted:
    """The work of one run of ``model`` on arrays of these shapes.

    A layer that the file quantizes but whose kernel runs on floats counts as floats; without ``kernels`` the file is
    believed.
    """
    sizes = {f"{name}:{axis}": size for name, array in feed.items() for axis, size in enumerate(array.shape)}
    fixed, named = with_sizes(model, sizes)
    nodes = node_work(fixed, named)
    layers = [n for n in nodes if n.macs]
    found = layer_kernels(fixed, kernels, [n.node for n in layers]) if kernels else {}
    rows, macs = [], {False: 0, True: 0}
    for layer in layers:
        kernel = found.get(layer.node)
        integer = runs_on_integers(kernel) if kernel is not None else layer.integer
        macs[integer] += layer.macs or 0
        if kernel is not None and kernel.ms > 0 and layer.bytes:
            rows.append(LayerWork(layer.node, layer.macs or 0, layer.bytes, kernel.ms, integer))
    moved = traffic(fixed, nodes, named)
    unknown = sorted({n.op for n in nodes if n.macs is None})
    span = Interval(float(moved.least), float(moved.least), float(moved.most))
    return Counted(
        macs[False], macs[True], span, tuple(unknown), tuple(sorted(rows, key=lambda r: -r.ms)[:MOST_LAYERS])
    )


MOST_LAYERS = 24
