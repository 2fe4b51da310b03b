"""The parent's side of running models: calls into workers, no session in this process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np

from optimizer.faults import Fault, cannot
from optimizer.plan import OPENVINO_RUNTIME, PROVIDERS
from optimizer.workers.pool import CallFailed, Worker, WorkerDied

Array = np.ndarray[Any, Any]

JOBS = "optimizer.runtime.jobs:"

CALL_SECONDS = 1800.0
"""How long a provider may take for one call (a model loaded, a parcel of samples run) before it is given up."""

CRASHED, HUNG = "provider-crashed", "provider-hung"
"""Codes of the faults by which :func:`ask` tells that the provider, and not the model's author, is at fault."""


ON_THIS_CPU = (PROVIDERS["cpu"], OPENVINO_RUNTIME)
"""Providers that compute in this process, on its threads alone, unless options say otherwise."""


@dataclass(frozen=True)
class Site:
    """Where models run: the provider (full name and options), threads, the runtime's version, and the libraries of
    custom operators that the user named."""

    provider: str
    threads: int
    runtime: str
    custom_ops: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        """As arguments of a job."""
        return {"provider": self.provider, "threads": self.threads}

    @property
    def clock(self) -> str:
        """``cpu`` where one thread does all the work: CPU time is blind to other processes. Otherwise ``wall``."""
        return "cpu" if self.threads == 1 and self.provider in ON_THIS_CPU else "wall"


def with_decoder(site: Site) -> Site:
    """``site`` with the library that decodes images inside of a graph. Raises a Fault when it is not installed."""
    try:
        import onnxruntime_extensions
    except ImportError:
        hint = "Run: pip install 'lathe[images]', or feed pixels and leave 'decode' out"
        raise cannot("'decode' needs onnxruntime-extensions", hint=hint, code="missing-package") from None
    return replace(site, custom_ops=(*site.custom_ops, str(onnxruntime_extensions.get_library_path())))


def worker() -> Worker:
    """A worker that knows the jobs."""
    return Worker.ours()


_PREPARED: WeakSet[Worker] = WeakSet()


def prepare(worker: Worker, site: Site) -> None:
    """Tell a new worker which libraries its sessions load: native code, so nothing but the user's flag names them."""
    if site.custom_ops and worker not in _PREPARED:
        worker.call(JOBS + "use_custom_ops", paths=list(site.custom_ops))
        _PREPARED.add(worker)


def ask(worker: Worker, op: str, site: Site | None = None, **args: Any) -> Any:
    """The answer of a job that runs a model; ``site`` is added to the arguments.

    Raises a Fault (exit 4) when the provider took its process down or did not finish in :data:`CALL_SECONDS`, besides
    what the job raises.
    """
    where = site.provider if site else "the provider"
    try:
        if site:
            prepare(worker, site)
        return worker.call(op, timeout=CALL_SECONDS, **args, **(site.plain() if site else {}))
    except WorkerDied as death:
        hint = "Try another --provider, or another version of onnxruntime"
        if worker.timed_out:
            message = f"{where} did not finish in {CALL_SECONDS:g} s"
            raise cannot(message, hint=f"The model may never end. {hint}", code=HUNG) from death
        raise cannot(f"{where} took its process down: {death}", hint=hint, code=CRASHED) from death


def run(
    worker: Worker, path: Path, feeds: Sequence[dict[str, Array]], site: Site, *, optimize: bool = True
) -> list[dict[str, Any]]:
    """Outputs by name for each feed dict. Raises as :func:`ask` does."""
    found: list[dict[str, Any]] = ask(
        worker, JOBS + "run_model", site, path=str(path), feeds=list(feeds), optimize=optimize
    )
    return found


def does_not_start(provider: str) -> str:
    """Why a provider that is installed cannot open the smallest of models, or an empty text."""
    try:
        with worker() as fresh:
            ask(fresh, JOBS + "start", Site(provider, 1, ""))
    except (Fault, CallFailed) as error:
        return error.message if isinstance(error, Fault) else str(error)
    return ""


def begin_timing(
    worker: Worker,
    path: Path,
    feed: dict[str, Array],
    site: Site,
    warm_up_ms: float = 150.0,
    core: int | None = None,
    patience: float = 1.0,
) -> dict[str, Any]:
    """Load one model in ``worker`` for timing; see :func:`optimizer.runtime.jobs.begin_timing`."""
    how = {"warm_up_ms": warm_up_ms, "core": core, "patience": patience}
    found: dict[str, Any] = ask(worker, JOBS + "begin_timing", site, path=str(path), feeds=feed, **how)
    return found
