"""``lathe optimize``: flags become settings, records become text, data and exit codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import Result

from optimizer import faults
from optimizer.cli.watching import Live, watching
from optimizer.plan import DataRequest, Settings, SourceRequest
from optimizer.progress import Watcher
from optimizer.records import Confidence, Judgement, Outcome, Verdict
from tests.cli.conftest import one_object
from tests.report import records

Lathe = Callable[..., Result]


@pytest.fixture
def asked(api: SimpleNamespace) -> list[Settings]:
    """The settings that compiles were asked with; every compile is a success."""
    seen: list[Settings] = []

    def compile_settings(settings: Settings, watch: Watcher) -> Any:
        seen.append(settings)
        watch.stage("measuring the baseline")
        watch.note("a detail")
        watch.warn("a concern")
        watch.progress(1, 3, 42.0)
        watch.step(records.LET_GO)
        return records.OPTIMIZED

    api.compile_settings = compile_settings
    return seen


def test_defaults_are_those_of_the_python_api(lathe: Lathe, asked: list[Settings], tmp_path: Path) -> None:
    lathe("optimize", "m.onnx")
    assert asked == [Settings(SourceRequest("m.onnx", folder=tmp_path))]


def test_every_flag_arrives(lathe: Lathe, asked: list[Settings], tmp_path: Path) -> None:
    flags = (
        "--data d.npz --calibrate c --select s --confirm f --metric top1 --evaluator e:f --budget top1.drop<=1% "
        "--budget size<=4MB --goal size -O3 --recipe tidy --pass a:B --provider cuda --target t --runtime "
        "onnxruntime==1.18 -o out --overwrite --seed 3 --cache-dir cache --batch 8 --threads 2 --seconds 0.5 --strict "
        "--golden none --allow-random-data --time-limit 60 --example x:y --dynamic x:0=batch --shape x:1,3 --opset 17 "
        "--fix-training --refuse-training --trust-code -v"
    )
    result = lathe("optimize", "pkg.mod:factory", *flags.split())
    assert result.exit_code == 0, result.stderr
    source = SourceRequest("pkg.mod:factory", "x:y", ("x:0=batch",), ("x:1,3",), 17, True, True, True, folder=tmp_path)
    assert asked == [
        Settings(
            source,
            DataRequest("d.npz", "c", "s", "f"),
            metric="top1",
            evaluator="e:f",
            budget=("top1.drop<=1%", "size<=4MB"),
            goal="size",
            level=3,
            recipe="tidy",
            passes=("a:B",),
            provider="cuda",
            target="t",
            runtime="onnxruntime==1.18",
            output=Path("out"),
            overwrite=True,
            seed=3,
            cache_dir=Path("cache"),
            batch=8,
            threads=2,
            seconds=0.5,
            strict=True,
            golden="none",
            allow_random_data=True,
            time_limit=60.0,
        )
    ]


def test_people_read_stderr_and_scripts_read_stdout(lathe: Lathe, asked: list[Settings]) -> None:
    result = lathe("optimize", "m.onnx")
    assert result.stdout == "/home/someone/residual_cnn.lathe\n"
    assert "measuring the baseline" in result.stderr and "warning: a concern" in result.stderr
    assert "int8 dynamic rejected 0.71x" in result.stderr and "1 of 3, about 42 s left" in result.stderr
    assert "2.31x faster [2.25, 2.38] at -0.2 points" in result.stderr and "a detail" not in result.stderr
    assert "\x1b" not in result.stderr and max(map(len, result.stderr.split("what was tried")[1].splitlines())) <= 80


def test_quiet_verbose_and_log_file(lathe: Lathe, asked: list[Settings], tmp_path: Path) -> None:
    assert lathe("optimize", "m.onnx", "-q").stderr.splitlines() == [
        "warning: a concern",
        *(f"warning: {text}" for text in records.OPTIMIZED.warnings),
    ]
    assert "  a detail\n" in lathe("optimize", "m.onnx", "-v").stderr
    lathe("optimize", "m.onnx", "-q", "--log-file", "log.txt")
    log = (tmp_path / "log.txt").read_text()
    assert "a detail" in log and "int8 dynamic rejected" in log and "T" in log.splitlines()[0][:24]
    assert lathe("optimize", "m.onnx", "--log-file", "no/such/log.txt").exit_code == 5


def test_quiet_still_says_what_went_wrong(lathe: Lathe, api: SimpleNamespace) -> None:
    error = faults.limit_not_met("the limit cannot be met: size<=1B", hint="loosen it").as_json()
    warned = replace(records.OPTIMIZED, warnings=("few samples",))
    api.compile_settings = lambda settings, watch: replace(warned, outcome=Outcome.NONE, artifact=None, error=error)
    said = "warning: few samples\nerror: the limit cannot be met: size<=1B. loosen it\n"
    assert lathe("optimize", "m.onnx", "-q").stderr == said


def test_json_is_the_record(lathe: Lathe, asked: list[Settings]) -> None:
    result = lathe("optimize", "m.onnx", "--json")
    tree = one_object(result.stdout)
    assert tree["schema"] == "lathe.record/1" and tree["confidence"] == "proven" and tree["error"] is None


@pytest.mark.parametrize(
    ("changes", "strict", "code"),
    [
        ({}, True, 0),
        ({"confidence": Confidence.UNDECIDED}, False, 0),
        ({"outcome": Outcome.LOSSLESS, "confirm": Verdict(Judgement.UNDECIDED, "r")}, True, 4),
        ({"outcome": Outcome.LOSSLESS, "confirm": Verdict(Judgement.REJECTED, "r")}, True, 0),
        ({"outcome": Outcome.UNCHANGED}, False, 0),
        ({"outcome": Outcome.NONE, "artifact": None}, False, 1),
    ],
)
def test_exit_codes(lathe: Lathe, api: SimpleNamespace, changes: dict[str, Any], strict: bool, code: int) -> None:
    api.compile_settings = lambda settings, watch: replace(records.OPTIMIZED, **changes)
    assert lathe("optimize", "m.onnx", *(["--strict"] if strict else [])).exit_code == code


def test_dry_run_shows_the_plan(lathe: Lathe, api: SimpleNamespace) -> None:
    api.plan = lambda settings: SimpleNamespace(lines=lambda: ["3 recipes", "2 min"], as_json=lambda: {"recipes": 3})
    assert lathe("optimize", "m.onnx", "--dry-run").stdout == "3 recipes\n2 min\n"
    assert one_object(lathe("optimize", "m.onnx", "--dry-run", "--json").stdout)["recipes"] == 3


def test_print_config_says_where_each_value_comes_from(lathe: Lathe, tmp_path: Path) -> None:
    (tmp_path / "lathe.toml").write_text('metric = "f1"\nbudget = "f1.drop<=1%"\nseed = 4\n')
    lines = lathe("optimize", "m.onnx", "--seed", "5", "--print-config").stdout.splitlines()
    held = {line.split(" = ")[0]: line for line in lines if " = " in line}
    assert held["metric"].startswith('metric = "f1"') and held["metric"].endswith("# lathe.toml")
    assert held["budget"].startswith('budget = ["f1.drop<=1%"]')
    assert held["seed"].startswith("seed = 5") and held["seed"].endswith("# flag")
    assert held["goal"].endswith("# default") and "# output is not set" in lines
    tree = one_object(lathe("optimize", "m.onnx", "--print-config", "--json").stdout)
    assert tree["settings"]["metric"] == {"value": "f1", "from": "lathe.toml"}


def test_a_terminal_shows_the_stage_with_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    watch = Live()
    watch.stage("trying recipes")
    watch.progress(1, 3, 42.0)
    assert watch.shown == "trying recipes  1 of 3, about 42 s left"
    watch.step(records.LET_GO)
    watch.stage("confirming")
    assert watch.shown == "confirming"
    watch.close()
    watch.close()
    assert "int8 dynamic rejected 0.71x" in capsys.readouterr().err


@pytest.mark.parametrize(("ci", "term", "live"), [("", "xterm", True), ("true", "xterm", False), ("", "dumb", False)])
def test_only_a_real_terminal_is_live(monkeypatch: pytest.MonkeyPatch, ci: str, term: str, live: bool) -> None:
    monkeypatch.setenv("CI", ci)
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with watching() as watch:
        assert isinstance(watch, Live) is live


def test_a_second_recipe_is_not_dropped_in_silence(lathe: Lathe, asked: list[Settings]) -> None:
    for again in (("--recipe", "simplify"), ("--recipe=simplify",)):
        result = lathe("optimize", "m.onnx", "--recipe", "tidy", *again)
        assert result.exit_code == 2 and "only once" in result.stderr
    assert not asked and lathe("optimize", "m.onnx", "--recipe", "tidy").exit_code == 0
