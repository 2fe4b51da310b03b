"""Shapes where ONNX's own inference would know nothing."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from passes.kit.model import Model
from passes.kit.shapes import Shapes
from passes.quantize.convert_float16 import ConvertFloat16
from tests.support.runtime import LocalContext, model

HEAD = '<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1'


def fused(domains: str = "", functions: str = "") -> Model:
    text = f"{HEAD}{domains}]> g (float[n, 8] x) => (float[n, 4] y) {{ h = com.microsoft.Gelu(x) y = MatMul(h, w) }}"
    return model(text + functions, w=np.ones((8, 4), np.float32))


def test_a_contrib_operator_of_one_input_gives_what_it_reads() -> None:
    subject = fused()
    before = subject.to_bytes()
    h = subject.graph[0].outputs[0]
    shapes = Shapes(subject)
    assert shapes.of(h) == ("input#0.0", 8) and shapes.dtype(h) == ir.DataType.FLOAT
    assert subject.to_bytes() == before


def test_a_function_of_that_name_is_what_its_body_says() -> None:
    body = '\n<domain: "com.microsoft", opset_import: ["": 17]> Gelu (a) => (b) { b = Flatten<axis=0>(a) }'
    subject = fused(functions=body)
    h = subject.graph[0].outputs[0]
    assert (Shapes(subject).of(h) or (1,))[0] == 1


def test_what_reads_it_can_be_float16() -> None:
    result = ConvertFloat16(keep=())(fused(), LocalContext([{"x": np.ones((2, 8), np.float32)}]))
    types = {n.op_type: [v.dtype for v in n.inputs if v is not None] for n in result.model.nodes()}
    assert set(types["MatMul"]) == {ir.DataType.FLOAT16}
