"""``quantize-weights``, before and after."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from passes.kit.context import NoData
from passes.kit.contract import PassResult
from passes.kit.model import Model
from passes.kit.options import OptionError
from passes.quantize import gptq, input_scales
from passes.quantize.blocks import Form, round_to_nearest
from passes.quantize.quantize_weights import METHODS, QuantizeWeights
from tests.support.runtime import LocalContext, model, op_types, run

Array = np.ndarray[Any, Any]
HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
LINEAR = HEAD + "g (float[B,64] x) => (float[B,48] y) { y = MatMul(x, w) }"
stream = {"rng": np.random.default_rng(7)}


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Every test draws the same numbers, whichever tests ran before it."""
    stream["rng"] = np.random.default_rng(7)


def normal(*shape: int) -> Array:
    return stream["rng"].standard_normal(shape).astype(np.float32)


def correlated(rows: int, channels: int) -> Array:
    """Activations of few directions, some of them large: what GPTQ and AWQ live on."""
    mixed = normal(rows, channels // 4) @ normal(channels // 4, channels)
    return np.asarray((mixed + 0.1 * normal(rows, channels)) * np.exp(normal(channels)), np.float32)


def quantize(subject: Model, feeds: list[dict[str, Array]] | None = None, **options: Any) -> PassResult:
    before = subject.digest()
    options = {"accuracy_level": 0, "method": "gptq" if feeds else "rtn", **options}
    result = QuantizeWeights(**options)(subject, LocalContext(feeds or []))
    assert Model(subject.ir, subject.map_types).digest() == before, "the input was touched"
    if result.changes:
        onnx.checker.check_model(result.model.to_proto())
    return result


def off(after: Model, before: Model, feeds: dict[str, Array]) -> float:
    """Relative error of the first output, in the norm."""
    wanted, got = (next(iter(run(m, feeds).values())) for m in (before, after))
    assert got.shape == wanted.shape
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("inputs", "block", "lead"), [(64, 32, [3]), (70, 16, [2, 3]), (300, 256, [1, 2])])
def test_the_runtime_reads_the_codes_as_they_were_meant(
    inputs: int, block: int, lead: list[int], bits: int, symmetric: bool
) -> None:
    weight = normal(inputs, 24)
    dims = ",".join(map(str, [*lead, inputs]))
    text = HEAD + f"g (float[{dims}] x) => (float[{','.join(map(str, [*lead, 24]))}] y) {{ y = MatMul(x, w) }}"
    after = quantize(model(text, w=weight), bits=bits, block=block, symmetric=symmetric).model
    assert op_types(after) == ["MatMulNBits"]
    assert len(after.graph.initializers) == (2 if symmetric else 3)
    x = normal(*lead, inputs)
    meant = x @ round_to_nearest(weight.T, Form(bits, block, symmetric)).real().T
    np.testing.assert_allclose(run(after, {"x": x})["y"], meant, rtol=1e-4, atol=1e-4 * float(np.abs(meant).max()))


