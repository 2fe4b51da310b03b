"""What an artifact remembers, the file that it stands in, and the watcher that reads it inside a service."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from optimizer.data.checks import from_arrays
from optimizer.data.split import Splits, split
from optimizer.faults import Exit, Fault
from optimizer.package import artifact
from optimizer.package.receiver.words import SUMS
from optimizer.report.drift import Drift
from optimizer.runtime.answers import World
from optimizer.runtime.sessions import Site
from optimizer.store.store import Store, key_of
from optimizer.watch import Watcher, memory, reference
from optimizer.watch.reference import Reference
from passes.kit.model import Model
from passes.quantize.quantize_static import QuantizeStatic
from tests.support.runtime import Array, LocalContext, model, target

NET = """<ir_version: 8, opset_import: ["" : 17]> g (float[n,16] x) => (float[n,4] y)
    <float[16,32] v, float[32,4] w> {
    h = MatMul(x, v)
    r = Relu(h)
    y = MatMul(r, w)
}"""
rng = np.random.default_rng(0)
WEIGHTS = {"v": rng.normal(size=(16, 32)).astype(np.float32), "w": rng.normal(size=(32, 4)).astype(np.float32)}


def data(count: int, seed: int) -> dict[str, Array]:
    drawn = np.random.default_rng(seed)
    return {
        "x": drawn.uniform(-1, 1, (count, 16)).astype(np.float32),
        "labels": drawn.integers(0, 4, count),
    }


@pytest.fixture(scope="module")
def remembered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Reference, Model, Splits]:
    arrays = data(900, 1)
    context = LocalContext([{"x": row[None]} for row in arrays["x"][:64]])
    subject = QuantizeStatic()(model(NET, **WEIGHTS), context).model
    splits = split(from_arrays(arrays, subject.signature.inputs), 0)
    site, store = Site("CPUExecutionProvider", 1, "test"), Store(tmp_path_factory.mktemp("store"))
    world = World(target(), 0, site, store, key_of, splits.calibrate)
    return memory.remember(subject, world, splits, 0), subject, splits


@pytest.fixture
def folder(tmp_path: Path, remembered: tuple[Reference, Model, Splits]) -> Path:
    known, subject, _ = remembered
    contents = artifact.Contents(subject, {"schema": "lathe.manifest/1"}, {}, "", watch=reference.to_bytes(known))
    return artifact.write(tmp_path / "a.lathe", contents)


def test_held_out_samples_are_remembered_and_none_of_them_is_kept(
    remembered: tuple[Reference, Model, Splits], folder: Path
) -> None:
    known, _, splits = remembered
    parts = {part for part, _ in known.seen}
    assert parts == {"input", "output", "label", "tensor"}
    assert known.seen["input", "x"].count == len(splits.select) + len(splits.confirm)
    assert sum(known.seen["output", "y"].classes.values()) == known.seen["output", "y"].count
    tensors = [seen for (part, _), seen in known.seen.items() if part == "tensor"]
    assert tensors and all(seen.means[0] < 0.01 for seen in tensors)
    written = (folder / artifact.WATCH).read_bytes()
    assert len(written) < 400_000
    rows = splits.select.take(range(20)).inputs["x"]
    assert all(row.tobytes() not in written for row in rows[:20])  # a distribution of each column, no row of them


def test_the_file_is_the_same_for_the_same_data_and_reads_back(remembered: tuple[Reference, Model, Splits]) -> None:
    known, *_ = remembered
    data = reference.to_bytes(known)
    again = reference.of_bytes(data)
    assert reference.to_bytes(again) == data and list(again.seen) == list(known.seen)


def test_a_file_that_was_changed_or_is_none_is_refused_in_one_line(folder: Path) -> None:
    path = folder / artifact.WATCH
    good = path.read_bytes()
    drawn = np.random.default_rng(5)
    for _ in range(150):
        bad = bytearray(good)
        for at in drawn.integers(0, len(bad), 4):
            bad[at] = drawn.integers(256)
        try:
            reference.of_bytes(bytes(bad[: drawn.integers(1, len(bad))] if drawn.random() < 0.3 else bad))
        except ValueError:
            continue
    path.write_bytes(good[:-9] + bytes(9))
    for change, code in ((lambda: None, "changed-watch"), (path.unlink, "changed-watch")):
        change()
        with pytest.raises(Fault) as caught:
            reference.read(folder)
        assert (caught.value.code, caught.value.exit) == (code, Exit.BAD_INPUT)
    sums = folder / SUMS
    sums.write_text("".join(s for s in sums.read_text().splitlines(True) if artifact.WATCH not in s))
    with pytest.raises(Fault) as caught:
        Watcher(folder)
    assert (caught.value.code, caught.value.exit) == ("no-watch", Exit.UNDECIDED)
    with pytest.raises(Fault, match="not a Lathe artifact"):
        Watcher(folder.parent)
    (folder / "manifest.json").write_text('{"schema": "lathe.manifest/2"}')
    with pytest.raises(Fault, match="this one reads"):
        Watcher(folder)


def _watch(place: str, seed: int) -> bytes:
    watcher = Watcher(place)
    watcher.update({"x": data(100, seed)["x"]})
    return watcher.to_bytes()


def test_watchers_of_several_processes_add_up(folder: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        states = pool.starmap(_watch, [(str(folder), seed) for seed in (2, 3)])
    whole = Watcher(folder)
    for state in states:
        whole.merge(state)
    alone = Watcher(folder)
    alone.update({"x": np.concatenate([data(100, seed)["x"] for seed in (2, 3)])})
    assert whole.verdict() == alone.verdict() and whole.verdict().verdict is Drift.OK
    assert whole.verdict().samples == 200
    with pytest.raises(Fault, match="cannot be merged"):
        whole.merge(b"nonsense")


def test_a_watcher_finds_a_changed_column_and_changed_answers_until_it_is_reset(folder: Path) -> None:
    watcher = Watcher(folder, looks=10)
    batch = data(300, 6)
    changed = batch["x"].copy()
    changed[:, 3] = np.abs(changed[:, 3])
    scores = np.zeros((300, 4), np.float32)
    scores[:, 2] = 5
    watcher.update({"x": changed}, {"y": scores}, {"labels": batch["labels"]})
    found = watcher.verdict()
    assert found.verdict is Drift.DRIFT and found.alpha == pytest.approx(0.001)
    assert {"[3]", "confidence"} <= {c.statistic for c in found.changes}
    assert "label" not in {c.part for c in found.changes} and not {"[2]", "[4]"} & {c.statistic for c in found.changes}
    watcher.reset()
    assert watcher.verdict().verdict is Drift.UNDECIDED
    watcher.update({"x": batch["x"]}, labels={"labels": batch["labels"]})
    assert watcher.verdict().verdict is Drift.OK


def test_wide_rows_are_held_against_the_signature(tmp_path: Path, remembered: tuple[Reference, Model, Splits]) -> None:
    """Of wide inputs only summaries are kept, which fit rows of any width."""
    known, subject, _ = remembered
    for dims, fits in ((["n", 16], True), (["n", 17], False), (["n", 16, 1], False), (None, True)):
        manifest = {"schema": "lathe.manifest/1", "signature": {"inputs": [{"name": "x", "dims": dims}], "outputs": []}}
        contents = artifact.Contents(subject, manifest, {}, "", watch=reference.to_bytes(known))
        watcher = Watcher(artifact.write(tmp_path / f"{dims}.lathe", contents))
        if fits:
            watcher.update(data(10, 7))
        else:
            with pytest.raises(Fault, match=r"'x' is \[10, 16\], not \['n', "):
                watcher.update(data(10, 7))


def test_batches_that_do_not_fit_are_refused_whole(folder: Path) -> None:
    watcher = Watcher(folder)
    good = data(10, 7)["x"]
    for inputs, outputs in (
        ({"x": good[:, :5]}, None),
        ({"x": good.astype(str)}, None),
        ({"x": np.float32(1)}, None),
        ({"z": good}, None),
        ({"x": good}, {"y": np.full((10, 4), "a")}),
    ):
        with pytest.raises(Fault) as caught:
            watcher.update(inputs, outputs)
        assert caught.value.exit is Exit.BAD_INPUT
    assert watcher.verdict().samples == 0
    with pytest.raises(Fault, match="alpha"):
        Watcher(folder, alpha=1.5)
