"""ONNX files of every kind: what loads, what is told about it, and what is refused in one line."""

from __future__ import annotations

import gzip
import os
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from optimizer.faults import Exit, Fault
from optimizer.source import onnx_file
from optimizer.source.onnx_file import load
from tests.source.onnx_models import BOOL, FLOAT, INFO, add_weights, model, node, outside, save, tensor
from tests.support import runtime

TARGET = runtime.target()
ONE = {"x": np.ones((2, 4), np.float32)}


def refused(path: Path, text: str, code: str) -> Fault:
    with pytest.raises(Fault, match=text) as caught:
        load(path, TARGET)
    assert caught.value.code == code and caught.value.exit is Exit.BAD_INPUT
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    return caught.value


def test_a_plain_file_loads(tmp_path: Path) -> None:
    path = save(add_weights(), tmp_path)
    found = load(path, TARGET)
    assert found.size_bytes == path.stat().st_size and found.warnings == () and found.beyond == ""
    assert runtime.run(found.model, ONE)["y"].tolist() == [[2, 3, 4, 5]] * 2


def zipped(inside: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(inside, b"x")

    return write


@pytest.mark.parametrize(
    ("content", "text", "code"),
    [
        (b"", "the file is empty", "not-onnx"),
        (b"version https://git-lfs.github.com/spec/v1\noid", r"Git LFS pointer.*git lfs pull", "not-onnx"),
        (zipped("archive/data.pkl"), r"a PyTorch file.*package\.module:factory", "not-onnx"),
        (zipped("inner/net.onnx"), r"zip archive.*holds inner/net\.onnx", "not-onnx"),
        (zipped("input.npy"), "numpy archive.*--data", "not-onnx"),
        (b"PK\x03\x04broken", "zip archive", "not-onnx"),
        (b"\x89HDF\r\n\x1a\n....", "HDF5.*tf2onnx", "not-onnx"),
        (b"\x1c\0\0\0TFL3....", "TensorFlow Lite", "not-onnx"),
        (b"\x1c\0\0\0ORTM....", "onnxruntime's own format", "not-onnx"),
        (b'{"weights": []}', "it is JSON", "not-onnx"),
        (gzip.compress(b"model", mtime=0), "compressed with gzip. Unpack it first: gunzip", "not-onnx"),
        (b"\x80\x04\x95abc", "Python pickle", "not-onnx"),
        ((60).to_bytes(8, "little") + b'{"w":{}}', "safetensors", "not-onnx"),
        (b"<!DOCTYPE html><html>", "web page", "not-onnx"),
        (b"just some words\n", "text file", "not-onnx"),
        (b"GGUF\x03\0", "llama.cpp", "not-onnx"),
        (b"\x08\x0a\x12\x05hello", "holds no graph", "not-onnx"),
        (b"\x08\xff\xff\xff", "not a complete ONNX model.*truncated", "not-onnx"),
        (bytes(range(129, 193)), "not a complete ONNX model", "not-onnx"),
    ],
)
def test_what_is_not_onnx_is_told(tmp_path: Path, content: object, text: str, code: str) -> None:
    path = tmp_path / "m.onnx"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)  # type: ignore[operator]
    refused(path, text, code)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_files_are_told(tmp_path: Path, share: float) -> None:
    path = save(add_weights(), tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    refused(path, "not a complete ONNX model", "not-onnx")


def test_missing_files_offer_the_closest(tmp_path: Path) -> None:
    save(add_weights(), tmp_path, "resnet.onnx")
    refused(tmp_path / "resnte.onnx", r"no such file. Did you mean '.*resnet\.onnx'", "model-missing")
    refused(tmp_path / "zzz.onnx", "ONNX files there: resnet.onnx", "model-missing")
    refused(tmp_path / "no" / "m.onnx", "There is no folder", "model-missing")


def test_folders_and_pipes_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").mkdir()
    refused(tmp_path / "m.onnx", "this is a folder", "bad-input")
    os.mkfifo(tmp_path / "pipe.onnx")
    refused(tmp_path / "pipe.onnx", "not a plain file", "unsafe-model")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda m: setattr(m, "ir_version", 2), "IR version 2; 3 is the oldest"),
        (lambda m: m.ClearField("opset_import"), "does not say which opset"),
        (lambda m: m.graph.node[0].input.append("ghost"), "node 'add' reads 'ghost', which nothing writes"),
        (lambda m: setattr(m.graph.output[0], "name", "z"), "nothing writes the output 'z'"),
        (lambda m: m.graph.node.append(m.graph.node[0]), "two nodes write the value 'y'"),
        (lambda m: m.graph.initializer[0].dims.__setitem__(0, 5), "holds 16 bytes instead of 20"),
        (lambda m: m.graph.initializer[0].dims.__setitem__(0, -4), r"has the shape \[-4\]"),
        (lambda m: m.graph.initializer[0].ClearField("raw_data"), "holds 0 bytes instead of 16"),
        (lambda m: setattr(m.graph.initializer[0], "data_type", 999), "unknown data type 999"),
    ],
)
def test_broken_models_are_told(tmp_path: Path, change: Callable[[onnx.ModelProto], None], text: str) -> None:
    proto = add_weights()
    change(proto)
    refused(save(proto, tmp_path), text, "broken-model")


def test_a_sparse_bomb_stays_in_the_child(tmp_path: Path) -> None:
    proto = add_weights()
    sparse = onnx.SparseTensorProto(dims=[3 * 10**8])
    sparse.values.CopyFrom(tensor("s", [1.0]))
    sparse.indices.CopyFrom(tensor("i", [5], np.int64))
    proto.graph.sparse_initializer.append(sparse)
    refused(save(proto, tmp_path), "far more memory than its size explains", "unsafe-model")


