"""MODEL in every form: what is opened, how it is called, and what is refused with a reason."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimizer.faults import Exit, Fault
from optimizer.plan import SourceRequest
from optimizer.source.open import Source, open_source
from passes.kit.model import Model
from tests.source.onnx_models import add_weights, save
from tests.support import runtime

HERE = Path(__file__).parent


def run(model: Model, feeds: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [runtime.run(model, f) for f in feeds]


def opened(text: str, folder: Path, **request: Any) -> Source:
    asked = SourceRequest(text, folder=folder, **request)
    return open_source(asked, target=runtime.target(), scratch=folder / "scratch", run=run)


def test_an_onnx_file_is_named_after_itself(tmp_path: Path) -> None:
    path = save(add_weights(), tmp_path, "adder.v2.onnx")
    for text in ("adder.v2.onnx", str(path), "./adder.v2.onnx"):
        found = opened(text, tmp_path)
        assert (found.name, found.kind, found.size_bytes) == ("adder.v2", "onnx", path.stat().st_size)
        assert found.digest == found.model.digest() and found.parity is None and found.exporter is None
    shutil.copy(path, tmp_path / "noending")
    assert opened("noending", tmp_path).name == "noending"


def test_an_artifact_is_opened_by_its_folder(tmp_path: Path) -> None:
    artifact = tmp_path / "adder.lathe"
    artifact.mkdir()
    save(add_weights(), artifact, "model.onnx")
    with pytest.raises(Fault, match=r"not an artifact of lathe. Name one of its files: model\.onnx"):
        opened("adder.lathe", tmp_path)
    (artifact / "manifest.json").write_text("{}")
    assert opened("adder.lathe", tmp_path).name == "adder"


def test_options_for_an_export_are_said_to_have_no_effect_on_a_file(tmp_path: Path) -> None:
    save(add_weights(), tmp_path, "adder.onnx")
    assert not opened("adder.onnx", tmp_path).warnings
    (warning,) = opened("adder.onnx", tmp_path, shapes=("x:1,3",), opset=13).warnings
    assert warning == "--shape and --opset: without effect, as the model is ONNX already"


@pytest.mark.parametrize(
    ("text", "exit_", "code", "message"),
    [
        ("net.pt2", 3, "unsafe-model", "can run any code.*package.module:factory"),
        ("net.pt", 3, "unsafe-model", "can run any code.*package.module:factory"),
        ("net.pth", 3, "unsafe-model", "can run any code"),
        ("net.torchscript", 3, "unsafe-model", "can run any code"),
        ("net.CKPT", 3, "unsafe-model", "a checkpoint is a pickle"),
        ("net.pkl", 3, "unsafe-model", "can run any code"),
        ("net.safetensors", 3, "not-a-model", "weights without the model's code.*package.module:factory"),
        ("net.tflite", 3, "not-supported", "TensorFlow Lite"),
        ("net.engine", 3, "not-supported", "TensorRT engine"),
        ("hub", 3, "not-supported", "Hugging Face folders are not opened yet"),
        ("empty", 3, "not-supported", "holds no .onnx file"),
        ("ader.onnx", 3, "model-missing", "Did you mean '.*adder.onnx'"),
        ("gone/net.onnx", 3, "model-missing", "There is no folder"),
        ("adder", 2, "usage", "Did you mean 'adder.onnx'.*sample:NAME"),
        ("transfomer", 2, "usage", "Did you mean 'sample:transformer'"),
        ("qqqq", 2, "usage", "MODEL is file.onnx, package.module:factory"),
        ("q" * 5000, 2, "usage", r"^q{100}\.\.\.: there is no such model"),
        ("code.py", 2, "usage", "Write code.py:factory"),
        ("a b:c", 2, "usage", "MODEL is file.onnx"),
        ("sample:residual", 2, "usage", "Did you mean 'sample:residual-cnn'"),
        ("sample:", 2, "usage", "Samples: residual-cnn"),
        ("gone.py:build", 3, "module-not-found", "no such Python file. Python files there: code.py"),
        ("cod:build", 3, "module-not-found", "there is no module 'cod'. Did you mean 'code'"),
    ],
)
def test_refusals_say_what_to_do(tmp_path: Path, text: str, exit_: int, code: str, message: str) -> None:
    save(add_weights(), tmp_path, "adder.onnx")
    (tmp_path / "net.pt").touch()
    (tmp_path / "code.py").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "config.json").write_text("{}")
    with pytest.raises(Fault, match=message) as caught:
        opened(text, tmp_path)
    assert (caught.value.code, caught.value.exit) == (code, Exit(exit_))
    assert "\n" not in str(caught.value)


def test_a_users_factory_beside_their_own_optimizer(tmp_path: Path) -> None:
    (tmp_path / "optimizer.py").write_text("SCALE = 3.0\n")
    (tmp_path / "passes.py").write_text("OFFSET = 1.0\n")
    (tmp_path / "tiny.py").write_text(
        "import torch, optimizer, passes\n"
        "class Tiny(torch.nn.Module):\n"
        "    def forward(self, x): return x * optimizer.SCALE + passes.OFFSET\n"
        "def example_inputs(): return torch.ones(2, 3)\n"
    )
    found = opened("tiny:Tiny", tmp_path)
    assert (found.name, found.kind, found.where, found.exporter) == ("tiny", "torch", "tiny:Tiny", "dynamo")
    assert found.parity is not None and found.parity.ok and found.data is None
    assert runtime.run(found.model, {"x": np.full((5, 3), 2, np.float32)})["output"].tolist() == [[7.0] * 3] * 5


def test_a_sample_brings_its_data_and_cannot_be_shadowed(tmp_path: Path) -> None:
    (tmp_path / "sample_models.py").write_text("raise RuntimeError('not ours')\n")
    found = opened("sample:depthwise-cnn", tmp_path)
    assert (found.name, found.kind, found.where) == ("depthwise-cnn", "sample", "sample:depthwise-cnn")
    assert found.data is not None and found.data.name == "digits.npz"
    assert found.parity is not None and found.parity.ok and "batch=4" in found.parity.batches
