"""A Python API that does what a test wants, and a command line that runs in this process."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from optimizer.cli.main import cli


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stands in for ``optimizer.api``; a test sets the functions that it expects to be called."""
    stub = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "optimizer.api", stub)
    return stub


@pytest.fixture
def lathe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run ``lathe ARGS`` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*args: str) -> Result:
        return CliRunner().invoke(cli, list(args))

    return run


def fails(error: BaseException) -> Callable[..., Any]:
    """A function that raises."""

    def function(*_: object, **__: object) -> Any:
        raise error

    return function


def one_object(text: str) -> dict[str, Any]:
    """The one JSON object that ``text`` is."""
    found = json.loads(text)
    assert isinstance(found, dict)
    return found
