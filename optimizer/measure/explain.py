"""What an explanation holds, and what each layer of a quantized model has become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from optimizer.measure.explain_graph import Island, Kernel, OpTime, Unfused
from optimizer.records import to_plain
from passes.kit.model import Model
from passes.quantize.layers import Names, choose, nested_layers, settled
from passes.quantize.placement import clamp_behind

FLOAT, STATIC, DYNAMIC, WEIGHTS = "float", "int8", "int8 dynamic", "weights"
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Layer:
    """One layer with weights.

    ``form`` is what the file makes of it: float, int8 (static), int8 dynamic, or weights (only). ``kernel`` is the
    operator that the runtime runs it with. ``sqnr_db`` and ``cosine`` compare its result with the float model's;
    ``alone_db`` is signal over noise at the outputs when it alone is quantized. Times are milliseconds of one run in
    the kernel of this layer, before (float) and after. ``why`` says why it is float. ``None``: not measured.
    """

    layer: str
    op: str
    form: str
    kernel: str = ""
    sqnr_db: float | None = None
    cosine: float | None = None
    alone_db: float | None = None
    before_ms: float | None = None
    after_ms: float | None = None
    why: str = ""


@dataclass(frozen=True)
class Advice:
    """One thing to try next: why, and the recipe that does it (empty when it is no recipe)."""

    text: str
    recipe: str = ""


@dataclass(frozen=True)
class Explanation:
    """Everything that ``lathe explain`` shows.

    ``reference`` says in words what the model was compared with; ``recipe`` how it was made, as far as that is known.
    ``output_db`` is signal over noise at the outputs against the reference; ``runtime_db`` how far the runtime's own
    optimizer moves the outputs of this model. ``before`` and ``after`` are the runtime's profile by operator type.
    """

    name: str
    quantized: str
    reference: str
    recipe: str
    provider: str
    samples: int
    output_db: float | None
    runtime_db: float | None
    layers: tuple[Layer, ...]
    unfused: tuple[Unfused, ...]
    islands: tuple[Island, ...]
    before: tuple[OpTime, ...]
    after: tuple[OpTime, ...]
    slowest: tuple[Kernel, ...]
    signed: bool = False
    advice: tuple[Advice, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def before_ms(self) -> float:
        """Milliseconds of one run of the reference, all kernels together, profiler on."""
        return sum(o.ms for o in self.before)

    @property
    def after_ms(self) -> float:
        """Milliseconds of one run of the model, all kernels together, profiler on."""
        return sum(o.ms for o in self.after)

    def as_json(self) -> dict[str, Any]:
        """The object that ``--json`` prints."""
        plain: dict[str, Any] = to_plain(self)
        return {"schema": "lathe.explanation/1", **plain, "before_ms": self.before_ms, "after_ms": self.after_ms}


def forms(floating: Model, quantized: Model) -> dict[str, tuple[str, str]]:
    """For each layer with weights of ``floating``: its operator, and the form that ``quantized`` gives it."""
    graph, other = floating.fork().graph, quantized.fork().graph
    names, theirs = Names(graph), Names(other)
    by_name = {theirs.of(n): n for n in other}
    by_value = {o.name: n for n in other for o in n.outputs if o.name}
    found = {}
    for node in graph:
        if node.op_type not in LAYERS or not _weighted(node):
            continue
        name = names.of(node)
        twin = next((by_name[name + end] for end in ("", "_integer", "_quant") if name + end in by_name), None)
        found[name] = (node.op_type, _form(twin or _behind(node, by_value)))
    return found


def _weighted(node: ir.Node) -> bool:
    return len(node.inputs) > 1 and settled(node.inputs[1]) is not None


def _behind(node: ir.Node, by_value: Mapping[str, ir.Node]) -> ir.Node | None:
    """The node of the other model that gives the same value, through the scaling of integer products."""
    clamp = clamp_behind(node)
    value = node.outputs[0].name or ""
    found = by_value.get(value) or by_value.get(clamp.outputs[0].name or "" if clamp else "")
    for _ in range(4):
        if found is None or found.op_type not in ("Add", "Sum", "Mul", "Cast"):
            break
        makers = [m for v in found.inputs if v is not None and (m := v.producer()) is not None]
        found = next((m for m in makers if m.op_type in ("Mul", "Cast", "MatMulInteger", "ConvInteger")), None)
    return found


def _form(node: ir.Node | None) -> str:
    if node is None:
        return FLOAT
    if node.op_type in ("MatMulInteger", "ConvInteger", "DynamicQuantizeMatMul"):
        return DYNAMIC
    if node.op_type == "MatMulNBits":
        return WEIGHTS
    if node.op_type.startswith(("QLinear", "QGemm")):
        return STATIC
    made = [v.producer() if v is not None else None for v in node.inputs[:2]]
    eight = [m is not None and m.op_type == "DequantizeLinear" for m in made]
    if len(eight) < 2 or not eight[1]:
        return FLOAT
    return STATIC if eight[0] else WEIGHTS


def reasons(floating: Model, ops: Sequence[str]) -> dict[str, str]:
    """Why layers of ``floating`` cannot be quantized, by name: what the quantizing passes say of them."""
    graph = floating.fork().graph
    names = Names(graph)
    found = {names.of(node): reason for node, reason in choose(graph, ops).refused.items()}
    nested = "it lies in the body of an If, Loop or Scan, whose values cannot be observed"
    found |= {node.name or node.outputs[0].name or node.op_type: nested for node in nested_layers(floating)}
    return found


def has_signed_activations(model: Model) -> bool:
    """Whether activations are quantized to int8: QuantizeLinear nodes with an int8 zero point."""
    for node in model.fork().nodes():
        if node.op_type == "QuantizeLinear" and len(node.inputs) > 2 and node.inputs[2] is not None:
            kind = node.inputs[2].dtype
            if kind == ir.DataType.INT8:
                return True
    return False
