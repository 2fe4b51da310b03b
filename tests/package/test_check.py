"""The receiver's check finds what was changed, and says so."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from optimizer.faults import Exit, Fault, cannot
from optimizer.package import artifact, check
from optimizer.package.check import VerifyReport
from optimizer.package.receiver.files import describe_file
from optimizer.workers.pool import Worker
from tests.package import parts


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifact.write(tmp_path_factory.mktemp("shipped") / "a.lathe", parts.contents())


@pytest.fixture
def copy(shipped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shipped, tmp_path / "a.lathe"))


def failed(report: VerifyReport) -> dict[str, str]:
    return {f.check: f.detail for f in report.findings if not f.ok}


def reseal(folder: Path) -> None:
    """Checksums as a careful forger would leave them."""
    names = sorted(
        p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != "SHA256SUMS"
    )
    lines = [f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in names]
    (folder / "SHA256SUMS").write_text("".join(lines))


def edit_manifest(folder: Path, change: Callable[[dict], object]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    reseal(folder)


def test_an_artifact_as_shipped_holds(copy: Path) -> None:
    report = check.verify(copy, features={"avx_vnni"}, latency=True, probe=lambda *_: 0.5)
    assert report.ok, failed(report)
    details = {f.check: f.detail for f in report.findings}
    assert details["golden pairs"] == "2 replayed within tolerance"
    assert details["speed"] == "0.5 ms here, 0.25 ms where it was made"


def test_a_relative_path_means_the_folder_of_the_caller(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Worker.ours():
        pass  # workers are forked from a process that was started somewhere else
    monkeypatch.chdir(copy.parent)
    report = check.verify(copy.name)
    assert report.ok, failed(report)
    assert report.folder == copy.name


def test_an_artifact_without_its_manifest_does_not_hold(copy: Path) -> None:
    (copy / "manifest.json").unlink()
    assert "was taken out" in failed(check.verify(copy))["manifest"]
    (copy / "manifest.json").symlink_to("nowhere.json")
    assert "was taken out" in failed(check.verify(copy))["manifest"]
    (copy / "SHA256SUMS").unlink()
    with pytest.raises(Fault) as caught:  # nothing says that it ever was one
        check.verify(copy)
    assert (caught.value.exit, caught.value.code) == (Exit.BAD_INPUT, "not-an-artifact")


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["golden"].update(pairs="many"),
        lambda m: m["golden"]["tolerance"]["y"].update(of_largest=1e9),
        lambda m: m["golden"]["tolerance"]["y"].update(colour=1),
        lambda m: m.update(runs_at=[]),
        lambda m: m["requires"].update(custom_ops=["x"]),
        lambda m: m["requires"].update(cpu_features_any="avx"),
        lambda m: m["files"].update({"model.onnx": {"sha256": "ab"}}),
    ],
)
def test_a_manifest_that_lies_is_a_mismatch(copy: Path, change: Callable[[dict], object]) -> None:
    edit_manifest(copy, change)
    assert "manifest.json" in failed(check.verify(copy))["manifest"]


def test_speed_is_really_measured(copy: Path) -> None:
    assert 0 < check.time_in_worker(copy / "model.onnx", parts.contents().golden[0].feeds, "cpu", 1) < 100


def test_large_artifacts_hold_too(tmp_path: Path) -> None:
    place = artifact.write(tmp_path / "big", parts.contents(), external_above=1024)
    assert check.verify(place).ok


@pytest.mark.parametrize(
    "name", ["model.onnx", "golden/0001_output.npz", "report.md", "evidence.json", "manifest.json"]
)
def test_a_changed_byte_is_found(copy: Path, name: str) -> None:
    data = bytearray((copy / name).read_bytes())
    place = data.index(b"top1") if name == "manifest.json" else len(data) // 2
    data[place] ^= 1
    (copy / name).write_bytes(data)
    if name == "manifest.json":
        assert "manifest.json" in json.dumps(failed(check.verify(copy)))
    else:
        assert name in failed(check.verify(copy))["checksums"]


def test_missing_extra_and_linked_files_are_found(copy: Path) -> None:
    (copy / "report.md").unlink()
    (copy / "golden" / "more.bin").write_bytes(b"x")
    (copy / "evidence.json").rename(copy.parent / "elsewhere.json")
    (copy / "evidence.json").symlink_to(copy.parent / "elsewhere.json")
    detail = failed(check.verify(copy))["files"]
    assert "report.md is missing" in detail and "golden/more.bin does not belong" in detail
    assert "evidence.json is not a regular file" in detail


def test_a_manifest_of_another_model_is_noticed(copy: Path, tmp_path: Path) -> None:
    other = artifact.write(tmp_path / "other", parts.contents(parts.model(2.0)))
    shutil.copy(other / "manifest.json", copy / "manifest.json")
    reseal(copy)
    assert "another model" in failed(check.verify(copy))["checksums"]


def test_a_signature_that_is_not_the_graphs_is_noticed(copy: Path) -> None:
    edit_manifest(copy, lambda m: m["signature"]["inputs"][0].update(name="z"))
    assert "another model" in failed(check.verify(copy))["graph"]


def test_weights_from_outside_are_noticed(tmp_path: Path) -> None:
    place = artifact.write(tmp_path / "a", parts.contents(), external_above=1024)
    graph = (place / "model.onnx").read_bytes()
    (place / "model.onnx").write_bytes(graph.replace(b"model.onnx.data", b"../../etc/hosts"))
    (place / "model.onnx.data").unlink()

    def agree(manifest: dict) -> None:
        del manifest["files"]["model.onnx.data"]
        manifest["files"]["model.onnx"] = describe_file(place / "model.onnx")

    edit_manifest(place, agree)
    assert "../../etc/hosts" in failed(check.verify(place))["graph"]


def test_other_answers_are_noticed(copy: Path) -> None:
    def shifted(*arguments: object) -> list[dict]:
        return [{"y": o["y"] + 0.1} for o in check.replay_in_worker(*arguments)]

    assert "off by 0.1" in failed(check.verify(copy, replay=shifted))["golden pairs"]


def test_a_host_that_lacks_what_the_speed_needs_is_a_warning(tmp_path: Path) -> None:
    place = artifact.write(tmp_path / "a", parts.contents(lossy=True))
    report = check.verify(place, features={"sse2"})
    assert report.ok
    (warning,) = [f for f in report.findings if f.warning]
    assert "none of avx512_vnni, avx_vnni" in warning.detail


def test_no_golden_pairs_is_said(tmp_path: Path) -> None:
    report = check.verify(artifact.write(tmp_path / "a", parts.contents(golden=())))
    assert report.ok and any(f.check == "golden pairs" and f.warning for f in report.findings)


def test_a_manifest_that_is_not_json_is_a_mismatch(copy: Path) -> None:
    (copy / "manifest.json").write_text("{")
    assert "not readable JSON" in failed(check.verify(copy))["manifest"]
    edit = json.dumps({"schema": "lathe.manifest/1"})
    (copy / "manifest.json").write_text(edit)
    assert "misses or garbles: files" in failed(check.verify(copy))["manifest"]


@pytest.mark.parametrize(
    ("text", "code"),
    [(None, "not-an-artifact"), ("[]", "not-an-artifact"), ('{"schema": "lathe.manifest/9"}', "unknown-schema")],
)
def test_what_is_no_artifact_is_bad_input(tmp_path: Path, text: str | None, code: str) -> None:
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(Fault) as caught:
        check.verify(tmp_path)
    assert (caught.value.exit, caught.value.code) == (Exit.BAD_INPUT, code)
    with pytest.raises(Fault, match="no such folder"):
        check.verify(tmp_path / "nowhere")


def test_a_missing_provider_is_the_environments_fault(copy: Path) -> None:
    def replay(*_: object) -> list[dict]:
        raise cannot("CUDAExecutionProvider is not available")

    with pytest.raises(Fault) as caught:
        check.verify(copy, replay=replay)
    assert caught.value.exit is Exit.UNDECIDED
    edit_manifest(copy, lambda m: m.update(provider="CUDAExecutionProvider"))
    with pytest.raises(Fault) as caught:
        check.verify(copy)
    assert caught.value.exit is Exit.UNDECIDED
