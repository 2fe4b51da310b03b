"""What the documents promise: the pass in fifty lines works as printed, every command shown is understood."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper as h

import optimizer
from optimizer.cli.main import cli
from optimizer.faults import Exit
from tests.support import models

ROOT = Path(__file__).parents[2]


def blocks(name: str, language: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_pass_in_fifty_lines_works_as_printed(tmp_path: Path) -> None:
    code = next(b for b in blocks("CONTRIBUTING.md", "python") if "class DropDoubleNeg" in b)
    assert len(code.splitlines()) < 50
    (tmp_path / "my_passes.py").write_text(code)
    nodes = [h.make_node("Neg", ["x"], ["a"]), h.make_node("Neg", ["a"], ["b"]), h.make_node("Relu", ["b"], ["y"])]
    ports = {"x": (T.FLOAT, ["n", 4])}, {"y": (T.FLOAT, ["n", 4])}
    model = models.save(tmp_path / "neg.onnx", nodes, *ports, {})
    np.savez(tmp_path / "data.npz", x=np.ones((30, 4), np.float32))
    record = optimizer.compile(
        str(model), data=str(tmp_path / "data.npz"), output=tmp_path / "out.lathe", cache_dir=tmp_path / "cache",
        passes=("my_passes:DropDoubleNeg",), recipe="drop-double-neg{limit=10}, tidy", folder=tmp_path, seconds=0.1,
    )  # fmt: skip
    step = next(s for s in record.steps if s.label == "your recipe")
    assert [n.changes for n in step.passes] == [1, 1] and not step.passes[0].fault
    cached = [onnx.load(p) for p in (tmp_path / "cache" / "graphs").glob("*.onnx")]
    assert any([n.op_type for n in m.graph.node] == ["Relu"] for m in cached)


def commands() -> list[str]:
    """Every `lathe ...` line of the documents, several on one line taken apart, comments and prompts left out."""
    found = []
    for name in ("README.md", "CONTRIBUTING.md", *(f"docs/{n}.md" for n in ("scenarios", "elsewhere", "benchmarking"))):
        for block in blocks(name, ""):
            for line in block.splitlines():
                if re.match(r"(\$ )?lathe ", line):
                    found += re.split(r" {3,}(?=lathe )", line.removeprefix("$ ").split("  #")[0].strip())
    return sorted(set(found))


@pytest.mark.parametrize("line", commands())
def test_every_command_in_the_documents_is_understood(line: str) -> None:
    _, verb, *arguments = shlex.split(line)
    context = click.Context(cli)
    command = cli.get_command(context, verb)
    assert command is not None, f"no verb '{verb}'"
    command.make_context(verb, arguments, parent=context, resilient_parsing=False).close()


def test_the_exit_codes_in_the_readme_are_those_of_the_code() -> None:
    table = re.findall(r"^\| (\d+) \| ", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert [int(code) for code in table] == [int(code) for code in Exit]


def test_every_pass_and_target_is_in_the_documents_that_list_them() -> None:
    from passes import catalogue

    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    missing: list[Any] = [name for name in catalogue.names() if f"`{name}`" not in changes]
    assert not missing