@pytest.mark.parametrize("attributes", ["", "<transB = 1>", "<alpha = 0.5, beta = 3.0>"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_gemm_in_every_spelling(attributes: str, symmetric: bool) -> None:
    text = HEAD + f"g (float[N,32] x) => (float[N,24] y) {{ y = Gemm {attributes} (x, w, b) }}"
    before = model(text, w=normal(24, 32) if "transB" in attributes else normal(32, 24), b=10 * normal(1, 24))
    after = quantize(before, bits=8, symmetric=symmetric).model
    assert op_types(after) == ["MatMulNBits"] and after.signature == before.signature
    assert off(after, before, {"x": normal(5, 32)}) < 0.01
    assert "w" not in after.graph.initializers and "b" not in after.graph.initializers


def test_the_accuracy_level_is_named_on_the_node_and_the_name_stays() -> None:
    text = HEAD + "g (float[B,64] x) => (float[B,48] y) { [first] y = MatMul(x, w) }"
    (node,) = quantize(model(text, w=normal(64, 48)), accuracy_level=4).model.graph
    assert node.name == "first" and node.attributes["accuracy_level"].value == 4
    assert node.attributes["bits"].value == 4 and node.attributes["block_size"].value == 32


def test_each_method_beats_the_one_that_looks_at_less() -> None:
    before = model(LINEAR, w=normal(64, 48))
    x, fresh = (a for a in np.split(correlated(512, 64), 2))
    errors = {m: off(quantize(before, [{"x": x}], method=m).model, before, {"x": fresh}) for m in METHODS}
    assert errors["awq"] < 0.9 * errors["rtn"]
    assert errors["gptq"] < 0.7 * errors["rtn"]
    assert errors["gptq-awq"] < 1.1 * min(errors["gptq"], errors["awq"])


def test_hqq_lowers_the_error_of_the_weights_themselves() -> None:
    weight = stream["rng"].laplace(size=(128, 48)).astype(np.float32)
    before = model(LINEAR.replace("B,64", "B,128"), w=weight)
    unit = {"x": np.eye(128, dtype=np.float32)}
    errors = {m: off(quantize(before, method=m, block=128).model, before, unit) for m in ("rtn", "hqq")}
    assert errors["hqq"] < 0.98 * errors["rtn"]


def test_awq_puts_its_scales_into_the_normalization_and_gptq_into_nothing() -> None:
    text = (
        HEAD
        + """g (float[B,64] x) => (float[B,48] y, float[B,48] z)
        { n = LayerNormalization(x, g, s) y = MatMul(n, w) z = MatMul(n, v) }"""
    )
    gain = np.exp(2 * normal(64))
    before = model(text, g=gain, s=0.1 * normal(64) * gain, w=normal(64, 48), v=normal(64, 48))
    feeds = [{"x": normal(128, 64)}]
    result = quantize(before, feeds, method="awq")
    assert op_types(result.model) == ["LayerNormalization", "MatMulNBits", "MatMulNBits"]
    assert [c.rule for c in result.changes] == ["scale", "layer", "layer"]
    moved = result.model.graph.initializers["g"].const_value.numpy() / gain
    assert moved.max() / moved.min() > 2
    assert off(result.model, before, feeds[0]) < 0.9 * off(quantize(before).model, before, feeds[0])
    assert [c.rule for c in quantize(before, feeds, method="gptq").changes] == ["layer", "layer"]


def test_where_nothing_takes_the_scales_a_multiplication_does_if_it_pays() -> None:
    before = model(LINEAR, w=normal(64, 48))
    loud = np.where(np.arange(64) % 8 == 0, 30.0, 1.0).astype(np.float32)
    feeds = [{"x": normal(128, 64) * loud}]
    result = quantize(before, feeds, method="awq")
    assert op_types(result.model) == ["Mul", "MatMulNBits"]
    assert off(result.model, before, feeds[0]) < 0.6 * off(quantize(before).model, before, feeds[0])
    assert op_types(quantize(before, [{"x": normal(128, 64)}], method="awq").model) == ["MatMulNBits"]


def test_layers_that_share_a_weight_share_its_blocks() -> None:
    text = HEAD + "g (float[B,64] x) => (float[B,64] y) { a = MatMul(x, w) t = Tanh(a) y = MatMul(t, w) }"
    before = model(text, w=0.2 * normal(64, 64))
    feeds = [{"x": normal(32, 64)}]
    for method in METHODS:
        after = quantize(before, feeds, method=method).model
        assert op_types(after) == ["MatMulNBits", "Tanh", "MatMulNBits"]
        assert len(after.graph.initializers) == 3
        assert off(after, before, feeds[0]) < 0.2


def test_a_tied_embedding_keeps_its_float_table() -> None:
    text = (
        HEAD
        + """g (int64[B,S] ids) => (float[B,S,96] y)
        { e = Gather(table, ids) t = Transpose <perm = [1, 0]> (table) y = MatMul(e, t) }"""
    )
    before = model(text, table=normal(96, 64))
    result = quantize(before, [{"ids": np.arange(96).reshape(2, 48)}], bits=8)
    assert op_types(result.model) == ["Gather", "MatMulNBits"]
    table = result.model.graph.initializers["table"].const_value
    np.testing.assert_array_equal(table.numpy(), before.graph.initializers["table"].const_value.numpy())
    assert off(result.model, before, {"ids": np.array([[3, 5]])}) < 0.01


def test_bodies_are_entered_without_data_and_refused_with_it() -> None:
    text = (
        HEAD
        + """g (float[B,64] x, bool c) => (float[B,48] y) { y = If (c) <
        then_branch = t () => (float[B,48] p) { p = MatMul(x, w) },
        else_branch = e () => (float[B,48] q) { q = MatMul(x, v) }> }"""
    )
    before = model(text, w=normal(64, 48), v=normal(64, 48))
    feeds = {"x": normal(4, 64), "c": np.array(True)}
    result = quantize(before, bits=8)
    assert op_types(result.model).count("MatMulNBits") == 2 and not result.skips
    for value in (True, False):
        assert off(result.model, before, {**feeds, "c": np.array(value)}) < 0.01
    refused = quantize(before, [feeds])
    assert not refused.changes and len(refused.skips) == 2
    assert "cannot be observed; method rtn or hqq can" in refused.skips[0].reason


def test_what_is_refused_says_why() -> None:
    tiny = quantize(model(HEAD + "g (float[B,2] x) => (float[B,4] y) { y = MatMul(x, w) }", w=normal(2, 4)))
    assert not tiny.changes and "would not shrink" in tiny.skips[0].reason
    text = '<ir_version: 3, opset_import: ["" : 8]> g (float[1,64] x, float[64,48] w) => (float[1,48] y) '
    listed = quantize(model(text + "{ y = MatMul(x, w) }", w=normal(64, 48)))
    assert not listed.changes and "run `tidy` first" in listed.skips[0].reason
    broken = quantize(model(LINEAR, w=normal(64, 48)), [{"x": np.full((1, 64), np.inf, np.float32)}])
    assert not broken.changes and "not finite" in broken.skips[0].reason
    with pytest.raises(NoData):
        QuantizeWeights()(model(LINEAR, w=normal(64, 48)), LocalContext())
    for wrong in ({"bits": 3}, {"block": 48}):
        with pytest.raises(OptionError):
            QuantizeWeights(**wrong)


def test_names_choose_layers() -> None:
    text = HEAD + "g (float[B,64] x) => (float[B,64] y) { a = MatMul(x, w) t = Tanh(a) y = MatMul(t, v) }"
    before = model(text, w=normal(64, 64), v=normal(64, 64))
    assert [c.where for c in quantize(before, only=("a",)).changes] == ["a"]
    assert [c.where for c in quantize(before, exclude=("a",)).changes] == ["y"]
    assert not quantize(before, exclude=("*",)).changes


def test_many_looks_at_the_data_give_what_one_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    text = HEAD + "g (float[B,64] x) => (float[B,64] y) { a = MatMul(x, w) t = Tanh(a) y = MatMul(t, v) }"
    before = model(text, w=normal(64, 64), v=normal(64, 64))
    feeds = [{"x": correlated(64, 64)}]
    for method in ("gptq", "gptq-awq"):
        one = quantize(before, feeds, method=method).model.digest()
        with monkeypatch.context() as patch:
            patch.setattr(input_scales, "GRAM_BYTES", 1)
            assert quantize(before, feeds, method=method).model.digest() == one


def test_dead_and_dependent_inputs_do_no_harm() -> None:
    before = model(LINEAR, w=normal(64, 48))
    x = normal(5, 64)  # fewer rows than inputs
    x[:, ::3] = 0
    after = quantize(before, [{"x": x}], bits=8).model
    assert off(after, before, {"x": normal(9, 64)}) < 0.05


def test_how_many_inputs_gptq_takes_at_a_time_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, x = normal(16, 64), correlated(256, 64).astype(np.float64)
    whole = gptq.gptq(matrix, x.T @ x, Form(4, 16, False))
    monkeypatch.setattr(gptq, "BATCH", 7)
    parts = gptq.gptq(matrix, x.T @ x, Form(4, 16, False))
    assert (parts.codes != whole.codes).mean() < 0.01
