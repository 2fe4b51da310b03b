"""From a folder of photographs to an artifact that takes pixels, and back to new photographs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import optimizer
from optimizer.boundary import pictures
from optimizer.boundary.text import preprocess
from optimizer.cli.main import cli
from optimizer.watch import Watcher
from tests.support import models
from tests.support.runtime import Array

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")

STEPS = "resize=18, center-crop=16, normalize=imagenet"


def fill(folder: Path, count: int, seed: int, *, swapped: bool = False) -> list[Path]:
    """Pieces of two photographs in four formats and several sizes, one class each."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(seed)
    photographs = load_sample_images().images
    made = []
    for i in range(count):
        name = i % 2
        side = rng.integers(20, 60, 2)
        top, left = (int(rng.integers(0, have - want)) for have, want in zip((427, 640), side, strict=True))
        piece = photographs[name][top : top + side[0], left : left + side[1], :: -1 if swapped else 1]
        made.append(folder / f"class{name}" / f"{i}.{('png', 'bmp', 'jpg', 'png')[i % 4]}")
        made[-1].parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.ascontiguousarray(piece)).save(made[-1])
    return made


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    models.cnn(folder / "m.onnx", width=4)
    fill(folder / "images", 400, 0)
    optimizer.compile(
        str(folder / "m.onnx"), data=str(folder / "images"), output=folder / "a.lathe", cache_dir=folder / "cache",
        preprocess=STEPS, postprocess="softmax, topk=3", level=0, seconds=0.1,
    )  # fmt: skip
    return folder


def test_the_artifact_takes_pixels_and_says_so_everywhere(work: Path) -> None:
    assert optimizer.verify(work / "a.lathe").ok
    manifest = json.loads((work / "a.lathe" / "manifest.json").read_text())
    assert manifest["boundary"]["preprocess"] == STEPS
    assert [(p["name"], p["type"]) for p in manifest["signature"]["inputs"]] == [("pixels", "UINT8")]
    assert [p["name"] for p in manifest["signature"]["outputs"]] == ["scores", "classes"]
    assert [p["name"] for p in manifest["boundary"]["core"]["inputs"]] == ["x"]
    measured = json.loads((work / "a.lathe" / "evidence.json").read_text())["boundary"]
    assert measured["images"] == 11 and 0 <= measured["worst_difference"] < 1e-4
    assert measured["latency_ms"]["p50"] > 0 and measured["times"]["value"] > 0
    report = (work / "a.lathe" / "report.md").read_text()
    assert "## Before and after the network" in report and "takes pixels: UINT8" in report


def test_its_answers_are_those_of_the_network_on_what_the_reference_makes(work: Path) -> None:
    import onnxruntime as ort

    def session(path: Path) -> ort.InferenceSession:
        return ort.InferenceSession(path, providers=["CPUExecutionProvider"])

    whole, alone = session(work / "a.lathe" / "model.onnx"), session(work / "m.onnx")
    for file in fill(work / "few", 8, 1):
        pixels = pictures.open_pixels(file, 3)
        scores, classes = whole.run(None, {"pixels": pixels[None]})
        made = pictures.apply(preprocess(STEPS), pixels, channels_first=True)[None]
        logits: Array = alone.run(None, {"x": made})[0][0]
        share = np.exp(logits - logits.max())
        share /= share.sum()
        np.testing.assert_allclose(scores[0], np.sort(share)[::-1][:3], atol=1e-4)
        assert share[classes[0]].tolist() == pytest.approx(scores[0].tolist(), abs=1e-4)


def test_new_folders_are_read_by_the_same_text_and_swapped_channels_are_drift(work: Path) -> None:
    for name, swapped, code in (("new", False, 0), ("bgr", True, 1)):
        fill(work / name, 220, 2, swapped=swapped)
        given = ["check-data", str(work / name), "--artifact", str(work / "a.lathe"), "--cache-dir", str(work / "c")]
        result = CliRunner().invoke(cli, given)
        assert result.exit_code == code, result.stdout
    watcher = Watcher(work / "a.lathe")
    for file in sorted((work / "bgr").rglob("*.*")):
        watcher.update({"pixels": pictures.open_pixels(file, 3)[None]})
    assert watcher.verdict().verdict == "drift" and watcher.verdict().samples == 220
    with pytest.raises(optimizer.Fault, match="not uint8"):
        watcher.update({"pixels": np.zeros((1, 3, 20, 20), np.float32)})


def test_steps_that_do_not_fit_stop_the_compile_before_it_starts(work: Path, tmp_path: Path) -> None:
    for steps, said in (("resize=64x64", "the model takes 16x16"), ("normalise=imagenet", "no step 'normalise'")):
        given = ["optimize", str(work / "m.onnx"), "--preprocess", steps, "-o", str(tmp_path / "x.lathe"), "-q"]
        result = CliRunner().invoke(cli, [*given, "--cache-dir", str(work / "c")])
        assert result.exit_code == 2 and said in result.stderr and not (tmp_path / "x.lathe").exists()
