"""Files become samples, and bad ones a clear line with the documented exit code."""

from __future__ import annotations

import json
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from optimizer.data.readers import from_arrays, read
from optimizer.data.samples import Samples
from optimizer.faults import Exit, Fault
from passes.kit.model import Port

X = Port("input", "FLOAT", ("batch", 3))
IDS = Port("input_ids", "INT64", ("batch", "sequence"))


def rows(n: int = 6) -> np.ndarray:
    return np.arange(n * 3, dtype=np.float32).reshape(n, 3)


def saved(tmp_path: Path, **arrays: Any) -> Path:
    np.savez(tmp_path / "data.npz", **arrays)
    return tmp_path / "data.npz"


def load(path: Path, *ports: Port, **more: Any) -> Samples:
    return read(path, ports or (X,), scratch=path.parent / "scratch", **more)


def fault(path: Path, *ports: Port) -> Fault:
    with pytest.raises(Fault) as caught:
        load(path, *ports)
    assert caught.value.hint and "\n" not in str(caught.value)
    return caught.value


# -- what can be read --------------------------------------------------------------------------------------------
def test_npz_members_are_unpacked_once_and_memory_mapped(tmp_path: Path) -> None:
    path = saved(tmp_path, input=rows(), labels=np.arange(6), scale=np.float32(2))
    samples = load(path)
    assert isinstance(samples.inputs["input"], np.memmap)
    assert list(samples.labels) == ["labels"]
    assert "'scale' is a single value" in samples.warnings[0]
    (folder,) = (tmp_path / "scratch").iterdir()
    before = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert (
        load(path).digest() == samples.digest() == from_arrays({"input": rows(), "labels": np.arange(6)}, (X,)).digest()
    )
    assert {p: p.stat().st_mtime_ns for p in folder.iterdir()} == before


@pytest.mark.parametrize("damage", ["cut", "gone", "other bytes", "one bit"])
def test_what_was_unpacked_is_unpacked_again_when_it_was_pruned_or_cut(tmp_path: Path, damage: str) -> None:
    path = saved(tmp_path, input=rows(6), labels=np.arange(6))
    digest = load(path).digest()
    first = min(tmp_path.rglob("*.npy"))
    kept = first.read_bytes()
    first.unlink()
    damaged = {"cut": kept[:-4], "other bytes": bytes(len(kept)), "one bit": kept[:-1] + bytes([kept[-1] ^ 1])}
    if damage != "gone":
        first.write_bytes(damaged[damage])
    assert load(path).digest() == digest


def test_a_changed_archive_is_unpacked_again(tmp_path: Path) -> None:
    first = load(saved(tmp_path, input=rows())).digest()
    assert load(saved(tmp_path, input=rows() + 1)).digest() != first


