"""The one place where errors of any kind become a line for people, an object for machines, and an exit code."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import click

from optimizer.faults import Exit, Fault, broken, usage

_OF_THE_MACHINE = {
    errno.ENOSPC: ("disk-full", "the disk is full", "Free some space."),
    errno.EDQUOT: ("disk-full", "the disk quota is used up", "Free some space."),
    errno.EROFS: ("read-only", "the file system is read-only", "Choose another place with --output or --cache-dir."),
    errno.EACCES: ("no-permission", "there is no permission", "Check who owns it, or choose another place."),
    errno.EPERM: ("no-permission", "there is no permission", "Check who owns it, or choose another place."),
}


@dataclass
class Scene:
    """What must be known even when the arguments cannot be read. ``source`` is filled in by the verb."""

    verb: str
    json: bool
    debug: bool
    source: str = ""

    @classmethod
    def of(cls, argv: list[str], verbs: Iterable[str]) -> Scene:
        """Read it off the raw arguments."""
        own = argv[: argv.index("--")] if "--" in argv else argv
        verb = next((a for a in own if not a.startswith("-")), "")
        return cls(verb if verb in verbs else "", "--json" in own, "--debug" in own)


def guard(scene: Scene, action: Callable[[], None]) -> int:
    """Run ``action`` and return the exit code; whatever it raises is told in one line."""
    try:
        action()
        return int(Exit.DONE)
    except click.exceptions.Exit as done:
        return done.exit_code
    except (KeyboardInterrupt, click.Abort) as error:
        return _told(scene, error, Fault("interrupted", "interrupted", Exit.INTERRUPTED))
    except SystemExit as stop:  # a polite kill
        _told(scene, stop, Fault("terminated", "terminated", Exit.INTERRUPTED))
        return int(stop.code or 0)
    except BrokenPipeError:
        close_stdout()
        return int(Exit.DONE)
    except click.exceptions.NoArgsIsHelpError as help_text:
        help_text.show()
        return int(Exit.USAGE)
    except Exception as error:
        return _told(scene, error, as_fault(error))


def as_fault(error: Exception) -> Fault:
    """Any exception as a fault."""
    if isinstance(error, Fault):
        return error
    if isinstance(error, click.ClickException):
        return _usage_fault(error)
    if isinstance(error, MemoryError) or "alloc failed" in str(error):  # how protobuf says it
        hint = "Use a smaller --batch, fewer samples, or a machine with more memory."
        return broken("out of memory", hint=hint, code="out-of-memory")
    if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
        code, message, hint = _OF_THE_MACHINE[error.errno]
        return broken(message, where=str(error.filename or ""), hint=hint, code=code)
    said = " ".join(str(error).split())[:300]
    message = f"internal error ({type(error).__name__}: {said})" if said else f"internal error ({type(error).__name__})"
    return broken(message, hint="This is a bug in Lathe: run again with --debug and report it.", code="internal")


def unknown(kind: str, word: str, known: Iterable[str]) -> str:
    """``no command 'optimise' (did you mean 'optimize'?)``"""
    from passes.kit.options import closest

    return f"no {kind} '{word}'{closest(word, known)}"


def emit(text: str) -> None:
    """Data for stdout. A reader that went away is no error, and does not change the exit code."""
    try:
        click.echo(text)
        sys.stdout.flush()
    except BrokenPipeError:
        close_stdout()


def close_stdout() -> None:
    """Let whatever is still written to stdout vanish, so that the interpreter does not complain at its end."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123  (stays open to the end)


def _told(scene: Scene, error: BaseException, fault: Fault) -> int:
    if scene.debug:
        import traceback

        traceback.print_exception(error, file=sys.stderr)
    click.echo(f"error: {' '.join(str(fault).split())}", err=True)
    if scene.json:
        from optimizer.report.json_ import failure

        emit(failure(fault, scene.verb, scene.source))
    return int(fault.exit)


def _usage_fault(error: click.ClickException) -> Fault:
    ctx: click.Context | None = getattr(error, "ctx", None)
    hint = f"See '{ctx.command_path} --help'." if ctx is not None else ""
    message = _from_config(error, ctx) + error.format_message().rstrip(".")
    return usage(message[:1].lower() + message[1:], hint=hint)


def _from_config(error: Any, ctx: click.Context | None) -> str:
    """Where a bad value stands, when that is not the command line."""
    param = getattr(error, "param", None)
    if ctx is None or param is None or not ctx.default_map or param.name not in ctx.default_map:
        return ""
    if ctx.get_parameter_source(param.name) is click.core.ParameterSource.COMMANDLINE:
        return ""
    return f"{ctx.meta.get('lathe.config', 'settings')}: "
