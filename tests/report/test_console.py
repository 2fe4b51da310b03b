"""The closing report: snapshots for each outcome, 80 columns, brackets are text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from optimizer.report import console, json_, markdown
from tests.report import records

SNAPSHOTS = Path(__file__).parent / "snapshots"


@pytest.mark.parametrize("name", records.ALL)
def test_closing_report(name: str) -> None:
    text = console.to_text(console.closing(records.ALL[name]))
    assert max(map(len, text.splitlines())) <= 80
    assert text == (SNAPSHOTS / f"{name}.txt").read_text("utf-8")


@pytest.mark.parametrize("name", records.ALL)
def test_markdown_report(name: str) -> None:
    text = markdown.report(records.ALL[name])
    assert "/home" not in text  # the page travels; folders do not
    assert text == (SNAPSHOTS / f"{name}.md").read_text("utf-8")


def test_a_cell_cannot_break_its_table() -> None:
    assert markdown.table(("a", "b"), [("x | y", "two\nlines")]).splitlines()[-1] == "| x \\| y | two lines |"


def test_json_is_one_object_without_nan() -> None:
    tree = json.loads(json_.dump(records.OPTIMIZED))
    assert tree["schema"] == "lathe.record/1" and tree["outcome"] == "optimized"
    assert tree["steps"][0]["verdict"] == "rejected" and tree["quality_drop"]["value"] == 0.002
    assert json.loads(json_.dump({"a": float("nan"), "p": Path("x")}, "s/1")) == {"schema": "s/1", "a": None, "p": "x"}
