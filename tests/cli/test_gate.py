"""``lathe gate``: flags reach the API, verdicts become exit codes, reports become files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import Result

from optimizer import gating
from optimizer.cli.gate import command
from optimizer.package.baseline import Results
from optimizer.plan import Settings, SourceRequest
from optimizer.records import Ruling
from tests.cli.conftest import one_object
from tests.report.test_gate import PASSED, RECORD

Lathe = Callable[..., Result]
RESULTS = Results("a", "", 1, {"inputs": [], "outputs": []}, None, {})
UNDECIDED = replace(RECORD, rules=RECORD.rules[:2])


@pytest.fixture
def asked(api: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the API was asked; ``api.record`` is what it answers."""
    for name in ("GITHUB_STEP_SUMMARY", "GITHUB_ACTIONS"):
        monkeypatch.delenv(name, raising=False)
    seen: list[Any] = []

    def gate(artifact: str, policy: Path, **given: Any) -> Any:
        del given["watch"]
        seen.append((artifact, policy, given))
        return gating.Gated(api.record, RESULTS if api.record.ruling is not Ruling.FAIL else None)

    api.gate, api.record = gate, PASSED
    api.gate_policy = lambda artifact, settings: "[size]\nmax = '1MB'\n"
    return seen


def test_defaults_and_flags_arrive(lathe: Lathe, asked: list[Any], tmp_path: Path) -> None:
    assert lathe("gate", "a.lathe").exit_code == 0
    flags = "--policy p.toml --baseline b.lathe --data d.npz --seconds 3 --seed 5 --cache-dir c --write-baseline w.json"
    assert lathe("gate", "a.lathe", *flags.split()).exit_code == 0
    plain = Settings(SourceRequest("a.lathe", folder=tmp_path))
    default = {"baseline": None, "data": None, "seconds": gating.SECONDS, "recording": False, "settings": plain}
    full = {"baseline": "b.lathe", "data": "d.npz", "seconds": 3.0, "recording": True}
    assert asked == [
        ("a.lathe", Path("gate.toml"), default),
        ("a.lathe", Path("p.toml"), {**full, "settings": plain.but(seed=5, cache_dir=Path("c"))}),
    ]
    assert Path("w.json").read_text() == RESULTS.text()


@pytest.mark.parametrize(("record", "code"), [(PASSED, 0), (RECORD, 1), (UNDECIDED, 4)])
def test_verdicts_are_exit_codes(lathe: Lathe, api: SimpleNamespace, asked: list[Any], record: Any, code: int) -> None:
    api.record = record
    result = lathe("gate", "a.lathe")
    assert result.exit_code == code and record.ruling.value in result.stdout
    result = lathe("gate", "a.lathe", "--json", "--write-baseline", "w.json")
    assert result.exit_code == code and one_object(result.stdout)["verdict"] == record.ruling.value
    assert Path("w.json").exists() == (code != 1)
    assert ("w.json was not written" in result.stderr) == (code == 1)


def test_reports_are_written_and_github_gets_its_own(
    lathe: Lathe, api: SimpleNamespace, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    api.record = RECORD
    Path("step.md").write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "step.md")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    result = lathe("gate", "a.lathe", "--junit", "j.xml", "--sarif", "s.sarif", "--summary", "s.md", "--json")
    assert "<testsuites" in Path("j.xml").read_text() and '"2.1.0"' in Path("s.sarif").read_text()
    assert Path("step.md").read_text() == "before\n" + Path("s.md").read_text()
    assert result.stderr.count("::error ") == 2 and result.stderr.count("::warning ") == 1
    one_object(result.stdout)
    assert sorted(p.name for p in Path().iterdir()) == ["j.xml", "s.md", "s.sarif", "step.md"], "nothing half-written"


def test_a_report_that_cannot_be_written_is_one_line(lathe: Lathe, asked: list[Any]) -> None:
    result = lathe("gate", "a.lathe", "--junit", "nowhere/j.xml")
    assert result.exit_code == 2 and "nowhere" in result.stderr and len(result.stderr.splitlines()) == 1
    result = lathe("gate", "a.lathe", "--write-baseline", "kept.txt")
    assert result.exit_code == 2 and "ends in .json" in result.stderr
    assert not asked, "said before anything is measured"


def test_init_writes_a_policy_and_replaces_none_unasked(lathe: Lathe, asked: list[Any]) -> None:
    assert lathe("gate", "--init", "a.lathe").exit_code == 0 and Path("gate.toml").read_text().startswith("[size]")
    Path("gate.toml").write_text("mine")
    assert lathe("gate", "--init", "a.lathe").exit_code == 2 and Path("gate.toml").read_text() == "mine"
    result = lathe("gate", "--init", "a.lathe", "--overwrite", "--json")
    assert one_object(result.stdout)["policy"] == "gate.toml" and Path("gate.toml").read_text() != "mine"
    assert not asked


def test_the_default_time_is_the_gates_own() -> None:
    (option,) = [p for p in command.params if p.name == "seconds"]
    assert option.default == gating.SECONDS
