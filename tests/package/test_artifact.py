"""An artifact appears whole or not at all, and the same contents give the same bytes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from optimizer.faults import Exit, Fault
from optimizer.package import artifact
from tests.package import parts
from tests.support import runtime

FILES = {"model.onnx", "manifest.json", "evidence.json", "report.md", "golden", "SHA256SUMS", "verify.py"}


def snapshot(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def failing(number: int, calls: int = 0) -> Callable[[int], None]:
    left = [calls]

    def fsync(handle: int) -> None:
        if left[0] == 0:
            raise OSError(number, os.strerror(number))
        left[0] -= 1

    return fsync


def test_the_whole_artifact_and_nothing_else(tmp_path: Path) -> None:
    place = artifact.write(tmp_path / "new" / "a.lathe", parts.contents())
    assert {p.name for p in place.iterdir()} == FILES
    assert {p.name for p in (tmp_path / "new").iterdir()} == {"a.lathe"}
    manifest = json.loads((place / "manifest.json").read_text())
    for name, said in manifest["files"].items():
        data = (place / name).read_bytes()
        assert said == {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    sums = dict(reversed(line.split("  ")) for line in (place / "SHA256SUMS").read_text().splitlines())
    assert set(sums) == set(snapshot(place)) - {"SHA256SUMS"}


def test_the_same_contents_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = (artifact.write(tmp_path / n, parts.contents()) for n in "ab")
    assert snapshot(first) == snapshot(second)


def test_the_manifest_tells_nothing_of_the_machine(tmp_path: Path) -> None:
    text = (artifact.write(tmp_path / "a", parts.contents()) / "manifest.json").read_text()
    manifest = json.loads(text)
    assert manifest["source"]["name"] == "linear.onnx" and "/home" not in text and str(tmp_path) not in text
    assert manifest["recipe"]["steps"][1] == {"name": "quantize-static", "options": {"exclude": ["/head/*"]}}
    assert "evidence.json" not in manifest["files"]  # measured: differs from day to day


def test_large_weights_stand_beside_the_graph(tmp_path: Path) -> None:
    subject = parts.model()
    for name in "ab":
        artifact.write(tmp_path / name, parts.contents(), external_above=1024)
    data = tmp_path / "a" / "model.onnx.data"
    assert data.stat().st_size == subject.weight_bytes()
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")
    feeds = {"x": np.ones((1, 32), np.float32)}
    loaded = artifact.Model.from_proto(onnx.load(tmp_path / "a" / "model.onnx"))
    assert np.array_equal(runtime.run(loaded, feeds)["y"], runtime.run(subject, feeds)["y"])


def test_tensors_stand_on_pages_and_equal_ones_once(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 20] x) => (y) { a = MatMul (x, v) b = MatMul (a, w) y = MatMul (b, u) }"""
    one, other = np.ones((20, 20), np.float32), np.zeros((20, 20), np.float32)
    subject = runtime.model(text, v=one, w=other, u=one)
    size = artifact.write_model_file(tmp_path / "m.onnx", subject, external_above=1024)
    assert (tmp_path / "m.onnx.data").stat().st_size == 4096 + 1600
    assert size == sum(p.stat().st_size for p in tmp_path.iterdir())
    proto = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    offsets = {t.name: int({e.key: e.value for e in t.external_data}["offset"]) for t in proto.graph.initializer}
    assert sorted(offsets.values()) == [0, 0, 4096] and offsets["v"] == offsets["u"]


def test_one_file_is_replaced_whole_or_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact.write_model_file(tmp_path / "m.onnx", parts.model())
    before = (tmp_path / "m.onnx").read_bytes()
    assert before == parts.model().to_bytes()
    monkeypatch.setattr(os, "fsync", failing(errno.ENOSPC))
    with pytest.raises(Fault, match="the disk is full"):
        artifact.write_model_file(tmp_path / "m.onnx", parts.model(2.0))
    assert snapshot(tmp_path) == {"m.onnx": before}


def test_an_output_that_exists_is_kept(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(Fault) as caught:
        artifact.write(tmp_path / "a", parts.contents())
    assert caught.value.exit is Exit.USAGE and caught.value.code == "output-exists"
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


@pytest.mark.parametrize("exchange", [True, False])
def test_overwriting_swaps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool) -> None:
    if not exchange:
        monkeypatch.setattr(artifact, "_exchange", lambda one, other: False)
    place = artifact.write(tmp_path / "a", parts.contents())
    before = snapshot(place)
    artifact.write(place, parts.contents(parts.model(2.0)), overwrite=True)
    assert snapshot(place)["model.onnx"] != before["model.onnx"]
    assert list(tmp_path.iterdir()) == [place]


def test_a_swap_that_fails_half_way_puts_the_old_one_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact, "_exchange", lambda one, other: False)
    place = artifact.write(tmp_path / "a", parts.contents())
    before = snapshot(place)
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.suffix == ".partial":
            raise OSError(errno.EIO, "broken cable")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(Fault, match="broken cable"):
        artifact.write(place, parts.contents(parts.model(2.0)), overwrite=True)
    assert snapshot(place) == before and list(tmp_path.iterdir()) == [place]


@pytest.mark.parametrize("extra", ["model.txt", "manifest.json"])
def test_what_is_not_ours_is_never_overwritten(tmp_path: Path, extra: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / extra).write_text('{"schema": "somebody/1"}')
    with pytest.raises(Fault) as caught:
        artifact.write(tmp_path / "a", parts.contents(), overwrite=True)
    assert (caught.value.exit, caught.value.code) == (Exit.USAGE, "not-an-artifact")
    assert (tmp_path / "a" / extra).exists()


def test_a_place_that_cannot_hold_the_output_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Fault, match="nothing can be written below it") as caught:
        artifact.check_output(tmp_path / "file" / "new" / "out", overwrite=False)
    assert caught.value.exit == Exit.USAGE
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(Fault, match="no permission") as caught:
        artifact.check_output(tmp_path / "out", overwrite=False)
    assert caught.value.exit == Exit.FAULT


def test_files_that_somebody_put_into_an_artifact_are_not_deleted(tmp_path: Path) -> None:
    place = artifact.write(tmp_path / "a", parts.contents())
    (place / "notes.txt").write_text("mine")
    with pytest.raises(Fault, match=r"notes\.txt"):
        artifact.write(place, parts.contents(), overwrite=True)
    assert (place / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, "disk-full"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "no-permission"),
        (errno.EIO, "cannot-write"),
    ],
)
@pytest.mark.parametrize("calls", [0, 5])
def test_a_disk_that_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: str, calls: int
) -> None:
    monkeypatch.setattr(os, "fsync", failing(number, calls))
    with pytest.raises(Fault) as caught:
        artifact.write(tmp_path / "deep" / "a", parts.contents())
    assert (caught.value.exit, caught.value.code) == (Exit.FAULT, code)
    assert caught.value.where == str(tmp_path / "deep" / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "no")

    contents = parts.contents()
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(Fault) as caught:
        artifact.write(tmp_path / "a", contents)
    assert caught.value.code == "no-permission"


def test_ctrl_c_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = artifact.write(tmp_path / "a", parts.contents())
    before = snapshot(place)
    contents = parts.contents(parts.model(2.0))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(artifact.pairs_file, "write", interrupt)
    for folder in (place, tmp_path / "b"):
        with pytest.raises(KeyboardInterrupt):
            artifact.write(folder, contents, overwrite=True)
    assert snapshot(place) == before and list(tmp_path.iterdir()) == [place]
