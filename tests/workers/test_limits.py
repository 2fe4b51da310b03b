"""A child is held to its limits, and where a system has none this is told."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from optimizer.workers import limits
from optimizer.workers.pool import describe_status

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux holds a process to these limits")


def in_child(action: Callable[[], object]) -> int:
    """Wait status of a forked child: exit code 0 when ``action`` returned, 7 for a MemoryError, 8 for an OSError."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            action()
            code = 0
        except MemoryError:
            code = 7
        except OSError:
            code = 8
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1]


@linux
@pytest.mark.parametrize("kind", ["extra_address_bytes", "data_bytes"])
def test_memory_beyond_the_limit_is_refused(kind: str) -> None:
    def take(size: int) -> None:
        held = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
        already = int(held.split()[1]) * 1024 if kind == "data_bytes" else 0
        limits.hold(**{kind: already + 2**26})  # type: ignore[arg-type]
        np.ones(size, np.uint8)

    assert in_child(lambda: take(2**20)) == 0
    assert in_child(lambda: take(2**28)) == 7 << 8


@linux
def test_files_beyond_the_limit_are_refused(tmp_path: Path) -> None:
    def write() -> None:
        limits.hold(file_bytes=1000)
        (tmp_path / "f").write_bytes(bytes(5000))

    assert in_child(write) == 8 << 8
    assert (tmp_path / "f").stat().st_size <= 1000


@linux
def test_a_limit_is_never_raised() -> None:
    import resource

    def twice() -> None:
        limits.hold(file_bytes=1000)
        limits.hold(file_bytes=10**9)
        assert resource.getrlimit(resource.RLIMIT_FSIZE) == (1000, 1000)
        assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)

    assert in_child(twice) == 0


@linux
def test_a_child_that_computes_too_long_is_ended() -> None:
    def spin() -> None:
        limits.hold(cpu_seconds=0)
        while True:
            pass

    assert "its CPU time was used up" in describe_status(in_child(spin))


def test_what_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATHE_WORKERS", "spawn")
    assert limits.missing() == ("memory", "CPU time", "size of written files")
    monkeypatch.delenv("LATHE_WORKERS")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert limits.missing() == (("memory",) if hasattr(os, "killpg") else limits.missing())
