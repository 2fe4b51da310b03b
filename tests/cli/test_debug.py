"""``lathe debug`` on real models: agreement, the first difference, the reduced pair, and what cannot be compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import Result

from tests.cli.conftest import one_object
from tests.support.runtime import model

Lathe = Callable[..., Result]

TEXT = """<ir_version: 8, opset_import: ["": 17]> g (float[n, 8] x) => (float[n, 8] y) {
    a = Neg(x)
    b = %s(a)
    c = Mul(b, k)
    d = Add(c, k)
    y = Tanh(d)
}"""


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """a.onnx, the same under other names of nodes as same.onnx, one with another activation, one with other ports."""
    monkeypatch.setenv("LATHE_CACHE_DIR", str(tmp_path / "cache"))
    k = np.linspace(1, 2, 8).astype(np.float32)
    for name, text in {
        "a": TEXT % "Relu",
        "same": TEXT % "Relu",
        "b": TEXT % "LeakyRelu",
        "other": TEXT.replace(" y)", " z)").replace("y =", "z =") % "Relu",
    }.items():
        onnx.save(model(text, k=k).to_proto(), tmp_path / f"{name}.onnx")
    np.savez(tmp_path / "negative.npz", x=-np.ones((4, 8), np.float32))
    np.savez(tmp_path / "positive.npz", x=np.ones((4, 8), np.float32))


def test_models_that_agree(lathe: Lathe, pair: None) -> None:
    result = lathe("debug", "bisect", "a.onnx", "same.onnx")
    assert result.exit_code == 0 and "agree on" in result.stdout
    assert lathe("debug", "reduce", "a.onnx", "same.onnx", "-o", "out").exit_code == 0 and not Path("out").exists()


def test_the_first_difference_is_named(lathe: Lathe, pair: None) -> None:
    result = lathe("debug", "bisect", "a.onnx", "b.onnx", "--json")
    found = one_object(result.stdout)
    assert result.exit_code == 1 and found["schema"] == "lathe.debug/1" and found["agree"] is False
    assert (found["value"], found["left_node"], found["right_node"]) == ("b", "Relu", "LeakyRelu")
    assert found["agreeing"] == 1 and found["values"] == 5


def test_real_data_decide_and_what_data_cannot_show_adversaries_do(lathe: Lathe, pair: None) -> None:
    assert lathe("debug", "bisect", "a.onnx", "b.onnx", "--data", "positive.npz").exit_code == 1, "Neg comes first"
    assert lathe("debug", "bisect", "a.onnx", "b.onnx", "--data", "negative.npz").exit_code == 0
    assert lathe("debug", "bisect", "a.onnx", "b.onnx").exit_code == 1


def test_the_reduced_pair_shows_the_same_difference(lathe: Lathe, pair: None) -> None:
    result = lathe("debug", "reduce", "a.onnx", "b.onnx", "-o", "out")
    assert result.exit_code == 1 and "to 1 node in out" in result.stdout
    again = lathe("debug", "bisect", "out/before.onnx", "out/after.onnx", "--data", "out/feed.npz", "--json")
    assert again.exit_code == 1 and one_object(again.stdout)["value"] == "b"
    assert lathe("debug", "reduce", "a.onnx", "b.onnx", "-o", "out").exit_code == 2, "the output exists"
    assert lathe("debug", "reduce", "a.onnx", "b.onnx", "-o", "out", "--overwrite").exit_code == 1


def test_what_cannot_be_compared_is_told_in_a_line(lathe: Lathe, pair: None) -> None:
    other = lathe("debug", "bisect", "a.onnx", "other.onnx")
    assert other.exit_code == 3 and "its outputs are not those of the first model" in other.stderr
    missing = lathe("debug", "bisect", "a.onnx", "nothing.onnx", "--json")
    assert missing.exit_code == 3 and one_object(missing.stdout)["error"]["where"].endswith("nothing.onnx")
    assert lathe("debug", "bisekt", "a.onnx", "b.onnx").exit_code == 2
    assert lathe("debug", "bisect", "a.onnx", "b.onnx", "--tolerance", "-1").exit_code == 2
