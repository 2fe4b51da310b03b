"""pool-reduce-mean, before and after."""

from __future__ import annotations

import numpy as np
import pytest

from passes.fuse.pool_reduce_mean import PoolReduceMean
from passes.kit.contract import PassResult
from passes.kit.model import Model
from tests.support.runtime import LocalContext, model, op_types, run

rng = np.random.default_rng(6)


def built(body: str, opset: int, x: str, rank: int) -> Model:
    head = f'<ir_version: 8, opset_import: ["": {opset}]>\n'
    return model(head + f"g (float[{x}] x) => (float[{', '.join('abcde'[:rank])}] y) {{ {body} }}")


def pool(subject: Model) -> PassResult:
    return PoolReduceMean()(subject, LocalContext())


@pytest.mark.parametrize(
    ("body", "opset", "shape", "keep"),
    [
        ("y = ReduceMean<axes=[2, 3]>(x)", 11, (2, 3, 4, 5), True),
        ("y = ReduceMean<axes=[-1, -2], keepdims=0>(x)", 13, (2, 3, 4, 5), False),
        ("a = Constant<value_ints=[3, 2]>()\n y = ReduceMean(x, a)", 18, (2, 3, 4, 5), True),
        ("a = Constant<value_ints=[2, -1]>()\n y = ReduceMean<keepdims=0>(x, a)", 18, (2, 3, 4, 5), False),
        ("y = ReduceMean<axes=[2, 3, 4], keepdims=0>(x)", 13, (2, 3, 2, 2, 5), False),
    ],
)
def test_a_mean_over_all_positions_is_a_pool(body: str, opset: int, shape: tuple[int, ...], keep: bool) -> None:
    names = ", ".join(f"d{i}" for i in range(len(shape)))
    subject = built(body, opset, names, len(shape) if keep else 2)
    result = pool(subject)
    kept = [op for op in op_types(result.model) if op != "Constant"]
    assert kept == (["GlobalAveragePool"] if keep else ["GlobalAveragePool", "Flatten"])
    assert result.model.signature == subject.signature
    x = rng.standard_normal(shape).astype(np.float32)
    np.testing.assert_allclose(run(result.model, {"x": x})["y"], run(subject, {"x": x})["y"], atol=1e-6)


def test_the_rank_is_inferred_through_operators() -> None:
    subject = built(
        "r = Relu(x)\n t = MaxPool<kernel_shape=[2, 2]>(r)\n y = ReduceMean<axes=[2, 3]>(t)", 13, "1, 2, 4, 4", 4
    )
    assert op_types(pool(subject).model) == ["Relu", "MaxPool", "GlobalAveragePool"]


@pytest.mark.parametrize(
    ("body", "rank"),
    [
        ("y = ReduceMean<axes=[1]>(x)", 4),
        ("y = ReduceMean<axes=[1, 2]>(x)", 4),
        ("y = ReduceMean<axes=[1, 2, 3]>(x)", 4),
        ("y = ReduceMean<axes=[3]>(x)", 4),
        ("y = ReduceMean(x)", 4),
    ],
)
def test_other_means_stay(body: str, rank: int) -> None:
    assert not pool(built(body, 13, "1, 2, 4, 4", rank)).changes


def test_on_three_axes_only_what_a_convolution_made_is_an_image() -> None:
    transformer = built("y = ReduceMean<axes=[2]>(x)", 13, "1, 2, 4", 3)
    assert not pool(transformer).changes
    signal = built("p = MaxPool<kernel_shape=[2]>(x)\n r = Relu(p)\n y = ReduceMean<axes=[2]>(r)", 13, "1, 2, 4", 3)
    assert op_types(pool(signal).model) == ["MaxPool", "Relu", "GlobalAveragePool"]


def test_it_says_why_not() -> None:
    head = '<ir_version: 8, opset_import: ["": 18]>\n'
    free = model(head + "g (float[1, 2, 4, 4] x, int64[2] axes) => (float[a, b, c, d] y) { y = ReduceMean(x, axes) }")
    assert pool(free).skips[0].reason == "its axes are not constant"
    axes = "a = Constant<value_ints=[2, 3]>()\n "
    unknown = model(head + f"g (float[8] x, int64[r] s) => (y) {{ {axes} z = Reshape(x, s)\n y = ReduceMean(z, a) }}")
    assert pool(unknown).skips[0].reason == "the rank of its input is not known"
    whole = model(head + f"g (int32[1, 2, 4, 4] x) => (int32[a, b, c, d] y) {{ {axes} y = ReduceMean(x, a) }}")
    assert "no pooling kernel" in pool(whole).skips[0].reason
