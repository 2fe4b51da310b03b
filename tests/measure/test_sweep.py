"""The sweep: what it says of each layer is what a model with that layer alone quantized does."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from optimizer.measure.sweep import sweep, switched, switched_errors
from optimizer.store.store import Store
from passes.kit.model import Model
from passes.quantize.quantize_static import QuantizeStatic
from tests.measure.quantized import SITE, applied, chain, images, samples_of, store
from tests.support.runtime import Array, run

assert store

X = images()


def error(floating: Model, quantized: Model) -> float:
    """The relative squared error at the output."""
    wanted, got = (run(m, {"x": X})["y"].astype(np.float64) for m in (floating, quantized))
    return float(((got - wanted) ** 2).sum() / (wanted**2).sum())


def test_one_layer_switched_on_is_that_layer_quantized(store: Store) -> None:
    floating = chain()
    found = sweep(floating, applied(floating, X), samples_of(floating, X), SITE, store)
    assert list(found) == ["conv0", "conv1", "conv2", "head"]
    for name, damage in found.items():
        alone = error(floating, applied(floating, X, QuantizeStatic(only=(name,))))
        assert damage == pytest.approx(alone, rel=0.05), name


def test_all_switched_on_is_the_quantized_model(store: Store) -> None:
    floating = chain()
    quantized = applied(floating, X, QuantizeStatic(ops=("Conv", "Gemm")))  # what joins layers has no switch
    made = switched(floating, quantized)
    masks = np.array([[True] * 4, [False] * 4, [True, False, False, True]])
    whole, none, two = switched_errors(made, masks, samples_of(floating, X), SITE, store)
    assert none == 0.0 and 0 < two < whole
    # Biases are rounded too in the quantized model, so a value here and there falls on the next step.
    assert whole == pytest.approx(error(floating, quantized), rel=0.25)


def test_a_coarse_layer_stands_out(store: Store) -> None:
    calm, coarse = (
        sweep(m, applied(m, X), samples_of(m, X), SITE, store) for m in (chain(), chain(outlier=20))
    )  # fmt: skip
    assert max(coarse, key=lambda n: coarse[n]) == "conv1"
    assert coarse["conv1"] > 3 * calm["conv1"]


def test_the_float_model_is_untouched_and_the_switched_one_is_valid() -> None:
    floating = chain()
    before = floating.to_bytes()
    made = switched(floating, applied(floating, X))
    assert floating.to_bytes() == before
    onnx.checker.check_model(made.model.to_proto())
    off: Array = np.zeros(len(made.layers), bool)
    assert np.array_equal(run(made.model, {"x": X, made.switches: off})["y"], run(floating, {"x": X})["y"])


def test_layers_in_float_have_no_switch_and_a_float_model_gives_nothing(store: Store) -> None:
    floating = chain()
    made = switched(floating, applied(floating, X, QuantizeStatic(exclude=("conv1",))))
    assert made.layers == ("conv0", "conv2", "head")
    assert sweep(floating, floating, samples_of(floating, X), SITE, store) == {}


def test_the_answer_is_remembered(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    floating = chain()
    asked = (floating, applied(floating, X), samples_of(floating, X), SITE, store)
    first = sweep(*asked)
    monkeypatch.setattr("optimizer.runtime.sessions.worker", lambda: pytest.fail("nothing is to be run"))
    assert sweep(*asked) == first
