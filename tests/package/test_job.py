"""A benchmark that travels: the zip runs with numpy and onnxruntime alone, and what comes back is held against it."""

from __future__ import annotations

import ast
import copy
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from optimizer.data.checks import from_arrays
from optimizer.faults import Exit, Fault
from optimizer.measure.latency import Effort
from optimizer.package import job, job_result
from optimizer.package.job import Cargo
from optimizer.runtime import elsewhere
from passes.kit.model import Model
from tests.support import models

CPU = "CPUExecutionProvider"
QUICK = Effort(restarts=2, seconds=0.06, least=2)
Tree = dict[str, Any]


def cargo(folder: Path, *widths: int) -> list[Cargo]:
    found = []
    for width in widths:
        path = models.cnn(folder / f"w{width}.onnx", width=width)
        model = Model.from_proto(onnx.load(path))
        x = np.random.default_rng(0).normal(size=(4, 3, 16, 16)).astype(np.float32)
        found.append(Cargo(str(path), model, path.stat().st_size, from_arrays({"x": x}, model.signature.inputs)))
    return found


@pytest.fixture(scope="module")
def travelled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A job of two models, and what its runner wrote in a process that has nothing of ours on its path."""
    folder = tmp_path_factory.mktemp("job")
    place = folder / "job.zip"
    job.write(place, cargo(folder, 8, 48), [CPU, "CUDAExecutionProvider"], [1, 2], [1], QUICK)
    # Started elsewhere and without PYTHONPATH: our own folder is not on its path unless an installation put it there.
    done = subprocess.run(
        [sys.executable, "-s", "-E", place.name], cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "CUDAExecutionProvider did not start" in done.stderr and "result.json" in done.stderr
    return place, folder / "result.json"


# -- the zip -----------------------------------------------------------------------------------------------------------
def test_the_runner_needs_numpy_and_onnxruntime_alone() -> None:
    tree = ast.parse(Path(elsewhere.__file__).read_text(), feature_version=(3, 8))
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    names |= {str(n.module) for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    foreign = {n.partition(".")[0] for n in names} - sys.stdlib_module_names
    assert foreign == {"numpy", "onnxruntime"}


def test_the_same_job_is_the_same_file(tmp_path: Path) -> None:
    places = [tmp_path / name for name in ("a.zip", "b.zip")]
    for place in places:
        job.write(place, cargo(tmp_path, 8), [CPU], [1], [1], QUICK)
    assert places[0].read_bytes() == places[1].read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip", "b.zip", "w8.onnx"]
    with pytest.raises(Fault, match="the file exists"):
        job.write(places[0], cargo(tmp_path, 8), [CPU], [1], [1], QUICK)


def test_one_model_twice_is_packed_once(tmp_path: Path) -> None:
    job.write(tmp_path / "j.zip", cargo(tmp_path, 8, 8), [CPU], [1], [1], QUICK)
    names = zipfile.ZipFile(tmp_path / "j.zip").namelist()
    assert sum(n.endswith("model.onnx") for n in names) == 1
    assert str(tmp_path) not in zipfile.ZipFile(tmp_path / "j.zip").read("job.json").decode(), "no path of ours travels"


def test_what_an_npz_cannot_hold_does_not_travel(tmp_path: Path) -> None:
    (one,) = cargo(tmp_path, 8)
    import ml_dtypes

    with pytest.raises(Fault, match="input 'x' is bfloat16") as caught:
        job._npz({"x": np.zeros(2, ml_dtypes.bfloat16)}, one.name)
    assert caught.value.exit is Exit.BAD_INPUT
    with pytest.raises(Fault, match="is text"):
        job._npz({"x": np.array(["a"], object)}, one.name)


# -- there and back ----------------------------------------------------------------------------------------------------
def test_it_comes_back_with_intervals_and_the_other_machine(travelled: tuple[Path, Path]) -> None:
    place, result = travelled
    found = job_result.read(result, job.read(place))
    here = [r for r in found.rows if r.provider == CPU]
    assert [(r.model, r.batch) for r in here] == [("w8.onnx", 1), ("w48.onnx", 1), ("w8.onnx", 2), ("w48.onnx", 2)]
    for row in here:
        assert row.latency is not None and row.latency.low <= row.latency.p50 <= row.latency.high
        assert row.latency.clock == "cpu" and row.size_bytes and row.memory_bytes
    wide = here[1]
    assert wide.speedup is not None and wide.speedup.value < 1 and here[0].speedup is None
    missing = [r for r in found.rows if r.provider != CPU]
    assert len(missing) == 4 and all("did not start" in r.reason and r.latency is None for r in missing)
    assert found.environment["packages"]["onnxruntime"] and "core" in found.machine and not found.warnings


def test_unpacked_it_runs_too(tmp_path: Path) -> None:
    job.write(tmp_path / "j.zip", cargo(tmp_path, 8), [CPU], [1], [1], Effort(restarts=1, seconds=0.01, least=1))
    with zipfile.ZipFile(tmp_path / "j.zip") as archive:
        archive.extractall(tmp_path / "job")
    command = [sys.executable, str(tmp_path / "job" / "runner.py"), "--out", str(tmp_path / "r.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    (row,) = job_result.read(tmp_path / "r.json", job.read(tmp_path / "j.zip")).rows
    assert row.latency is not None and row.latency.p50 > 0


def test_files_are_held_against_their_digests(travelled: tuple[Path, Path], tmp_path: Path) -> None:
    with zipfile.ZipFile(travelled[0]) as archive:
        archive.extractall(tmp_path / "job")
    (tmp_path / "job" / "models").rename(tmp_path / "kept")
    command = [sys.executable, str(tmp_path / "job" / "runner.py"), "--out", str(tmp_path / "r.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3 and "the job cannot be read" in done.stderr and not (tmp_path / "r.json").exists()
    (tmp_path / "kept").rename(tmp_path / "job" / "models")
    model = next((tmp_path / "job" / "models").rglob("model.onnx"))
    model.write_bytes(model.read_bytes() + b"\0")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3 and "is not what the job says" in done.stderr


@pytest.mark.parametrize("name", ["../out", "models/../../out", "/etc/out", "a//b", "c:/x", "a\\b"])
def test_a_job_cannot_name_files_outside_itself(tmp_path: Path, name: str) -> None:
    tree = {"schema": elsewhere.JOB_SCHEMA, "models": [{"files": [{"file": name, "sha256": ""}], "feeds": []}]}
    (tmp_path / "job.json").write_text(json.dumps(tree))
    with pytest.raises(elsewhere.Damaged, match="outside itself"):
        elsewhere.read_job(tmp_path, tmp_path / "folder")


# -- lies --------------------------------------------------------------------------------------------------------------
def first(tree: Tree) -> Tree:
    return next(r for r in tree["rows"] if r["restarts"])  # type: ignore[no-any-return]


def _faster(tree: Tree) -> None:
    tree["seconds"], tree["finished"] = 1e-3, tree["started"]


def _longer(tree: Tree) -> None:
    tree["seconds"] *= 50


def _fewer(tree: Tree) -> None:
    first(tree)["restarts"].pop()


def _no_row(tree: Tree) -> None:
    tree["rows"].pop()


def _negative(tree: Tree) -> None:
    first(tree)["restarts"][0]["blocks"][0]["wall"][0] = -5


def _text(tree: Tree) -> None:
    first(tree)["restarts"][0]["blocks"][0]["wall"][0] = "1"


def _busier(tree: Tree) -> None:
    first(tree)["restarts"][0]["blocks"][0]["cpu"][0] = 10**9


def _unpaired(tree: Tree) -> None:
    first(tree)["restarts"][0]["blocks"][0]["cpu"].pop()


def _few_blocks(tree: Tree) -> None:
    first(tree)["restarts"][0]["blocks"] = first(tree)["restarts"][0]["blocks"][:1]


def _other_settings(tree: Tree) -> None:
    tree["asked"]["settings"]["restarts"] = 1


def _other_runner(tree: Tree) -> None:
    tree["runner"] = "0" * 64


def _no_machine(tree: Tree) -> None:
    del tree["environment"]["cpu"]


def _long_name(tree: Tree) -> None:
    tree["environment"]["cpu"] = "x" * 10_000


def _schema(tree: Tree) -> None:
    tree["schema"] = "lathe.job-result/9"


LIES = (_faster, _longer, _fewer, _no_row, _negative, _text, _busier, _unpaired, _few_blocks, _other_settings,
        _other_runner, _no_machine, _long_name, _schema)  # fmt: skip


@pytest.mark.parametrize("lie", LIES, ids=lambda f: f.__name__.strip("_"))
def test_a_result_that_cannot_be_is_refused_in_one_line(
    travelled: tuple[Path, Path], tmp_path: Path, lie: Callable[[Tree], None]
) -> None:
    tree = copy.deepcopy(json.loads(travelled[1].read_text()))
    lie(tree)
    (tmp_path / "r.json").write_text(json.dumps(tree))
    with pytest.raises(Fault, match="does not hold") as caught:
        job_result.read(tmp_path / "r.json", job.read(travelled[0]))
    assert caught.value.exit is Exit.BAD_INPUT and "\n" not in str(caught.value)


def test_a_foreign_result_is_refused(travelled: tuple[Path, Path], tmp_path: Path) -> None:
    job.write(tmp_path / "other.zip", cargo(tmp_path, 8), [CPU], [1], [1], QUICK)
    with pytest.raises(Fault, match="it belongs to another job"):
        job_result.read(travelled[1], job.read(tmp_path / "other.zip"))


@pytest.mark.parametrize("text", ["", "[]", "{}", "[" * 100_000, "nonsense", '{"schema": "lathe.job-result/1"}'])
def test_garbage_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(Fault) as caught:
        job_result.read(tmp_path / "r.json", None)
    assert caught.value.exit is Exit.BAD_INPUT


def test_what_a_terminal_would_act_on_is_taken_out(travelled: tuple[Path, Path], tmp_path: Path) -> None:
    tree = json.loads(travelled[1].read_text())
    tree["environment"]["cpu"] = "a\x1b[2Jb"
    (tmp_path / "r.json").write_text(json.dumps(tree))
    assert job_result.read(tmp_path / "r.json", None).machine.startswith("a?[2Jb")


def test_a_zip_that_is_no_job_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no.zip").write_bytes(b"PK\x03\x04 nothing")
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("job.json", b" " * (job.LARGEST_TEXT + 1))
    for place, said in ((tmp_path / "no.zip", "not a job"), (bomb, "too large")):
        with pytest.raises(Fault, match=said):
            job.read(place)
    with pytest.raises(Fault, match="no such job"):
        job.read(tmp_path / "none.zip")
