"""Random small networks: equalized or smoothed they compute the same, requantized they compute the same bits."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.kit.contract import Pass
from passes.kit.model import Model, constant
from passes.quantize.equalize import Equalize
from passes.quantize.quantize_static import QuantizeStatic
from passes.quantize.requantize_form import RequantizeForm
from passes.quantize.smooth import Smooth
from tests.property.test_quantize_nets import BLOCKS, network
from tests.support.runtime import Array, LocalContext, model, run

# Every block maps [1, 8, 6, 6] to the same shape, with channels of very different size.
PIECES = {
    "conv": "{o} = Conv<pads=[1,1,1,1]>({i}, w{k}, b{k})",
    "pointwise": "t{k} = Conv({i}, v{k}, b{k}) {o} = Relu(t{k})",
    "depthwise": "{o} = Conv<group=8, pads=[1,1,1,1]>({i}, d{k})",
    "grouped": "{o} = Conv<group=2>({i}, g{k}, b{k})",
    "transposed": "{o} = ConvTranspose<group=4, pads=[1,1,1,1]>({i}, u{k}, b{k})",
    "relu": "{o} = Relu({i})",
    "leaky": "{o} = LeakyRelu<alpha=0.2>({i})",
    "prelu": "{o} = PRelu({i}, s{k})",
    "clip": "{o} = Clip({i}, low, high)",
    "pool": "{o} = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>({i})",
    "average": "{o} = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>({i})",
    "residual": "t{k} = Conv({i}, v{k}) {o} = Add(t{k}, {i})",
    "shift": "{o} = Add({i}, c{k})",
    "gain": "{o} = Mul({i}, c{k})",
    "product": "t{k} = Conv({i}, v{k}) a{k} = Sigmoid({i}) {o} = Mul(a{k}, t{k})",
    "turn": "t{k} = Transpose<perm=[0,2,3,1]>({i}) m{k} = MatMul(t{k}, q{k}) {o} = Transpose<perm=[0,3,1,2]>(m{k})",
    "tanh": "{o} = Tanh({i})",
}
SHAPES = {"w": (8, 8, 3, 3), "v": (8, 8, 1, 1), "d": (8, 1, 3, 3), "g": (8, 4, 1, 1), "u": (8, 2, 3, 3)}
SHAPES |= {"b": (8,), "s": (8, 1, 1), "c": (8, 1, 1), "q": (8, 8)}


def chain(pieces: list[str], seed: int) -> Model:
    rng = np.random.default_rng(seed)
    body = " ".join(PIECES[p].format(i=f"x{k}", o=f"x{k + 1}", k=k) for k, p in enumerate(pieces))
    body += f" f = Flatten(x{len(pieces)}) y = Gemm(f, wy)"
    weights = {"wy": rng.standard_normal((288, 5)).astype(np.float32) / 17}
    for k in range(len(pieces)):
        for letter, shape in SHAPES.items():
            if f" {letter}{k})" in body or f" {letter}{k}," in body:
                held = rng.standard_normal(shape) / np.sqrt(max(1, np.prod(shape[1:])))
                rows = np.exp2(rng.uniform(-8, 4, shape[0])).reshape(-1, *[1] * (len(shape) - 1))
                weights[f"{letter}{k}"] = (held * rows).astype(np.float32)
    text = f"""<ir_version: 8, opset_import: ["": 17]> g (float[1,8,6,6] x0) => (float[1,5] y)
        <float low = {{0.0}}, float high = {{6.0}}> {{ {body} }}"""
    return model(text, **weights)


NETS = st.lists(st.sampled_from(sorted(PIECES)), min_size=1, max_size=7)
MANY = settings(max_examples=60, deadline=None)


def kept(subject: Pass, before: Model, feeds: list[dict[str, Array]]) -> Model:
    """The model that came out; it computes the same within 1e-5 and asks for no second time."""
    after = subject(before, LocalContext(feeds)).model
    for feed in feeds:
        wanted, got = run(before, feed)["y"], run(after, feed)["y"]
        assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max()
    assert not subject(after, LocalContext(feeds)).changes
    return after


def feeds_of(seed: int) -> list[dict[str, Array]]:
    rng = np.random.default_rng(seed + 1)
    return [{"x0": rng.standard_normal((1, 8, 6, 6)).astype(np.float32)} for _ in range(2)]


@MANY
@given(NETS, st.integers(0, 99), st.sampled_from(["keep", "min"]))
def test_equalizing_keeps_the_float_function(pieces: list[str], seed: int, clip: str) -> None:
    before, feeds = chain(pieces, seed), feeds_of(seed)
    after = kept(Equalize(clip=clip), before, feeds)
    for feed in feeds:
        assert run(after, feed)["y"].tobytes() == run(before, feed)["y"].tobytes()


@MANY
@given(NETS, st.integers(0, 99), st.sampled_from([-1.0, 0.0, 0.5, 1.0]))
def test_smoothing_keeps_the_float_function(pieces: list[str], seed: int, alpha: float) -> None:
    kept(Smooth(alpha=alpha), chain(pieces, seed), feeds_of(seed))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(sorted(BLOCKS)), min_size=1, max_size=5), st.integers(0, 99))
def test_requantizing_keeps_every_bit(blocks: list[str], seed: int) -> None:
    rng = np.random.default_rng(seed + 1)
    feeds = [{"x0": rng.standard_normal((1, 8, 8, 8)).astype(np.float32)} for _ in range(2)]
    before = QuantizeStatic(activation="int8")(network(blocks, seed, set()), LocalContext(feeds)).model
    result = RequantizeForm()(before, LocalContext())
    for feed in feeds:
        wanted, got = run(before, feed), run(result.model, feed)
        assert all(got[name].tobytes() == value.tobytes() for name, value in wanted.items())
    for node in result.model.graph:
        zero = constant(node.inputs[2]) if node.op_type == "QuantizeLinear" else None
        assert zero is None or zero.dtype == np.uint8
    assert not RequantizeForm()(result.model, LocalContext()).changes