def test_names_in_an_archive_cannot_leave_the_scratch_folder(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", rows())
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        archive.write(tmp_path / "a.npy", "../../outside.npy")
        archive.write(tmp_path / "a.npy", "input.npy")
    assert len(load(tmp_path / "data.npz")) == 6
    assert not list(tmp_path.parent.glob("outside*"))


def test_folders_of_npy_and_of_npz_parts(tmp_path: Path) -> None:
    arrays = tmp_path / "arrays"
    arrays.mkdir()
    np.save(arrays / "input.npy", rows())
    np.save(arrays / "labels.npy", np.arange(6))
    assert list(load(arrays).labels) == ["labels"]
    parts = tmp_path / "parts"
    parts.mkdir()
    for k in range(3):
        np.savez(parts / f"part{k}.npz", input=rows(2) + k, labels=np.full(2, k))
    samples = load(parts)
    assert len(samples) == 6
    assert samples.labels["labels"].tolist() == [0, 0, 1, 1, 2, 2]
    np.save(tmp_path / "any.npy", rows())
    assert len(load(tmp_path / "any.npy")) == 6


def test_onnx_test_data_sets_are_feeds_with_expected_outputs(tmp_path: Path) -> None:
    for k in (0, 1, 10, 2):
        folder = tmp_path / "model" / f"test_data_set_{k}"
        folder.mkdir(parents=True)
        for name, array in (
            ("input_0", rows(2) + k),
            ("input_1", np.int64(k)),
            ("output_0", np.full((2, 5), k, np.float32)),
        ):
            tensor = onnx.numpy_helper.from_array(np.asarray(array), "probs" if name == "output_0" else "")
            (folder / f"{name}.pb").write_bytes(tensor.SerializeToString())
    ports = (Port("x", "FLOAT", ("n", 3)), Port("step", "INT64", ()))
    samples = load(tmp_path / "model", *ports)
    assert len(samples) == 4
    assert [int(feed["step"]) for feed, _ in samples.feeds(4)] == [0, 1, 2, 10]
    assert samples.labels_of(3, 1)["probs"].tolist() == np.full((2, 5), 10.0).tolist()
    assert len(load(tmp_path / "model" / "test_data_set_1", *ports)) == 1
    assert "no input_2.pb" in str(fault(tmp_path / "model", *ports, Port("z", "FLOAT", (1,))))
    assert "the model has 1 inputs" in str(fault(tmp_path / "model", ports[0]))


def test_token_lines(tmp_path: Path) -> None:
    path = tmp_path / "tokens.jsonl"
    path.write_text("".join(json.dumps({"input_ids": [k, 1, 2], "labels": [1, 2, -100]}) + "\n" for k in range(4)))
    samples = load(path, IDS)
    assert len(samples) == 4
    assert next(samples.feeds(2))[0]["input_ids"].tolist() == [[0, 1, 2], [1, 1, 2]]
    path.write_text('{"input_ids": [1, 2]}\n{"input_ids": [1, 2, 3]}\n')
    assert "differ in length" in str(fault(path, IDS))
    path.write_text('{"input_ids": [1, 2]}\n{"input_ids": [1, 2\n')
    assert fault(path, IDS).where.endswith("tokens.jsonl:2")
    path.write_text('{"input_ids": [1]}\n{"ids": [1]}\n')
    assert "'ids'" in str(fault(path, IDS))


def test_parquet_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "d.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    found = fault(tmp_path / "d.parquet")
    assert found.exit is Exit.UNDECIDED and "pip install pyarrow" in found.hint


def test_parquet_columns_are_arrays(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"input_ids": [[1, 2], [3, 4]], "labels": [0, 1]}), tmp_path / "d.parquet")
    assert load(tmp_path / "d.parquet", IDS).labels["labels"].tolist() == [0, 1]


# -- conversions -------------------------------------------------------------------------------------------------
def test_safe_conversions_are_done_and_said(tmp_path: Path) -> None:
    ports = (X, IDS)
    path = saved(tmp_path, input=rows().astype(np.float64), input_ids=np.ones((6, 4), np.int32))
    samples = load(path, *ports)
    feed, _ = next(samples.feeds(2))
    assert feed["input"].dtype == np.float32 and feed["input_ids"].dtype == np.int64
    assert any("'input' is float64 and is fed as float32" in w for w in samples.warnings)
    assert any("'input_ids' is int32 and is fed as int64" in w for w in samples.warnings)


def test_nan_is_allowed_when_asked_for() -> None:
    hole = rows()
    hole[2, 1] = np.nan
    assert len(from_arrays({"input": hole}, (X,), nan_ok=True)) == 6


# -- what cannot -------------------------------------------------------------------------------------------------
class Evil:
    def __reduce__(self) -> Any:
        return (Path("/nonexistent").touch, ())


def bad(**arrays: Any) -> Any:
    return lambda p: saved(p, **arrays)


def written(name: str, data: bytes) -> Any:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return write


def truncated(folder: Path) -> Path:
    path = saved(folder, input=rows(50))
    path.write_bytes(path.read_bytes()[:-200])
    return path


def corrupted(folder: Path) -> Path:
    path = saved(folder, input=rows(500))
    data = bytearray(path.read_bytes())
    data[3000] ^= 255
    path.write_bytes(bytes(data))
    return path