def test_a_reader_that_crashes_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        onnx_file, "_call", lambda worker, path, seconds, caps: worker.call("optimizer.workers.probe:crash")
    )
    refused(save(add_weights(), tmp_path), "ended the reader: .*SIGSEGV", "broken-model")


def test_initializers_listed_as_inputs_are_not_part_of_the_signature(tmp_path: Path) -> None:
    old = model(
        [node("Add", ["x", "w"], ["y"])],
        [tensor("w", [1, 2, 3, 4])],
        inputs=[INFO("x", FLOAT, ["n", 4]), INFO("w", FLOAT, [4])],
        opset=[("", 9)],
        ir_version=3,
    )
    found = load(save(old, tmp_path), TARGET)
    assert [port.name for port in found.model.signature.inputs] == ["x"] and found.warnings == ()
    assert runtime.run(found.model, ONE)["y"].tolist() == [[2, 3, 4, 5]] * 2


def test_models_newer_than_the_runtime_are_reported_and_kept(tmp_path: Path) -> None:
    path = save(model([node("Relu", ["x"], ["y"])], opset=[("", 28)], ir_version=14), tmp_path)
    found = load(path, replace(TARGET, max_opset=27, max_ir=13))
    assert found.beyond == found.warnings[0]
    assert "opset 28 is above 27 and IR version 14 is above 13" in found.beyond and "untouched" in found.beyond
    assert (found.model.opset, found.model.ir.ir_version) == (28, 14)
    assert load(path, replace(TARGET, max_opset=28, max_ir=14)).beyond == ""


@pytest.mark.parametrize("imports", [(("", 9), ("", 13)), (("", 13), ("", 9)), (("ai.onnx", 9), ("", 13))])
def test_of_two_imports_the_one_that_the_runtime_takes_is_kept(
    tmp_path: Path, imports: tuple[tuple[str, int], ...]
) -> None:
    import onnxruntime

    shape = ["n", 2, 2]  # Softmax means all axes but the first up to opset 12, and the last one from 13 on
    ends = {"inputs": [INFO("x", FLOAT, shape)], "outputs": [INFO("y", FLOAT, shape)]}
    path = save(model([node("Softmax", ["x"], ["y"])], opset=imports, ir_version=8, **ends), tmp_path)
    feeds = {"x": np.zeros((1, 2, 2), np.float32)}
    expected = onnxruntime.InferenceSession(path).run(None, feeds)[0]
    found = load(path, TARGET)
    assert np.array_equal(runtime.run(found.model, feeds)["y"], expected)
    assert f"imports the opset of 'ai.onnx' 2 times ({imports[0][1]}, {imports[1][1]})" in found.warnings[0]


def test_unnamed_dimensions_are_told(tmp_path: Path) -> None:
    proto = model([node("Relu", ["x"], ["y"])], inputs=[INFO("x", FLOAT, [None, 4])], outputs=[INFO("y", FLOAT, None)])
    assert load(save(proto, tmp_path), TARGET).warnings == (
        "dynamic dimensions without a name (x axis 0): each is taken as free",
    )


def test_work_inside_a_branch_and_outer_names_load(tmp_path: Path) -> None:
    body = onnx.helper.make_graph([node("Add", ["x", "w"], ["r"])], "then", [], [INFO("r", FLOAT, None)])
    proto = model(
        [node("If", ["c"], ["y"], then_branch=body, else_branch=body)],
        [tensor("w", [1, 2, 3, 4])],
        inputs=[INFO("x", FLOAT, ["n", 4]), INFO("c", BOOL, [])],
    )
    found = load(save(proto, tmp_path), TARGET)
    assert runtime.run(found.model, {**ONE, "c": np.array(True)})["y"].tolist() == [[2, 3, 4, 5]] * 2
    body.node[0].input[1] = "ghost"
    proto.graph.node[0].attribute[0].g.CopyFrom(body)
    refused(save(proto, tmp_path), "reads 'ghost'", "broken-model")


def test_external_weights_are_mapped_and_counted(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"\0" * 16 + np.array([1, 2, 3, 4], np.float32).tobytes() + b"\0" * 100)
    proto = model([node("Add", ["x", "w"], ["y"])], [outside("w", "w.bin", offset=16, length=16)])
    path = save(proto, tmp_path)
    found = load(path, TARGET)
    assert found.size_bytes == path.stat().st_size + 16
    assert type(found.model.graph.initializers["w"].const_value).__name__ == "ExternalTensor"
    assert runtime.run(found.model, ONE)["y"].tolist() == [[2, 3, 4, 5]] * 2


def test_external_data_beside_the_main_graph_is_read_in(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(np.array([1, 2, 3, 4], np.float32).tobytes())
    inner = [node("Constant", [], ["w"], value=outside("", "w.bin")), node("Add", ["a", "w"], ["b"])]
    function = onnx.helper.make_function("own", "AddW", ["a"], ["b"], inner, [onnx.helper.make_opsetid("", 18)])
    proto = model(
        [
            node("AddW", ["x"], ["z"], domain="own"),
            node("Constant", [], ["k"], value=outside("", "w.bin")),
            node("Mul", ["z", "k"], ["y"]),
        ],
        opset=[("", 18), ("own", 1)],
        functions=[function],
    )
    found = load(save(proto, tmp_path), TARGET)
    (tmp_path / "w.bin").unlink()
    assert runtime.run(found.model, ONE)["y"].tolist() == [[2, 6, 12, 20]] * 2


def test_training_information_is_left_out_and_told(tmp_path: Path) -> None:
    proto = add_weights()
    proto.training_info.add()
    found = load(save(proto, tmp_path), TARGET)
    assert "training information" in found.warnings[0] and not found.model.to_proto().training_info
