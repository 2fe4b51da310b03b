"""Random networks whose channels hang together in many ways: a seed gives a model and feeds for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper as h

Array = np.ndarray[Any, Any]


@dataclass
class Net:
    """A graph while it is being made up. ``shape`` is that of the newest value, batch first."""

    rng: np.random.Generator
    opset: int
    batch: int | str
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: list[onnx.TensorProto] = field(default_factory=list)
    count: int = 0

    def one(self, of: Any) -> Any:
        return of[int(self.rng.integers(len(of)))]

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def fresh(self, stem: str) -> str:
        self.count += 1
        return f"{stem}{self.count}"

    def op(self, kind: str, inputs: list[str], outputs: int = 1, **attributes: Any) -> Any:
        names = [self.fresh(kind.lower()) for _ in range(outputs)]
        self.nodes.append(h.make_node(kind, inputs, names, self.fresh(f"n_{kind}"), **attributes))
        return names[0] if outputs == 1 else names

    def held(self, array: Array, *, inline: bool = False) -> str:
        name = self.fresh("w")
        tensor = onnx.numpy_helper.from_array(array, name)
        if inline or self.chance(0.15):
            self.nodes.append(h.make_node("Constant", [], [name], self.fresh("n_const"), value=tensor))
        else:
            self.tensors.append(tensor)
        return name

    def weight(self, *shape: int, scale: float | None = None) -> str:
        fan = int(np.prod(shape[1:])) if len(shape) > 1 else 1
        array = self.rng.standard_normal(shape) * (scale if scale is not None else 1 / np.sqrt(max(1, fan)))
        return self.held(array.astype(np.float32))

    def ints(self, *values: int) -> str:
        return self.held(np.array(values, np.int64))

    # -- images: [N, C, 6, 6] -------------------------------------------------------------------------------------
    def conv(self, x: str, cin: int, cout: int, groups: int = 1, kernel: int = 3) -> str:
        inputs = [x, self.weight(cout, cin // groups, kernel, kernel)]
        if self.chance(0.6):
            inputs.append(self.weight(cout, scale=0.3))
        return str(self.op("Conv", inputs, pads=[kernel // 2] * 4, group=groups))

    def norm(self, x: str, channels: int) -> str:
        parts = [self.weight(channels, scale=1.0) for _ in range(3)]
        spread = self.held((np.abs(self.rng.standard_normal(channels)) + 0.5).astype(np.float32))
        return str(self.op("BatchNormalization", [x, *parts, spread]))

    def act(self, x: str) -> str:
        kind = self.one(["Relu", "Sigmoid", "Tanh", "LeakyRelu", "HardSwish" if self.opset >= 14 else "Relu", "Clip"])
        if kind == "Clip":
            return str(self.op("Clip", [x, self.held(np.array(0, np.float32)), self.held(np.array(6, np.float32))]))
        return str(self.op(kind, [x]))

    def unit(self, x: str, cin: int, cout: int) -> str:
        y = self.conv(x, cin, cout, kernel=self.one([1, 3]))
        if self.chance(0.5):
            y = self.norm(y, cout)
        return self.act(y) if self.chance(0.8) else y


Step = Callable[[Net, str, int], tuple[str, int]]


def plain(n: Net, x: str, c: int) -> tuple[str, int]:
    cout = n.one([4, 6, 8])
    return n.unit(x, c, cout), cout


def residual(n: Net, x: str, c: int) -> tuple[str, int]:
    inner = n.one([4, 6, 8])
    y = n.conv(n.unit(x, c, inner), inner, c)
    return n.act(n.op(n.one(["Add", "Sum", "Add"]), n.one([[x, y], [y, x]]))), c


def bottleneck(n: Net, x: str, c: int) -> tuple[str, int]:
    """A convolution with groups between two without."""
    groups = n.one([2, 4])
    inner, outer = groups * n.one([1, 2, 3]), groups * n.one([1, 2, 3])
    y = n.act(n.conv(n.unit(x, c, inner), inner, outer, groups))
    return n.unit(y, outer, c), c


def depthwise(n: Net, x: str, c: int) -> tuple[str, int]:
    times = n.one([1, 1, 2])
    y = n.act(n.conv(x, c, c * times, c))
    cout = n.one([4, 8])
    return n.unit(y, c * times, cout), cout


def dense(n: Net, x: str, c: int) -> tuple[str, int]:
    more = n.one([4, 6])
    y = n.unit(x, c, more)
    return n.op("Concat", n.one([[x, y], [y, x]]), axis=1), c + more


def squeeze(n: Net, x: str, c: int) -> tuple[str, int]:
    """Squeeze and excitation."""
    pooled = n.op("GlobalAveragePool", [x])
    inner = n.one([2, 4])
    gate = n.op("Sigmoid", [n.conv(n.act(n.conv(pooled, c, inner, kernel=1)), inner, c, kernel=1)])
    return n.op("Mul", [x, gate]), c


def parted(n: Net, x: str, c: int) -> tuple[str, int]:
    """Split, each part on its own, joined again; or a channel shuffle."""
    y = n.unit(x, c, 8)
    if n.chance(0.3):
        a = n.op("Reshape", [y, n.ints(0, 2, 4, 6, 6)])
        return n.op("Reshape", [n.op("Transpose", [a], perm=[0, 2, 1, 3, 4]), n.ints(0, 8, 6, 6)]), 8
    a, b = n.op("Split", [y, n.ints(4, 4)], 2, axis=1) if n.opset >= 13 else n.op("Split", [y], 2, axis=1)
    return n.op("Concat", [n.unit(a, 4, 6), b], axis=1), 10


def sliced(n: Net, x: str, c: int) -> tuple[str, int]:
    y = n.unit(x, c, 8)
    start = n.one([0, 1, 2])
    return n.op("Slice", [y, n.ints(start), n.ints(start + 5), n.ints(1)]), 5


def pooled(n: Net, x: str, c: int) -> tuple[str, int]:
    kind = n.one(["MaxPool", "AveragePool"])
    return n.op(kind, [x], kernel_shape=[3, 3], pads=[1, 1, 1, 1]), c


def shared(n: Net, x: str, c: int) -> tuple[str, int]:
    """One weight twice."""
    w = n.weight(c, c, 1, 1)
    return n.act(n.op("Conv", [n.act(n.op("Conv", [x, w])), w])), c


def transposed(n: Net, x: str, c: int) -> tuple[str, int]:
    cout = n.one([4, 6])
    return n.act(n.op("ConvTranspose", [x, n.weight(c, cout, 3, 3)], pads=[1, 1, 1, 1])), cout


def odd(n: Net, x: str, c: int) -> tuple[str, int]:
    """What pins channels: sums over them, softmax over them, lookups."""
    kind = n.one(["softmax", "mean", "gather", "prelu", "where"])
    if kind == "softmax":
        return n.op("Softmax", [x], axis=1), c
    if kind == "mean":
        mean = n.op("ReduceMean", [x, n.ints(1)]) if n.opset >= 18 else n.op("ReduceMean", [x], axes=[1])
        return n.op("Sub", [x, mean]), c
    if kind == "gather":
        picks = n.ints(*[int(v) for v in n.rng.permutation(c)])
        return n.op("Gather", [x, picks], axis=1), c
    if kind == "prelu":
        return n.op("PRelu", [x, n.weight(c, 1, 1, scale=0.3)]), c
    return n.op("Where", [n.op("Greater", [x, n.held(np.array(0.1, np.float32))]), x, n.weight(c, 1, 1, scale=0.3)]), c


IMAGE_STEPS: list[Step] = [
    plain, plain, residual, residual, bottleneck, depthwise, dense, squeeze, parted, sliced, pooled, shared, transposed,
    odd,
]  # fmt: skip


def image_head(n: Net, x: str, c: int) -> str:
    if n.chance(0.5):
        flat = n.op("Flatten", [n.op("GlobalAveragePool", [x])])
        size = c
    else:
        flat = n.op("Flatten", [x]) if n.chance(0.5) else n.op("Reshape", [x, n.ints(0, -1)])
        size = c * 36
    hidden = n.one([6, 8])
    a = n.op("Gemm", [flat, n.weight(hidden, size), n.weight(hidden, scale=0.2)], transB=1)
    b = n.op("MatMul", [n.act(a), n.weight(hidden, 5, scale=0.4)])
    return str(n.op("Add", [b, n.weight(5, scale=0.2)]))


# -- sequences: [N, S, W] ---------------------------------------------------------------------------------------------
def perceptron(n: Net, x: str, w: int) -> tuple[str, int]:
    hidden = n.one([8, 12])
    a = n.op("Add", [n.op("MatMul", [x, n.weight(w, hidden, scale=0.4)]), n.weight(hidden, scale=0.2)])
    if n.chance(0.5):  # gated
        gate = n.op("MatMul", [x, n.weight(w, hidden, scale=0.4)])
        a = n.op("Mul", [n.op("Sigmoid", [gate]), a])
    else:
        a = n.act(a)
    return n.op("Add", [x, n.op("MatMul", [a, n.weight(hidden, w, scale=0.3)])]), w


def attention(n: Net, x: str, w: int) -> tuple[str, int]:
    heads, size = n.one([2, 4]), n.one([2, 3])
    wide = heads * size
    joint = n.chance(0.5)
    sizes = sequence_shape(n, x, heads, size)
    if joint:
        q, k, v = n.op("Split", [n.op("MatMul", [x, n.weight(w, 3 * wide, scale=0.4)]), n.ints(wide, wide, wide)], 3,
                       axis=2)  # fmt: skip
    else:
        q, k, v = (n.op("MatMul", [x, n.weight(w, wide, scale=0.4)]) for _ in range(3))
    q, k, v = (n.op("Transpose", [n.op("Reshape", [a, sizes])], perm=[0, 2, 1, 3]) for a in (q, k, v))
    scores = n.op("MatMul", [q, n.op("Transpose", [k], perm=[0, 1, 3, 2])])
    mixed = n.op("MatMul", [n.op("Softmax", [scores], axis=-1), v])
    back = n.op("Reshape", [n.op("Transpose", [mixed], perm=[0, 2, 1, 3]), sequence_shape(n, x, wide)])
    return n.op("Add", [x, n.op("MatMul", [back, n.weight(wide, w, scale=0.3)])]), w


def sequence_shape(n: Net, x: str, *rest: int) -> str:
    """[N, S, *rest] as a list of sizes, written out or computed."""
    if n.chance(0.5):
        return n.ints(0, 4, *rest)
    asked = n.op("Shape", [x])
    if n.chance(0.5):
        lead = [n.op("Slice", [asked, n.ints(0), n.ints(2)])]
    else:
        lead = [n.op("Unsqueeze", [n.op("Gather", [asked, n.held(np.array(i))]), n.ints(0)]) for i in (0, 1)]
    return str(n.op("Concat", [*lead, n.ints(*rest)], axis=0))


def layer_norm(n: Net, x: str, w: int) -> tuple[str, int]:
    return n.op("LayerNormalization", [x, n.weight(w, scale=1.0), n.weight(w, scale=0.1)]), w


SEQUENCE_STEPS: list[Step] = [perceptron, perceptron, attention, attention, layer_norm]


def make(seed: int) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """The model of a seed with one feed."""
    rng = np.random.default_rng(seed)
    n = Net(rng, int(rng.choice([13, 16, 17, 18, 20])), "batch" if rng.random() < 0.5 else 2)
    if rng.random() < 0.65:
        x, c = "x", 3
        for _ in range(int(rng.integers(2, 6))):
            x, c = n.one(IMAGE_STEPS)(n, x, c)
        y, dims, out = image_head(n, x, c), [n.batch, 3, 6, 6], [n.batch, 5]
    else:
        n.opset = max(n.opset, 17)
        x, w = n.op("Add", [n.op("MatMul", ["x", n.weight(3, 6, scale=0.6)]), n.weight(6, scale=0.2)]), 6
        for _ in range(int(rng.integers(1, 4))):
            x, w = n.one(SEQUENCE_STEPS)(n, x, w)
        y, dims, out = str(n.op("MatMul", [x, n.weight(w, 5, scale=0.4)])), [n.batch, 4, 3], [n.batch, 4, 5]
    n.nodes.append(h.make_node("Identity", [y], ["y"], "out"))
    ports = [h.make_tensor_value_info("x", T.FLOAT, dims)]
    graph = h.make_graph(n.nodes, "net", ports, [h.make_tensor_value_info("y", T.FLOAT, out)], n.tensors)
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", n.opset)], ir_version=8)
    feed = rng.standard_normal([2, *(int(d) for d in dims[1:])]).astype(np.float32)
    return model, {"x": feed}
