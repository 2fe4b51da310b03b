"""Operations that look inside a session, in a worker: values of two models side by side, the graph that the runtime
made of a model, and what each of its nodes costs."""

from __future__ import annotations

import json
import tempfile
import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.runtime.engines.onnxruntime_ import profile
from optimizer.runtime.jobs import run_model, run_once
from optimizer.runtime.providers import open_session

Array = np.ndarray[Any, Any]
Feeds = dict[str, Any]

SUMS = ("signal", "noise", "energy", "product")
"""Columns of :func:`compare_values`: sums over elements of l*l, (r-l)^2, r*r and l*r."""

_KERNEL = "_kernel_time"
"""How the runtime's profile ends the name of a node that ran."""

_WITH_BODIES = frozenset(("If", "Loop", "Scan"))

SETTLING_RUNS = 3
"""Profiled runs that are left out: the first ones pay for memory and caches."""


def compare_values(
    left: str, right: str, pairs: list[list[str]], feeds: list[Feeds], provider: str, threads: int
) -> Array:
    """Outputs of the models at ``left`` and ``right``, pair by pair of their names, summed over ``feeds``.

    float64 [pairs, 4], columns as in :data:`SUMS`; a pair whose shapes differ gives NaN. Only elements that are finite
    on both sides count. The runtime's optimizer is off, so that every value is what the graph says.
    """
    found = np.zeros((len(pairs), len(SUMS)))
    for feed in feeds:
        (a,), (b,) = (run_model(path, [feed], provider, threads, optimize=False) for path in (left, right))
        for i, (name, other) in enumerate(pairs):
            found[i] += _sums(np.asarray(a[name]), np.asarray(b[other]))
    return found


def _sums(a: Array, b: Array) -> Array:
    if a.shape != b.shape:
        return np.full(len(SUMS), np.nan)
    x, y = (v.astype(np.float64, copy=False).reshape(-1) for v in (a, b))
    good = np.isfinite(x) & np.isfinite(y)
    if not good.all():
        x, y = x[good], y[good]
    gap = y - x
    return np.array([x @ x, gap @ gap, y @ y, x @ y])


def look_inside(
    path: str, feeds: Feeds, provider: str, threads: int, runs: int, most_seconds: float = 2.0, graph: bool = True
) -> dict[str, Any]:
    """What the runtime makes of the model at ``path``: the nodes of its optimized graph and the time of each.

    ``nodes`` are dicts of name, op (with its domain unless ONNX's own), inputs and outputs, in order (none without
    ``graph``); ``ops`` maps a node's name to its operator, ``taken`` to its milliseconds in each run (float64 [runs],
    without what runs inside of it; shared names are summed), ``whole`` are the milliseconds of the runs. The profile's
    clock ticks in microseconds. Stops after ``most_seconds``.
    """
    with tempfile.TemporaryDirectory(prefix="lathe-") as folder:
        kept = str(Path(folder) / "optimized.onnx") if graph else ""
        session = open_session(path, provider, threads, profile=str(Path(folder) / "profile"), keep=kept)
        wanted = {i.name for i in session.get_inputs()}
        fed = {k: v for k, v in feeds.items() if k in wanted}
        deadline, done = time.monotonic() + most_seconds, 0
        while done < SETTLING_RUNS + 1 or (done < SETTLING_RUNS + runs and time.monotonic() < deadline):
            run_once(session, fed)
            done += 1
        events = json.loads(Path(session.end_profiling()).read_text())
        nodes = _nodes(Path(kept)) if kept and Path(kept).exists() else []
    return {"nodes": nodes, **_times(events)}


def _nodes(path: Path) -> list[dict[str, Any]]:
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    return [
        {
            "name": n.name,
            "op": f"{n.domain}.{n.op_type}" if n.domain not in ("", "ai.onnx") else n.op_type,
            "inputs": list(n.input),
            "outputs": list(n.output),
        }
        for n in graph.node
    ]


def _times(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Milliseconds per node and run, the settling runs left out."""
    runs = sorted((e["ts"], e["dur"]) for e in events if e.get("name") == "model_run" and e.get("cat") == "Session")
    starts, whole = [ts for ts, _ in runs], np.array([dur for _, dur in runs]) / 1e3
    taken: dict[str, Array] = {}
    ops: dict[str, str] = {}
    for event, own in _own_times([e for e in events if _is_kernel(e)]):
        name = str(event["name"]).removesuffix(_KERNEL)
        ops[name] = event["args"].get("op_name", "?")
        run = bisect_right(starts, event["ts"]) - 1
        taken.setdefault(name, np.zeros(len(runs)))[run] += own / 1e3
    first = SETTLING_RUNS if len(runs) > SETTLING_RUNS else 0
    return {"ops": ops, "taken": {name: ms[first:] for name, ms in taken.items()}, "whole": whole[first:]}


def _is_kernel(event: dict[str, Any]) -> bool:
    return event.get("cat") == "Node" and str(event.get("name", "")).endswith(_KERNEL)


def _own_times(events: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], float]]:
    """Each event with its microseconds less those of the events inside of it: bodies of If, Loop and Scan."""
    inner: dict[int, float] = defaultdict(float)
    open_ones: list[int] = []
    order = sorted(events, key=lambda e: (e["ts"], -e["dur"]))
    for i, event in enumerate(order):
        end = event["ts"] + event["dur"]
        while open_ones and order[open_ones[-1]]["ts"] + order[open_ones[-1]]["dur"] < end:
            open_ones.pop()
        if open_ones and order[open_ones[-1]]["args"].get("op_name") in _WITH_BODIES:
            inner[open_ones[-1]] += event["dur"]
        open_ones.append(i)
    for i, event in enumerate(order):
        yield event, max(0.0, event["dur"] - inner[i])


def who_ran(path: str, feeds: Feeds, provider: str, threads: int) -> dict[str, list[list[str]]]:
    """Which provider ran each node of the runtime's graph in one run: [name, op] by provider, from the profile."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for event in profile(path, feeds, provider, threads):
        told = event["args"]
        found[told.get("provider", "?")][str(event["name"]).removesuffix(_KERNEL)] = told.get("op_name", "?")
    return {provider: [[name, op] for name, op in nodes.items()] for provider, nodes in found.items()}


def switch(
    path: str, name: str, masks: Array, feeds: list[Feeds], seconds: float, provider: str, threads: int
) -> Array:
    """Relative squared error of the float outputs for each row of ``masks`` fed to the input ``name``: float64 [rows].

    ||y - r||^2 / ||r||^2, where r comes of the model with every switch off. Takes ``feeds`` one by one, the first in
    any case, and no more once ``seconds`` have passed.
    """
    deadline = time.monotonic() + seconds
    noise, signal = np.zeros(len(masks)), 0.0
    off = np.zeros(masks.shape[1], bool)
    for count, feed in enumerate(feeds):
        if count and time.monotonic() > deadline:
            break
        (reference,) = run_model(path, [{**feed, name: off}], provider, threads, optimize=False)
        signal += sum(_sums(v, v)[0] for v in reference.values() if _real(v))
        for i, mask in enumerate(masks):
            (found,) = run_model(path, [{**feed, name: mask}], provider, threads, optimize=False)
            noise[i] += sum(_sums(np.asarray(v), np.asarray(found[k]))[1] for k, v in reference.items() if _real(v))
    return noise / (signal or 1.0)


def _real(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"
