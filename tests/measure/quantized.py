"""Small models with their quantized forms, shared by the tests of what looks inside quantized models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from optimizer.data.checks import from_arrays
from optimizer.data.samples import Samples
from optimizer.runtime.sessions import Site
from optimizer.store.store import Store
from passes.kit.contract import Pass
from passes.kit.model import Model
from passes.quantize.quantize_static import QuantizeStatic
from tests.support.runtime import Array, LocalContext, model

SITE = Site("CPUExecutionProvider", 1, "test")
CHAIN = """<ir_version: 8, opset_import: ["" : 17]> g (float[n,3,8,8] x) => (float[n,5] y) {
    [conv0] c0 = Conv <pads = [1,1,1,1]> (x, w0, b0)
    [relu0] r0 = Relu (c0)
    [conv1] c1 = Conv <pads = [1,1,1,1]> (r0, w1, b1)
    [clip1] r1 = Clip (c1, low, high)
    [conv2] c2 = Conv <pads = [1,1,1,1]> (r1, w2, b2)
    [pool] p = GlobalAveragePool (c2)
    [flat] f = Flatten (p)
    [head] y = Gemm (f, w3, b3)
}"""


def chain(outlier: float = 1.0) -> Model:
    """Three convolutions and a Gemm. ``outlier`` multiplies one input of each channel of conv1's weight, which
    coarsens its grid and so makes it the most damaged layer."""
    rng = np.random.default_rng(0)
    weights = {
        "w0": rng.normal(size=(8, 3, 3, 3)) * 0.3, "b0": rng.normal(size=8) * 0.1,
        "w1": rng.normal(size=(8, 8, 3, 3)) * 0.15, "b1": rng.normal(size=8) * 0.1,
        "w2": rng.normal(size=(8, 8, 3, 3)) * 0.15, "b2": rng.normal(size=8) * 0.1,
        "w3": rng.normal(size=(8, 5)), "b3": rng.normal(size=5) * 0.1,
        "low": np.array(0.0), "high": np.array(6.0),
    }  # fmt: skip
    weights["w1"][:, 0, 0, 0] *= outlier
    return model(CHAIN, **{n: np.asarray(w, np.float32) for n, w in weights.items()})


def images(count: int = 8) -> Array:
    return np.random.default_rng(1).normal(size=(count, 3, 8, 8)).astype(np.float32)


def samples_of(subject: Model, x: Array) -> Samples:
    return from_arrays({"x": x}, subject.signature.inputs, where="x")


def applied(subject: Model, x: Array, *passes: Pass) -> Model:
    """What passes make of ``subject``, with ``x`` to calibrate on."""
    for one in passes or (QuantizeStatic(),):
        subject = one(subject, LocalContext(feeds=[{"x": x}])).model
    return subject


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")
