"""The preloaded process that forks workers: imports are paid once, a worker costs a fork.

Started by path as ``python -I nursery.py``; its one argument is JSON: the control socket, ``sys.path`` and what to
import. It creates no session and no thread itself, because those do not survive a fork. On the control socket it
answers ``fork`` (with one end of a socket pair attached) by the child's pid, and ``reap PID`` by the wait status.
When the parent goes away, whatever the reason, it kills every worker and ends.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import sys

CONTROL_BYTES = 64


def main() -> None:
    settings = json.loads(sys.argv[1])
    sys.path[:] = settings["path"]
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control = socket.socket(fileno=settings["fd"])
    for name in settings["preload"]:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    children: set[int] = set()
    try:
        while _answer(control, children):
            pass
    finally:
        for pid in children:
            with contextlib.suppress(OSError):
                os.killpg(pid, signal.SIGKILL)


def _answer(control: socket.socket, children: set[int]) -> bool:
    data, fds, _, _ = socket.recv_fds(control, CONTROL_BYTES, 1)
    if not data:
        return False
    word, _, number = data.decode().strip().partition(" ")
    if word == "fork":
        pid = _fork(control, fds[0])
        children.add(pid)
        os.close(fds[0])
        control.sendall(f"{pid}".ljust(CONTROL_BYTES).encode())
    else:
        _, status = os.waitpid(int(number), 0)
        children.discard(int(number))
        control.sendall(f"{status}".ljust(CONTROL_BYTES).encode())
    return True


def _fork(control: socket.socket, fd: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setsid()
        control.close()
        from optimizer.workers import limits
        from optimizer.workers.child import attend

        limits.hold(data_bytes=limits.share_of_memory())
        attend(socket.socket(fileno=fd).makefile("rwb", buffering=1 << 16))
        status = 0
    finally:
        os._exit(status)


if __name__ == "__main__":
    main()
