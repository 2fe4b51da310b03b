"""Models under load, for real and shortly: every scenario by the built-in driver, and MLPerf's own beside it."""

from __future__ import annotations

import importlib.util
import queue
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from optimizer.data.checks import from_arrays
from optimizer.faults import Fault
from optimizer.measure import scenarios
from optimizer.measure.drivers import Load
from optimizer.measure.scenarios import Contender, measure
from optimizer.records import ScenarioRow
from optimizer.runtime import hardware
from optimizer.runtime import load as driver
from optimizer.runtime.loadgen import read_summary
from optimizer.runtime.sessions import Site
from passes.kit.model import Model
from tests.support import models

SITE = Site("CPUExecutionProvider", 1, "test")
LOADGEN = pytest.mark.skipif(importlib.util.find_spec("mlperf_loadgen") is None, reason="mlcommons-loadgen is missing")
SUMMARY = """\
Scenario : Server
Completed samples per second    : 282.75
Result is : INVALID
  Performance constraints satisfied : Yes
  Min queries satisfied : Yes
  Early stopping satisfied: NO
Recommendations:
50.00 percentile latency (ns)   : 1247852
99.00 percentile latency (ns)   : 6091656
"""


def contender(folder: Path, name: str = "x", made_by: str = "light") -> Contender:
    path = models.cnn(folder / f"{name}.onnx", width=8)
    inputs = Model.from_proto(onnx.load(path)).signature.inputs
    samples = from_arrays({"x": np.random.default_rng(0).normal(size=(12, 3, 16, 16)).astype(np.float32)}, inputs)
    return Contender(name, path, samples, made_by)


def rows(folder: Path, load: Load, *drivers: str) -> list[ScenarioRow]:
    return measure([contender(folder, d, d) for d in drivers], load, SITE, 0, lambda text: None)


@pytest.mark.parametrize("scenario", ["single-stream", "multi-stream", "offline"])
def test_a_scenario_has_a_result_with_its_interval(tmp_path: Path, scenario: str) -> None:
    (row,) = rows(tmp_path, Load(scenario, 1.5, samples_per_query=2), "light")
    assert row.result is not None and row.restarts in (1, 3, 5), row.reason
    assert 0 <= row.result.low <= row.result.value <= row.result.high
    assert row.unit == ("samples/s" if scenario == "offline" else "ms") and not row.verdict
    if scenario != "offline":
        assert 0 < row.percentiles["50"] <= row.percentiles["90"] and row.queries >= 64


def test_a_server_finds_a_rate_that_it_holds(tmp_path: Path) -> None:
    (row,) = rows(tmp_path, Load("server", 5.0, bound_ms=250.0), "light")
    assert row.result is not None and row.held is not None, row.reason
    assert 20 < row.held <= row.result.value
    assert row.percentiles["99"] <= 250.0 and row.bound_ms == 250.0


@pytest.mark.parametrize(("others", "told"), [((0.1, 0.4), ""), ((0.1, 1.6), "up to 1.6 of 2 cores busy")])
def test_a_row_says_when_no_core_was_free(
    monkeypatch: pytest.MonkeyPatch, others: tuple[float, ...], told: str
) -> None:
    monkeypatch.setattr(hardware, "host", lambda: hardware.Host("x", "x86_64", frozenset(), 2, 1, "Linux"))
    assert told in "".join(scenarios._crowded(others, SITE)) and bool(scenarios._crowded(others, SITE)) == bool(told)


def test_what_this_process_spends_is_not_the_others() -> None:
    before, after = hardware.Spent(100.0, 10.0, 0.0), hardware.Spent(115.0, 18.0, 10.0)
    assert hardware.cores_of_others(before, after) == pytest.approx(0.7)
    assert hardware.cores_of_others(None, after) is None


def test_a_bound_under_the_time_of_one_query_is_held_at_no_rate(tmp_path: Path) -> None:
    (row,) = rows(tmp_path, Load("server", 60.0, bound_ms=0.001), "light")
    assert row.result is None and row.code == "limit-not-met" and "even when few come" in row.reason


def test_too_little_time_says_how_much_it_takes(tmp_path: Path) -> None:
    (row,) = rows(tmp_path, Load("multi-stream", 0.001), "light")
    assert row.result is None and "662 queries" in row.reason and "--seconds" in row.reason


def test_a_model_that_cannot_run_is_a_row_with_the_reason(tmp_path: Path) -> None:
    broken = Contender("broken", tmp_path / "none.onnx", contender(tmp_path).samples)
    good, bad = measure([contender(tmp_path), broken], Load("offline", 0.3), SITE, 0, lambda text: None)
    assert good.result is not None and bad.result is None and "cannot load" in bad.reason


