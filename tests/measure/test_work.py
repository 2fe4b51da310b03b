"""What a model has the runtime do, whatever its weights hold."""

from __future__ import annotations

import numpy as np

from optimizer.measure.work import work_of
from passes.kit.model import Model
from tests.support.runtime import model

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
ones = np.ones((4, 4), np.float32)


def net(text: str = "h = MatMul(x, a) r = Relu(h) y = MatMul(r, b)", **held: np.ndarray) -> Model:  # type: ignore[type-arg]
    return model(HEAD + f"g (float[n,4] x) => (float[n,4] y) {{ {text} }}", **{"a": ones, "b": ones, **held})


def test_numbers_and_names_do_not_count() -> None:
    same = "q = MatMul(x, a) p = Relu(q) y = MatMul(p, b)"
    assert work_of(net()) == work_of(net(a=ones * 0)) == work_of(net(same))


def test_sizes_types_operators_wiring_and_integers_do() -> None:
    others = [
        net(a=np.ones((4, 3), np.float32), b=np.ones((3, 4), np.float32)),
        net("h = MatMul(x, a) r = Tanh(h) y = MatMul(r, b)"),
        net("h = MatMul(x, a) r = LeakyRelu(h) y = MatMul(r, b)"),
        net("h = MatMul(x, a) r = LeakyRelu<alpha=0.5>(h) y = MatMul(r, b)"),
        net("h = MatMul(x, a) r = Relu(h) y = MatMul(h, b)"),
        net("h = MatMul(x, a) r = Relu(h) s = MatMul(r, b) y = Reshape(s, c)", c=np.array([0, 4])),
        net("h = MatMul(x, a) r = Relu(h) s = MatMul(r, b) y = Reshape(s, c)", c=np.array([-1, 4])),
    ]
    assert len({work_of(m) for m in [net(), *others]}) == len(others) + 1
