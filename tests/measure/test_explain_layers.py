"""Errors of layers: values of both models side by side, found by their names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from optimizer.measure.explain import forms
from optimizer.measure.explain_layers import MOST_DB, layer_errors, output_sqnr, sqnr
from optimizer.measure.explain_twin import float_twin
from optimizer.store.store import Store
from passes.kit.model import Model
from passes.quantize.quantize_dynamic import QuantizeDynamic
from passes.quantize.quantize_static import QuantizeStatic
from tests.measure.quantized import SITE, applied, chain, images, samples_of, store
from tests.support.models import tree
from tests.support.runtime import model, run

assert store

X = images()


def test_the_error_of_a_layer_is_that_of_its_result_as_it_is_read(store: Store) -> None:
    floating = chain()
    quantized = applied(floating, X)
    found = {e.layer: e for e in layer_errors(floating, quantized, samples_of(floating, X), SITE, store)}
    assert list(found) == ["conv0", "conv1", "conv2", "head"]
    behind_its_relu = run(floating, {"x": X}, ["r0"])["r0"].astype(np.float64)
    rounded = run(quantized, {"x": X}, ["r0_dequantized"])["r0_dequantized"].astype(np.float64)
    wanted = 10 * np.log10((behind_its_relu**2).sum() / ((rounded - behind_its_relu) ** 2).sum())
    assert found["conv0"].sqnr_db == pytest.approx(wanted, abs=1e-3)
    cosine = (behind_its_relu * rounded).sum() / np.sqrt((behind_its_relu**2).sum() * (rounded**2).sum())
    assert found["conv0"].cosine == pytest.approx(cosine, abs=1e-6)
    assert all(20 < (e.sqnr_db or 0) < 60 for e in found.values())


def test_a_coarse_layer_shows_from_there_on(store: Store) -> None:
    floating = chain(outlier=20)
    few = samples_of(floating, X)
    found = {e.layer: e.sqnr_db or 0.0 for e in layer_errors(floating, applied(floating, X), few, SITE, store)}
    assert found["conv1"] < found["conv0"] - 6


def test_a_layer_left_in_float_before_everything_else_has_no_error(store: Store) -> None:
    floating = chain()
    quantized = applied(floating, X, QuantizeStatic(only=("conv2", "head")))
    found = {e.layer: e for e in layer_errors(floating, quantized, samples_of(floating, X), SITE, store)}
    assert found["conv0"].sqnr_db == MOST_DB and found["conv0"].cosine == pytest.approx(1.0)
    assert (found["conv2"].sqnr_db or 0) < 60


def test_the_twin_has_the_same_layers(store: Store) -> None:
    floating = chain()
    for quantized in (applied(floating, X), applied(floating, X, QuantizeDynamic())):
        twin = float_twin(quantized).model
        found = layer_errors(twin, quantized, samples_of(floating, X), SITE, store)
        assert [e.layer for e in found] == ["conv0", "conv1", "conv2", "head"]
        assert all(e.sqnr_db is not None for e in found)
        assert found[-1].sqnr_db is not None and 20 < found[-1].sqnr_db < 70


@pytest.mark.parametrize("clamp", ["Identity", "Relu"])
def test_operators_on_integers_are_seen_too(clamp: str, store: Store) -> None:
    """The form in which onnxruntime's own quantizer writes QOperator models: names end in ``_quant``, and the grid of
    a result takes its Relu over."""
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[n,3] x) => (float[n,4] z) {
        q = QuantizeLinear (x, s, zero)
        [one_quant] y_quantized = QLinearMatMul (q, s, zero, w8, ws, wz, ys, yz)
        r = DequantizeLinear (y_quantized, ys, yz)
        z = Neg (r)
    }"""
    plain = f"""<ir_version: 8, opset_import: ["" : 17]> g (float[n,3] x) => (float[n,4] z) {{
        [one] y = MatMul (x, w)
        r = {clamp} (y)
        z = Neg (r)
    }}"""
    w8 = np.random.default_rng(0).integers(-100, 100, (3, 4)).astype(np.int8)
    least = np.array(0 if clamp == "Relu" else 128, np.uint8)
    quantized = model(
        text, w8=w8, zero=np.array(128, np.uint8), wz=np.array(0, np.int8), yz=least,
        **{n: np.float32(v).reshape(()) for n, v in {"s": 0.03, "ws": 0.01, "ys": 0.05}.items()},
    )  # fmt: skip
    floating = model(plain, w=w8.astype(np.float32) * np.float32(0.01))
    x = np.random.default_rng(1).normal(size=(9, 3)).astype(np.float32)
    a, b = (run(m, {"x": x})["z"].astype(np.float64) for m in (floating, quantized))
    for subject in (quantized, _without(quantized, "r")):
        (found,) = layer_errors(floating, subject, samples_of(floating, x), SITE, store)
        assert found.layer == "one"
        assert found.sqnr_db == pytest.approx(10 * np.log10((a**2).sum() / ((b - a) ** 2).sum()), abs=1e-3)
    assert forms(floating, quantized) == {"one": ("MatMul", "int8")}


def _without(subject: Model, name: str) -> Model:
    """The same with a value called otherwise, so that only its integers can be found."""
    fork = subject.fork()
    for node in fork.graph:
        for output in node.outputs:
            output.name = "else" if output.name == name else output.name
    fork.forget_digest()
    return fork


def test_outputs_are_compared_and_remembered(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    floating = chain()
    quantized = applied(floating, X)
    a, b = (run(m, {"x": X})["y"].astype(np.float64) for m in (floating, quantized))
    wanted = 10 * np.log10((a**2).sum() / ((b - a) ** 2).sum())
    few = samples_of(floating, X)
    assert output_sqnr(floating, quantized, few, SITE, store) == pytest.approx(wanted, abs=1e-3)
    monkeypatch.setattr("optimizer.runtime.sessions.worker", lambda: pytest.fail("nothing is to be run"))
    assert output_sqnr(floating, quantized, few, SITE, store) == pytest.approx(wanted, abs=1e-3)


def test_dicts_of_a_classifier_are_no_numbers_to_compare(tmp_path: Path, store: Store) -> None:
    forest = Model.from_proto(onnx.load(tree(tmp_path / "tree.onnx")))
    assert output_sqnr(forest, forest, samples_of(forest, X[:, :2, 0, 0]), SITE, store) == MOST_DB


def test_decibels_stay_numbers() -> None:
    assert sqnr(1.0, 0.0) == MOST_DB and sqnr(0.0, 1.0) == -MOST_DB
    assert sqnr(float("nan"), 1.0) is None and sqnr(1.0, 0.001) == pytest.approx(30)
