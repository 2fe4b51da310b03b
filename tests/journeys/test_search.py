"""-O3 from end to end: evidence and frontier in the artifact, Ctrl-C in two steps, and explaining what came out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import optimizer
from optimizer.records import Judgement, Outcome, Record
from tests.support import models

ROOT = Path(__file__).parents[2]
LAYERS = {"n0/Conv", "n1/Conv", "n2/Conv", "head"}
"""The layers of the CNN once its normalizations are folded."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("search")
    models.images(found / "data.npz", models.cnn(found / "cnn.onnx", width=32), count=160)
    return found


@pytest.fixture(scope="module")
def record(place: Path) -> Record:
    return optimizer.compile(
        str(place / "cnn.onnx"), data=str(place / "data.npz"), metric="cosine", budget=["cosine.drop<=0.00002"],
        level=3, time_limit=30.0, seconds=0.1, output=place / "cnn.lathe", cache_dir=place / "cache",
    )  # fmt: skip


def test_a_search_leaves_its_evidence(record: Record) -> None:
    assert record.sensitivity is not None
    assert set(record.sensitivity.layers) == LAYERS == set(record.sensitivity.saved_ms)
    assert all(v > 0 for v in record.sensitivity.layers.values())
    assert "source" in {p.label for p in record.frontier} or record.outcome is Outcome.LOSSLESS
    tried = [s for s in record.steps if s.label.startswith("int8 static, ")]
    cut_off = any("time limit was reached" in w for w in record.warnings)
    assert tried or cut_off, "plain int8 loses too much here, so something else was tried"
    for step in record.steps:
        if step.verdict.judgement is Judgement.REJECTED and step.label != "int8 static" and step.speedup is None:
            assert step.verdict.reason.startswith("quality")
    folder = Path(str(record.artifact))
    evidence = json.loads((folder / "evidence.json").read_text())
    assert evidence["sensitivity"]["layers"] == dict(record.sensitivity.layers)
    assert [p["label"] for p in evidence["frontier"]] == [p.label for p in record.frontier]
    assert (folder / "frontier.svg").exists() == (len(record.frontier) >= 3)
    assert optimizer.verify(folder).ok


def test_a_search_that_was_cut_off_is_taken_up_again(place: Path, record: Record) -> None:
    start = time.monotonic()
    again = optimizer.compile(
        str(place / "cnn.onnx"), data=str(place / "data.npz"), metric="cosine", budget=["cosine.drop<=0.00002"],
        level=3, time_limit=1.0, seconds=0.1, output=place / "again.lathe", cache_dir=place / "cache",
    )  # fmt: skip
    assert time.monotonic() - start < 30, "a search without a limit goes on longer"
    assert any("time limit was reached" in w for w in again.warnings)
    assert again.artifact is not None and optimizer.verify(again.artifact).ok


def search(place: Path, name: str) -> subprocess.Popen[str]:
    arguments = ["optimize", str(place / "cnn.onnx"), "--data", str(place / "data.npz"), "-O3", "--metric", "cosine"]
    arguments += ["--budget", "cosine.drop<=0.000001", "--seconds", "0.1", "--cache-dir", str(place / f"cache-{name}")]
    return subprocess.Popen(
        [sys.executable, "-c", "from optimizer.cli.main import main; main()", *arguments, "-o", str(place / name)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for(process: subprocess.Popen[str], text: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if text in line:
            return
    raise AssertionError(f"'{text}' was never said")


def test_the_first_interrupt_confirms_the_best_so_far_and_the_second_ends_everything(place: Path) -> None:
    process = search(place, "stopped.lathe")
    wait_for(process, "searching")
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out.strip() == str(place / "stopped.lathe") and optimizer.verify(place / "stopped.lathe").ok
    assert "the search was interrupted; the best so far is confirmed" in err

    process = search(place, "ended.lathe")
    wait_for(process, "searching")
    os.kill(process.pid, signal.SIGINT)
    wait_for(process, "once more ends")
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130 and not (place / "ended.lathe").exists()


def explain(place: Path, model: str, **more: Any) -> Any:
    return optimizer.explain(model, settings=_settings(place, model), **more)


def _settings(place: Path, model: str) -> Any:
    from optimizer.plan import Settings, SourceRequest

    return Settings(SourceRequest(model), cache_dir=place / "cache")


@pytest.fixture(scope="module")
def wide(place: Path) -> str:
    """A network so wide that int8 pays on any CPU with kernels for it."""
    return str(models.cnn(place / "wide.onnx", width=128))


@pytest.fixture(scope="module")
def artifact(place: Path, wide: str) -> str:
    made = optimizer.compile(
        wide, data=str(place / "data.npz"), budget=["none"], seconds=0.1, cache_dir=place / "cache",
        recipe='tidy, fold-batchnorm, quantize-static{exclude=["n1/Conv"]}', output=place / "explained.lathe",
    )  # fmt: skip
    return str(made.artifact)


def test_an_artifact_is_explained_without_its_source_and_better_with_it(place: Path, wide: str, artifact: str) -> None:
    data = str(place / "data.npz")
    twin, source = (
        explain(place, artifact, data=data),
        explain(place, artifact, data=data, against=wide),
    )
    for found in (twin, source):
        assert {y.layer: y.form for y in found.layers} == {
            "n0/Conv": "int8", "n1/Conv": "float", "n2/Conv": "int8", "head": "int8"
        }  # fmt: skip
        kernels = {y.layer: y.kernel for y in found.layers}
        assert kernels["n1/Conv"] == "Conv" and kernels["n0/Conv"] == "QLinearConv"
        assert all(y.sqnr_db is not None and y.before_ms and y.after_ms for y in found.layers)
        assert next(y.why for y in found.layers if y.layer == "n1/Conv") == "the recipe leaves it out (quantize-static)"
        assert found.runtime_db is not None and found.runtime_db > 30 and found.advice
    assert twin.output_db > source.output_db > 20, "the twin does not count the error of the weights"
    assert any("--against" in w for w in twin.warnings) and not any("--against" in w for w in source.warnings)


def test_a_float_model_is_explained_as_int8_would_make_it(place: Path) -> None:
    found = explain(place, str(place / "cnn.onnx"), data=str(place / "data.npz"))
    assert "not quantized" in found.reference and found.recipe.endswith("quantize-static")
    assert {y.form for y in found.layers} == {"int8"} and found.output_db > 20


def test_the_source_of_another_model_is_refused(place: Path, artifact: str) -> None:
    other = models.recurrent(place / "other.onnx")
    with pytest.raises(optimizer.Fault, match="other inputs"):
        explain(place, artifact, against=str(other))
