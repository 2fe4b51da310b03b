"""Was the calibration data enough? Counted on a model whose answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from optimizer.data.checks import from_arrays
from optimizer.measure.adequacy import TensorAdequacy, judge, limits, look, tensor
from optimizer.runtime.answers import World
from optimizer.runtime.sessions import Site
from optimizer.store.store import Store, key_of
from passes.kit.model import Model
from passes.kit.reducers import Outside
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


def data(count: int, seed: int, reach: float = 1.0) -> Array:
    """Bounded inputs: few samples show all that there is."""
    return np.random.default_rng(seed).uniform(-reach, reach, (count, 16)).astype(np.float32)


def quantized(calibration: Array) -> Model:
    context = LocalContext([{"x": row[None]} for row in calibration])
    return QuantizeStatic()(model(NET, **WEIGHTS), context).model


def world(tmp_path: Path, subject: Model, calibration: Array) -> World:
    samples = from_arrays({"x": calibration}, subject.signature.inputs)
    return World(target(), 0, Site("CPUExecutionProvider", 1, "test"), Store(tmp_path), key_of, samples)


def test_enough_data_is_told_with_numbers(tmp_path: Path) -> None:
    calibration = data(96, 1)
    subject = quantized(calibration)
    unseen = from_arrays({"x": data(50, 2)}, subject.signature.inputs)
    found = look(subject, world(tmp_path, subject, calibration), unseen)
    assert found is not None
    assert found.enough
    assert (found.samples, found.unseen) == (96, 50)
    assert found.text.startswith("96 samples are enough: at most 0.0")
    assert "last doubling" in found.text


def test_data_unlike_what_comes_is_told_by_the_worst_tensor(tmp_path: Path) -> None:
    calibration = data(96, 1, reach=0.5)
    subject = quantized(calibration)
    unseen = from_arrays({"x": data(50, 2)}, subject.signature.inputs)
    found = look(subject, world(tmp_path, subject, calibration), unseen)
    assert found is not None
    assert not found.enough
    assert "of the unseen values of 'x' lie outside its range" in found.text
    assert found.text.endswith("add samples")
    shares = {t.name: t.unseen_clipped for t in found.tensors}
    assert shares["x"] == pytest.approx(0.5, abs=0.05)


def test_too_few_samples_are_told_by_their_growth(tmp_path: Path) -> None:
    calibration = np.concatenate([data(2, 1, reach=0.2), data(2, 2)])
    subject = quantized(calibration)
    unseen = from_arrays({"x": data(20, 3)}, subject.signature.inputs)
    found = look(subject, world(tmp_path, subject, calibration), unseen)
    assert found is not None
    assert not found.enough
    assert "grew by" in found.text


def test_a_relu_that_the_grid_took_over_is_no_clipping(tmp_path: Path) -> None:
    subject = quantized(data(64, 1))
    ends = limits(subject)
    assert ends["h"][0] < -1e38
    assert -2 < ends["x"][0] < -0.9
    assert len(ends) == 2


def test_a_model_without_grids_is_not_judged(tmp_path: Path) -> None:
    subject = model(NET, **WEIGHTS)
    unseen = from_arrays({"x": data(4, 2)}, subject.signature.inputs)
    assert look(subject, world(tmp_path, subject, data(4, 1)), unseen) is None


def row(name: str = "a", seen: float = 0.0, unseen: float = 0.0, growth: float | None = 0.0) -> TensorAdequacy:
    return TensorAdequacy(name, seen, unseen, growth)


@pytest.mark.parametrize(
    ("rows", "enough"),
    [
        ([row()], True),
        ([row(unseen=0.0009)], True),
        ([row(), row(unseen=0.002)], False),
        ([row(seen=0.02, unseen=0.024)], True),
        ([row(seen=0.02, unseen=0.03)], False),
        ([row(growth=0.3), row(growth=0.01), row(growth=0.01)], True),
        ([row(growth=0.3), row(growth=0.2), row(growth=0.01)], False),
        ([row(growth=None)], True),
        ([TensorAdequacy("few", 0.0, 0.005, 0.0, 1000)], True),
        ([TensorAdequacy("few", 0.0, 0.007, 0.0, 1000)], False),
    ],
)
def test_the_judgement(rows: list[TensorAdequacy], enough: bool) -> None:
    assert judge(64, 32, tuple(rows)).enough is enough


def test_growth_is_a_share_of_the_width() -> None:
    first, second, whole = (Outside(-9.0, 9.0) for _ in range(3))
    first.fold(np.array([0.0, 3.0], np.float32))
    second.fold(np.array([-1.0, 10.0], np.float32))
    whole.fold(np.array([-1.0, 3.0, 10.0, 0.0], np.float32))
    found = tensor("a", [first, second], whole, whole)
    assert found.growth == pytest.approx(1 - (3 + 11) / 2 / 11)
    assert tensor("a", [], whole, whole).growth is None
    assert found.unseen_clipped == 0.25
    with pytest.raises(ValueError, match="no tensor"):
        judge(1, 1, ())
