"""The store gives back what it was given, or nothing: damage is a miss, and it stays within its bounds."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from optimizer.faults import Exit, Fault
from optimizer.store import store as module
from optimizer.store.store import Store, key_of
from passes.kit.model import Model
from tests.support.runtime import model, run

TEXT = '<ir_version: 8, opset_import: ["" : 17]> g (float[n,64] x) => (float[n,32] y) { y = MatMul(x, w) }'


@pytest.fixture
def small() -> Model:
    return model(TEXT, w=np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def test_a_model_comes_back_with_its_digest_and_the_runtime_loads_it_where_it_lies(store: Store, small: Model) -> None:
    path = store.put_model(small)
    back = store.get_model(small.digest())
    assert back is not None and back.digest() == small.digest()
    x = np.ones((2, 64), np.float32)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert np.array_equal(session.run(None, {"x": x})[0], run(small, {"x": x}, optimize=True)["y"])


def test_weights_are_kept_once_for_all_models_that_share_them(store: Store, small: Model) -> None:
    fork = small.fork()
    fork.graph.doc_string = "another graph"
    store.put_model(small)
    store.put_model(fork)
    assert len(list((store.root / "graphs" / "blobs").iterdir())) == 1
    assert len(list((store.root / "graphs").glob("*.onnx"))) == 2


@pytest.mark.parametrize("damage", ["graph", "blob", "missing blob", "other bytes"])
@pytest.mark.parametrize("asked", [True, False], ids=["asked", "put at once"])
def test_a_damaged_model_is_a_miss(store: Store, small: Model, damage: str, asked: bool) -> None:
    path = store.put_model(small)
    (blob,) = (store.root / "graphs" / "blobs").iterdir()
    if damage == "graph":
        path.write_bytes(b"\x08")
    elif damage == "blob":
        blob.write_bytes(blob.read_bytes()[:-1])
    elif damage == "other bytes":
        blob.write_bytes(bytes(blob.stat().st_size))
    else:
        blob.unlink()
    later = Store(store.root)  # another process, another day
    assert not asked or later.get_model(small.digest()) is None
    later.put_model(small)
    back = Store(store.root).get_model(small.digest())
    assert back is not None and back.digest() == small.digest()


def test_answers_come_back_and_damaged_ones_are_forgotten(store: Store) -> None:
    key = key_of("rows", 1, {"a": 2})
    assert store.get_answer(key) is None
    store.put_answer(key, {"rows": np.arange(4.0), "n": 3})
    found = store.get_answer(key)
    assert found is not None and found["n"] == 3 and found["rows"].tolist() == [0, 1, 2, 3]
    path = store.root / "answers" / key
    whole = path.read_bytes()
    for damaged in (whole[:-3], whole[:-9] + b"\x07" + whole[-8:], b""):
        path.write_bytes(damaged)
        assert store.get_answer(key) is None and not path.exists()


def test_keys_depend_on_every_part() -> None:
    assert len({key_of("a", 1), key_of("a", 2), key_of("a", "1"), key_of("b", 1)}) == 4


def test_looks_are_counted_and_survive_pruning(store: Store) -> None:
    assert [store.look("d"), store.look("d"), store.look("e")] == [1, 2, 1]
    store.prune(0)
    assert store.look("d") == 3
    (store.root / "looks" / "d").write_bytes(b"\xff\x00")
    assert store.look("d") == 1


def test_the_least_recently_used_goes_first(store: Store) -> None:
    import os

    for i in range(4):
        store.put_answer(f"k{i}", np.zeros(1000))
        os.utime(store.root / "answers" / f"k{i}", (i, i))
    store.get_answer("k0")
    size = store.entries()[0].size_bytes
    freed = store.prune(2 * size)
    assert freed == 2 * size
    assert sorted(e.path.name for e in store.entries()) == ["k0", "k3"]


def test_a_full_disk_is_a_fault_and_leaves_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.Path, "replace", full)
    with pytest.raises(Fault, match="No space left") as caught:
        store.put_answer("k", 1)
    assert caught.value.exit is Exit.FAULT and "--cache-dir" in caught.value.hint
    assert not list((store.root / "answers").iterdir())


def test_a_folder_that_cannot_be_made_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Fault, match="cannot use the cache folder"):
        Store(tmp_path / "file" / "cache")
