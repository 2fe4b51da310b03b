"""Operations that run inside a worker: everything that needs a session. Arguments and results are plain data."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.faults import bad_input
from optimizer.runtime import providers, values
from optimizer.runtime.providers import open_session, plain_words, runtime

Array = np.ndarray[Any, Any]
Feeds = dict[str, Any]

WARM_UP_RUNS = 3
MAX_KEPT_SESSIONS = 4

_SESSIONS: dict[tuple[Any, ...], Any] = {}


def _session(path: str, provider: str, threads: int, optimize: bool) -> Any:
    key = (path, provider, threads, optimize)
    if key not in _SESSIONS:
        while len(_SESSIONS) >= MAX_KEPT_SESSIONS:
            _SESSIONS.pop(next(iter(_SESSIONS)))
        _SESSIONS[key] = open_session(path, provider, threads, optimize=optimize)
    return _SESSIONS[key]


def use_custom_ops(paths: list[str]) -> None:
    """Let every session of this worker load these libraries of custom operators."""
    providers.CUSTOM_OPS[:] = paths


def run_model(
    path: str, feeds: list[Feeds], provider: str, threads: int = 1, optimize: bool = True
) -> list[dict[str, Any]]:
    """Outputs by name for each feed dict. The session stays open for the next call."""
    session = _session(path, provider, threads, optimize)
    names = [o.name for o in session.get_outputs()]
    return [dict(zip(names, run_once(session, feed), strict=True)) for feed in feeds]


def describe(path: str, provider: str, threads: int = 1) -> dict[str, Any]:
    """Load the model and say what the runtime sees: inputs, outputs, milliseconds to load."""
    start = time.perf_counter()
    session = open_session(path, provider, threads)
    took = (time.perf_counter() - start) * 1e3
    ports = {"inputs": session.get_inputs(), "outputs": session.get_outputs()}
    plain = {key: [[p.name, p.type, [str(d) for d in p.shape]] for p in found] for key, found in ports.items()}
    return {**plain, "load_ms": took, "providers": session.get_providers()}


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
    path: str, feeds: Feeds, provider: str, threads: int, warm_up_ms: float, core: int | None = None
) -> dict[str, Any]:
    """Load one model for timing and warm it up. Returns load time, first-run time and the pace per run (ms).

    ``core`` is the only one that this process may use from now on, so that models which take turns share it.
    """
    if core is not None:
        os.sched_setaffinity(0, {core})
    before = _resident()
    start = time.perf_counter()
    session = open_session(path, provider, threads)
    load_ms = (time.perf_counter() - start) * 1e3
    bound = _bind(session, feeds, provider)
    start = time.perf_counter()
    with _in_plain_words():
        bound()
    first_ms = (time.perf_counter() - start) * 1e3
    spent, runs, pace = 0.0, 0, first_ms
    while runs < WARM_UP_RUNS or (spent < warm_up_ms and runs < 2000):
        start = time.perf_counter()
        bound()
        took = (time.perf_counter() - start) * 1e3
        pace = took if not runs else min(pace, took)
        spent, runs = spent + took, runs + 1
    _SESSIONS["timing",] = bound
    gc.collect()
    gc.disable()
    return {"load_ms": load_ms, "first_ms": first_ms, "pace_ms": pace, "memory_bytes": max(0, _peak() - before)}


def time_block(runs: int, clock: str) -> Array:
    """Milliseconds of each of ``runs`` runs of the model opened by :func:`begin_timing`, float64 [runs].

    One more run goes before them untimed, because another process had the caches in between.
    """
    bound = _SESSIONS["timing",]
    tick = time.process_time_ns if clock == "cpu" else time.perf_counter_ns
    bound()
    taken = np.empty(runs)
    for i in range(runs):
        start = tick()
        bound()
        taken[i] = (tick() - start) / 1e6
    return taken


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

    def cost(self, model: Any) -> float:
        raise AsksTheWorld("a native pass cannot time models")


def run_once(session: Any, feeds: Feeds, names: list[str] | None = None) -> list[Any]:
    """The named outputs (none: all) of one run; feeds that the model does not take are left out."""
    wanted = {i.name for i in session.get_inputs()}
    with _in_plain_words():
        return values.run(session, {k: v for k, v in feeds.items() if k in wanted}, names)


@contextmanager
def _in_plain_words() -> Iterator[None]:
    """Turn whatever onnxruntime raises while it runs a model into a Fault."""
    try:
        yield
    except Exception as error:
        text = f"onnxruntime failed while running the model: {plain_words(error)}"
        raise bad_input(text, code="runtime-failed") from error


def _bind(session: Any, feeds: Feeds, provider: str) -> Any:
    """A call that runs the model once. On devices inputs and outputs are bound there, and the call waits for it."""
    if provider == "CPUExecutionProvider":
        return values.bind(session, feeds)
    binding = session.io_binding()
    kind = "cuda" if provider in ("CUDAExecutionProvider", "TensorrtExecutionProvider") else "cpu"
    ort = runtime()
    for name, array in feeds.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(np.asarray(array), kind, 0))
    for output in session.get_outputs():
        binding.bind_output(output.name, kind)

    def run() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return run


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
