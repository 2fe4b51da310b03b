"""Fault drills: killed at every stage, disk full, read-only, out of memory, a provider that crashes or hangs.

Whatever happens: no half-written artifact, no corrupt store, the next run takes up where this one ended, and the
message names the cause. Each drill runs in a forked child of this process, which has everything imported.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimizer.api import compile_settings
from optimizer.cli.boundary import Scene, guard
from optimizer.faults import Exit, Fault
from optimizer.package import artifact
from optimizer.package.check import verify
from optimizer.plan import Settings, SourceRequest
from optimizer.progress import Silent
from optimizer.runtime import sessions
from optimizer.store.store import Store
from optimizer.workers import limits
from optimizer.workers.pool import Worker
from passes.kit.model import Model
from tests.package import parts
from tests.redteam.attacks_onnx import graphs
from tests.source.onnx_models import model, node, save, tensor
from tests.support import runtime

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="drills run in forked children")
STAGES = ("opening the model", "reading the data", "trying recipes", "confirming", "writing the artifact")
MOMENTS = ("half of the files", "before the rename", "after the rename")


def adder(folder: Path, name: str = "adder.onnx") -> Path:
    """y = Relu(x + w)."""
    nodes = [node("Add", ["x", "w"], ["h"]), node("Identity", ["h"], ["i"]), node("Relu", ["i"], ["y"])]
    return save(model(nodes, [tensor("w", np.arange(1024, dtype=np.float32).reshape(256, 4)[:1])]), folder, name)


def settings(path: Path, folder: Path, **changes: Any) -> Settings:
    made = Settings(SourceRequest(str(path), folder=folder), level=0, seconds=0.05, golden="none")
    return made.but(cache_dir=folder / "cache", output=folder / "out.lathe", **changes)


def in_child(action: Callable[[], Any]) -> int:
    """Wait status of a forked child that runs ``action``: exit code 0 when it returned, 1 when it raised."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            action()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1]


