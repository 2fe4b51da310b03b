"""The sample models: their data, their size, their accuracy, and that they load the same every time."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import sample_models
from sample_models import SAMPLES

PACKAGE = Path(sample_models.__file__).parent
ACCURACY = {"residual-cnn": 0.965, "depthwise-cnn": 0.95, "transformer": 0.95}
IMAGES = 400


def _build(name: str) -> nn.Module:
    module, function = SAMPLES[name].factory.split(":")
    model = getattr(importlib.import_module(module), function)()
    assert isinstance(model, nn.Module)
    return model


def _example(name: str) -> tuple[Tensor, ...]:
    example: tuple[Tensor, ...] = importlib.import_module(SAMPLES[name].factory.split(":")[0]).example_inputs()
    return example


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def test_names_agree() -> None:
    assert sorted(SAMPLES) == sorted(ACCURACY)
    assert all(sample.name == name for name, sample in SAMPLES.items())


def test_listing_the_samples_imports_no_framework() -> None:
    code = "import sys, sample_models; sys.exit(bool({'torch', 'numpy', 'optimizer', 'passes'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, check=True)


def test_weights_are_small() -> None:
    assert sum(path.stat().st_size for path in (PACKAGE / "weights").iterdir()) < 8_000_000


@pytest.mark.parametrize(("file", "count"), [("digits_train.npz", 650), ("digits.npz", 1147)])
def test_data_is_as_described(file: str, count: int) -> None:
    arrays = _arrays(PACKAGE / "data" / file)
    assert sorted(arrays) == ["input", "labels"]
    assert arrays["input"].shape == (count, 1, 8, 8) and arrays["input"].dtype == np.float32
    assert arrays["labels"].shape == (count,) and arrays["labels"].dtype == np.int64
    assert arrays["input"].min() == 0.0 and arrays["input"].max() == 1.0
    shares = np.bincount(arrays["labels"], minlength=10) / count
    assert shares.min() > 0.09 and shares.max() < 0.11


def test_training_and_evaluation_share_no_image() -> None:
    files = [PACKAGE / "data" / "digits_train.npz", PACKAGE / "data" / "digits.npz"]
    train, evaluation = ({image.tobytes() for image in _arrays(file)["input"]} for file in files)
    assert (len(train), len(evaluation)) == (650, 1147)
    assert not train & evaluation


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_accuracy(name: str) -> None:
    arrays = _arrays(SAMPLES[name].data)
    with torch.inference_mode():
        logits = _build(name)(torch.from_numpy(arrays["input"][:IMAGES]))
    assert logits.shape == (IMAGES, 10) and logits.dtype == torch.float32
    assert np.mean(logits.argmax(1).numpy() == arrays["labels"][:IMAGES]) >= ACCURACY[name]


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_build_is_deterministic(name: str) -> None:
    first, second = _build(name), _build(name)
    assert not first.training and not second.training
    with torch.inference_mode():
        assert torch.equal(first(*_example(name)), second(*_example(name)))
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key])


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_exports_with_a_dynamic_batch(name: str, tmp_path: Path) -> None:
    model, path = _build(name), str(tmp_path / "model.onnx")
    shapes = {"input": {0: torch.export.Dim("batch")}}
    torch.onnx.export(model, _example(name), path, dynamo=True, dynamic_shapes=shapes, verbose=False)
    images = _arrays(SAMPLES[name].data)["input"][:3]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        expected = model(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(session.run(None, {"input": images})[0], expected, rtol=0.0, atol=1e-4)
