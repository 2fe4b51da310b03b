"""lathe benchmark from the command line to the table: providers that are here, and those that are not."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import optimizer
from optimizer.cli.main import cli
from optimizer.faults import Exit
from optimizer.measure.latency import Timing
from optimizer.runtime import providers
from tests.support import models

FAST = ("--seconds", "0.1")


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("nets")
    return str(models.cnn(folder / "narrow.onnx", width=8)), str(models.cnn(folder / "wide.onnx", width=16))


def lathe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *args: str) -> Result:
    monkeypatch.setenv("LATHE_CACHE_DIR", str(tmp_path / "cache"))
    return CliRunner().invoke(cli, ["benchmark", *args, *FAST, "-q"])


def without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    here = tuple(p for p in providers.everywhere() if p != "CUDAExecutionProvider")
    monkeypatch.setattr(providers, "everywhere", lambda: here)


def test_a_provider_that_is_not_here_is_a_row_or_the_end(
    nets: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_cuda(monkeypatch)
    alone = lathe(tmp_path, monkeypatch, nets[0], "--provider", "cuda")
    assert alone.exit_code == int(Exit.UNDECIDED) and not alone.stdout
    said = " ".join(alone.stderr.split())
    assert "the provider CUDAExecutionProvider is not available here. Available: " in said
    assert "pip install 'lathe[cuda]'" in said and "Traceback" not in said
    beside = lathe(tmp_path, monkeypatch, *nets, "--provider", "cpu", "--provider", "cuda", "--json")
    assert beside.exit_code == 0
    told: dict[str, Any] = json.loads(beside.stdout)
    rows = {(Path(r["model"]).name, r["provider"]): r for r in told["rows"]}
    assert "is not available here" in rows["wide.onnx", "CUDAExecutionProvider"]["reason"]
    assert rows["wide.onnx", "CUDAExecutionProvider"]["latency"] is None
    cpu = rows["wide.onnx", "CPUExecutionProvider"]
    assert cpu["latency"]["other_ms"] and cpu["speedup"]["low"] <= cpu["speedup"]["high"]
    assert cpu["coverage"][0]["macs"] > 10**6
    assert told["noise"][0]["resolves"] >= 0 and "load" in told["environment"]


def test_by_leave_the_cpu_stands_in_and_is_called_cpu(
    nets: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_cuda(monkeypatch)
    found = lathe(tmp_path, monkeypatch, nets[0], "--provider", "cuda", "--allow-fallback")
    assert found.exit_code == 0
    assert "CPUExecutionProvider, not cuda, batch 1, 1 thread" in found.stdout
    assert "CUDAExecutionProvider," not in found.stdout
    assert "the CPU stands in for CUDAExecutionProvider" in found.stderr


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="the openvino package is not installed")
def test_two_models_on_two_runtimes_are_one_table_with_intervals(
    nets: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = lathe(tmp_path, monkeypatch, *nets, "--provider", "cpu", "--provider", "openvino")
    assert found.exit_code == 0 and found.stdout.count("p50 ms") == 1
    assert found.stdout.count("±") == 4 and found.stdout.count("x [") >= 4, "three ratios, and the noise"
    short = "openvino" if "OpenVINOExecutionProvider" in providers.available() else "openvino-runtime"
    assert f"on {short}: " in found.stdout and "on cpu: " in found.stdout


def test_a_length_that_a_model_does_not_have_is_one_line(
    nets: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = lathe(tmp_path, monkeypatch, nets[0], "--length-sweep", "sequence=8,16")
    assert found.exit_code == int(Exit.USAGE) and "no open dimension 'sequence'" in found.stderr


def test_what_ships_may_run_faster_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other provider is the same CPU, and the clock is told that it takes half the time there."""
    from optimizer import recommending
    from optimizer.measure import bench

    other = "OpenVINORuntime"
    monkeypatch.setattr(providers, "everywhere", lambda: ("CPUExecutionProvider", other))
    monkeypatch.setattr(providers, "version_of", lambda name: "1")
    monkeypatch.setattr(recommending, "open_lane", lambda e, p, b, f: bench.Lane(e, p, f, b, p.site))
    pace = {"CPUExecutionProvider": 2.0, other: 1.0}

    def turns(lanes: list[bench.Lane], effort: Any) -> list[Timing]:
        blocks = [tuple(tuple([pace[x.place.provider]] * 5 for _ in range(4)) for _ in range(3)) for x in lanes]
        return [Timing(b, "cpu", 1.0, 1.0, 1) for b in blocks]  # type: ignore[arg-type]

    monkeypatch.setattr(recommending, "take_turns", turns)
    given = {"cache_dir": tmp_path / "cache", "level": 0, "seconds": 0.05, "golden": "none"}
    net = str(models.cnn(tmp_path / "net.onnx", width=8))
    record = optimizer.compile(net, output=tmp_path / "a.lathe", **given)
    (advice,) = (w for w in record.warnings if other in w)
    assert "2.00x [2.00, 2.00] as fast" in advice and "--provider cpu --provider openvino-runtime" in advice
    pace[other] = 2.0
    record = optimizer.compile(net, output=tmp_path / "b.lathe", **given)
    assert not any(other in w for w in record.warnings)