class KilledAt(Silent):
    """Dies without a word when a stage begins, or at a moment of writing."""

    def __init__(self, when: str) -> None:
        self.when = when

    def stage(self, text: str) -> None:
        if text == self.when:
            os.kill(os.getpid(), signal.SIGKILL)
        if text == STAGES[-1] and self.when in MOMENTS:
            self.arm()

    def arm(self) -> None:
        """Put the death into the writing of the artifact."""
        write, place = artifact.write_text, artifact._put_in_place

        def writing(path: Path, text: str) -> None:
            write(path, text[: len(text) // 2] if self.when == MOMENTS[0] else text)
            if self.when == MOMENTS[0]:
                os.kill(os.getpid(), signal.SIGKILL)

        def placing(*args: Any) -> None:
            if self.when == MOMENTS[2]:
                place(*args)
            os.kill(os.getpid(), signal.SIGKILL)

        artifact.write_text = writing
        if self.when != MOMENTS[0]:
            artifact._put_in_place = placing


def sound(cache: Path) -> int:
    """Every model and answer in the store is whole; how many there are."""
    store = Store(cache)
    models = [store.get_model(path.stem) for path in (cache / "graphs").glob("[0-9a-f]*.onnx")]
    answers = [store.get_answer(path.name) for path in (cache / "answers").glob("[0-9a-f]*")]
    assert all(found is not None for found in (*models, *answers))
    return len(models) + len(answers)


def test_killed_at_every_stage_boundary_and_taken_up_again(tmp_path: Path) -> None:
    path, kept = adder(tmp_path), 0
    for when in (*STAGES, *MOMENTS):
        status = in_child(lambda when=when: compile_settings(settings(path, tmp_path), KilledAt(when)))
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, f"it lived through '{when}'"
        assert sound(tmp_path / "cache") >= kept, "what was done is kept"
        kept = sound(tmp_path / "cache")
        if when != MOMENTS[-1]:
            assert not (tmp_path / "out.lathe").exists(), f"killed at '{when}', it left an artifact"
    assert verify(tmp_path / "out.lathe").ok
    shutil.rmtree(tmp_path / "out.lathe")
    left = list(tmp_path.glob(".out.lathe.*.partial"))
    assert len(left) == 2, "two runs died while they wrote"
    for folder in left:
        os.utime(folder, (0, 0))
    assert in_child(lambda: compile_settings(settings(path, tmp_path))) == 0
    assert verify(tmp_path / "out.lathe").ok
    assert not list(tmp_path.glob(".out.lathe.*.partial")), "the next run sweeps what the dead left behind"


def test_a_folder_that_a_living_run_writes_is_not_swept(tmp_path: Path) -> None:
    with artifact._partial(tmp_path / "a.lathe") as mine:
        os.utime(mine, (0, 0))
        with artifact._partial(tmp_path / "a.lathe"):
            assert mine.exists()


# -- disks -----------------------------------------------------------------------------------------------------------
@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KB, where this user may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if not sys.platform.startswith("linux") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a file system needs rights that this user lacks")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def large() -> Model:
    """400 KB of weights."""
    return runtime.model(parts.TEXT.replace("32", "320"), w=np.ones((320, 320), np.float32))


def test_a_full_disk_leaves_no_artifact_and_says_so(small_disk: Path) -> None:
    with pytest.raises(Fault, match="the disk is full") as caught:
        artifact.write(small_disk / "out.lathe", replace(parts.contents(), model=large()))
    assert caught.value.code == "disk-full" and caught.value.exit is Exit.FAULT
    assert not list(small_disk.iterdir())
    artifact.write(small_disk / "out.lathe", parts.contents())
    assert verify(small_disk / "out.lathe").ok, "there is room for a small one"


def test_a_full_disk_leaves_a_sound_store(small_disk: Path) -> None:
    store = Store(small_disk / "cache")
    store.put_model(parts.model())
    with pytest.raises(Fault, match="cannot write to the cache: No space left on device"):
        store.put_model(large())
    assert sound(small_disk / "cache") == 1
    assert not list((small_disk / "cache").rglob(".new-*"))


def test_a_file_size_limit_is_told_like_a_full_disk(tmp_path: Path) -> None:
    """Without rights to mount anything: the system refuses to let a file grow."""

    def write() -> None:
        limits.hold(file_bytes=100_000)
        with pytest.raises(Fault, match="cannot be written: File too large") as caught:
            artifact.write(tmp_path / "out.lathe", replace(parts.contents(), model=large()))
        assert caught.value.exit is Exit.FAULT
        with pytest.raises(Fault, match="cannot write to the cache: File too large"):
            Store(tmp_path / "cache").put_model(large())

    assert in_child(write) == 0
    assert not (tmp_path / "out.lathe").exists() and not list(tmp_path.glob(".out*"))
    assert sound(tmp_path / "cache") == 0


def test_a_read_only_output_is_refused_before_the_work(small_disk: Path, tmp_path: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(Fault, match="read-only") as caught:
        compile_settings(settings(adder(tmp_path), tmp_path).but(output=small_disk / "out.lathe"))
    assert caught.value.code == "read-only" and caught.value.exit is Exit.FAULT
    assert not (tmp_path / "cache").exists(), "nothing was begun"


# -- memory ----------------------------------------------------------------------------------------------------------
def test_out_of_memory_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    weights = tensor("w", np.ones((2**24,), np.float32))
    big = model([node("Slice", ["w", "a", "b"], ["s"]), node("Add", ["x", "s"], ["y"])],
                [weights, tensor("a", [0], np.int64), tensor("b", [4], np.int64)])  # fmt: skip
    path = save(big, tmp_path)

    def run() -> None:
        held = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
        limits.hold(data_bytes=int(held.split()[1]) * 1024 + 50 * 2**20)
        code = guard(Scene("optimize", True, False), lambda: compile_settings(settings(path, tmp_path)) and None)
        assert code in (Exit.FAULT, Exit.BAD_INPUT), code

    assert in_child(run) == 0
    error = json.loads(capfd.readouterr().out)["error"]
    assert "memory" in error["message"], error
    assert not (tmp_path / "out.lathe").exists() and sound(tmp_path / "cache") >= 0


# -- providers -------------------------------------------------------------------------------------------------------
def sabotaged(monkeypatch: pytest.MonkeyPatch, op: str, instead: str, **args: Any) -> None:
    """Let the job ``op`` of every worker be one that crashes, or sleeps."""
    call = Worker.call

    def sly(self: Worker, asked: str, *, timeout: float | None = None, **given: Any) -> Any:
        if asked.endswith(op):
            return call(self, f"optimizer.workers.probe:{instead}", timeout=timeout, **args)
        return call(self, asked, timeout=timeout, **given)

    monkeypatch.setattr(Worker, "call", sly)


def test_a_provider_that_crashes_on_the_source_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sabotaged(monkeypatch, ":run_model", "crash")
    with pytest.raises(Fault, match=r"CPUExecutionProvider took its process down: .*SIGSEGV") as caught:
        compile_settings(settings(adder(tmp_path), tmp_path))
    assert caught.value.code == "provider-crashed" and caught.value.exit is Exit.UNDECIDED
    assert not (tmp_path / "out.lathe").exists()
    monkeypatch.undo()
    assert compile_settings(settings(adder(tmp_path), tmp_path)).artifact, "the next run is well"


def test_a_provider_that_crashes_while_timing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sabotaged(monkeypatch, ":time_block", "crash")
    with pytest.raises(Fault, match="took its process down"):
        compile_settings(settings(adder(tmp_path), tmp_path))
    assert not (tmp_path / "out.lathe").exists() and sound(tmp_path / "cache")


def test_a_model_that_never_ends_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop of 2**62 turns hangs the real runtime."""
    monkeypatch.setattr(sessions, "CALL_SECONDS", 1.0)
    path = graphs()["loop without end"](tmp_path)
    with pytest.raises(Fault, match=r"CPUExecutionProvider did not finish in 1 s. The model may never end") as caught:
        compile_settings(settings(path, tmp_path))
    assert caught.value.code == "provider-hung" and caught.value.exit is Exit.UNDECIDED
    assert not (tmp_path / "out.lathe").exists()


# -- systems without fork and limits ---------------------------------------------------------------------------------
def test_without_fork_and_limits_a_file_opens_and_the_missing_protection_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATHE_WORKERS", "spawn")
    record = compile_settings(settings(adder(tmp_path), tmp_path))
    assert any("this system cannot limit memory and CPU time" in warning for warning in record.warnings)
    assert verify(tmp_path / "out.lathe").ok
    monkeypatch.setenv("LATHE_WORKERS", "fork")
    assert not limits.missing() or not sys.platform.startswith("linux")
