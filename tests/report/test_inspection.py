"""What is read off a graph: counts against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from optimizer.records import PassNote
from optimizer.report import console, tables
from optimizer.report.inspection import inspect_model
from tests.support import runtime

HEAD = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>\n'


def weights(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.ones(shape, dtype)


CASES = [
    ("Conv", "c (float[N, 8, 16, 16] x) => (float[N, 4, 14, 14] y) { y = Conv <group = 2> (x, w) }", weights(4, 4, 3, 3), 4 * 14 * 14 * 4 * 9),
    ("ConvTranspose", "c (float[N, 8, 5, 5] x) => (y) { y = ConvTranspose (x, w) }", weights(8, 6, 2, 2), 8 * 25 * 6 * 4),
    ("Gemm", "g (float[8, N] x) => (y) { y = Gemm <transA = 1> (x, w) }", weights(8, 5), 8 * 5),
    ("MatMul", "m (float[N, 3, 7] x) => (y) { y = MatMul (x, w) }", weights(7, 5), 3 * 7 * 5),
    ("com.microsoft.FusedMatMul", "m (float[N, 3, 7] x) => (y) { y = com.microsoft.FusedMatMul (x, w) }", weights(7, 5), 3 * 7 * 5),
]  # fmt: skip


@pytest.mark.parametrize(("op", "text", "w", "macs"), CASES, ids=[c[0] for c in CASES])
def test_work_is_counted(op: str, text: str, w: np.ndarray, macs: int) -> None:
    model = runtime.model(HEAD + text, w=w)
    one, four = inspect_model(model), inspect_model(model, sizes={"N": 4})
    assert (one.work.total, four.work.total) == (macs, 4 * macs)
    assert one.work.by_op == {op: macs} and not one.work.unknown
    assert one.assumed == {"N": 1} and four.assumed == {"N": 4}
    assert one.parameters == w.size and one.weight_types == {"FLOAT": w.nbytes}


def test_work_that_cannot_be_counted_is_named() -> None:
    text = HEAD + "g (float[2, 3] x, int64[K] s) => (y) { r = Reshape (x, s) y = MatMul (r, w) }"
    found = inspect_model(runtime.model(text, w=weights(3, 5)))
    assert found.work.unknown == {"MatMul": 1} or found.work.total == 30


def test_nested_graphs_and_quantization_are_seen() -> None:
    text = (
        HEAD
        + """
    g (bool c, float[N, 3] x, uint8[N, 3] q, float s) => (float[N, 5] y) {
        d = DequantizeLinear (q, s)
        y = If (c) <then_branch = t () => (a) { a = MatMul (x, w) }, else_branch = e () => (b) { b = MatMul (d, w) }>
    }"""
    )
    found = inspect_model(runtime.model(text, w=weights(3, 5)))
    assert found.subgraphs == 2 and found.ops == {"MatMul": 2, "DequantizeLinear": 1, "If": 1}
    assert found.work.total == 30 and found.quantized == "quantize/dequantize pairs"
    assert [p.name for p in found.inputs] == ["c", "x", "q", "s"]


def test_indices_are_not_parameters() -> None:
    found = inspect_model(
        runtime.model(HEAD + "g (float[2, 3] x) => (y) { y = Reshape (x, w) }", w=weights(2, dtype=np.int64))
    )
    assert (found.parameters, found.weight_bytes) == (0, 16)


def test_the_model_is_not_touched() -> None:
    model = runtime.model(HEAD + CASES[0][1], w=CASES[0][2])
    before = model.to_bytes()
    inspect_model(model, sizes={"N": 7})
    assert model.to_bytes() == before


def test_it_reads_well_at_80_columns() -> None:
    notes = (PassNote("tidy", "exact", 3, 0.1), PassNote("simplify", "numeric", 0, 1.0, fault="killed by SIGSEGV"))
    found = inspect_model(runtime.model(HEAD + CASES[0][1], w=CASES[0][2]), passes=notes)
    text = console.to_text(tables.inspection(found))
    assert max(map(len, text.splitlines())) <= 80
    assert "input: x: FLOAT[N, 8, 16, 16]" in text and "28.2 k multiply-accumulates a run with N=1" in text
    assert "make 3 changes" in text and "killed by SIGSEGV" in text
