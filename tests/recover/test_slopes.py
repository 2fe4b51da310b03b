"""Gradients for passes: they are those of the outputs, and Taylor importance sees what layers behind make of a unit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from optimizer.recover.graph import torch_graph
from optimizer.recover.slopes import gradients, projected
from optimizer.runtime.sessions import Site
from optimizer.store.store import Store
from optimizer.workers.pool import CallFailed, Worker
from passes.kit.context import Feeds, NoGradients
from passes.kit.model import Model, constant
from passes.prune.prune_channels import PruneChannels
from tests.support.runtime import Array, LocalContext, model, run

torch = pytest.importorskip("torch", reason="torch is not installed")

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
SITE = Site("CPUExecutionProvider", 1, "test")
rng = np.random.default_rng(5)


def normal(*shape: int) -> Array:
    return np.asarray(rng.standard_normal(shape), np.float32)


class Differentiating(LocalContext):
    """Gradients in this process, without a worker."""

    def gradients(self, model: Model, feeds: Sequence[Feeds], of: Sequence[str]) -> list[dict[str, Array]]:
        generator = np.random.default_rng(self.seed)
        return [projected(torch_graph(model), feed, of, generator) for feed in feeds]


def test_gradients_are_those_of_the_outputs(tmp_path: Path) -> None:
    text = "g (float[1,4] x) => (float[1,1] y) { g1 = Mul(w1, s) h = MatMul(x, g1) r = Tanh(h) y = MatMul(r, w2) }"
    held = {"w1": normal(4, 3), "w2": normal(3, 1)}
    ones = np.ones((1, 3), np.float32)
    feeds = [{"x": normal(1, 4)} for _ in range(3)]
    store = Store(tmp_path)
    found = gradients(model(HEAD + text, **held, s=ones), feeds, ["s"], 7, site=SITE, store=store)
    for feed, told in zip(feeds, found, strict=True):
        y = run(model(HEAD + text, **held, s=ones), feed)["y"]
        for unit in range(3):
            step = np.where(np.arange(3) == unit, 1e-2, 0).astype(np.float32)
            up, down = (run(model(HEAD + text, **held, s=ones + k * step), feed)["y"] for k in (1, -1))
            slope = float(up[0, 0] - down[0, 0]) / 2e-2 / abs(float(y[0, 0]))
            assert abs(told["s"][0, unit]) == pytest.approx(abs(slope), rel=2e-2, abs=1e-3)


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def call(*args: object, **more: object) -> None:
        raise CallFailed("ModuleNotFoundError", "No module named 'torch'", "")

    monkeypatch.setattr(Worker, "call", call)
    with pytest.raises(NoGradients, match=r"need PyTorch: pip install 'lathe\[torch\]'"):
        gradients(behind(), [{"x": normal(4, 6)}], ["w1"], 7, site=SITE, store=Store(tmp_path))


def behind() -> Model:
    """Units 1 and 3 of the first layer go, with large weights, only where the last layer reads nothing."""
    text = """g (float[n,6] x) => (float[n,3] y) {
        a = MatMul(x, w1) h = Relu(a) b = MatMul(h, w2) r = Relu(b) y = MatMul(r, w3) }"""
    w2, w3 = np.abs(normal(8, 6)), normal(6, 3)
    w2[[1, 3]] = 0
    w2[[1, 3], 5] = 50
    w3[5] = 0
    return model(HEAD + text, w1=normal(6, 8), w2=w2, w3=w3)


def test_taylor_sees_what_layers_behind_make_of_a_unit() -> None:
    before = behind()
    context = Differentiating([{"x": normal(4, 6)} for _ in range(16)])
    (first, *_) = [str(n.name or n.outputs[0].name) for n in before.graph]
    w1 = constant(before.graph.initializers["w1"])
    assert w1 is not None
    for kind, same in (("taylor", True), ("activation", False)):
        after = PruneChannels(multiple=1, importance=kind, keep=(f"{first}=6",))(before, context).model
        left = constant(after.graph.initializers["w1"])
        assert left is not None and left.shape == (6, 6)
        assert np.array_equal(left, w1[:, [0, 2, 4, 5, 6, 7]]) is same


def test_without_gradients_nothing_is_guessed() -> None:
    with pytest.raises(NoGradients):
        PruneChannels(multiple=1, importance="taylor")(behind(), LocalContext([{"x": normal(4, 6)}]))


def test_outputs_that_move_against_each_other_do_not_hide_a_unit() -> None:
    before = model(HEAD + "g (float[1,1] x) => (float[1,2] y) { h = Mul(x, s) y = MatMul(h, w) }",
                   s=np.ones((1, 2), np.float32), w=np.array([[1, -1], [0, 0]], np.float32))  # fmt: skip
    graph, generator = torch_graph(before), np.random.default_rng(0)
    found = [projected(graph, {"x": np.ones((1, 1), np.float32)}, ["s"], generator)["s"] for _ in range(200)]
    np.testing.assert_allclose((np.stack(found) ** 2).mean(0), [[1, 0]], atol=0.3)
