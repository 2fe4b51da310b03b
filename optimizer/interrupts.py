"""Ctrl-C in two steps: the first ends the search and lets the best so far be confirmed, the second ends everything."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def first_interrupt(then: Callable[[], None]) -> Iterator[None]:
    """Call ``then`` at the first Ctrl-C inside the block instead of raising; the next one raises as always.

    The work in hand goes on, so ``then`` should make it end soon. Outside the main thread nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        then()

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
