"""An explanation at 80 columns: the whole text, and that long names do not break it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from optimizer.measure.explain import Advice, Explanation, Layer
from optimizer.measure.explain_graph import Island, Kernel, OpTime, Unfused
from optimizer.report import console, json_
from optimizer.report.explain import explanation

SNAPSHOTS = Path(__file__).parent / "snapshots"

FOUND = Explanation(
    name="model.lathe",
    quantized="quantize/dequantize pairs",
    reference="its float twin (rounding taken out)",
    recipe='tidy, quantize-static{exclude=["/head"]}',
    provider="CPUExecutionProvider",
    samples=16,
    output_db=31.42,
    runtime_db=52.0,
    layers=(
        Layer("/stem/Conv", "Conv", "int8", "QLinearConv", 41.25, 0.99996, 38.3, 0.008, 0.021),
        Layer("/block.0/[a]", "Conv", "int8", "QLinearConv", 28.1, 0.9992, 44.0, 0.027, 0.015),
        Layer("/block.1", "Conv", "float", "QLinearConv", 27.9, 0.999, None, 0.027, 0.014, "the recipe leaves it out"),
        Layer("/head", "Gemm", "float", "Gemm", 120.0, 1.0, None, 0.002, 0.002, "the recipe leaves it out"),
        Layer("/gone", "MatMul", "int8 dynamic"),
    ),
    unfused=(Unfused("/block.2", "Conv", True, 0.031),),
    islands=(Island(("/act", "/mul"), ("Sigmoid", "Mul"), 3, 0.012),),
    before=(OpTime("Conv", 19, 0.393), OpTime("Gemm", 1, 0.002)),
    after=(OpTime("QLinearConv", 18, 0.21), OpTime("DequantizeLinear", 3, 0.006)),
    slowest=(Kernel("k", "QLinearConv", (), (), 0.021),),
    advice=(Advice("/stem/Conv is slower in integers than in float", 'quantize-static{exclude=["/stem/Conv"]}'),),
    warnings=("inputs are made up",),
)


def test_the_whole_text() -> None:
    text = console.to_text(explanation(FOUND))
    assert max(map(len, text.splitlines())) <= 80
    assert text == (SNAPSHOTS / "explanation.txt").read_text("utf-8")


def test_many_layers_with_long_names_fit_and_the_worst_come_first() -> None:
    layers = tuple(
        Layer(f"/a/very/long/path/of/modules/block.{i}/with/a/name/Conv", "Conv", "int8", "QLinearConv", 30.0, 0.999,
              50.0 - i, 0.1, 0.05)
        for i in range(40)
    )  # fmt: skip
    found = replace(FOUND, layers=layers, unfused=(), islands=())
    text = console.to_text(explanation(found))
    assert max(map(len, text.splitlines())) <= 80
    flat = "".join(text.split())
    assert "12of40layers" in flat and flat.index("11.0dB") < flat.index("15.0dB") and "49.0dB" not in flat
    assert "49.0dB" in "".join(console.to_text(explanation(found, everything=True)).split())


def test_a_runtime_that_computes_something_else_is_told() -> None:
    assert "its optimizer moves the outputs" not in console.to_text(explanation(FOUND))
    text = console.to_text(explanation(replace(FOUND, runtime_db=12.0)))
    assert "its optimizer moves the outputs to 12.0 dB of what the file says" in text


def test_json() -> None:
    tree = json.loads(json_.dump(FOUND, "other/1"))
    assert tree["schema"] == "lathe.explanation/1" and tree["layers"][0]["alone_db"] == 38.3
    assert tree["before_ms"] == 0.395 and tree["advice"][0]["recipe"].startswith("quantize-static")
