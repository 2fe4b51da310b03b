"""Heads and hidden units of a real export, cut exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from passes.kit.model import Model
from passes.prune.cut import take_out
from passes.prune.groups import study
from tests.prune.test_exact import masked
from tests.support.runtime import run

torch = pytest.importorskip("torch", reason="torch is not installed")


def test_a_transformer_from_torch_with_a_free_batch(tmp_path: Path) -> None:
    from sample_models.transformer import Transformer

    torch.manual_seed(0)
    module = Transformer(width=32, layers=2, heads=4).eval()
    path = tmp_path / "model.onnx"
    torch.onnx.export(
        module, (torch.zeros(2, 1, 8, 8),), str(path), dynamo=True, opset_version=18, input_names=["x"],
        output_names=["y"], dynamic_shapes=({0: "batch"},), verbose=False, external_data=False,
    )  # fmt: skip
    model = Model.from_proto(onnx.load(path))
    source = model.fork()
    structure = study(source)
    assert sorted((g.size, g.heads) for g in structure.groups) == [(4, True)] * 2 + [(128, False)] * 2
    assert any("normalizes over it" in r.reason for r in structure.refused), "the residual width stays"
    rng = np.random.default_rng(0)
    gone = {int(u) for g in structure.groups for u in rng.permutation(g.units)[: g.size // 4]}
    cut = take_out(model.fork(), gone)
    assert cut.weight_bytes() < 0.85 * model.weight_bytes()
    for batch in (1, 3):
        x = rng.random((batch, 1, 8, 8), np.float32)
        wanted = run(masked(source, structure, list(structure.groups), gone), {"x": x})["y"]
        assert np.abs(run(cut, {"x": x})["y"] - wanted).max() <= 1e-5
        assert np.abs(run(model, {"x": x})["y"] - wanted).max() > 1e-3
