"""Progress for people: a live line on a terminal, plain lines elsewhere, everything with times in a log file."""

from __future__ import annotations

import contextlib
import datetime
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import click

from optimizer.faults import broken
from optimizer.records import Judgement, Step
from optimizer.report import words

SECONDS_BETWEEN_LINES = 5.0


@contextlib.contextmanager
def watching(*, verbose: bool = False, quiet: bool = False, log_file: Path | None = None) -> Iterator[Lines]:
    """A watcher for the time of the block. ``quiet`` leaves warnings only."""
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(_open_log(log_file)) if log_file else None
        watch = Live(verbose, log) if _live_terminal() and not quiet else Lines(verbose, quiet, log)
        stack.callback(watch.close)
        try:
            yield watch
        except BaseException as error:
            watch.keep(f"ended with {type(error).__name__}: {error}")
            raise


class Lines:
    """One line for each thing that happens."""

    def __init__(self, verbose: bool = False, quiet: bool = False, log: IO[str] | None = None) -> None:
        self._verbose, self._quiet, self._log = verbose, quiet, log
        self._last_progress = -math.inf
        self.warned: set[str] = set()

    def stage(self, text: str) -> None:
        self._last_progress = -math.inf
        self._say(text)

    def progress(self, done: int, total: int, seconds_left: float | None) -> None:
        now = time.monotonic()
        if done and now - self._last_progress > SECONDS_BETWEEN_LINES:
            self._last_progress = now
            self._say(f"  {_position(done, total, seconds_left)}")

    def step(self, step: Step) -> None:
        self._say(f"  {_judged(step)}")

    def note(self, text: str) -> None:
        if self._verbose:
            self._say(f"  {text}")
        else:
            self.keep(text)

    def warn(self, text: str) -> None:
        self.warned.add(text)
        self.keep(f"warning: {text}")
        self._print(f"warning: {text}")

    def keep(self, text: str) -> None:
        """Write to the log file only."""
        if self._log is not None:
            now = datetime.datetime.now().isoformat(timespec="milliseconds")
            self._log.write(f"{now} {text}\n")
            self._log.flush()

    def close(self) -> None:
        """Nothing more will happen."""

    def _say(self, text: str) -> None:
        self.keep(text.strip())
        if not self._quiet:
            self._print(text)

    def _print(self, text: str) -> None:
        with contextlib.suppress(BrokenPipeError):
            click.echo(text, err=True)


class Live(Lines):
    """The same with one line that moves at the bottom of a terminal."""

    def __init__(self, verbose: bool = False, log: IO[str] | None = None) -> None:
        super().__init__(verbose, False, log)
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        self._status: Any = None
        self._stage = ""
        self._where = ""

    def stage(self, text: str) -> None:
        self.keep(text)
        self._stage, self._where = text, ""
        self._show()

    def progress(self, done: int, total: int, seconds_left: float | None) -> None:
        self._where = _position(done, total, seconds_left)
        self._show()

    def close(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    @property
    def shown(self) -> str:
        """The text of the moving line."""
        return f"{self._stage}  {self._where}".rstrip()

    def _show(self) -> None:
        from rich.text import Text

        if self._status is None:
            # A few times a second spares the machine that is being measured.
            self._status = self._console.status(Text(self.shown), refresh_per_second=4)
            self._status.start()
        else:
            self._status.update(Text(self.shown))

    def _print(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)


def _judged(step: Step) -> str:
    label, verdict, measured, why = words.step_cells(step)
    shown = f" {measured}" if measured else ""
    reason = f": {why}" if why and (step.verdict.judgement is not Judgement.ACCEPTED or not measured) else ""
    return f"{label} {verdict}{shown}{reason}"


def _position(done: int, total: int, seconds_left: float | None) -> str:
    left = f", about {words.duration(seconds_left)} left" if seconds_left is not None else ""
    return f"{done} of {total}{left}"


def _live_terminal() -> bool:
    return sys.stderr.isatty() and not os.environ.get("CI") and os.environ.get("TERM") != "dumb"


def _open_log(path: Path) -> IO[str]:
    try:
        return path.open("a", encoding="utf-8")
    except OSError as error:
        raise broken(f"cannot write the log file: {error.strerror}", where=str(path), code="cannot-write") from error
