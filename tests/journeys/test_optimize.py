"""The main job on models of many kinds, through the Python API: a truthful record and an artifact that holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import optimizer
from optimizer import api
from optimizer.faults import Exit, Fault
from optimizer.plan import Settings, SourceRequest
from optimizer.records import Confidence, Judgement, Outcome, Record
from tests.support import models

SECONDS = 0.2


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def optimize(model: Path, place: Path, cache: Path, **more: Any) -> Record:
    return optimizer.compile(
        str(model), output=place / "out.lathe", overwrite=True, cache_dir=cache, seconds=SECONDS, **more
    )


def shipped(record: Record) -> onnx.ModelProto:
    assert record.artifact is not None
    assert optimizer.verify(record.artifact).ok
    return onnx.load(Path(record.artifact) / "model.onnx")


def test_a_cnn_is_quantized_within_budget_and_the_evidence_says_the_same(tmp_path: Path, cache: Path) -> None:
    model = models.cnn(tmp_path / "cnn.onnx")
    data = models.images(tmp_path / "data.npz", model)
    record = optimize(model, tmp_path, cache, data=str(data), budget=["top1.drop<=0.05"])
    proto = shipped(record)
    assert record.outcome is Outcome.OPTIMIZED and record.speedup is not None and record.speedup.low > 1
    assert record.final is not None and record.final.size_bytes < record.baseline.size_bytes / 2  # type: ignore[union-attr]
    assert record.final.quality is not None and record.final.quality.metric == "top1"
    assert "BatchNormalization" not in {n.op_type for n in proto.graph.node}
    assert "QuantizeLinear" in {n.op_type for n in proto.graph.node}
    evidence = json.loads((Path(str(record.artifact)) / "evidence.json").read_text())
    assert evidence["speedup"]["value"] == record.speedup.value
    assert {s["label"] for s in evidence["steps"]} >= {"lossless", "int8 static", "int8 dynamic"}
    assert str(tmp_path) not in json.dumps(evidence) + (Path(str(record.artifact)) / "manifest.json").read_text()
    was, now = record.baseline.profile, record.final.profile  # type: ignore[union-attr]
    assert was is not None and now is not None
    assert "Conv" in {o.op for o in was.ops} and "QLinearConv" in {o.op for o in now.ops}
    page = (Path(str(record.artifact)) / "report.html").read_text()
    assert record.origin is not None and record.origin.source_digest in page and str(tmp_path) not in page


def test_the_same_recipe_gives_the_same_bytes_from_a_cold_store(tmp_path: Path) -> None:
    model = models.cnn(tmp_path / "cnn.onnx")
    data = models.images(tmp_path / "data.npz", model)
    bytes_of = []
    for i in range(2):
        record = optimize(
            model, tmp_path / str(i), tmp_path / f"cache{i}", data=str(data), budget=["none"],
            recipe="tidy, fold-batchnorm, quantize-static{observer=percentile}",
        )  # fmt: skip
        folder = Path(str(record.artifact))
        assert record.confidence is Confidence.UNPROVEN, "nothing was asked of the quality, so nothing is proven"
        bytes_of.append([(folder / name).read_bytes() for name in ("model.onnx", "manifest.json")])
    assert bytes_of[0] == bytes_of[1]


def test_a_second_run_takes_models_and_quality_from_the_store(tmp_path: Path, cache: Path) -> None:
    model = models.cnn(tmp_path / "cnn.onnx")
    data = models.images(tmp_path / "data.npz", model)
    asked = {"data": str(data), "recipe": "tidy, fold-batchnorm"}
    records, seen, answers = [], set(), 0
    for _ in range(3):  # whether so small a gain pays is for the clock to say: an outcome is new at most twice
        record = optimize(model, tmp_path, cache, **asked)
        before, answers = answers, len(list((cache / "answers").iterdir()))
        assert record.outcome not in seen or answers == before
        seen.add(record.outcome)
        records.append(record)
    notes = [[(n.name, n.seconds) for n in r.steps[-1].passes] for r in records]
    assert notes[0] == notes[1] == notes[2], "seconds are those of the run that did the work"


@pytest.mark.parametrize("kind", ["tree", "branches", "recurrent", "several_inputs", "old"])
def test_unusual_models_go_through_with_a_truthful_report(kind: str, tmp_path: Path, cache: Path) -> None:
    rng = np.random.default_rng(2)
    path = tmp_path / f"{kind}.onnx"
    arrays: dict[str, Any]
    if kind == "tree":
        models.tree(path)
        arrays = {"x": rng.normal(size=(60, 2)).astype(np.float32), "labels": rng.integers(0, 3, 60)}
    elif kind == "branches":
        models.branches(path)
        arrays = {"x": rng.normal(size=(60, 32)).astype(np.float32), "c": np.array(True)}
    elif kind == "recurrent":
        models.recurrent(path)
        steps = {n: rng.normal(size=(60, 1, 32)).astype(np.float32) for n in ("x", "state")}
        arrays = {**steps, "rate": np.array(16000)}
    elif kind == "several_inputs":
        models.several_inputs(path)
        ids = {"ids": rng.integers(0, 100, (60, 12)), "mask": np.ones((60, 12), np.int64)}
        arrays = {**ids, "extra": rng.normal(size=(60, 4)).astype(np.float32), "labels": rng.integers(0, 2, 60)}
    else:
        models.cnn(path, opset=9, ir=3, listed=True, width=16)
        arrays = {"x": rng.normal(size=(60, 3, 16, 16)).astype(np.float32)}
    np.savez(tmp_path / "data.npz", **arrays)
    record = optimize(path, tmp_path, cache, data=str(tmp_path / "data.npz"))
    proto = shipped(record)
    filled = {w.name for w in proto.graph.initializer}
    required = [i.name for i in proto.graph.input if i.name not in filled]
    assert required == [n for n in arrays if n != "labels"], "what a caller must feed has not changed"
    assert not [n.fault for s in record.steps for n in s.passes if n.fault]
    assert record.speedup is not None and record.speedup.value > 0.9
    if kind == "branches":
        assert any("If, Loop or Scan" in w for w in record.warnings)
        assert "int8 dynamic" in {s.label for s in record.steps if s.quality}, "what needs no ranges reaches bodies"


def test_without_data_only_lossless_passes_are_tried_and_nothing_is_called_proven(tmp_path: Path, cache: Path) -> None:
    record = optimize(models.cnn(tmp_path / "cnn.onnx"), tmp_path, cache)
    shipped(record)
    assert [s.label for s in record.steps] == ["lossless"]
    assert record.confidence is Confidence.UNPROVEN


def test_random_data_is_used_only_when_asked_and_then_marked(tmp_path: Path, cache: Path) -> None:
    model = models.cnn(tmp_path / "cnn.onnx")
    record = optimize(model, tmp_path, cache, allow_random_data=True, budget=["none"])
    assert any("random data" in w for w in record.warnings)
    assert record.confidence is Confidence.UNPROVEN and len(record.steps) > 1


def test_a_limit_that_cannot_be_met_ends_without_an_artifact(tmp_path: Path, cache: Path) -> None:
    model = models.cnn(tmp_path / "cnn.onnx")
    record = optimize(model, tmp_path, cache, budget=["size<=1kB"])
    assert record.outcome is Outcome.NONE and record.artifact is None
    assert record.error is not None and "size<=1000B" in record.error["message"]
    assert not (tmp_path / "out.lathe").exists()


def test_strict_does_not_ship_what_is_undecided(tmp_path: Path, cache: Path) -> None:
    model = models.cnn(tmp_path / "cnn.onnx")
    data = models.images(tmp_path / "data.npz", model, 40)
    loose = optimize(model, tmp_path, cache, data=str(data), budget=["top1.drop<=0.06"])
    strict = optimize(model, tmp_path, cache, data=str(data), budget=["top1.drop<=0.06"], strict=True)
    assert loose.confidence is Confidence.UNDECIDED and loose.confirm is not None
    assert "more samples" in loose.confirm.need
    assert strict.outcome in (Outcome.LOSSLESS, Outcome.UNCHANGED)
    assert any(s.verdict.judgement is Judgement.UNDECIDED for s in strict.steps)


def test_level_zero_ships_the_source_byte_for_byte(tmp_path: Path, cache: Path) -> None:
    model = models.cnn(tmp_path / "cnn.onnx")
    record = optimize(model, tmp_path, cache, level=0)
    assert record.outcome is Outcome.UNCHANGED and record.steps == ()
    assert onnx.load(Path(str(record.artifact)) / "model.onnx").graph == onnx.load(model).graph


def test_nothing_is_written_over_what_is_there(tmp_path: Path, cache: Path) -> None:
    model = models.cnn(tmp_path / "cnn.onnx")
    (tmp_path / "out.lathe").mkdir()
    (tmp_path / "out.lathe" / "mine.txt").write_text("precious")
    with pytest.raises(Fault) as caught:
        optimizer.compile(str(model), output=tmp_path / "out.lathe", cache_dir=cache)
    assert caught.value.exit is Exit.USAGE and (tmp_path / "out.lathe" / "mine.txt").exists()
    with pytest.raises(Fault) as rehearsed:
        api.plan(Settings(SourceRequest(str(model)), output=tmp_path / "out.lathe", cache_dir=cache))
    assert rehearsed.value.code == caught.value.code


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"goal": "speed"}, "goal cannot be 'speed'. Known: latency"),
        ({"level": 9}, "level cannot be 9"),
        ({"seed": -1}, "seed cannot be -1. The least is 0"),
        ({"threads": 0}, "threads cannot be 0"),
        ({"bogus": 1}, "no argument 'bogus'"),
        ({"budget": "latency<=3"}, "'latency<=3' cannot be read"),
    ],
)
def test_the_python_api_refuses_what_the_flags_refuse(
    given: dict[str, Any], said: str, tmp_path: Path, cache: Path
) -> None:
    model = models.cnn(tmp_path / "cnn.onnx")
    with pytest.raises(Fault, match=said) as caught:
        optimizer.compile(model, cache_dir=str(cache), output=tmp_path / "out.lathe", **given)
    assert caught.value.exit is Exit.USAGE


def test_a_benchmark_needs_a_model_and_a_metric_needs_data() -> None:
    with pytest.raises(Fault, match="no model was named"):
        optimizer.benchmark([])
    with pytest.raises(Fault, match="the metric 'top1' needs data"):
        optimizer.benchmark(["m.onnx"], metric="top1")


def test_a_users_metric_pass_and_evaluator_are_theirs_although_they_are_called_like_ours(
    tmp_path: Path, cache: Path
) -> None:
    model = models.cnn(tmp_path / "cnn.onnx")
    data = models.images(tmp_path / "data.npz", model)
    (tmp_path / "optimizer.py").write_text("SCALE = 1.0\n")
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "import optimizer\n"
        "def hits(outputs, labels):\n"
        "    return optimizer.SCALE * (outputs['y'].argmax(1) == labels['labels'])\n"
        "def whole(run):\n"
        "    x = np.zeros((1, 3, 16, 16), np.float32)\n"
        "    return float(run({'x': x})['y'].shape[1])\n"
    )
    asked = {"data": str(data), "folder": tmp_path, "recipe": "tidy, fold-batchnorm, quantize-static"}
    by_metric = optimize(model, tmp_path, cache, metric="mine:hits", budget=["drop<=0.05"], **asked)
    assert by_metric.final is not None and by_metric.final.quality is not None
    assert by_metric.final.quality.metric == "mine:hits" and by_metric.final.quality.value > 0.8
    by_evaluator = optimize(model, tmp_path, cache, evaluator="mine:whole", **asked)
    assert by_evaluator.final is not None and by_evaluator.final.quality is not None
    assert by_evaluator.final.quality.value == 10.0 and by_evaluator.confidence is not Confidence.PROVEN
