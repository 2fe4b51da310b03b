"""What a child process may use of the machine, and which of these limits this system lacks.

Standard library only: the worker for user code loads this file by path.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

BARE = "spawn"
"""Value of ``LATHE_WORKERS`` by which a system with fork and limits acts like one without either."""

SHARE_OF_MEMORY = 0.9
"""Of the memory that is free when a worker starts, what it may take."""


def forced_bare() -> bool:
    """Whether the user asked to work as on a system without fork and resource limits."""
    return os.environ.get("LATHE_WORKERS", "fork") == BARE


def missing() -> tuple[str, ...]:
    """What a child cannot be held to here, in words; empty where every limit works."""
    if not forced_bare() and sys.platform.startswith("linux"):
        return ()
    lacks = ["memory", "CPU time", "size of written files"]
    if not forced_bare() and hasattr(os, "killpg"):
        lacks = lacks[:1]  # macOS and BSD take a limit on address space and do not hold to it
    return tuple(lacks)


def hold(
    *,
    extra_address_bytes: int | None = None,
    data_bytes: int | None = None,
    cpu_seconds: float | None = None,
    file_bytes: int | None = None,
) -> None:
    """Limit this process for good, as far as the system can; it writes no core file afterwards.

    ``extra_address_bytes`` is address space beyond what is mapped now, ``data_bytes`` private writable memory (files
    that are mapped for reading do not count), ``file_bytes`` the size of one written file.
    """
    if forced_bare():
        return
    try:
        import resource
    except ImportError:
        return
    wanted: dict[str, int] = {"RLIMIT_CORE": 0}
    if extra_address_bytes is not None and (mapped := _mapped_bytes(resource.getpagesize())):
        wanted["RLIMIT_AS"] = mapped + extra_address_bytes
    if data_bytes is not None and sys.platform.startswith("linux"):
        wanted["RLIMIT_DATA"] = data_bytes
    if cpu_seconds is not None:
        spent = resource.getrusage(resource.RUSAGE_SELF)
        wanted["RLIMIT_CPU"] = int(spent.ru_utime + spent.ru_stime + cpu_seconds) + 1
    if file_bytes is not None:
        wanted["RLIMIT_FSIZE"] = file_bytes
    for name, value in wanted.items():
        _lower(resource, getattr(resource, name), value)


def _lower(resource: Any, kind: int, value: int) -> None:
    """Set a limit unless a stricter one holds already: a container may have set its own."""
    soft, hard = resource.getrlimit(kind)
    infinite = resource.RLIM_INFINITY
    least = min([value, *(held for held in (soft, hard) if held != infinite)])
    grace = int(kind == resource.RLIMIT_CPU)  # at the hard limit the signal says nothing
    most = least + grace if hard == infinite else min(hard, least + grace)
    resource.setrlimit(kind, (least, most))


def share_of_memory() -> int | None:
    """Bytes that one worker may take of what is free now, or ``None`` where that is not known."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    free = {key: int(rest.split()[0]) * 1024 for key, _, rest in (line.partition(":") for line in lines)}
    return int((free.get("MemAvailable", 0) + free.get("SwapFree", 0)) * SHARE_OF_MEMORY) or None


def _mapped_bytes(page: int) -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * page
    except OSError:
        return 0
