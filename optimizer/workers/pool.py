"""The parent's side: starting workers, calling them, and saying plainly how they ended."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, BinaryIO, Self

from optimizer.faults import Exit, Fault
from optimizer.workers import limits, wire
from optimizer.workers.nursery import CONTROL_BYTES

PRELOAD = (
    "numpy",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "optimizer.runtime.jobs",
    "optimizer.source.onnx_file",
    "passes.catalogue",
)
_HERE = Path(__file__).parent
_OURS = str(_HERE.parents[1])


class WorkerDied(RuntimeError):
    """A worker ended without an answer: crashed, was killed, ran out of memory or time. The text says which."""


class CallFailed(RuntimeError):
    """The operation raised in the worker. ``kind`` is the exception's type there, ``trace`` its traceback."""

    def __init__(self, kind: str, text: str, trace: str) -> None:
        super().__init__(text)
        self.kind = kind
        self.trace = trace


class Worker:
    """One child process that answers calls, one at a time. Use as a context manager or call :meth:`close`."""

    def __init__(self, reader: BinaryIO, writer: BinaryIO, pid: int, life: _Life) -> None:
        self.pid = pid
        self._reader, self._writer, self._life = reader, writer, life
        self.timed_out = False
        self.alive = True

    @classmethod
    def ours(cls) -> Worker:
        """A worker with our operations: forked from the preloaded nursery, or a fresh process without fork."""
        return _nursery().fork() if hasattr(os, "fork") and _fork_allowed() else _fresh_ours()

    @classmethod
    def users(cls, folder: Path) -> Worker:
        """A worker for user code: a fresh interpreter that imports nothing of ours, ``folder`` first on its path."""
        command = [sys.executable, str(_HERE / "user_main.py"), str(folder), _OURS]
        return _spawn(command)

    def call(self, op: str, *, timeout: float | None = None, **args: Any) -> Any:
        """Run ``op`` there and return its result.

        Raises :class:`~optimizer.faults.Fault` when the operation did, :class:`CallFailed` for any other exception
        there, and :class:`WorkerDied` when the process ended or ``timeout`` seconds passed.
        """
        watch = threading.Timer(timeout, self._give_up) if timeout else None
        try:
            if watch:
                watch.daemon = True
                watch.start()
            wire.send(self._writer, {"op": op, "args": args})
            answer = wire.receive(self._reader)
        except (OSError, EOFError, ValueError) as error:
            raise WorkerDied(self._obituary(timeout)) from error
        except BaseException:
            self.kill()  # an interrupted conversation cannot be taken up again
            raise
        finally:
            if watch:
                watch.cancel()
        return _result(answer)

    def _give_up(self) -> None:
        self.timed_out = True
        self._kill_group()

    def _obituary(self, timeout: float | None) -> str:
        was_alive, self.alive = self.alive, False
        if not was_alive:
            return "the worker process had already ended"
        self._close_streams()
        status = self._life.wait()
        if self.timed_out:
            return f"no answer within {timeout:g} s"
        tail = self._life.last_words()
        return describe_status(status) + (f": {tail}" if tail else "")

    def kill(self) -> None:
        """End the process now."""
        if self.alive:
            self.alive = False
            self._kill_group()
            self._close_streams()
            self._life.wait()

    def close(self) -> None:
        """Let the process end by itself: it stops when the connection closes."""
        self.kill()

    def _kill_group(self) -> None:
        with contextlib.suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(self.pid, signal.SIGKILL)
            else:
                os.kill(self.pid, signal.SIGTERM)

    def _close_streams(self) -> None:
        for stream in (self._reader, self._writer):
            with contextlib.suppress(OSError, ValueError):
                stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Life:
    """How a process ends, and what it said on stderr."""

    def wait(self) -> int:
        raise NotImplementedError

    def last_words(self) -> str:
        return ""


