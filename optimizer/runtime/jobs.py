"""Operations that run inside a worker: everything that needs a session. Arguments and results are plain data."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.runtime import providers, values
from optimizer.runtime.engines import Program, engine_for
from optimizer.runtime.engines.onnxruntime_ import in_plain_words

Array = np.ndarray[Any, Any]
Feeds = dict[str, Any]

WARM_UP_RUNS = 3
MOST_WARM_UP_RUNS = 2000
WINDOW_RUNS = 5
STABLE = 0.02
"""A model has warmed up when the medians of two windows of runs, one after the other, differ by no more than this."""

MAX_KEPT_PROGRAMS = 4

_PROGRAMS: dict[tuple[Any, ...], Any] = {}
_TIMED: list[Callable[[], Any]] = []


def _program(path: str, provider: str, threads: int, optimize: bool) -> Program:
    key = (path, provider, threads, optimize)
    if key not in _PROGRAMS:
        while len(_PROGRAMS) >= MAX_KEPT_PROGRAMS:
            _PROGRAMS.pop(next(iter(_PROGRAMS)))
        _PROGRAMS[key] = engine_for(provider).open(path, threads, optimize=optimize)
    found: Program = _PROGRAMS[key]
    return found


def use_custom_ops(paths: list[str]) -> None:
    """Let every session of this worker load these libraries of custom operators."""
    providers.CUSTOM_OPS[:] = paths


def run_model(
    path: str, feeds: list[Feeds], provider: str, threads: int = 1, optimize: bool = True
) -> list[dict[str, Any]]:
    """Outputs by name for each feed dict. The model stays loaded for the next call."""
    program = _program(path, provider, threads, optimize)
    return [program.run(feed) for feed in feeds]


def coverage(path: str, feeds: Feeds, provider: str, threads: int) -> list[dict[str, Any]]:
    """Who ran what in one run; see :meth:`optimizer.runtime.engines.Engine.coverage`."""
    engine = engine_for(provider)
    engine.load()
    return [dict(share) for share in engine.coverage(path, feeds, threads)]


def start(provider: str, threads: int) -> None:
    """Open a model of one node. Raises a Fault when the provider cannot."""
    import onnx

    text = '<ir_version: 8, opset_import: ["": 17]> g (float[1] x) => (float[1] y) { y = Relu(x) }'
    with tempfile.TemporaryDirectory(prefix="lathe-") as folder:
        path = Path(folder) / "smallest.onnx"
        onnx.save(onnx.parser.parse_model(text), path)
        engine = engine_for(provider)
        engine.load()
        engine.open(str(path), threads)


def check(path: str) -> str:
    """What ``onnx.checker`` objects to, or a declared type or shape that inference contradicts, or an empty text."""
    import onnx

    try:
        onnx.checker.check_model(path)
    except Exception as error:
        lines = str(error).strip().splitlines()
        return lines[0] if lines else type(error).__name__
    return _contradiction(onnx.load(path, load_external_data=False))


def _contradiction(model: Any) -> str:
    """The first value of the main graph whose declared type or shape is not what follows from the inputs.

    What inference cannot tell is no objection: it knows more of some models than of others, not only of wrong ones.
    """
    import onnx

    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    bare.graph.ClearField("value_info")
    for output in bare.graph.output:
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")
    try:
        found = onnx.shape_inference.infer_shapes(bare, data_prop=True).graph
    except Exception:
        return ""
    inferred = {v.name: v.type.tensor_type for v in (*found.value_info, *found.output)}
    for value in (*model.graph.value_info, *model.graph.output):
        kind = inferred.get(value.name)
        if kind is not None and not _fits(value.type.tensor_type, kind):
            return f"'{value.name}' is declared to have another type or shape than the operators give it"
    return ""


def _fits(declared: Any, inferred: Any) -> bool:
    if declared.elem_type and inferred.elem_type and declared.elem_type != inferred.elem_type:
        return False
    if not (declared.HasField("shape") and inferred.HasField("shape")):
        return True
    dims = [[d.dim_value if d.HasField("dim_value") else None for d in s.shape.dim] for s in (declared, inferred)]
    if len(dims[0]) != len(dims[1]):
        return False
    return all(a is None or b is None or a == b for a, b in zip(*dims, strict=True))


def begin_timing(
    path: str,
    feeds: Feeds,
    provider: str,
    threads: int,
    warm_up_ms: float,
    core: int | None = None,
    patience: float = 1.0,
) -> dict[str, Any]:
    """Load one model for timing and warm it up. Returns load time, first-run time and the pace per run (ms).

    ``core`` is the only one that this process may use from now on, so that models which take turns share it.
    The warm-up takes ``warm_up_ms``, and up to ``patience`` times that while runs still become faster or slower.
    """
    if core is not None:
        os.sched_setaffinity(0, {core})
    engine = engine_for(provider)
    engine.load()
    before = _resident()
    start = time.perf_counter()
    program = engine.open(path, threads)
    load_ms = (time.perf_counter() - start) * 1e3
    start = time.perf_counter()
    bound = program.bind(feeds)
    with in_plain_words():
        bound()
    first_ms = (time.perf_counter() - start) * 1e3
    pace, runs, stable = _warm_up(bound, warm_up_ms, patience)
    _TIMED[:] = [bound]
    gc.collect()
    gc.disable()
    facts = {"load_ms": load_ms, "first_ms": first_ms, "pace_ms": pace, "warm_up_runs": runs, "stable": stable}
    return {**facts, "memory_bytes": max(0, _peak() - before)}


def _warm_up(bound: Callable[[], Any], least_ms: float, patience: float) -> tuple[float, int, bool]:
    """Run until the time is up and runs take equally long. Returns the best time of a run (ms), the number of runs, and
    whether they had become stable."""
    taken: list[float] = []
    spent, stable = 0.0, False
    while len(taken) < WARM_UP_RUNS or spent < least_ms or not (stable or spent >= least_ms * patience):
        start = time.perf_counter()
        bound()
        taken.append((time.perf_counter() - start) * 1e3)
        spent += taken[-1]
        stable = _is_stable(taken)
        if len(taken) >= MOST_WARM_UP_RUNS:
            break
    return min(taken), len(taken), stable


def _is_stable(taken: list[float]) -> bool:
    if len(taken) < 2 * WINDOW_RUNS:
        return False
    window = max(WINDOW_RUNS, len(taken) // 4)
    before, now = np.median(taken[-2 * window : -window]), np.median(taken[-window:])
    return bool(abs(now - before) <= STABLE * before)


def time_block(runs: int, clock: str) -> dict[str, Any]:
    """``taken``: milliseconds of each of ``runs`` runs of the model opened by :func:`begin_timing`, float64 [runs];
    ``other``: the mean by the other clock, which is read before and after the block only.

    One more run goes before them untimed, because another process had the caches in between.
    """
    bound = _TIMED[0]
    tick, other = time.process_time_ns, time.perf_counter_ns
    if clock != "cpu":
        tick, other = other, tick
    bound()
    taken = np.empty(runs)
    began = other()
    for i in range(runs):
        start = tick()
        bound()
        taken[i] = (tick() - start) / 1e6
    return {"taken": taken, "other": (other() - began) / 1e6 / runs}


def memory_peak() -> int:
    """Largest resident size that this process has had, bytes."""
    return _peak()


def apply_native(
    path: str,
    recipe: str,
    target: dict[str, Any],
    seed: int,
    out: str,
    home: str,
    folders: list[str],
    forbidden: list[list[str]],
) -> dict[str, Any]:
    """Run one pass on the model at ``path``, where a crash costs this process alone; the result goes to ``out``.

    ``home`` is the pass class as ``module:Class``, found from ``folders`` when it is not one of ours. Such passes get
    no door to the world: their context has a target and a seed only. ``forbidden`` are rewrites (rule, place) that it
    must leave out.
    """
    import onnx

    from passes.catalogue import build, load
    from passes.kit.context import Without
    from passes.kit.model import Model
    from passes.kit.recipe import Recipe
    from passes.kit.target import Target

    proto = onnx.load(path, load_external_data=False)
    model = Model.from_proto(proto, base_dir=str(Path(path).parent))
    sys.path.extend(folder for folder in folders if folder not in sys.path)
    found = load(home)
    (subject,) = build(Recipe.parse(recipe), {found.name: found})
    context = Without(_Isolated(Target.from_toml(target), seed), frozenset((rule, where) for rule, where in forbidden))
    result = subject(model, context)
    if result.changes:
        Path(out).write_bytes(result.model.to_bytes())
    return {
        "changes": [[c.rule, c.where, c.detail] for c in result.changes],
        "skips": [[s.rule, s.where, s.reason] for s in result.skips],
    }


class AsksTheWorld(RuntimeError):
    """A pass in a worker asked its context a question."""


ASKS_THE_WORLD = AsksTheWorld.__name__


@dataclass(frozen=True)
class _Isolated:
    """The context of a pass in a worker: nothing can be asked."""

    target: Any
    seed: int
    original: Any = None

    def sampled(self, count: int) -> Any:
        raise AsksTheWorld("a native pass cannot ask for samples")

    def stats(self, model: Any, reducers: Any) -> Any:
        raise AsksTheWorld("a native pass cannot ask for activations")

    def run(self, model: Any, feeds: Any, fetch: Any) -> Any:
        raise AsksTheWorld("a native pass cannot run models")

    def gradients(self, model: Any, feeds: Any, of: Any) -> Any:
        raise AsksTheWorld("a native pass cannot ask for gradients")

    def cost(self, model: Any) -> float:
        raise AsksTheWorld("a native pass cannot time models")


def run_once(session: Any, feeds: Feeds, names: list[str] | None = None) -> list[Any]:
    """The named outputs (none: all) of one run; feeds that the model does not take are left out."""
    wanted = {i.name for i in session.get_inputs()}
    with in_plain_words():
        return values.run(session, {k: v for k, v in feeds.items() if k in wanted}, names)


def _resident() -> int:
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(key: str) -> int:
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(key))


def save_ort(path: str, provider: str, out: str) -> None:
    """Write onnxruntime's own form of a model to ``out`` (.ort), and beside it the configurations that a build with
    these operators only, or these operators and types only, takes.

    Blocked layouts, which tie a file to one CPU's vector width, are left to the session that loads it.
    """
    from optimizer.runtime.providers import write_ort_format

    write_ort_format(path, provider, out)
