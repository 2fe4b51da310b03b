"""``lathe benchmark`` beyond single runs: flags reach the API, what does not go together is told, exit codes hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from optimizer.cli.benchmark import command
from optimizer.faults import Fault
from optimizer.records import Interval, ScenarioRow
from tests.support import models

Run = Callable[..., Result]


class Recorder:
    """An API that remembers what it was asked, and answers with rows."""

    def __init__(self, *rows: ScenarioRow) -> None:
        self.rows, self.asked, self.given = rows, (), {}  # type: ignore[var-annotated]

    def under_load(self, models: Any, loads: Any, **given: Any) -> Any:
        from optimizer.api import ScenarioReport

        self.asked, self.given = tuple(loads), given
        return ScenarioReport(self.rows, {})


def row(**more: Any) -> ScenarioRow:
    return ScenarioRow("m.onnx", "server", "light", "CPUExecutionProvider", 1, 1, **more)


def run(*args: str) -> Result:
    return CliRunner().invoke(command, list(args))


def told(*args: str) -> str:
    found = run(*args).exception
    assert isinstance(found, Fault) or found is not None
    return str(found)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    found = Recorder(row(judged_by="highest rate", result=Interval(100, 90, 110), unit="queries/s"))
    monkeypatch.setattr("optimizer.cli.loads.api", lambda: found)
    return found


def test_flags_become_loads(recorder: Recorder) -> None:
    done = run("m.onnx", "--scenario", "server", "--scenario", "offline", "--latency-bound", "50ms", "--driver",
               "loadgen", "--driver", "light", "--threads", "2", "--batch", "4", "--seconds", "7")  # fmt: skip
    assert done.exit_code == 0, done.exception
    assert [(a.scenario, a.bound_ms, a.seconds, a.batch) for a in recorder.asked] == [
        ("server", 50.0, 7.0, 4), ("offline", 50.0, 7.0, 4)
    ]  # fmt: skip
    assert recorder.given["drivers"] == ("loadgen", "light") and recorder.given["threads"] == 2


def test_without_seconds_and_batch_a_scenario_takes_its_own(recorder: Recorder) -> None:
    run("m.onnx", "--scenario", "multi-stream", "--samples-per-query", "4")
    (load,) = recorder.asked
    assert (load.seconds, load.batch, load.together) == (30.0, None, 4)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--scenario", "server"], "needs a bound"),
        (["--latency-bound", "5ms"], "belongs to --scenario server"),
        (["--driver", "loadgen"], "--driver belongs to --scenario"),
        (["--scenario", "offline", "--state", "a=b"], "belongs to --scenario streaming"),
        (["--scenario", "offline", "--threads", "1", "--threads", "2"], "one number of threads"),
        (["--scenario", "offline", "--metric", "top1", "--data", "d.npz"], "measures no quality"),
        (["--scenario", "offline", "--export-job", "j.zip"], "times single runs"),
        (["--import-result", "r.json"], "not compared"),
        (["--job", "j.zip"], "goes with --import-result"),
        (["--export-job", "j.zip", "--metric", "top1"], "measures no quality"),
    ],
)
def test_what_does_not_go_together_is_told(args: list[str], said: str) -> None:
    assert said in told("m.onnx", *args)


@pytest.mark.parametrize("text", ["50", "0ms", "-5ms", "5 min", "x"])
def test_a_time_needs_a_unit(text: str) -> None:
    done = run("m.onnx", "--scenario", "server", f"--latency-bound={text}")
    assert done.exit_code == 2 and "is not a time" in done.output


def test_exit_codes(recorder: Recorder) -> None:
    for code, exit_code in (("limit-not-met", 1), ("too-short", 4)):
        recorder.rows = (row(reason="no", code=code),)
        assert run("m.onnx", "--scenario", "server", "--latency-bound", "1ms").exit_code == exit_code


def test_the_words_are_those_that_are_measured() -> None:
    from optimizer.cli.loads import SCENARIOS
    from optimizer.measure import drivers

    assert set(SCENARIOS) == set(drivers.SCENARIOS)


def test_no_model_is_a_usage_error() -> None:
    done = run()
    assert done.exit_code == 2 and "MODEL" in done.output


# -- for real ----------------------------------------------------------------------------------------------------------
def test_a_job_is_written_and_nothing_else(tmp_path: Path) -> None:
    model = models.cnn(tmp_path / "m.onnx", width=8)
    args = [str(model), "--export-job", str(tmp_path / "j.zip"), "--seconds", "0.1", "--json"]
    done = CliRunner(env={"LATHE_CACHE_DIR": str(tmp_path / "cache")}).invoke(command, args)
    assert done.exit_code == 0, done.exception
    assert json.loads(done.stdout)["size_bytes"] == (tmp_path / "j.zip").stat().st_size
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "j.zip", "m.onnx"]


def test_quality_is_paired_and_cut(tmp_path: Path) -> None:
    good, other = (models.cnn(tmp_path / f"{n}.onnx", width=w) for n, w in (("a", 16), ("b", 8)))
    data = models.images(tmp_path / "d.npz", good, 120)
    arrays = dict(np.load(data))
    np.savez(data, **arrays, place=np.where(np.arange(120) % 3, "in", "out"))
    args = [str(good), str(other), "--data", str(data), "--seconds", "0.2", "--slice-by", "place", "--json", "-q"]
    done = CliRunner(env={"LATHE_CACHE_DIR": str(tmp_path / "cache")}).invoke(command, args)
    assert done.exit_code == 0, done.exception
    (pair,) = json.loads(done.stdout)["paired"]
    assert pair["model"].endswith("b.onnx") and pair["samples"] == 120 and pair["sliced_by"] == "place"
    assert pair["looks"] == 2 and {s["name"] for s in pair["slices"]} == {"in", "out"}
    assert pair["lost"] > pair["won"] and pair["p"] < 0.05 and pair["drop"]["low"] > 0 and 0 < pair["detectable"] < 1


@pytest.mark.parametrize("provider", ["cuda:device_id=1", "openvino-runtime"])
def test_a_job_takes_providers_of_onnxruntime_alone(tmp_path: Path, provider: str) -> None:
    model = models.cnn(tmp_path / "m.onnx", width=8)
    assert "a job cannot take" in told(str(model), "--export-job", str(tmp_path / "j.zip"), "--provider", provider)
    assert not (tmp_path / "j.zip").exists()
