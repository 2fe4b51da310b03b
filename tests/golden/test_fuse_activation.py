"""fuse-activation, before and after."""

from __future__ import annotations

import numpy as np
import pytest

from passes.fuse.fuse_activation import FuseActivation
from passes.kit.contract import PassResult
from passes.kit.model import Model
from tests.support.runtime import LocalContext, model, op_types, run

HEAD = '<ir_version: 8, opset_import: ["": {opset}]>\n'
X = np.array([[-np.inf, -7, -3, -1.5, -0.0, 0, 0.5, 3, 5.5, 6, 7, np.inf, np.nan]], np.float32)
ZERO = "zero = Constant<value_float=0.0>()\n"
THREE = "three = Constant<value_float=3.0>()\n"
SIX = "six = Constant<value_float=6.0>()\n"
SIXTH = "sixth = Constant<value_float=0.16666667>()\n"
GATE = ZERO + THREE + SIX + "p = Add(x, three)\n c = Clip(p, zero, six)\n"


def built(body: str, opset: int = 15) -> Model:
    return model(HEAD.format(opset=opset) + f"g (float[1, 13] x) => (float[1, 13] y) {{ {body} }}")


def fuse(subject: Model, **options: bool) -> PassResult:
    return FuseActivation(**options)(subject, LocalContext())


def ops(result: PassResult) -> list[str]:
    return [op for op in op_types(result.model) if op != "Constant"]


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (ZERO + "y = Max(x, zero)", ["Relu"]),
        (ZERO + "y = Max(zero, x)", ["Relu"]),
        ("r = Relu(x)\n y = Relu(r)", ["Relu"]),
        ("r = Sigmoid(x)\n y = Relu(r)", ["Sigmoid"]),
        (ZERO + SIX + "m = Max(x, zero)\n y = Min(m, six)", ["Clip"]),
        (THREE + SIX + "m = Min(six, x)\n y = Max(m, three)", ["Clip"]),
        (SIX + "r = Relu(x)\n y = Min(r, six)", ["Clip"]),
        (ZERO + SIX + "r = Relu(x)\n y = Clip(r, zero, six)", ["Clip"]),
        (THREE + SIX + "r = Relu(x)\n y = Clip(r, three, six)", ["Clip"]),
        (ZERO + SIX + "r = Clip(x, zero, six)\n y = Relu(r)", ["Clip"]),
        ("i = Constant<value = float {inf}>()\n" + ZERO + "y = Clip(x, zero, i)", ["Relu"]),
        (GATE + "y = Div(c, six)", ["HardSigmoid"]),
        (GATE + SIXTH + "y = Mul(c, sixth)", ["HardSigmoid"]),
        (GATE + "m = Mul(x, c)\n y = Div(m, six)", ["HardSwish"]),
        (GATE + "m = Mul(c, x)\n" + SIXTH + "y = Mul(sixth, m)", ["HardSwish"]),
        (GATE + "d = Div(c, six)\n y = Mul(x, d)", ["HardSwish"]),
        (GATE + "d = Div(x, six)\n y = Mul(d, c)", ["HardSwish"]),
        ("h = HardSigmoid<alpha=0.16666667, beta=0.5>(x)\n y = Mul(h, x)", ["HardSwish"]),
    ],
)
def test_it_fuses(body: str, wanted: list[str]) -> None:
    subject = built(body)
    result = fuse(subject)
    assert ops(result) == wanted
    before, after = run(subject, {"x": X})["y"], run(result.model, {"x": X})["y"]
    np.testing.assert_array_equal(np.isnan(before), np.isnan(after))
    np.testing.assert_allclose(after, before, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "body",
    [
        THREE + "y = Max(x, three)",
        "h = HardSigmoid(x)\n y = Mul(h, x)",
        GATE + "m = Mul(x, c)\n y = Div(m, three)",
        GATE + "d = Div(c, six)\n s = Mul(x, d)\n y = Add(s, d)",
        ZERO + SIX + "m = Max(x, zero)\n n = Min(m, six)\n y = Add(m, n)",
        "s = Sigmoid(x)\n y = Mul(x, s)",
        SIX + "y = Min(x, six)",
    ],
)
def test_it_keeps_what_is_something_else(body: str) -> None:
    subject = built(body)
    result = fuse(subject)
    assert not {"HardSwish", "Clip"} & (set(ops(result)) - set(op_types(subject)))
    np.testing.assert_allclose(run(result.model, {"x": X})["y"], run(subject, {"x": X})["y"], rtol=1e-6)


def test_another_offset_is_no_hard_sigmoid() -> None:
    subject = built(GATE.replace("Add(x, three)", "Add(x, six)") + "y = Div(c, six)")
    assert not fuse(subject).changes


@pytest.mark.parametrize(
    ("body", "opset", "reason"),
    [
        (ZERO + "y = Clip(x, zero)", 15, "turns +inf into the largest float"),
        (THREE + SIX + "m = Min(x, three)\n y = Max(m, six)", 15, "cross"),
        (GATE + "m = Mul(x, c)\n y = Div(m, six)", 13, "HardSwish needs opset 14"),
    ],
)
def test_it_refuses(body: str, opset: int, reason: str) -> None:
    result = fuse(built(body, opset))
    assert reason in result.skips[0].reason
    assert not result.changes


def test_old_clips_have_attributes() -> None:
    subject = built("r = Relu(x)\n y = Clip<min=-1.0, max=6.0>(r)", 10)
    result = fuse(subject)
    assert ops(result) == ["Clip"]
    np.testing.assert_array_equal(run(result.model, {"x": X})["y"], run(subject, {"x": X})["y"])


def test_hard_activations_can_be_left() -> None:
    assert not fuse(built(GATE + "y = Div(c, six)"), hard_activations=False).changes


def test_integers_are_left() -> None:
    text = HEAD.format(opset=15) + "g (int64[3] x) => (int64[3] y) { z = Constant<value_int=0>()\n y = Max(x, z) }"
    assert not fuse(model(text)).changes