def test_a_state_is_carried_from_step_to_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this worker's own words: after k steps the state is what k steps by hand give."""
    import onnxruntime as ort

    path = models.recurrent(tmp_path / "r.onnx")
    rng = np.random.default_rng(0)
    feeds = [
        {"x": rng.normal(size=(1, 32)).astype(np.float32), "state": np.zeros((1, 32), np.float32),
         "rate": np.array(16000)} for _ in range(4)
    ]  # fmt: skip
    driver.begin(str(path), feeds, [], 1, SITE.provider, 1, 1.0)
    seen: list[np.ndarray] = []

    class Spy:
        """The model, with the states that it was given."""

        def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
            seen.append(feeds["state"])
            return plain.run(feeds)

    plain = driver.system().program
    monkeypatch.setattr(driver.system(), "program", Spy())
    found = driver.carry([["state", "next"]], 0.0, 6)
    session, state, wanted = ort.InferenceSession(path, providers=[SITE.provider]), feeds[0]["state"], []
    for step in range(6):
        state = feeds[0]["state"] if step % 4 == 0 else state
        wanted.append(state)
        state = session.run(["next"], {**feeds[step % 4], "state": state})[0]
    assert len(found["latencies"]) == 6 and not found["broken"]
    assert all(np.array_equal(a, b) for a, b in zip(seen, wanted, strict=True)) and not np.array_equal(seen[1], seen[2])


def test_a_stream_keeps_real_time_or_not(tmp_path: Path) -> None:
    path = models.recurrent(tmp_path / "r.onnx")
    inputs = Model.from_proto(onnx.load(path)).signature.inputs
    arrays = {n: np.ones((6, 32), np.float32) for n in ("x", "state")} | {"rate": np.array(16000)}
    stream = Contender("r", path, from_arrays(arrays, inputs), pairs=(("state", "next"),))
    (row,) = measure([stream], Load("streaming", 2.0, chunk_ms=1000.0), SITE, 0, lambda text: None)
    assert row.real_time_factor is not None and 0 < row.real_time_factor.value < 0.1, row.reason


def test_arrivals_are_random_with_the_rate_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    due: list[float] = []
    monkeypatch.setattr(
        driver, "_issue", lambda waiting, moments: (due.extend(moments), [waiting.put(i) for i in range(len(moments))])
    )
    feeds, _ = scenarios.library(contender(tmp_path))
    driver.begin(str(tmp_path / "x.onnx"), feeds, ["x"], 64, SITE.provider, 1, 1.0)
    driver.server(1000.0, 2000, [0, 1], 1e9, 10**9)
    gaps = np.diff(due)
    assert gaps.mean() == pytest.approx(1e-3, rel=0.1) and gaps.std() == pytest.approx(1e-3, rel=0.1)


def test_waiting_counts_from_the_moment_a_query_was_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight at a time, 10 ms each time, all there at once: those that were due earlier took longer."""
    due: list[float] = []

    def at_once(waiting: queue.SimpleQueue[int], moments: list[float]) -> None:
        due.extend(moments)
        for number in range(len(moments)):
            waiting.put(number)

    monkeypatch.setattr(driver, "_issue", at_once)
    feeds, _ = scenarios.library(contender(tmp_path))
    driver.begin(str(tmp_path / "x.onnx"), feeds, ["x"], 8, SITE.provider, 1, 1.0)
    monkeypatch.setattr(driver.System, "run", lambda self, chosen: time.sleep(0.01))
    taken = driver.server(1000.0, 16, [0, 1], 1e9, 10**9)
    for first in (0, 8):
        assert np.diff(taken[first : first + 8]) == pytest.approx(-1e3 * np.diff(due[first : first + 8]), abs=1e-6)
    assert taken[8] + due[8] * 1e3 > taken[7] + due[7] * 1e3 + 9, "the second eight had to wait for the first"
    failed = driver.server(1000.0, 100, [0, 1], -1e9, 3)
    assert 4 <= len(failed) < 20, "a run that cannot hold any more ends"


def test_what_loadgen_says_is_read() -> None:
    told = read_summary(SUMMARY)
    assert told["verdict"] == "INVALID" and told["rate"] == 282.75
    assert told["checks"] == {"Performance constraints": True, "Min queries": True, "Early stopping": False}
    assert told["percentiles"] == {"50": pytest.approx(1.247852), "99": pytest.approx(6.091656)}
    with pytest.raises(ValueError, match="no result"):
        read_summary("")


def test_without_the_package_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Fault, match=r"lathe\[loadgen\]") as caught:
        rows(tmp_path, Load("offline", 0.2), "loadgen")
    assert caught.value.exit == 4
    with pytest.raises(Fault, match="no scenario 'streaming'"):
        rows(tmp_path, Load("streaming", 0.2), "loadgen")


@LOADGEN
def test_loadgen_calls_offline_and_server_valid(tmp_path: Path) -> None:
    """With short settings; the built-in driver runs beside it and is not far off."""
    plain, theirs = rows(tmp_path, Load("offline", 0.6), "light", "loadgen")
    assert theirs.verdict == "VALID" and theirs.checks and all(theirs.checks.values())
    assert plain.result is not None and theirs.result is not None
    assert 0.4 < theirs.result.value / plain.result.value < 2.5
    (served,) = rows(tmp_path, Load("server", 5.0, bound_ms=250.0), "loadgen")
    assert served.verdict == "VALID" and served.held is not None and all(served.checks.values())
