"""External data attacks: no tensor reaches out of the model's folder, wherever in the file it hides."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from optimizer.faults import Exit, Fault
from optimizer.source.external import confine, is_external, tensors_in
from optimizer.source.onnx_file import load
from tests.source.onnx_models import FLOAT, INFO, model, node, outside, save, tensor
from tests.support import runtime


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder beside a secret."""
    (tmp_path / "secret.bin").write_bytes(b"s" * 64)
    inside = tmp_path / "model"
    (inside / "sub").mkdir(parents=True)
    (inside / "good.bin").write_bytes(b"g" * 64)
    (inside / "link.bin").symlink_to(tmp_path / "secret.bin")
    (inside / "own-link.bin").symlink_to("good.bin")
    (inside / "away").symlink_to(tmp_path)
    os.link(tmp_path / "secret.bin", inside / "hard.bin")
    os.mkfifo(inside / "pipe.bin")
    return inside


def with_weights(*weights: onnx.TensorProto) -> onnx.ModelProto:
    return model([node("Add", ["x", "w"], ["y"])], weights)


@pytest.mark.parametrize(
    ("location", "text"),
    [
        ("", "names no file"),
        ("good.bin\0.txt", "names no file"),
        ("/etc/passwd", "absolute path"),
        ("C:\\secret.bin", "absolute path"),
        ("\\\\server\\share\\w", "absolute path"),
        ("../secret.bin", "leads out"),
        ("sub/../../secret.bin", "leads out"),
        ("sub\\..\\..\\secret.bin", "leads out"),
        ("link.bin", "symbolic link"),
        ("own-link.bin", "symbolic link"),
        ("away/secret.bin", "symbolic link"),
        ("hard.bin", "several hard links"),
        ("sub", "not a plain file"),
        (".", "not a plain file"),
        ("pipe.bin", "not a plain file"),
    ],
)
def test_locations_outside_are_refused(folder: Path, location: str, text: str) -> None:
    path = save(with_weights(outside("w", location)), folder)
    with pytest.raises(Fault, match=f"tensor 'w' takes its data from .*{text}") as caught:
        load(path, runtime.target())
    assert caught.value.code == "unsafe-model" and caught.value.exit is Exit.BAD_INPUT
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("more", "code", "text"),
    [
        ({"offset": 60}, "broken-model", r"reaches to byte 76 of 'good\.bin', which has 64"),
        ({"offset": -4}, "unsafe-model", "'-4' as offset"),
        ({"length": "0x10"}, "unsafe-model", "'0x10' as length"),
        ({"length": 12}, "broken-model", "needs 16 bytes but its external data has 12"),
        ({"offset": 2**70}, "broken-model", "reaches to byte"),
        ({"shape": (2**40,)}, "broken-model", "reaches to byte"),
        ({"location": "gone.bin"}, "broken-model", "which does not exist"),
        ({"location": "*/_ORT_MEM_ADDR_/*", "offset": 4096}, "broken-model", "which does not exist"),
    ],
)
def test_stretches_outside_the_file_are_refused(folder: Path, more: dict[str, object], code: str, text: str) -> None:
    tensor = outside("w", **{"location": "good.bin", **more})  # type: ignore[arg-type]
    with pytest.raises(Fault, match=text) as caught:
        confine(with_weights(tensor), folder)
    assert caught.value.code == code


def test_data_in_a_folder_of_the_models_own_is_fine(folder: Path) -> None:
    (folder / "sub" / "w.bin").write_bytes(np.zeros(4, np.float32).tobytes())
    twice = with_weights(outside("w", "sub/w.bin"), outside("v", "./sub/w.bin"), outside("g", "good.bin", offset=16))
    assert [(s.offset, s.length) for s in confine(twice, folder)] == [(0, 16), (16, 16)]


def hide_in_attribute(evil: onnx.TensorProto) -> onnx.ModelProto:
    return model([node("Constant", [], ["w"], value=evil), node("Add", ["x", "w"], ["y"])])


def hide_in_tensors(evil: onnx.TensorProto) -> onnx.ModelProto:
    proto = model([node("Add", ["x", "x"], ["y"])])
    proto.graph.node[0].attribute.append(onnx.helper.make_attribute("more", [evil, evil]))
    return proto


def hide_in_sparse_initializer(evil: onnx.TensorProto) -> onnx.ModelProto:
    proto = model([node("Add", ["x", "w"], ["y"])])
    proto.graph.sparse_initializer.add(dims=[4]).values.CopyFrom(evil)
    return proto


def hide_in_sparse_attribute(evil: onnx.TensorProto) -> onnx.ModelProto:
    proto = model([node("Constant", [], ["w"]), node("Add", ["x", "w"], ["y"])])
    sparse = onnx.SparseTensorProto(dims=[4], values=tensor("v", [1.0]), indices=evil)
    proto.graph.node[0].attribute.append(onnx.helper.make_attribute("sparse_value", sparse))
    return proto


def hide_in_branch(evil: onnx.TensorProto) -> onnx.ModelProto:
    inner = onnx.helper.make_graph([node("Add", ["x", "w"], ["r"])], "b", [], [INFO("r", FLOAT, None)], [evil])
    return model([node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)])


def hide_in_function(evil: onnx.TensorProto) -> onnx.ModelProto:
    inner = [node("Constant", [], ["w"], value=evil), node("Add", ["a", "w"], ["b"])]
    function = onnx.helper.make_function("own", "F", ["a"], ["b"], inner, [onnx.helper.make_opsetid("", 18)])
    return model([node("F", ["x"], ["y"], domain="own")], functions=[function])


def hide_in_training(evil: onnx.TensorProto) -> onnx.ModelProto:
    proto = model([node("Relu", ["x"], ["y"])])
    proto.training_info.add().initialization.initializer.append(evil)
    return proto


@pytest.mark.parametrize(
    "hide",
    [
        hide_in_attribute,
        hide_in_tensors,
        hide_in_sparse_initializer,
        hide_in_sparse_attribute,
        hide_in_branch,
        hide_in_function,
        hide_in_training,
    ],
)
def test_no_place_is_forgotten(folder: Path, hide: Callable[[onnx.TensorProto], onnx.ModelProto]) -> None:
    proto = hide(outside("evil", "../secret.bin"))
    assert any(is_external(t) for t in tensors_in(proto))
    with pytest.raises(Fault, match=r"'evil' takes its data from '\.\./secret\.bin'") as caught:
        load(save(proto, folder), runtime.target())
    assert caught.value.code == "unsafe-model"


def test_a_tensor_that_lists_a_file_without_saying_external_is_refused_too(folder: Path) -> None:
    sly = outside("w", "../secret.bin")
    sly.data_location = onnx.TensorProto.DEFAULT
    with pytest.raises(Fault, match="leads out"):
        confine(with_weights(sly), folder)
