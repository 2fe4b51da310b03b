"""What starting costs: help loads click alone."""

from __future__ import annotations

import subprocess
import sys

import pytest

from optimizer import __version__
from optimizer.cli.main import VERBS, cli

PROGRAM = """
import atexit, sys
def tell():
    heavy = [m for m in ("numpy", "rich", "onnx", "onnx_ir", "onnxruntime", "torch", "scipy") if m in sys.modules]
    print("HEAVY", heavy, file=sys.stderr)
atexit.register(tell)
from optimizer.cli.main import main
main()
"""


def lathe(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PROGRAM, *args], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "args", [("--help",), ("--version",), ("optimize", "--help"), ("optimise",), ("cache", "path")]
)
def test_nothing_heavy_is_loaded(args: tuple[str, ...]) -> None:
    result = lathe(*args)
    assert result.stderr.strip().endswith("HEAVY []"), result.stderr
    assert result.returncode == (2 if args == ("optimise",) else 0)


def test_help_names_every_verb_and_every_verb_exists() -> None:
    text = lathe("--help").stdout
    for name in VERBS:
        assert f"  {name} " in text
        command = cli.get_command(None, name)  # type: ignore[arg-type]
        assert command is not None and command.name == name and command.help
    assert lathe("--version").stdout == f"lathe {__version__}\n"


def test_every_option_says_what_it_does() -> None:
    for name in VERBS:
        command = cli.get_command(None, name)  # type: ignore[arg-type]
        for verb in getattr(command, "commands", {name: command}).values():
            silent = [
                p.name for p in verb.params if getattr(p, "help", "") in (None, "") and p.param_type_name == "option"
            ]
            assert not silent