def holed(folder: Path) -> Path:
    array = rows()
    array[4, 1], array[5, 0] = np.nan, np.inf
    return saved(folder, input=array)


CASES: dict[str, tuple[Any, str]] = {
    "missing": (lambda p: p / "nowhere.npz", "no such file"),
    "empty file": (written("data.npz", b""), "the file is empty"),
    "not an npz": (written("data.npz", b"hello world" * 9), "not an npz"),
    "truncated": (truncated, "truncated"),
    "corrupted": (corrupted, "array 'input' cannot be read"),
    "unknown format": (written("data.csv", b"1,2"), "'.csv' is not a data format"),
    "pickle": (written("data.pkl", pickle.dumps(1)), "are pickles"),
    "not a npy": (written("data.npy", b"hello world"), "cannot be read as a numpy array"),
    "empty folder": (lambda p: p, "holds no data"),
    "images": (lambda p: written("cat.png", b"x")(p).parent, "image folder"),
    "objects": (bad(input=np.array([Evil(), Evil()], object)), "pickled Python objects"),
    "no input": (bad(inputs=rows()), "rename that array to 'input'"),
    "no arrays": (bad(), "holds no arrays"),
    "wrong dtype": (bad(input=rows().astype(np.int64)), "is int64, but the model takes FLOAT (float32)"),
    "raw pixels": (bad(input=rows().astype(np.uint8)), "raw pixels"),
    "text": (bad(input=np.array([["a", "b", "c"]])), "but the model takes FLOAT"),
    "complex": (bad(input=rows().astype(np.complex64)), "is complex64"),
    "too large for float32": (bad(input=rows().astype(np.float64) * 1e60), "outside the range of float32"),
    "wrong rank": (bad(input=np.zeros(3, np.float32)), "Give 2 dimensions"),
    "wrong dimension": (bad(input=np.zeros((5, 4), np.float32)), "shape [5, 4], but the model takes input: FLOAT"),
    "nan": (holed, "2 values that are NaN or infinite, the first in sample 4"),
    "no samples": (bad(input=np.zeros((0, 3), np.float32)), "holds no samples"),
    "labels length": (bad(input=rows(), labels=np.arange(5)), "labels 'labels' have length 5, but there are 6 samples"),
    "labels nan": (bad(input=rows(), y=np.full(6, np.nan)), "array 'y' holds 6 values that are NaN"),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_data_gets_one_clear_line_and_exit_3(name: str, tmp_path: Path) -> None:
    make, words = CASES[name]
    found = fault(make(tmp_path))
    assert words in str(found)
    assert found.exit is Exit.BAD_INPUT
    assert str(tmp_path) in found.where
    leftovers = list((tmp_path / "scratch").iterdir()) if (tmp_path / "scratch").exists() else []
    assert not [p for p in leftovers if p.name.startswith(".")]


def test_two_inputs_must_both_be_there_and_of_one_length(tmp_path: Path) -> None:
    found = fault(saved(tmp_path, input=rows(), input_id=np.ones((6, 4), np.int64)), X, IDS)
    assert found.code == "missing-input-array" and "rename that array to 'input_ids'" in str(found)
    found = fault(saved(tmp_path, input=rows(), input_ids=np.ones((5, 4), np.int64)), X, IDS)
    assert "'input' 6, 'input_ids' 5" in str(found)
    found = fault(saved(tmp_path, input=rows(), input_ids=np.full((6, 4), 2**63, np.uint64)), X, IDS)
    assert "outside the range of int64" in str(found)


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, input=rows())
    monkeypatch.setattr("optimizer.data.npz.shutil.disk_usage", lambda p: type("U", (), {"free": 10})())
    found = fault(path)
    assert found.exit is Exit.FAULT and "No space left" in str(found)
    assert not list((tmp_path / "scratch").iterdir())


def test_sequences_cannot_be_fed_from_files(tmp_path: Path) -> None:
    assert "Sequence(Tensor(FLOAT))" in str(
        fault(saved(tmp_path, s=rows()), Port("s", "Sequence(Tensor(FLOAT))", None))
    )
