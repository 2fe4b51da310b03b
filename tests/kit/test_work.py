"""Work and bytes of nodes against numbers worked out by hand."""

from __future__ import annotations

import numpy as np

from passes.kit.model import Model
from passes.kit.work import node_work, traffic, with_sizes
from tests.support import runtime

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'


def of(model: Model, **sizes: int) -> tuple[dict[str, tuple[int | None, bool, int | None]], tuple[int, int, int]]:
    fixed, named = with_sizes(model, sizes)
    nodes = node_work(fixed, named)
    moved = traffic(fixed, nodes, named)
    return {n.node: (n.macs, n.integer, n.bytes) for n in nodes}, (moved.least, moved.most, moved.unknown)


def test_a_layer_reads_its_weights_and_input_and_writes_its_result() -> None:
    text = HEAD + "g (float[N, 8] x) => (float[N, 4] y) { h = MatMul (x, w) y = Relu (h) }"
    nodes, moved = of(runtime.model(text, w=np.ones((8, 4), np.float32)), N=3)
    assert nodes == {"h": (3 * 8 * 4, False, 4 * (24 + 32 + 12)), "y": (0, False, 4 * (12 + 12))}
    assert moved == (4 * (32 + 24 + 12), 4 * (24 + 32 + 12) + 4 * 24, 0)


def quantized() -> Model:
    text = (
        HEAD
        + """g (float[2, 8] x) => (float[2, 4] y) {
        q = QuantizeLinear (x, s, z)
        a = DequantizeLinear (q, s, z)
        b = DequantizeLinear (w, s, zw)
        h = MatMul (a, b)
        p = QuantizeLinear (h, s, z)
        y = DequantizeLinear (p, s, z)
    }"""
    )
    one = {"s": np.array(0.1, np.float32), "z": np.array(128, np.uint8), "zw": np.array(0, np.int8)}
    return runtime.model(text, w=np.ones((8, 4), np.int8), **one)


def test_a_layer_between_integers_counts_as_integers() -> None:
    nodes, (least, _, unknown) = of(quantized())
    assert nodes["h"] == (2 * 8 * 4, True, 16 + 32 + 8) and unknown == 0
    assert all(nodes[n] == (0, False, 0) for n in ("q", "a", "b", "p", "y"))
    assert least == 32 + 4 * (16 + 8) + 4 + 1 + 1, "8-bit weights, float ports, and one scale with two zero points"


def test_only_the_rows_that_are_taken_of_a_table_are_read() -> None:
    text = HEAD + "g (int64[3] i) => (float[3, 16] y) { y = Gather (w, i) }"
    nodes, (least, _, _) = of(runtime.model(text, w=np.ones((1000, 16), np.float32)))
    rows, index = 3 * 16 * 4, 3 * 8
    assert nodes["y"] == (0, False, 2 * rows + index) and least == rows + index + rows


def test_what_cannot_be_known_is_said() -> None:
    text = (
        HEAD
        + """g (float[M, K] r, float[2, 3] x) => (y, z) {
        y = Einsum <equation = "ij,jk->ik"> (x, w)
        n = NonZero (r)
        z = Cast <to = 1> (n)
    }"""
    )
    nodes, (_, _, unknown) = of(runtime.model(text, w=np.ones((3, 5), np.float32)))
    assert nodes["y"][0] is None and nodes["z"] == (0, False, None) and unknown >= 2


def test_nodes_that_share_a_name_are_told_apart_by_their_values() -> None:
    model = runtime.model(f"{HEAD}g (float[1] x) => (float[1] y) {{ a = Relu (x) b = Relu (a) y = Relu (b) }}")
    for node, name in zip(model.graph, ("same", "same", "own"), strict=True):
        node.name = name
    assert list(of(model)[0]) == ["a", "b", "own"]
