"""fuse-layernorm, before and after."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest

from passes.fuse.fuse_layernorm import FuseLayernorm
from passes.kit.contract import PassResult
from passes.kit.model import Model
from tests.support.runtime import Array, LocalContext, model, op_types, run, target

rng = np.random.default_rng(5)
X = (rng.standard_normal((2, 3, 8)) * 3 + 1).astype(np.float32)
CONSTANTS = """
  axis = Constant<value_ints=[-1]>()
  last = Constant<value_ints=[2]>()
  two = Constant<value_float=2.0>()
  eps = Constant<value_float=0.00001>()
  one = Constant<value_float=1.0>()
  minus_half = Constant<value_float=-0.5>()
"""
MEAN = "m = ReduceMean(x, axis)\n d = Sub(x, m)\n "
ROOT = "q = Pow(d, two)\n v = ReduceMean(q, axis)\n a = Add(v, eps)\n s = Sqrt(a)\n "
SCALE = "w = Mul(n, g)\n y = Add(w, b)"


def built(body: str, opset: int = 18, **weights: Array) -> Model:
    head = f'<ir_version: 9, opset_import: ["": {opset}]>\n'
    held = {"g": rng.random(8, np.float32) + 0.5, "b": rng.random(8, np.float32)} | weights
    used = {k: v for k, v in held.items() if f", {k})" in body or f"({k}," in body}
    return model(head + f"g (float[n, s, 8] x) => (float[n, s, 8] y) {{ {CONSTANTS} {body} }}", **used)


def fuse(subject: Model, max_opset: int = 27, **options: bool) -> PassResult:
    site = dataclasses.replace(target(), max_opset=max_opset)
    result = FuseLayernorm(**options)(subject, LocalContext(target=site))
    onnx.checker.check_model(result.model.to_proto())
    return result


def made(result: PassResult) -> list[str]:
    return [op for op in op_types(result.model) if op != "Constant"]


def agrees(subject: Model, result: PassResult) -> None:
    wanted = run(subject, {"x": X})["y"]
    np.testing.assert_allclose(run(result.model, {"x": X})["y"], wanted, atol=4e-6)


@pytest.mark.parametrize(
    "body",
    [
        MEAN + ROOT + "n = Div(d, s)\n " + SCALE,
        MEAN + ROOT.replace("Pow(d, two)", "Mul(d, d)") + "n = Div(d, s)\n w = Mul(g, n)\n y = Add(b, w)",
        MEAN + ROOT + "r = Reciprocal(s)\n n = Mul(d, r)\n " + SCALE,
        MEAN + ROOT + "r = Div(one, s)\n n = Mul(r, d)\n " + SCALE,
        MEAN + ROOT.replace("s = Sqrt(a)", "r = Pow(a, minus_half)") + "n = Mul(d, r)\n " + SCALE,
        MEAN.replace("axis", "last") + ROOT.replace("axis", "last") + "n = Div(d, s)\n " + SCALE,
        MEAN + ROOT + "n = Div(d, s)\n y = Mul(n, g)",
    ],
)
def test_layer_norm(body: str) -> None:
    subject = built(body)
    result = fuse(subject)
    assert made(result) == ["LayerNormalization"]
    assert result.model.opset == 18
    agrees(subject, result)


RMS = ROOT.replace("Pow(d", "Pow(x") + "r = Reciprocal(s)\n n = Mul(x, r)\n y = Mul(n, g)"


@pytest.mark.parametrize("opset", [18, 21, 23])
@pytest.mark.parametrize("body", [RMS, RMS.replace("Mul(n, g)", "Mul(g, n)"), RMS.replace("Pow(x, two)", "Mul(x, x)")])
def test_rms_norm_raises_the_opset_to_the_one_that_has_it(body: str, opset: int) -> None:
    subject = built(body, opset)
    result = fuse(subject)
    assert made(result) == ["RMSNormalization"]
    assert result.model.opset == 23
    assert subject.opset == opset
    agrees(subject, result)


@pytest.mark.parametrize(
    ("body", "options", "ceiling", "reason"),
    [
        (RMS, {"raise_opset": False}, 27, "raise-opset is off"),
        (RMS, {}, 21, "the target takes 21"),
        (RMS.replace("y = Mul(n, g)", "z = Mul(n, g)\n y = Swishy(z)"), {}, 27, "Swishy may mean something else"),
    ],
)
def test_rms_norm_refuses(body: str, options: dict[str, bool], ceiling: int, reason: str) -> None:
    site = dataclasses.replace(target(), max_opset=ceiling)
    result = FuseLayernorm(**options)(built(body), LocalContext(target=site))
    assert not result.changes
    assert reason in result.skips[0].reason


def test_layer_norm_below_opset_17_is_left_to_the_runtime() -> None:
    body = (
        (MEAN + ROOT + "n = Div(d, s)\n " + SCALE)
        .replace("ReduceMean(", "ReduceMean<axes=[-1]>(")
        .replace(", axis)", ")")
    )
    result = fuse(built(body, 13))
    assert not result.changes
    assert "opset 17" in result.skips[0].reason


@pytest.mark.parametrize(
    ("body", "weights"),
    [
        (MEAN + ROOT + "n = Div(d, s)\n " + SCALE, {"g": np.ones((1, 8), np.float32), "b": np.ones(8, np.float32)}),
        (MEAN + ROOT + "n = Div(d, s)\n " + SCALE, {"g": np.ones(1, np.float32)}),
        (MEAN + ROOT + "n = Div(d, s)\n y = Add(n, b)", {}),
    ],
)
def test_a_scale_of_another_shape_is_refused(body: str, weights: dict[str, Array]) -> None:
    result = fuse(built(body, **weights))
    assert not result.changes
    assert "no scale over exactly the normalized axes" in result.skips[0].reason


@pytest.mark.parametrize(
    "body",
    [
        MEAN + ROOT.replace("axis", "first") + "n = Div(d, s)\n " + SCALE,
        MEAN.replace("axis", "first") + ROOT.replace("axis", "first") + "n = Div(d, s)\n " + SCALE,
        MEAN + ROOT.replace("Pow(d, two)", "Pow(x, two)") + "n = Div(d, s)\n " + SCALE,
        MEAN + ROOT.replace("two", "three") + "n = Div(d, s)\n " + SCALE,
        MEAN + ROOT + "n = Div(s, d)\n " + SCALE,
    ],
)
def test_what_is_something_else_stays(body: str) -> None:
    extra = "first = Constant<value_ints=[1]>()\n three = Constant<value_float=3.0>()\n "
    assert "LayerNormalization" not in made(fuse(built(extra + body)))


def test_a_bias_that_others_need_keeps_what_they_read() -> None:
    subject = built(MEAN + ROOT + "n = Div(d, s)\n w = Mul(n, g)\n z = Add(w, b)\n y = Add(z, w)")
    result = fuse(subject)
    assert made(result) == ["LayerNormalization", "Add", "Add"]
    agrees(subject, result)


def test_a_layer_norm_that_reads_an_rms_norm_is_fused_in_the_same_run() -> None:
    subject = built(
        """p = Mul(x, x) m0 = ReduceMean(p, axis) a0 = Add(m0, eps) r = Pow(a0, minus_half) k = Mul(x, r) z = Mul(k, g)
        m = ReduceMean(z, axis) d = Sub(z, m) q = Pow(d, two) v = ReduceMean(q, axis) a = Add(v, eps) s = Sqrt(a)
        n = Div(d, s) w = Mul(n, g) y = Add(w, b)"""
    )
    result = fuse(subject)
    assert made(result) == ["RMSNormalization", "LayerNormalization"]
    agrees(subject, result)
