"""Operations that exist to try a worker: used by tests and by ``lathe doctor``."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from optimizer.faults import bad_input


def echo(thing: Any) -> Any:
    """The thing that was sent."""
    return thing


def fail(text: str) -> None:
    """Raise a :class:`~optimizer.faults.Fault` that says ``text``."""
    raise bad_input(text)


def crash() -> None:
    """Die the way native code dies."""
    os.kill(os.getpid(), signal.SIGSEGV)


def sleep(seconds: float) -> None:
    """Take a while."""
    time.sleep(seconds)
