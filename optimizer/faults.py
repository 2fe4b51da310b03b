"""Errors that people are meant to read, and the one place that knows the exit codes."""

from __future__ import annotations

import enum
from dataclasses import asdict, dataclass


class Exit(enum.IntEnum):
    """Process exit codes; README documents the same table."""

    DONE = 0
    DOES_NOT_HOLD = 1
    USAGE = 2
    BAD_INPUT = 3
    UNDECIDED = 4
    FAULT = 5
    INTERRUPTED = 130


@dataclass
class Fault(Exception):
    """A failure with a name: one line that says what is wrong, where, and what to do.

    ``code`` is a stable kebab-case word for machines, ``exit`` the process exit code.
    """

    code: str
    message: str
    exit: Exit = Exit.BAD_INPUT
    where: str = ""
    hint: str = ""

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}. {self.hint}" if self.hint else text

    def as_json(self) -> dict[str, str]:
        """The ``error`` member of a record."""
        plain = asdict(self)
        return {key: str(plain[key]) for key in ("code", "message", "where", "hint")}


def usage(message: str, *, where: str = "", hint: str = "", code: str = "usage") -> Fault:
    """What the user typed cannot be meant, or the output exists."""
    return Fault(code, message, Exit.USAGE, where, hint)


def bad_input(message: str, *, where: str = "", hint: str = "", code: str = "bad-input") -> Fault:
    """A model or data file is missing, broken, or refused as unsafe."""
    return Fault(code, message, Exit.BAD_INPUT, where, hint)


def limit_not_met(message: str, *, where: str = "", hint: str = "", code: str = "limit-not-met") -> Fault:
    """A limit that the user set does not hold, or a check found a mismatch."""
    return Fault(code, message, Exit.DOES_NOT_HOLD, where, hint)


def cannot(message: str, *, where: str = "", hint: str = "", code: str = "environment") -> Fault:
    """The environment cannot do it: a provider, a package or data is missing."""
    return Fault(code, message, Exit.UNDECIDED, where, hint)


def broken(message: str, *, where: str = "", hint: str = "", code: str = "fault") -> Fault:
    """Our bug, a pass that broke its contract, or the machine ran out of disk, memory or permission."""
    return Fault(code, message, Exit.FAULT, where, hint)
