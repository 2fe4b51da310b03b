"""A small corpus of models that every pass must get along with, each with feeds.

Together they hold what real files hold: BatchNormalization, grouped and depthwise and transposed convolutions, a
decomposed transformer block, subgraphs, an old file whose initializers are inputs, several outputs, shared weights,
scalar inputs, free dimensions, and values that are not floats. Weights are drawn once from a fixed seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from passes.kit.model import Model
from tests.support.runtime import Array, model

_rng = np.random.default_rng(20)


@dataclass(frozen=True, eq=False)
class Case:
    """A model and a few feeds for it."""

    name: str
    build: Callable[[], Model]
    feeds: tuple[dict[str, Array], ...]


def normal(*shape: int, scale: float = 1.0) -> Array:
    return (_rng.standard_normal(shape) * scale).astype(np.float32)


def positive(*shape: int) -> Array:
    return (np.abs(_rng.standard_normal(shape)) + 0.5).astype(np.float32)


def batchnorm(prefix: str, channels: int) -> dict[str, Array]:
    """The four parameters of a BatchNormalization named ``{prefix}g``, ``b``, ``m`` and ``v``."""
    return {
        f"{prefix}g": positive(channels),
        f"{prefix}b": normal(channels),
        f"{prefix}m": normal(channels),
        f"{prefix}v": positive(channels),
    }


_CNN = """
<ir_version: 8, opset_import: ["": 17]>
cnn (float[batch, 3, 8, 8] x) => (float[batch, 5] y) {
  c = Conv<pads=[1, 1, 1, 1]>(x, w1, b1)
  n = BatchNormalization(c, g, b, m, v)
  r = Relu(n)
  shared = Identity(b1)
  c2 = Conv<pads=[1, 1, 1, 1]>(r, w2, shared)
  s = Add(c2, r)
  zero = Constant<value_float=0.0>()
  six = Constant<value_float=6.0>()
  a = Clip(s, zero, six)
  d = Dropout(a)
  p = ReduceMean<axes=[2, 3], keepdims=0>(d)
  y = Gemm<transB=1>(p, w3, b3)
}
"""

_GROUPED = """
<ir_version: 8, opset_import: ["": 13]>
grouped (float[1, 4, 6, 6] x) => (float[1, 6, 13, 13] y) {
  c = Conv<group=4, pads=[1, 1, 1, 1]>(x, w1)
  n = BatchNormalization<epsilon=0.001>(c, pg, pb, pm, pv)
  three = Constant<value_float=3.0>()
  zero = Constant<value_float=0.0>()
  six = Constant<value_float=6.0>()
  a = Add(n, three)
  q = Clip(a, zero, six)
  m = Mul(n, q)
  h = Div(m, six)
  t = ConvTranspose<group=2, strides=[2, 2]>(h, w2, b2)
  y = BatchNormalization(t, qg, qb, qm, qv)
}
"""

_MLP = """
<ir_version: 10, opset_import: ["": 21]>
mlp (float[n, 8] x) => (float[n, 4] y, float[n, 16] hidden) {
  hidden_in = MatMul(x, w1)
  n1 = BatchNormalization(hidden_in, g, b, m, v)
  hidden = Relu(n1)
  twice = Relu(hidden)
  one = Constant<value_float=1.0>()
  same = Mul(twice, one)
  y = Gemm<alpha=0.5, beta=2.0>(same, w2, b2)
}
"""

_BLOCK = """
<ir_version: 8, opset_import: ["": 18]>
block (float[batch, seq, 16] x) => (float[batch, seq, 16] y) {
  axis = Constant<value_ints=[-1]>()
  two = Constant<value_float=2.0>()
  eps = Constant<value_float=0.00001>()
  mean = ReduceMean(x, axis)
  d = Sub(x, mean)
  sq = Pow(d, two)
  var = ReduceMean(sq, axis)
  ve = Add(var, eps)
  sd = Sqrt(ve)
  nd = Div(d, sd)
  ng = Mul(nd, ln_g)
  ln = Add(ng, ln_b)
  dims = Shape(ln)
  i0 = Constant<value_int=0>()
  i1 = Constant<value_int=1>()
  b0 = Gather(dims, i0)
  s0 = Gather(dims, i1)
  ax0 = Constant<value_ints=[0]>()
  bu = Unsqueeze(b0, ax0)
  su = Unsqueeze(s0, ax0)
  heads = Constant<value_ints=[4]>()
  width = Constant<value_ints=[4]>()
  split = Concat<axis=0>(bu, su, heads, width)
  q = MatMul(ln, wq)
  k = MatMul(ln, wk)
  qh = Reshape(q, split)
  kh = Reshape(k, split)
  qt = Transpose<perm=[0, 2, 1, 3]>(qh)
  kt = Transpose<perm=[0, 2, 3, 1]>(kh)
  scores = MatMul(qt, kt)
  att = Softmax<axis=-1>(scores)
  mixed = MatMul(att, qt)
  back = Transpose<perm=[0, 2, 1, 3]>(mixed)
  all = Constant<value_ints=[16]>()
  joined = Concat<axis=0>(bu, su, all)
  flat = Reshape(back, joined)
  res = Add(x, flat)
  sq2 = Pow(res, two)
  ms = ReduceMean(sq2, axis)
  mse = Add(ms, eps)
  root = Sqrt(mse)
  inv = Reciprocal(root)
  rn = Mul(res, inv)
  rms = Mul(rn, rms_g)
  up = MatMul(rms, w_up)
  sqrt2 = Constant<value_float=1.4142135>()
  one = Constant<value_float=1.0>()
  half = Constant<value_float=0.5>()
  e0 = Div(up, sqrt2)
  e1 = Erf(e0)
  e2 = Add(e1, one)
  e3 = Mul(up, e2)
  gelu = Mul(e3, half)
  down = MatMul(gelu, w_down)
  y = Add(res, down)
}
"""

_BRANCH = """
<ir_version: 8, opset_import: ["": 16]>
branch (float[2, 4] x, bool flag) => (float[2, 4] y) {
  outer = Add(x, k)
  y = If (flag) <
    then_branch = yes () => (float[2, 4] then_y) {
      c = Constant<value_float=2.0>()
      i = Identity(outer)
      t0 = Mul(i, c)
      twin0 = Exp(t0)
      twin1 = Exp(t0)
      then_y = Add(twin0, twin1)
    },
    else_branch = no () => (float[2, 4] else_y) {
      shape = Constant<value_ints=[2, 4]>()
      r = Reshape(outer, shape)
      else_y = Relu(r)
    }
  >
}
"""

_OLD = """
<ir_version: 3, opset_import: ["": 9]>
old (float[n, 3, 4, 4] x, float[6, 3, 3, 3] w, float[6] g, float[6] b, float[6] m, float[6] v, float[6] unused)
  => (float[n, 6] y) {
  c = Conv(x, w)
  bn = BatchNormalization(c, g, b, m, v)
  d, mask = Dropout<ratio=0.3>(bn)
  p = GlobalAveragePool(d)
  s = Shape(p)
  start = Constant<value = int64[1] {0}>()
  part = Slice<starts=[0], ends=[1]>(s)
  rest = Constant<value = int64[1] {-1}>()
  target = Concat<axis=0>(part, rest)
  y = Reshape(p, target)
}
"""

_OUTPUTS = """
<ir_version: 8, opset_import: ["": 17]>
outputs (float[3, 4] x) => (float[3, 4] a, float[3, 4] b, float[3, 4] c, float[4] held, int64[2] dims) {
  a = Relu(x)
  b = Identity(a)
  c = Identity(x)
  held = Identity(k)
  dims = Shape(x)
  dead = Exp(x)
}
"""

_SHARED = """
<ir_version: 8, opset_import: ["": 17]>
shared (float[1, 4, 5, 5] x, float scale) => (float[1, 4, 5, 5] y) {
  c1 = Conv<pads=[1, 1, 1, 1]>(x, w)
  n1 = BatchNormalization(c1, g, b, m, v)
  s = Mul(n1, scale)
  c2 = Conv<pads=[1, 1, 1, 1]>(s, w)
  n2 = BatchNormalization(c2, g, b, m, v)
  y = Add(n1, n2)
}
"""

_INTEGERS = """
<ir_version: 8, opset_import: ["": 17]>
integers (int64[n, s] ids, int64 step) => (float[n, s, 6] y, int64[n, s] next) {
  e = Gather(table, ids)
  two = Constant<value_int=2>()
  three = Constant<value_int=-3>()
  q = Div(three, two)
  t = Mul(step, q)
  next = Add(ids, t)
  f = Cast<to=1>(step)
  y = Mul(e, f)
}
"""


def _cases() -> tuple[Case, ...]:
    cnn = {"w1": normal(6, 3, 3, 3), "b1": normal(6), "w2": normal(6, 6, 3, 3, scale=0.2), **batchnorm("", 6)}
    cnn |= {"w3": normal(5, 6), "b3": normal(5)}
    grouped = {"w1": normal(4, 1, 3, 3), "w2": normal(4, 3, 3, 3), "b2": normal(6)}
    grouped |= batchnorm("p", 4) | batchnorm("q", 6)
    mlp = {"w1": normal(8, 16), "w2": normal(16, 4), "b2": normal(4), **batchnorm("", 16)}
    block = {k: normal(16, 16, scale=0.25) for k in ("wq", "wk")}
    block |= {"w_up": normal(16, 32, scale=0.25), "w_down": normal(32, 16, scale=0.2)}
    block |= {"ln_g": positive(16), "ln_b": normal(16), "rms_g": positive(16)}
    old = {"w": normal(6, 3, 3, 3), "unused": normal(6), **batchnorm("", 6)}
    shared = {"w": normal(4, 4, 3, 3, scale=0.3), **batchnorm("", 4)}
    table = {"table": normal(11, 6)}
    ids = np.array([[1, 5, 10], [0, 2, 2]], np.int64)
    text: tuple[tuple[str, str, dict[str, Array], tuple[dict[str, Array], ...]], ...] = (
        ("cnn", _CNN, cnn, ({"x": normal(2, 3, 8, 8)}, {"x": normal(1, 3, 8, 8)})),
        ("grouped", _GROUPED, grouped, ({"x": normal(1, 4, 6, 6)},)),
        ("mlp", _MLP, mlp, ({"x": normal(3, 8)}, {"x": normal(1, 8)})),
        ("block", _BLOCK, block, ({"x": normal(2, 5, 16)}, {"x": normal(1, 1, 16)})),
        (
            "branch",
            _BRANCH,
            {"k": normal(2, 4)},
            tuple({"x": normal(2, 4), "flag": np.array(f)} for f in (True, False)),
        ),
        ("old", _OLD, old, ({"x": normal(2, 3, 4, 4)},)),
        ("outputs", _OUTPUTS, {"k": normal(4)}, ({"x": normal(3, 4)},)),
        ("shared", _SHARED, shared, ({"x": normal(1, 4, 5, 5), "scale": np.array(0.7, np.float32)},)),
        ("integers", _INTEGERS, table, ({"ids": ids, "step": np.array(3, np.int64)},)),
    )
    return tuple(Case(n, lambda t=t, w=w: model(t, **w), feeds) for n, t, w, feeds in text)  # type: ignore[misc]


CASES = _cases()
