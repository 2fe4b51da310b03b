"""Pruning from end to end: judged like everything else, recovered by refit and by training, honest about zeros."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import optimizer
from optimizer.faults import Exit, Fault
from optimizer.records import Judgement, Record
from passes.catalogue import LOSSLESS
from tests.support import models

NARROW = "prune-channels{ratio=0.5, multiple=8}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("prune")
    models.images(found / "data.npz", models.cnn(found / "cnn.onnx", width=32), count=160)
    return found


def compiled(place: Path, recipe: str, name: str, **more: object) -> Record:
    return optimizer.compile(
        str(place / "cnn.onnx"), data=str(place / "data.npz"), recipe=f"{LOSSLESS.text()}, {recipe}", seconds=0.2,
        output=place / name, cache_dir=place / "cache", **more,  # type: ignore[arg-type]
    )  # fmt: skip


def test_zeros_are_no_speed_up(place: Path) -> None:
    for recipe in ("prune-nm", "prune-magnitude{sparsity=0.8}"):
        record = compiled(place, recipe, f"{recipe[:8]}.lathe", budget=["none"])
        (own,) = [s for s in record.steps if s.label == "your recipe"]
        assert own.verdict.judgement is Judgement.SKIPPED and "no faster here" in own.verdict.reason
        assert own.speedup is None and recipe.partition("{")[0] not in record.recipe


def test_a_pruned_model_is_judged_and_trained(place: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    more = {"budget": ["none"], "metric": "sqnr", "recover": "distill", "steps": 24}
    record = compiled(place, f"{NARROW}, refit", "out.lathe", **more)
    own = next(s for s in record.steps if s.label == "your recipe")
    assert own.verdict.judgement is Judgement.ACCEPTED and own.speedup is not None and own.speedup.value > 1.1
    assert any("distilled 'your recipe': 24 steps" in w for w in record.warnings), record.warnings
    trained = [s for s in record.steps if ", distilled" in s.label]
    assert trained[0].recipe.startswith(LOSSLESS.text()) and "distill{steps=" in trained[0].recipe
    (again,) = [s for s in trained if "quantize-static, distill{steps=" in s.recipe]
    (rounded,) = [s for s in trained if s.recipe == again.recipe.rpartition(", distill{")[0]]
    assert again.drop is not None and rounded.drop is not None and again.drop.value < rounded.drop.value
    assert again.size_bytes == rounded.size_bytes, "the integers are stored as they were"
    manifest = json.loads((place / "out.lathe" / "manifest.json").read_text())
    assert "prune-channels" in json.dumps(manifest["recipe"])
    assert optimizer.verify(place / "out.lathe").ok


STUDENT = """
import torch
from torch import nn

class Small(nn.Module):
    def __init__(self, classes=10):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, classes)

    def forward(self, x):
        return {"y": self.b(torch.relu(self.a(x)).mean((2, 3)))}

def build():
    return Small()
"""


def test_a_student_of_ones_own_is_taught(place: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    (place / "student.py").write_text(STUDENT)
    record = optimizer.compile(
        str(place / "cnn.onnx"), data=str(place / "data.npz"), level=0, budget=["none"], seconds=0.1, steps=16,
        student="student:build", shapes=("x:1,3,16,16",), folder=place, output=place / "s.lathe",
        cache_dir=place / "cache",
    )  # fmt: skip
    taught = [s for s in record.steps if s.label.startswith("the student, distilled")]
    assert taught and taught[0].size_bytes is not None and taught[0].size_bytes < 10_000
    assert 'student="student:build"' in record.recipe
    assert not any("without effect" in w for w in record.warnings), "the shape is the student's"
    (place / "other.py").write_text(STUDENT.replace('"y"', '"z"'))
    with pytest.raises(Fault, match="the student has other outputs"):
        optimizer.compile(
            str(place / "cnn.onnx"), data=str(place / "data.npz"), level=0, student="other:build", folder=place,
            shapes=("x:1,3,16,16",), output=place / "t.lathe", cache_dir=place / "cache",
        )  # fmt: skip


def test_words_about_training_that_mean_nothing(place: Path) -> None:
    with pytest.raises(Fault, match="how long to train") as told:
        compiled(place, NARROW, "x.lathe", steps=5)
    assert told.value.exit is Exit.USAGE
    with pytest.raises(Fault, match="recover cannot be 'destill'"):
        compiled(place, NARROW, "x.lathe", recover="destill")
