"""From a compile to its data: the artifact remembers, and check-data says ok, drift or undecided with its exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

import optimizer
from optimizer.cli.main import cli
from optimizer.package import artifact
from optimizer.package.receiver.words import SUMS
from optimizer.report.drift import Drift
from tests.support import models
from tests.support.runtime import Array

Lathe = Callable[..., Result]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    models.cnn(folder / "m.onnx")
    np.savez(folder / "data.npz", x=images(700, 0))
    optimizer.compile(
        str(folder / "m.onnx"), data=str(folder / "data.npz"), output=folder / "a.lathe", cache_dir=folder / "cache",
        recipe="quantize-static", level=0, budget="none", seconds=0.1,
    )  # fmt: skip
    return folder


def images(count: int, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    base = rng.uniform(0.2, 0.7, (count, 3, 1, 1)) * np.array([1.0, 0.9, 0.7])[:, None, None]
    return np.clip(base + 0.1 * rng.standard_normal((count, 3, 16, 16)), 0, 1).astype(np.float32)


def check(work: Path, *more: str, **arrays: Array) -> Result:
    np.savez(work / "new.npz", **arrays)
    given = ["check-data", str(work / "new.npz"), "--artifact", str(work / "a.lathe"), "--cache-dir", str(work / "c")]
    return CliRunner().invoke(cli, [*given, *more])


def test_the_same_data_is_ok_and_the_artifact_is_left_as_it_was(work: Path) -> None:
    before = (work / "a.lathe" / SUMS).read_bytes()
    assert (work / "a.lathe" / artifact.WATCH).is_file() and optimizer.verify(work / "a.lathe").ok
    result = check(work, "--json", x=images(250, 1))
    told = json.loads(result.stdout)
    assert (result.exit_code, told["verdict"], told["ran"]) == (0, "ok", 250)
    assert told["clipping"] and not any(c["hurt"] for c in told["clipping"])
    assert (work / "a.lathe" / SUMS).read_bytes() == before


def test_swapped_channels_and_raw_pixels_are_drift_and_pixels_hurt_the_integers(work: Path) -> None:
    swapped = check(work, "--inputs-only", x=images(250, 2)[:, ::-1])
    assert swapped.exit_code == 1 and "mean-0" in swapped.stdout and "ran on" not in swapped.stdout
    raw = check(work, x=images(250, 2) * 255)
    assert raw.exit_code == 1 and "quantization is being hurt" in raw.stdout


def test_few_samples_are_undecided_with_exit_code_4(work: Path) -> None:
    result = check(work, x=images(12, 3))
    assert result.exit_code == 4 and "samples would decide it" in result.stdout


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": np.zeros((0, 3, 16, 16), np.float32)}, "no samples"),
        ({"z": np.zeros((5, 3, 16, 16), np.float32)}, "no array is named like an input"),
        ({"x": np.zeros((5, 3, 8, 16), np.float32)}, "but the model takes"),
        ({"x": np.zeros((5, 3, 16, 16), np.uint8)}, "is uint8"),
        ({"x": np.zeros((5, 1, 3, 16, 16), np.float32)}, "not cut into samples as it was"),
    ],
)
def test_other_data_is_refused_in_one_line(work: Path, arrays: dict[str, Array], said: str) -> None:
    result = check(work, **arrays)
    assert result.exit_code == 3 and said in result.stderr and result.stderr.splitlines()[-1].startswith("error: ")


def test_without_a_watch_file_there_is_nothing_to_compare_with(tmp_path: Path) -> None:
    models.cnn(tmp_path / "m.onnx", width=4)
    np.savez(tmp_path / "data.npz", x=images(40, 0))
    optimizer.compile(
        str(tmp_path / "m.onnx"), data=str(tmp_path / "data.npz"), output=tmp_path / "a.lathe", level=0,
        cache_dir=tmp_path / "c", seconds=0.1, watched=False,
    )  # fmt: skip
    result = check(tmp_path, x=images(40, 1))
    assert result.exit_code == 4 and "does not remember its data" in result.stderr


def test_the_python_api_gives_the_record(work: Path) -> None:
    np.savez(work / "more.npz", x=images(250, 4) * np.float32(0.8))
    found = optimizer.check_data(work / "more.npz", work / "a.lathe", inputs_only=True, cache_dir=work / "c")
    assert found.verdict is Drift.DRIFT and found.changes[0].part == "input"
    with pytest.raises(optimizer.Fault, match="no argument 'nonsense'"):
        optimizer.check_data(work / "more.npz", work / "a.lathe", nonsense=1)
