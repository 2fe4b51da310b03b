"""A compile that is killed in the middle leaves nothing half-written and is taken up again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import optimizer
from tests.support import models

ROOT = Path(__file__).parents[2]


def start(model: Path, data: Path, folder: Path, cache: Path) -> subprocess.Popen[bytes]:
    code = "import sys; from optimizer.cli.main import main; main()"
    arguments = ["optimize", str(model), "--data", str(data), "-o", str(folder / "out.lathe"), "--seconds", "1"]
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments, "--cache-dir", str(cache), "--budget", "top1.drop<=0.05"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def wait_for(cache: Path, answers: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while len(list(cache.glob("answers/[0-9a-f]*"))) < answers:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


def nurseries() -> set[str]:
    """Process ids of worker nurseries on this machine."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"nursery.py" in (folder / "cmdline").read_bytes():
                found.add(folder.name)
    return found


def parent_of(pid: str) -> int:
    """Parent of a process, 0 when it has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return 0


def wait_until_gone(pids: set[str]) -> None:
    deadline = time.monotonic() + 20
    while pids & nurseries():
        assert time.monotonic() < deadline, "workers outlived the command that started them"
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
def test_killed_interrupted_and_taken_up_again(tmp_path: Path) -> None:
    model = models.cnn(tmp_path / "cnn.onnx")
    data = models.images(tmp_path / "data.npz", model)
    cache, answers = tmp_path / "cache", 0
    for number, how in ((6, signal.SIGKILL), (14, signal.SIGINT)):
        before = nurseries()
        process = start(model, data, tmp_path, cache)
        wait_for(cache, number, process)
        mine = {p for p in nurseries() - before if parent_of(p) == process.pid}
        assert mine, "workers were at work"
        os.kill(process.pid, how)
        code = process.wait(timeout=30)
        wait_until_gone(mine)
        assert code == (-signal.SIGKILL if how is signal.SIGKILL else 130)
        assert not list(tmp_path.glob("*.lathe")) and not list(tmp_path.glob(".*partial"))
        assert len(list(cache.glob("answers/[0-9a-f]*"))) >= answers, "what was done is kept"
        answers = len(list(cache.glob("answers/[0-9a-f]*")))
    process = start(model, data, tmp_path, cache)
    assert process.wait(timeout=120) == 0
    assert optimizer.verify(tmp_path / "out.lathe").ok
