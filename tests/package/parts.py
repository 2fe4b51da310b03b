"""A small artifact to write, tamper with and check."""

from __future__ import annotations

from typing import Any

import numpy as np

from optimizer.package import golden, manifest
from optimizer.package.artifact import Contents
from passes.kit.model import Model
from passes.kit.recipe import Recipe
from tests.support import runtime

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
linear (float[N, 32] x) => (float[N, 16] y)
{
    y = MatMul (x, w)
}
"""


def model(scale: float = 1.0) -> Model:
    weights = np.linspace(-1, 1, 512, dtype=np.float32).reshape(32, 16) * np.float32(scale)
    return runtime.model(TEXT, w=weights)


def contents(subject: Model | None = None, **changes: Any) -> Contents:
    subject = subject or model()
    pairs = changes.get("golden")
    if pairs is None:
        feeds = [{"x": np.random.default_rng(i).standard_normal((2, 32), dtype=np.float32)} for i in range(2)]
        pairs = golden.pairs(feeds, [runtime.run(subject, f) for f in feeds])
    arguments: dict[str, Any] = {
        "model": subject,
        "source": manifest.SourceIdentity("/home/someone/models/linear.onnx", "onnx", "ab" * 32),
        "recipe": Recipe.parse('tidy, quantize-static{exclude=["/head/*"]}'),
        "target": runtime.target(),
        "provider": "CPUExecutionProvider",
        "seed": 7,
        "packages": {"onnx": "1.0"},
        "data": {"confirm": "cd" * 32},
        "metric": "top1",
        "budget": ("top1.drop<=0.005",),
        "golden": pairs,
        **changes,
    }
    evidence = {"final": {"latency_ms": {"p50": 0.25}}}
    return Contents(subject, manifest.build(**arguments), evidence, "# report\n", arguments["golden"])
