"""Whatever goes wrong ends as one line, one object, and the documented exit code."""

from __future__ import annotations

import errno
from collections.abc import Callable
from types import SimpleNamespace

import click
import pytest
from click.testing import Result

from optimizer import faults
from optimizer.cli import boundary
from tests.cli.conftest import fails, one_object

Lathe = Callable[..., Result]

ERRORS: list[tuple[BaseException, int, str, str]] = [
    (faults.usage("bad flag", hint="Read the help."), 2, "usage", "error: bad flag. Read the help."),
    (faults.bad_input("truncated", where="m.onnx"), 3, "bad-input", "error: m.onnx: truncated"),
    (faults.limit_not_met("latency"), 1, "limit-not-met", "error: latency"),
    (faults.cannot("no cuda"), 4, "environment", "error: no cuda"),
    (faults.broken("a pass lied"), 5, "fault", "error: a pass lied"),
    (KeyboardInterrupt(), 130, "interrupted", "error: interrupted"),
    (MemoryError(), 5, "out-of-memory", "error: out of memory"),
    (OSError(errno.ENOSPC, "full", "/cache/x"), 5, "disk-full", "error: /cache/x: the disk is full"),
    (OSError(errno.EROFS, "ro"), 5, "read-only", "error: the file system is read-only"),
    (PermissionError(errno.EACCES, "no", "/etc/x"), 5, "no-permission", "error: /etc/x: there is no permission"),
    (ZeroDivisionError("a\nb"), 5, "internal", "error: internal error (ZeroDivisionError: a b)"),
    (KeyError(), 5, "internal", "error: internal error (KeyError)"),
]


@pytest.mark.parametrize(("error", "code", "word", "line"), ERRORS, ids=[e[2] + str(e[1]) for e in ERRORS])
def test_a_failure_is_one_line(
    lathe: Lathe, api: SimpleNamespace, error: BaseException, code: int, word: str, line: str
) -> None:
    api.compile_settings = fails(error)
    result = lathe("optimize", "m.onnx", "-q")
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith(line) and result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(("error", "code", "word", "line"), ERRORS, ids=[e[2] + str(e[1]) for e in ERRORS])
def test_a_failure_is_one_object(
    lathe: Lathe, api: SimpleNamespace, error: BaseException, code: int, word: str, line: str
) -> None:
    api.compile_settings = fails(error)
    result = lathe("optimize", "m.onnx", "--json")
    tree = one_object(result.stdout)
    assert result.exit_code == code
    assert tree["schema"] == "lathe.record/1" and tree["outcome"] == "none" and tree["artifact"] is None
    assert tree["error"]["code"] == word and tree["source"] == "m.onnx"


def test_a_polite_kill_is_said_and_keeps_its_code(lathe: Lathe, api: SimpleNamespace) -> None:
    api.compile_settings = fails(SystemExit(143))
    result = lathe("optimize", "m.onnx", "-q", "--json")
    assert (result.exit_code, result.stderr) == (143, "error: terminated\n")
    assert one_object(result.stdout)["error"]["code"] == "terminated"


def test_debug_shows_the_traceback(lathe: Lathe, api: SimpleNamespace) -> None:
    api.compile_settings = fails(ZeroDivisionError("x"))
    result = lathe("optimize", "m.onnx", "--debug")
    assert "Traceback" in result.stderr and "ZeroDivisionError: x" in result.stderr and result.exit_code == 5


def test_other_verbs_fail_with_an_object_too(lathe: Lathe, api: SimpleNamespace) -> None:
    api.doctor = api.verify = fails(faults.bad_input("gone"))
    for args, schema in ((("doctor", "--json"), "lathe.doctor/1"), (("verify", "x", "--json"), "lathe.verify/1")):
        result = lathe(*args)
        assert result.exit_code == 3
        assert one_object(result.stdout) == {"schema": schema, "error": faults.bad_input("gone").as_json()}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("optimise", "m.onnx"), "no command 'optimise' (did you mean 'optimize'?)"),
        (("optimize", "m.onnx", "--buget", "x"), "--budget"),
        (("optimize",), "missing argument 'MODEL'"),
        (("optimize", "m.onnx", "--goal", "latancy"), "no goal 'latancy' (did you mean 'latency'?)"),
        (("optimize", "m.onnx", "--provider", "cuba"), "no provider 'cuba' (did you mean 'cuda'?)"),
        (("optimize", "m.onnx", "-O4"), "range"),
        (("optimize", "m.onnx", "--seed", "-1"), "range"),
        (("optimize", "m.onnx", "--threads", "0"), "range"),
        (("cache", "purne"), "no action 'purne' (did you mean 'prune'?)"),
        (("cache", "prune", "--max-size", "10 apples"), "is not a size"),
        (("inspect", "m.onnx", "--size", "batch"), "NAME=NUMBER"),
        (("benchmark",), "missing argument"),
        (("--nope",), "no such option"),
    ],
)
def test_what_cannot_be_meant_is_usage(lathe: Lathe, args: tuple[str, ...], said: str) -> None:
    result = lathe(*args)
    assert result.exit_code == 2 and result.stdout == ""
    assert said in result.stderr.lower() or said in result.stderr
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    as_object = one_object(lathe(*args, "--json").stdout)
    assert as_object["error"]["code"] == "usage"


def test_a_reader_that_went_away_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    monkeypatch.setattr(boundary, "close_stdout", lambda: closed.append(True))
    monkeypatch.setattr(click, "echo", fails(BrokenPipeError()))
    boundary.emit("data")
    assert boundary.guard(boundary.Scene("passes", False, False), fails(BrokenPipeError())) == 0
    assert closed == [True, True]


def test_a_reader_that_went_away_does_not_change_the_exit_code(
    lathe: Lathe, api: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.verify = lambda *_, **__: SimpleNamespace(ok=False, findings=(), folder="x", as_json=dict)
    monkeypatch.setattr(click, "echo", fails(BrokenPipeError()))
    monkeypatch.setattr(boundary, "close_stdout", lambda: None)
    assert lathe("verify", "x", "--json").exit_code == 1


def test_no_arguments_is_help(lathe: Lathe) -> None:
    for args in ((), ("cache",)):
        result = lathe(*args)
        assert result.exit_code == 2 and "error" not in result.stderr and "Commands:" in result.stderr
