"""Steps with graphs inside: If, Loop, Scan, and local functions."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper as h

from tests.fuzz.draft import STEPS, Dims, Draft, Dull, Held, step

F32 = ("float32",)
DOMAIN = "made.up"


def inner(d: Draft, captured: list[Held], *, again: bool = False) -> Draft:
    """A draft for a body that may read ``captured`` values of the outer graph; ``again`` uses the last one's names."""
    d.count += not again
    return Draft(d.rng, d.opset, d.sizes, f"{d.prefix}b{d.count}_", values=list(captured), functions=d.functions)


def fill(body: Draft, steps: int) -> None:
    """A few random steps; bodies in bodies are rare."""
    for _ in range(steps):
        pool = [s for s in STEPS if s[2] <= body.opset and (s[0] not in NESTED or body.prefix.count("_") < 2)]
        weights = np.array([w for _, w, _ in pool])
        chosen = pool[int(body.rng.choice(len(pool), p=weights / weights.sum()))][0]
        mark = len(body.nodes), len(body.tensors), len(body.values)
        try:
            chosen(body)
        except Dull:
            del body.nodes[mark[0] :], body.tensors[mark[1] :], body.values[mark[2] :]
            body.weights.clear()  # it may know constants that are gone


def result(body: Draft, kind: str, dims: Dims, around: Held) -> Held:
    """A value that the body makes with that type and shape; one is made of ``around`` when there is none."""
    made = {o for n in body.nodes for o in n.output}
    found = [v for v in body.values if v.name in made and v.kind == kind and v.dims == dims and v.wide < 100]
    if found and body.chance(0.8):
        return body.one(found)
    return body.op("Tanh" if kind in F32 else "Identity", [around], dims, wide=1, settled=kind not in F32)


def graph(body: Draft, inputs: list[Held], outputs: list[Held]) -> onnx.GraphProto:
    def port(v: Held) -> onnx.ValueInfoProto:
        return h.make_tensor_value_info(v.name, h.np_dtype_to_tensor_dtype(np.dtype(v.kind)), list(v.dims))

    ports = [port(v) for v in inputs], [port(v) for v in outputs]
    return h.make_graph(body.nodes, f"{body.prefix}g", *ports, body.tensors)


@step(2, since=11)
def branch(d: Draft) -> None:
    """An If over a flag of the caller or over a constant."""
    x = d.pick(kinds=F32)
    flags = [v for v in d.values if v.kind == "bool" and v.dims == ()]
    flag = d.one(flags) if flags and d.chance(0.6) else d.weight(np.array(d.chance(0.5)))
    graphs, settled, wide = [], True, 1.0
    same = d.chance(0.4)  # the branches of an If may use the same names
    for turn in range(2):
        body = inner(d, [v for v in d.values if v.kind in F32], again=same and bool(turn))
        fill(body, d.between(1, 3))
        y = result(body, x.kind, x.dims, x)
        if d.chance(0.2):
            y = body.op("Identity", [x], x.dims)
        settled, wide = settled and y.settled, max(wide, y.wide)
        graphs.append(graph(body, [], [y]))
    d.op("If", [flag], x.dims, dtype=x.kind, settled=settled, wide=wide, then_branch=graphs[0], else_branch=graphs[1])


@step(1, since=13)
def loop(d: Draft) -> None:
    """A Loop that carries one value and collects another."""
    x = d.pick(lambda v: v.rank >= 1 and v.wide < 30, F32)
    turns = d.between(1, 3)
    body = inner(d, [v for v in d.values if v.kind in F32 and d.chance(0.5)])
    i = Held(body.fresh("i"), "int64", ())
    go = Held(body.fresh("go"), "bool", ())
    carried = Held(body.fresh("carried"), x.kind, x.dims, False, x.wide)
    body.values.append(carried)
    fill(body, d.between(1, 2))
    y = result(body, x.kind, x.dims, carried)
    y = body.op("Tanh", [body.op("Add", [y, carried], x.dims)], x.dims, wide=1)
    still = body.op("Identity", [go], (), dtype="bool")
    seen = body.op("Abs", [y], x.dims)
    made = graph(body, [i, go, carried], [still, y, seen])
    start = d.weight(np.array(True)) if d.chance(0.7) else ""
    d.ops(
        "Loop",
        [d.number(turns, "int64"), start, x],
        [("float32", x.dims), ("float32", (turns, *x.dims))],
        wide=1,
        body=made,
    )


@step(0.8, since=11)
def scan(d: Draft) -> None:
    """A Scan over the first axis with one state."""
    x = d.pick(lambda v: v.rank >= 2 and all(isinstance(n, int) for n in v.dims[1:]) and v.wide < 30, F32)
    rest = x.dims[1:]
    body = inner(d, [])
    state, one = Held(body.fresh("state"), x.kind, rest, False), Held(body.fresh("one"), x.kind, rest, False, x.wide)
    body.values += [state, one]
    total = body.op("Add", [state, one], rest)
    fill(body, d.between(0, 2))
    after = body.op("Tanh", [total], rest, wide=1)
    made = result(body, x.kind, rest, one)
    if made.name == after.name:
        made = body.op("Abs", [after], rest)
    zeros = d.weight(np.zeros([int(n) for n in rest], np.float32))
    inside = graph(body, [state, one], [after, made])
    d.ops("Scan", [zeros, x], [("float32", rest), ("float32", x.dims)], wide=made.wide, body=inside, num_scan_inputs=1)


@step(1, since=13)
def function(d: Draft) -> None:
    """A call of a local function, made up on first use; it may hold what passes look for."""
    x = d.pick(lambda v: v.wide < 30, F32)
    names = [f.name for f in d.functions]
    if not names or d.chance(0.3):
        names = [f"function_{len(d.functions)}"]
        d.functions.append(_made_up(d, names[0]))
    d.op(d.one(names), [x], x.dims, wide=x.wide * 2 + 1, domain=DOMAIN)


def _made_up(d: Draft, name: str) -> onnx.FunctionProto:
    """A hard swish (or what looks like one) with idle nodes; or a LeakyRelu whose slope is an attribute of the call."""
    opsets = [h.make_opsetid("", d.opset)]
    if d.chance(0.3):
        leaky = h.make_node("LeakyRelu", ["same"], ["y"])
        leaky.attribute.append(onnx.AttributeProto(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT))
        nodes = [h.make_node("Identity", ["x"], ["same"]), leaky]
        slope = h.make_attribute("slope", 0.25)
        return h.make_function(DOMAIN, name, ["x"], ["y"], nodes, opsets, attribute_protos=[slope])
    held = {"three": 3, "six": 6, "zero": 0}
    tensors = {k: onnx.numpy_helper.from_array(np.array(v, np.float32)) for k, v in held.items()}
    nodes = [
        *(h.make_node("Constant", [], [k], value=t) for k, t in tensors.items()),
        h.make_node("Identity", ["x"], ["same"]),
        h.make_node(d.one(["Add", "Sub"]), ["same", "three"], ["plus"]),
        h.make_node("Clip", ["plus", "zero", "six"], ["gate"]),
        h.make_node("Mul", ["x", "gate"], ["product"]),
        h.make_node("Div", ["product", "six"], ["y"]),
    ]
    return h.make_function(DOMAIN, name, ["x"], ["y"], nodes, opsets)


NESTED = (branch, loop, scan)
