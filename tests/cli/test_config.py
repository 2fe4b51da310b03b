"""Settings from files: read, overruled by flags, and refused with the closest match."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import Result

from optimizer.plan import Settings
from tests.report import records

Lathe = Callable[..., Result]


@pytest.fixture
def asked(api: SimpleNamespace) -> list[Any]:
    seen: list[Any] = []

    def compile_settings(settings: Settings, watch: object) -> Any:
        seen.append(settings)
        return records.OPTIMIZED

    def benchmark(models: list[str], **given: Any) -> Any:
        seen.append(given)
        return SimpleNamespace(rows=(), warnings=())

    api.compile_settings, api.benchmark = compile_settings, benchmark
    return seen


@pytest.mark.parametrize(
    ("name", "head"), [("lathe.toml", ""), ("pyproject.toml", '[project]\nname = "x"\n[tool.lathe]\n')]
)
def test_settings_hold_and_flags_win(lathe: Lathe, asked: list[Any], tmp_path: Path, name: str, head: str) -> None:
    (tmp_path / name).write_text(head + 'model = "a.onnx"\nlevel = 1\nbudget = ["a<=1", "b<=2"]\nstrict = true\n')
    assert lathe("optimize", "-O3").exit_code == 0
    (settings,) = asked
    assert (settings.source.model, settings.level, settings.strict) == ("a.onnx", 3, True)
    assert settings.budget == ("a<=1", "b<=2")
    lathe("optimize", "b.onnx", "--budget", "none")
    assert (asked[1].source.model, asked[1].level, asked[1].budget) == ("b.onnx", 1, ("none",))


def test_a_verbs_own_table_wins_and_other_verbs_keys_do_not_disturb(
    lathe: Lathe, asked: list[Any], tmp_path: Path
) -> None:
    (tmp_path / "lathe.toml").write_text("threads = 2\nstrict = true\n[benchmark]\nthreads = [1, 4]\nseconds = 0.5\n")
    lathe("benchmark", "a.onnx")
    assert (asked[0]["threads"], asked[0]["seconds"]) == ((1, 4), 0.5)
    lathe("optimize", "a.onnx")
    assert asked[1].threads == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('buget = "x"', "lathe.toml: no setting 'buget' (did you mean 'budget'?)"),
        ("[optimize]\nmetrik = 1", "no setting 'optimize.metrik' (did you mean 'optimize.metric'?)"),
        ('goal = "latancy"', "lathe.toml: invalid value for '--goal': no goal 'latancy'"),
        ('strict = "yes"', "'strict' takes true or false"),
        ("metric = true", "'metric' takes one value"),
        ('metric = ["a", "b"]', "'metric' takes one value"),
        ("metric = {a = 1}", "takes a text, a number"),
        ("metric = ", "lathe.toml: is not valid TOML"),
    ],
)
def test_what_cannot_be_meant_is_refused(lathe: Lathe, asked: list[Any], tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "lathe.toml").write_text(text)
    result = lathe("optimize", "a.onnx")
    assert result.exit_code == 2 and not asked
    assert said.lower() in result.stderr.lower()


def test_two_homes_are_one_too_many(lathe: Lathe, asked: list[Any], tmp_path: Path) -> None:
    (tmp_path / "lathe.toml").write_text("seed = 1")
    (tmp_path / "pyproject.toml").write_text("[tool.lathe]\nseed = 2")
    assert "settings stand both in lathe.toml and" in lathe("optimize", "a.onnx").stderr
    assert lathe("optimize", "--help").exit_code == 0  # help helps whatever stands in files
