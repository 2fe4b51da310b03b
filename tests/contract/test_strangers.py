"""Passes of someone else: whatever is wrong with their module or class is one line, before any work is done."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from optimizer.faults import Exit, Fault
from optimizer.plan import Settings, SourceRequest
from optimizer.workshop import plugins

HEAD = """
from dataclasses import dataclass
from passes.kit.contract import Exactness, Pass
print("imported")
"""

MODULES = {
    "raises": ("raise RuntimeError('boom')", "cannot load the pass 'raises:P': RuntimeError: boom"),
    "broken": ("def f(:", "cannot load the pass 'broken:P': SyntaxError: invalid syntax"),
    "leaves": ("import sys; sys.exit(9)", "cannot load the pass 'leaves:P': SystemExit: 9"),
    "empty": ("", "module 'empty' has no attribute 'P'"),
    "other": ("class P: pass", "'other:P' is not a subclass"),
    "unnamed": ("@dataclass(frozen=True)\nclass P(Pass):\n    exactness = Exactness.EXACT", "lacks its name"),
    "loose": ("@dataclass(frozen=True)\nclass P(Pass):\n    name = 'loose'", "lacks its name or its exactness"),
    "taken": ("class P(Pass):\n    name = 'tidy'\n    exactness = Exactness.EXACT", "'tidy' .* is taken already"),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_pass_that_cannot_be_used_is_refused_in_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    body, said = MODULES[name]
    (tmp_path / f"stranger_{name}.py").write_text(HEAD + body)
    monkeypatch.setattr(sys, "path", list(sys.path))
    said = said.replace(f"'{name}", f"'stranger_{name}")
    with pytest.raises(Fault, match=said) as caught:
        plugins(Settings(SourceRequest("m.onnx", folder=tmp_path), passes=(f"stranger_{name}:P",), cache_dir=tmp_path))
    assert caught.value.exit is Exit.USAGE and "\n" not in str(caught.value)
    assert not capsys.readouterr().out, "stdout is for data"
