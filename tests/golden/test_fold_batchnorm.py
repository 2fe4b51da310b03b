"""fold-batchnorm, before and after."""

from __future__ import annotations

import numpy as np
import pytest

from passes.fuse.fold_batchnorm import FoldBatchnorm
from passes.kit.contract import PassResult
from passes.kit.model import Model
from tests.support.runtime import Array, LocalContext, model, op_types, run

HEAD = '<ir_version: 8, opset_import: ["": {opset}]>\n'
rng = np.random.default_rng(3)


def normal(*shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


def norm(channels: int) -> dict[str, Array]:
    return {"g": normal(channels), "b": normal(channels), "m": normal(channels), "v": normal(channels) ** 2 + 0.1}


def fold(subject: Model) -> PassResult:
    return FoldBatchnorm()(subject, LocalContext())


def built(body: str, x: str, y: str, opset: int = 15, **weights: Array) -> Model:
    return model(HEAD.format(opset=opset) + f"g (float[{x}] x) => (float[{y}] y) {{ {body} }}", **weights)


def agrees(subject: Model, result: PassResult, x: Array) -> None:
    wanted = run(subject, {"x": x})["y"]
    np.testing.assert_allclose(run(result.model, {"x": x})["y"], wanted, atol=4e-6 * np.abs(wanted).max())


NORM = "y = BatchNormalization(c, g, b, m, v)"


@pytest.mark.parametrize(
    ("linear", "x", "weights", "channels", "kind"),
    [
        ("Conv(x, w)", (2, 4, 5, 5), {"w": (6, 4, 3, 3)}, 6, "Conv"),
        ("Conv<pads=[1, 1, 1, 1]>(x, w, k)", (2, 4, 5, 5), {"w": (6, 4, 3, 3), "k": (6,)}, 6, "Conv"),
        ("Conv<group=2>(x, w)", (2, 4, 5, 5), {"w": (6, 2, 3, 3)}, 6, "Conv"),
        ("Conv<group=4>(x, w)", (1, 4, 5), {"w": (4, 1, 3)}, 4, "Conv"),
        ("ConvTranspose<strides=[2, 2]>(x, w)", (2, 4, 5, 5), {"w": (4, 6, 3, 3)}, 6, "ConvTranspose"),
        ("ConvTranspose<group=2>(x, w, k)", (2, 4, 5, 5), {"w": (4, 3, 3, 3), "k": (6,)}, 6, "ConvTranspose"),
        ("Gemm(x, w)", (3, 4), {"w": (4, 6)}, 6, "Gemm"),
        ("Gemm<transB=1, alpha=0.5, beta=3.0>(x, w, k)", (3, 4), {"w": (6, 4), "k": (6,)}, 6, "Gemm"),
        ("Gemm<transA=1, beta=0.5>(x, w, k)", (4, 3), {"w": (4, 6), "k": (1,)}, 6, "Gemm"),
        ("MatMul(x, w)", (3, 4), {"w": (4, 6)}, 6, "Gemm"),
    ],
)
def test_it_folds_into(
    linear: str, x: tuple[int, ...], weights: dict[str, tuple[int, ...]], channels: int, kind: str
) -> None:
    rank = ", ".join("abcd"[: len(x)])
    held = {name: normal(*shape) for name, shape in weights.items()}
    subject = built(f"c = {linear}\n {NORM}", ", ".join(map(str, x)), rank, **held, **norm(channels))
    result = fold(subject)
    assert op_types(result.model) == [kind]
    assert len(result.model.graph.initializers) == 2
    agrees(subject, result, normal(*x))


@pytest.mark.parametrize(("opset", "attributes"), [(6, "is_test=1"), (7, ""), (9, ""), (14, "training_mode=0")])
def test_it_reads_every_spelling_of_inference(opset: int, attributes: str) -> None:
    body = f"c = Conv(x, w)\n y = BatchNormalization<{attributes}>(c, g, b, m, v)".replace("<>", "")
    subject = built(body, "1, 4, 5, 5", "1, 6, 3, 3", opset, w=normal(6, 4, 3, 3), **norm(6))
    result = fold(subject)
    assert op_types(result.model) == ["Conv"]
    if opset >= 7:
        agrees(subject, result, normal(1, 4, 5, 5))


def test_epsilon_counts() -> None:
    body = "c = Conv(x, w)\n y = BatchNormalization<epsilon=0.5>(c, g, b, m, v)"
    subject = built(body, "1, 4, 3, 3", "1, 6, 1, 1", w=normal(6, 4, 3, 3), **norm(6))
    agrees(subject, fold(subject), normal(1, 4, 3, 3))


W = {"w": (6, 6, 1, 1)}


@pytest.mark.parametrize(
    ("body", "opset", "reason"),
    [
        (f"d = Conv(x, w)\n c = Conv(d, w)\n {NORM}", 15, "weight is shared"),
        (f"c = Conv(x, w)\n z = {NORM[4:]}\n y = Add(z, c)", 15, "its input is needed elsewhere, too"),
        ("c = Conv(x, w)\n y = BatchNormalization(c, x2, b, m, v)", 15, "its parameters are not constant"),
        (f"n = Neg(w)\n c = Conv(x, n)\n {NORM}", 15, "the weight is not constant"),
        (f"n = Neg(b)\n c = Conv(x, w, n)\n {NORM}", 15, "the bias is not constant"),
        ("c = Conv(x, w)\n y = BatchNormalization<is_test=0>(c, g, b, m, v)", 6, "it is in training mode"),
        (
            "c = Conv(x, w)\n y, o1, o2 = BatchNormalization<training_mode=1>(c, g, b, m, v)",
            15,
            "it is in training mode",
        ),
        ("c = Conv(x, w)\n y = BatchNormalization<spatial=0>(c, g, b, m, v)", 7, "more than channels"),
    ],
)
def test_it_refuses(body: str, opset: int, reason: str) -> None:
    if "x2" in body:
        body = "q = ReduceMean<axes=[0, 2, 3], keepdims=0>(x)\n " + body.replace("x2", "q")
    held = {name: normal(*shape) for name, shape in W.items()}
    result = fold(built(body, "1, 6, 1, 1", "1, 6, 1, 1", opset, **held, **norm(6)))
    assert not result.changes
    assert reason in result.skips[0].reason


def test_a_matmul_on_three_axes_is_refused_because_channels_are_the_second() -> None:
    subject = built(f"c = MatMul(x, w)\n {NORM}", "2, 6, 4", "2, 6, 6", w=normal(4, 6), **norm(6))
    result = fold(subject)
    assert not result.changes
    assert "2-D" in result.skips[0].reason


def test_a_vanished_variance_is_refused_when_the_weights_overflow() -> None:
    held = norm(6) | {"v": np.full(6, -1, np.float32)}
    result = fold(built(f"c = Conv(x, w)\n {NORM}", "1, 4, 3, 3", "1, 6, 1, 1", w=normal(6, 4, 3, 3), **held))
    assert not result.changes
    assert "not finite" in result.skips[0].reason


def test_equal_norms_after_different_convolutions_share_their_parameters() -> None:
    body = "c1 = Conv(x, w1)\n n1 = BatchNormalization(c1, g, b, m, v)\n c = Conv(n1, w2)\n " + NORM
    subject = built(body, "1, 6, 2, 2", "1, 6, 2, 2", w1=normal(6, 6, 1, 1), w2=normal(6, 6, 1, 1), **norm(6))
    result = fold(subject)
    assert op_types(result.model) == ["Conv", "Conv"]
    agrees(subject, result, normal(1, 6, 2, 2))
