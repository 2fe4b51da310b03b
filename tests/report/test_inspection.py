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
    ("Conv", "float[N, 8, 16, 16]", "Conv <group = 2>", (4, 4, 3, 3), 4 * 14 * 14 * 4 * 9),
    ("ConvTranspose", "float[N, 8, 5, 5]", "ConvTranspose", (8, 6, 2, 2), 8 * 25 * 6 * 4),
    ("Gemm", "float[8, N]", "Gemm <transA = 1>", (8, 5), 8 * 5),
    ("MatMul", "float[N, 3, 7]", "MatMul", (7, 5), 3 * 7 * 5),
    ("com.microsoft.FusedMatMul", "float[N, 3, 7]", "com.microsoft.FusedMatMul", (7, 5), 3 * 7 * 5),
]
CONV = "g (float[N, 8, 16, 16] x) => (float[N, 4, 14, 14] y) { y = Conv <group = 2> (x, w) }"


@pytest.mark.parametrize(("op", "kind", "call", "shape", "macs"), CASES, ids=[c[0] for c in CASES])
def test_work_is_counted(op: str, kind: str, call: str, shape: tuple[int, ...], macs: int) -> None:
    w = weights(*shape)
    model = runtime.model(f"{HEAD} g ({kind} x) => (y) {{ y = {call} (x, w) }}", w=w)
    one, four = inspect_model(model), inspect_model(model, sizes={"N": 4})
    assert (one.work.total, four.work.total) == (macs, 4 * macs)
    assert one.work.by_op == {op: macs} and not one.work.unknown
    assert one.assumed == {"N": 1} and four.assumed == {"N": 4}
    assert one.parameters == w.size and one.weight_types == {"FLOAT": w.nbytes}


def test_work_that_cannot_be_counted_is_named() -> None:
    text = (
        HEAD
        + """g (float[2, 3] x, float[M, K] r) => (y, z) {
        y = Einsum <equation = "ij,jk->ik"> (x, w)
        h = com.microsoft.Unheard (r)
        z = MatMul (h, w)
    }"""
    )
    found = inspect_model(runtime.model(text, w=weights(3, 5)))
    assert found.work.unknown == {"Einsum": 1, "MatMul": 1} and found.work.total == 0


def test_declared_shapes_help_where_none_can_be_derived() -> None:
    text = (
        HEAD
        + """g (float[N, 3] r) => (float[N, 5] z) <float[N, 3] h> {
        h = com.microsoft.Unheard (r)
        z = MatMul (h, w)
    }"""
    )
    found = inspect_model(runtime.model(text, w=weights(3, 5)), sizes={"N": 2})
    assert found.work.total == 30 and not found.work.unknown


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
    text = HEAD + "g (float[2, 3] x) => (y) { y = Reshape (x, w) }"
    found = inspect_model(runtime.model(text, w=weights(2, dtype=np.int64)))
    assert (found.parameters, found.weight_bytes) == (0, 16)


def test_the_model_is_not_touched() -> None:
    model = runtime.model(HEAD + CONV, w=weights(4, 4, 3, 3))
    before = model.to_bytes()
    inspect_model(model, sizes={"N": 7})
    assert model.to_bytes() == before


def test_it_reads_well_at_80_columns() -> None:
    notes = (PassNote("tidy", "exact", 3, 0.1), PassNote("simplify", "numeric", 0, 1.0, fault="killed by SIGSEGV"))
    found = inspect_model(runtime.model(HEAD + CONV, w=weights(4, 4, 3, 3)), passes=notes)
    text = console.to_text(tables.inspection(found))
    assert max(map(len, text.splitlines())) <= 80
    assert "input: x: FLOAT[N, 8, 16, 16]" in text and "28.2 k multiply-accumulates a run with N=1" in text
    assert "3 changes" in text and "killed by SIGSEGV" in text
