"""How a long walk tells where it is: a small protocol that the console implements and everything else ignores."""

from __future__ import annotations

from typing import Protocol

from optimizer.records import Step


class Watcher(Protocol):
    """Receives what happens during a compile or a benchmark."""

    def stage(self, text: str) -> None:
        """A new stage began (``exporting``, ``measuring the baseline``)."""

    def progress(self, done: int, total: int, seconds_left: float | None) -> None:
        """How many of the planned recipes are through, and the time that the rest should take."""

    def step(self, step: Step) -> None:
        """A recipe was judged."""

    def note(self, text: str) -> None:
        """Something that a careful reader wants to know (shown with ``-v``)."""

    def warn(self, text: str) -> None:
        """Something that everyone should know."""


class Silent:
    """A watcher that says nothing."""

    def stage(self, text: str) -> None:
        pass

    def progress(self, done: int, total: int, seconds_left: float | None) -> None:
        pass

    def step(self, step: Step) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        pass