class _Spawned(_Life):
    def __init__(self, process: subprocess.Popen[bytes], stderr: Any) -> None:
        self._process, self._stderr = process, stderr

    def wait(self) -> int:
        code = self._process.wait()
        return -code if code < 0 else code << 8

    def last_words(self) -> str:
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else ""


class _Forked(_Life):
    def __init__(self, nursery: _Nursery, pid: int) -> None:
        self._nursery, self._pid = nursery, pid

    def wait(self) -> int:
        try:
            return int(self._nursery.ask(f"reap {self._pid}"))
        except (OSError, ValueError):
            return 0


class _Nursery:
    """The parent's handle on the preloaded process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._control, theirs = socket.socketpair()
        settings = {"fd": theirs.fileno(), "path": _paths(), "preload": PRELOAD}
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(_HERE / "nursery.py"), json.dumps(settings)],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        theirs.close()
        atexit.register(self.close)

    def alive(self) -> bool:
        return self._process.poll() is None

    def fork(self) -> Worker:
        mine, theirs = socket.socketpair()
        with theirs:
            pid = int(self.ask("fork", theirs.fileno()))
        stream: Any = mine.makefile("rwb", buffering=1 << 16)
        mine.close()
        return Worker(stream, stream, pid, _Forked(self, pid))

    def ask(self, text: str, fd: int | None = None) -> str:
        with self._lock:
            socket.send_fds(self._control, [text.ljust(CONTROL_BYTES).encode()], [] if fd is None else [fd])
            data = b""
            while len(data) < CONTROL_BYTES:
                got = self._control.recv(CONTROL_BYTES - len(data))
                if not got:
                    raise OSError("the worker nursery ended")
                data += got
        return data.decode().strip()

    def close(self) -> None:
        self._control.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        if self.alive():
            self._process.kill()
            self._process.wait()


_SHARED: dict[int, _Nursery] = {}


def _nursery() -> _Nursery:
    """The one nursery of this process, started on first use and again should it have died."""
    found = _SHARED.get(os.getpid())
    if found is None or not found.alive():
        found = _SHARED[os.getpid()] = _Nursery()
    return found


def warm_up() -> None:
    """Start the nursery early, so that its imports run while the caller does something else."""
    if hasattr(os, "fork") and _fork_allowed():
        _nursery()


def describe_status(status: int) -> str:
    """A wait status in words: ``killed by SIGSEGV``, ``exit code 3``."""
    if status & 0x7F:
        number = status & 0x7F
        name = signal.Signals(number).name if number in set(signal.Signals) else str(number)
        extra = _SIGNS.get(name, "")
        return f"the worker process was killed by {name}{extra}"
    return f"the worker process ended with exit code {status >> 8}"


_SIGNS = {"SIGKILL": " (out of memory?)", "SIGXCPU": " (its CPU time was used up)"}


def _fork_allowed() -> bool:
    return not limits.forced_bare() and hasattr(socket, "send_fds")


def _fresh_ours() -> Worker:
    start = f"import sys; sys.path[:] = {_paths()!r}; from optimizer.workers.child import main; main()"
    return _spawn([sys.executable, "-I", "-c", start])


def _spawn(command: list[str]) -> Worker:
    log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True
    )
    assert process.stdin is not None and process.stdout is not None
    reader: Any = process.stdout
    writer: Any = process.stdin
    worker = Worker(reader, writer, process.pid, _Spawned(process, log))
    atexit.register(worker.kill)
    return worker


def _paths() -> list[str]:
    """Our ``sys.path`` for a worker of ours, with our own packages first and the current folder left out."""
    return [_OURS, *(p for p in sys.path if p not in ("", _OURS, str(Path.cwd())))]


def _result(answer: dict[str, Any]) -> Any:
    if "ok" in answer:
        return answer["ok"]
    error = answer["error"]
    if "fault" in error:
        told = error["fault"]
        raise Fault(told["code"], told["message"], Exit(told["exit"]), told["where"], told["hint"])
    raise CallFailed(error["type"], error["text"], error["trace"])
