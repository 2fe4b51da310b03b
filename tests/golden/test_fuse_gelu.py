"""fuse-gelu, before and after."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from passes.fuse.fuse_gelu import FuseGelu
from passes.kit.contract import PassResult
from passes.kit.model import Model
from tests.support.runtime import LocalContext, model, op_types, run, target

X = np.linspace(-6, 6, 97, dtype=np.float32).reshape(1, 97)
CONSTANTS = """
  root = Constant<value_float=1.41421354>()
  inverse = Constant<value_float=0.70710678>()
  half = Constant<value_float=0.5>()
  one = Constant<value_float=1.0>()
  two = Constant<value_float=2.0>()
  three = Constant<value_float=3.0>()
  k = Constant<value_float=0.044715>()
  t = Constant<value_float=0.7978845608>()
"""
ERF_IN = ["d = Div(x, root)", "d = Mul(x, inverse)", "d = Mul(inverse, x)"]
ERF_PLUS = ["e = Erf(d)\n s = Add(e, one)", "e = Erf(d)\n s = Add(one, e)"]
TAIL = [
    "m = Mul(x, s)\n y = Mul(m, half)",
    "m = Mul(s, x)\n y = Div(m, two)",
    "m = Mul(x, half)\n y = Mul(m, s)",
    "m = Mul(half, s)\n y = Mul(x, m)",
    "m = Div(x, two)\n y = Mul(s, m)",
]
TANH_IN = [
    "c = Pow(x, three)\n p = Mul(c, k)\n q = Add(x, p)\n d = Mul(q, t)",
    "c2 = Mul(x, x)\n c = Mul(c2, x)\n p = Mul(k, c)\n q = Add(p, x)\n d = Mul(t, q)",
    "c2 = Pow(x, two)\n p = Mul(c2, k)\n o = Add(p, one)\n q = Mul(x, o)\n d = Mul(q, t)",
    "c2 = Mul(x, x)\n p = Mul(c2, k)\n o = Add(one, p)\n q = Mul(x, t)\n d = Mul(q, o)",
    "kx = Mul(k, x)\n kxx = Mul(kx, x)\n o = Add(kxx, one)\n q = Mul(o, x)\n d = Mul(t, q)",
]


def built(body: str, opset: int = 18) -> Model:
    head = f'<ir_version: 9, opset_import: ["": {opset}]>\n'
    return model(head + f"g (float[n, 97] x) => (float[n, 97] y) {{ {CONSTANTS} {body} }}")


def fuse(subject: Model, provider: str = "CPUExecutionProvider", **options: bool) -> PassResult:
    site = dataclasses.replace(target(), provider=provider)
    return FuseGelu(**options)(subject, LocalContext(target=site))


def made(result: PassResult) -> list[str]:
    return [f"{n.domain}:{n.op_type}" for n in result.model.nodes() if n.op_type != "Constant"]


@pytest.mark.parametrize(("start", "plus", "tail"), list(itertools.product(ERF_IN, ERF_PLUS, TAIL)))
def test_the_erf_form(start: str, plus: str, tail: str) -> None:
    subject = built(f"{start}\n {plus}\n {tail}")
    result = fuse(subject)
    assert made(result) == ["com.microsoft:Gelu"]
    np.testing.assert_allclose(run(result.model, {"x": X})["y"], run(subject, {"x": X})["y"], atol=2e-6)


@pytest.mark.parametrize(("start", "tail"), list(itertools.product(TANH_IN, TAIL)))
def test_the_tanh_form(start: str, tail: str) -> None:
    subject = built(f"{start}\n e = Tanh(d)\n s = Add(e, one)\n {tail}")
    result = fuse(subject)
    assert made(result) == ["com.microsoft:FastGelu"]
    np.testing.assert_allclose(run(result.model, {"x": X})["y"], run(subject, {"x": X})["y"], atol=2e-6)


ERF = f"{ERF_IN[0]}\n {ERF_PLUS[0]}\n "


@pytest.mark.parametrize(
    ("inner", "approximate"), [(ERF_IN[0] + "\n e = Erf(d)", "none"), (TANH_IN[0] + "\n e = Tanh(d)", "tanh")]
)
def test_from_opset_20_on_it_is_the_standard_operator(inner: str, approximate: str) -> None:
    subject = built(f"{inner}\n s = Add(e, one)\n {TAIL[0]}", 20)
    result = fuse(subject, "SomeExecutionProvider")
    assert made(result) == [":Gelu"]
    (node,) = [n for n in result.model.graph if n.op_type == "Gelu"]
    held = node.attributes.get("approximate")
    assert (held.as_string() if held is not None else "none") == approximate
    np.testing.assert_allclose(run(result.model, {"x": X})["y"], run(subject, {"x": X})["y"], atol=2e-6)


@pytest.mark.parametrize(
    "body",
    [
        ERF + "m = Mul(x, s)\n y = Mul(m, two)",
        ERF + "z = Neg(x)\n m = Mul(z, s)\n y = Mul(m, half)",
        "d = Div(x, two)\n e = Erf(d)\n s = Add(e, one)\n " + TAIL[0],
        "r = Constant<value_float=1.4142>()\n d = Div(x, r)\n e = Erf(d)\n s = Add(e, one)\n " + TAIL[0],
        "d = Div(root, x)\n e = Erf(d)\n s = Add(e, one)\n " + TAIL[0],
        ERF_IN[0] + "\n e = Erf(d)\n s = Add(e, two)\n " + TAIL[0],
        ERF + "m = Mul(x, s)\n h = Mul(m, half)\n y = Add(h, m)",
    ],
)
def test_what_is_something_else_or_needed_elsewhere_stays(body: str) -> None:
    assert not fuse(built(body)).changes


def test_contrib_operators_are_for_those_who_have_them() -> None:
    subject = built(ERF + TAIL[0])
    assert "opset 20" in fuse(subject, "SomeExecutionProvider").skips[0].reason
    assert "opset 20" in fuse(subject, contrib=False).skips[0].reason


def test_an_output_keeps_its_name_and_the_domain_is_imported() -> None:
    subject = built(ERF + TAIL[0])
    result = fuse(subject)
    assert result.model.signature == subject.signature
    assert result.model.ir.opset_imports["com.microsoft"] == 1
    assert "com.microsoft" not in subject.ir.opset_imports
    assert op_types(subject)[-1] == "Mul"


def test_doubles_are_left() -> None:
    text = '<ir_version: 9, opset_import: ["": 18]>\n g (double[n, 2] x) => (double[n, 2] y) {'
    for name, held in (("root", 2**0.5), ("one", 1.0), ("half", 0.5)):
        text += f"{name} = Constant<value = double {{{held!r}}}>()\n"
    result = fuse(model(text + ERF + TAIL[0] + "}"))
    assert not result.changes
    assert "not float32" in result.skips[0].reason
