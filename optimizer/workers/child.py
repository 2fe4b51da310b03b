"""What runs in a worker of ours: operations named ``module:function``, from this package only."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

from optimizer.workers import wire
from optimizer.workers.serve import serve


def find(op: str) -> Callable[..., Any]:
    """The function behind ``optimizer.room.module:function``."""
    module, _, name = op.partition(":")
    if not module.startswith("optimizer."):
        raise ValueError(f"'{op}' is not an operation of ours")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


def attend(stream: Any) -> None:
    """Serve one connection until it closes."""
    serve(stream, stream, wire, find)


def main() -> None:
    """Serve on stdin and stdout: the way of systems that cannot fork."""
    reader: BinaryIO = sys.stdin.buffer
    writer: BinaryIO = sys.stdout.buffer
    sys.stdout = sys.stderr
    serve(reader, writer, wire, find)
