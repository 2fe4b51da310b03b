"""The parent's side of running models: calls into workers, no session in this process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.plan import PROVIDERS
from optimizer.workers.pool import Worker

Array = np.ndarray[Any, Any]

JOBS = "optimizer.runtime.jobs:"


@dataclass(frozen=True)
class Site:
    """Where models run: the provider's full name, threads, and the runtime's version."""

    provider: str
    threads: int
    runtime: str

    def plain(self) -> dict[str, Any]:
        """As arguments of a job."""
        return {"provider": self.provider, "threads": self.threads}

    @property
    def clock(self) -> str:
        """``cpu`` where one thread does all the work: CPU time is blind to other processes. Otherwise ``wall``."""
        return "cpu" if self.threads == 1 and self.provider == PROVIDERS["cpu"] else "wall"


def worker() -> Worker:
    """A worker that knows the jobs."""
    return Worker.ours()


def run(
    worker: Worker, path: Path, feeds: Sequence[dict[str, Array]], site: Site, *, optimize: bool = True
) -> list[dict[str, Any]]:
    """Outputs by name for each feed dict."""
    found: list[dict[str, Any]] = worker.call(
        JOBS + "run_model", path=str(path), feeds=list(feeds), optimize=optimize, **site.plain()
    )
    return found


def begin_timing(
    worker: Worker,
    path: Path,
    feed: dict[str, Array],
    site: Site,
    warm_up_ms: float = 150.0,
    core: int | None = None,
) -> dict[str, Any]:
    """Load one model in ``worker`` for timing; see :func:`optimizer.runtime.jobs.begin_timing`."""
    found: dict[str, Any] = worker.call(
        JOBS + "begin_timing", path=str(path), feeds=feed, warm_up_ms=warm_up_ms, core=core, **site.plain()
    )
    return found
