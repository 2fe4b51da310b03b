"""Lowering: write a placement into the graph as Quantize- and DequantizeLinear nodes.

Every integer value has one QuantizeLinear and at most one DequantizeLinear, shared by all its readers; onnxruntime
gives each reader its own when it fuses. Carriers work on the 8-bit value itself, so there is no pair around them that a
runtime would have to recognise.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from passes.kit.contract import Edit
from passes.quantize.grid import Grid
from passes.quantize.placement import Plan


class Lowering:
    """Rewrites the activations of ``graph`` by ``plan``. ``grids`` holds the grid of every root by value name.

    ``keep_clamps`` leaves every Relu and Clip in its place: a grid that is symmetric does not end where they do.
    """

    def __init__(
        self, graph: ir.Graph, plan: Plan, grids: Mapping[str, Grid], edit: Edit, *, keep_clamps: bool = False
    ) -> None:
        self._graph, self._plan, self._grids, self._edit = graph, plan, grids, edit
        self._clamps = [] if keep_clamps else list(plan.clamps.values())
        self._eight: dict[ir.Value, ir.Value] = {}
        self._float: dict[ir.Value, ir.Value] = {}
        self._parameters: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}

    def run(self) -> None:
        """Quantize every root, carry its integers on, then hand them to who reads them."""
        self._declare()
        for value in self._plan.root:
            self._rewire(value)
        for node in self._plan.layers:
            self._keep_apart(node)
        self._graph.remove([*self._plan.carriers, *self._clamps], safe=True)
        for node in list(self._graph):
            self._keep_float(node)

    def grid(self, value: ir.Value) -> Grid:
        """The grid that an integer value has."""
        return self._grids[self._plan.root[value].name or ""]

    def parameters(self, value: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Scale and zero point initializers of an integer value."""
        return self._parameters[self._plan.root[value]]

    # -- integer values ------------------------------------------------------------------------------------------
    def _declare(self) -> None:
        for value in self._graph.inputs:
            if value in self._plan.root:
                self._quantize(value, value, None)
        makers = {self._plan.result(n): n for n in self._plan.giving}
        for node in list(self._graph):
            if node in self._plan.carriers:
                self._carry(node)
                continue
            for output in node.outputs:
                maker = makers.get(output)
                if maker is not None and node in self._clamps:
                    self._quantize(output, maker.outputs[0], maker)
                elif output in self._plan.root:
                    self._quantize(output, output, node)

    def _quantize(self, value: ir.Value, raw: ir.Value, after: ir.Node | None) -> None:
        """``value``'s integers, from ``raw``: the value itself, or what stood before its clamp."""
        grid = self.grid(value)
        scale = self._edit.initializer(self._graph, f"{value.name}_scale", grid.scale)
        zero = self._edit.initializer(self._graph, f"{value.name}_zero_point", grid.zero)
        self._parameters[value] = (scale, zero)
        node = ir.node("QuantizeLinear", [raw, scale, zero], name=self._edit.fresh(f"{value.name}_QuantizeLinear"))
        self._insert(node, after)
        self._eight[value] = self._named(node.outputs[0], f"{value.name}_quantized", value, grid.dtype)

    def _carry(self, node: ir.Node) -> None:
        """A twin of a carrier that works on integers."""
        data = node.inputs[0]
        assert data is not None
        grid, zero = self.grid(data), self.parameters(data)[1]
        inputs: list[ir.Value | None] = [self._eight[data], *node.inputs[1:]]
        op_type = node.op_type
        if op_type == "Relu":
            op_type, inputs = "Clip", [inputs[0], zero]
        elif op_type == "Pad" and ("mode" not in node.attributes or node.attributes["mode"].value == "constant"):
            inputs = [*inputs[:2], zero, *inputs[3:]]
        name = self._edit.fresh(f"{node.name or node.outputs[0].name}_quantized")
        twin = ir.node(op_type, inputs, dict(_plain(node)), num_outputs=len(node.outputs), name=name)
        self._graph.insert_after(node, twin)
        for old, new in zip(node.outputs, twin.outputs, strict=True):
            self._eight[old] = self._named(new, f"{old.name}_quantized", old, grid.dtype)

    def _dequantized(self, value: ir.Value) -> ir.Value:
        if value not in self._float:
            eight = self._eight[value]
            name = self._edit.fresh(f"{value.name}_DequantizeLinear")
            node = ir.node("DequantizeLinear", [eight, *self.parameters(value)], name=name)
            self._insert(node, eight.producer())
            self._float[value] = self._named(node.outputs[0], f"{value.name}_dequantized", value, "float")
        return self._float[value]

    # -- readers -------------------------------------------------------------------------------------------------
    def _rewire(self, value: ir.Value) -> None:
        """Layers, joiners and, where the value is made of integers, everyone else read the dequantized value."""
        made = self._plan.made_of_integers(value)
        gone = {self._eight[value].producer(), *self._plan.carriers, *self._clamps}
        for reader, index in list(value.uses()):
            if reader in gone and not (reader in self._plan.carriers and index > 0):
                continue
            if made and reader.op_type in ("Shape", "Size"):
                reader.replace_input_with(index, self._eight[value])
            elif made or reader in self._plan.joiners or (reader in self._plan.layers and index == 0):
                reader.replace_input_with(index, self._dequantized(value))
        if made and value.is_graph_output():
            self._take_over(value)

    def _take_over(self, old: ir.Value) -> None:
        """The dequantized value becomes the graph's output, under the output's name, type and shape."""
        new, name = self._dequantized(old), old.name
        old.name = self._edit.fresh(f"{name}_raw")
        new.name, new.type = name, old.type
        new.shape = None if old.shape is None else ir.Shape(list(old.shape))
        for i, output in enumerate(self._graph.outputs):
            if output is old:
                self._graph.outputs[i] = new

    def _keep_apart(self, node: ir.Node) -> None:
        """Spell the addition behind a MatMul with float result as ``Sum``, which computes the same bits.

        onnxruntime joins MatMul and Add into a Gemm before it looks for integer kernels, and then finds none: the
        result runs in float, twice as slow as the model was. MatMul and Sum become MatMulIntegerToFloat and Sum.
        """
        if node.op_type != "MatMul" or node in self._plan.giving:
            return
        for reader, _ in node.outputs[0].uses():
            if reader.op_type == "Add" and reader.domain in ("", "ai.onnx"):
                reader.op_type = "Sum"
                self._edit.change("sum", reader, "Add spelled as Sum, so that the MatMul keeps its integer kernel")

    def _keep_float(self, node: ir.Node) -> None:
        """Let a float layer between integers read its input through a ``Sum`` of one value, which hands it on.

        onnxruntime (since 1.21, `WeightBiasQuantization`) quantizes the weight of a Conv or Gemm that stands between
        a DequantizeLinear and a QuantizeLinear, one scale for the whole weight: a layer that was left in float for
        its sensitivity would run in its coarsest form.
        """
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm") or node in self._plan.layers:
            return
        data = node.inputs[0]
        maker = data.producer() if data is not None else None
        if data is None or maker is None or maker.op_type != "DequantizeLinear" or not _is_quantized(node.outputs[0]):
            return
        copy = ir.node("Sum", [data], name=self._edit.fresh(f"{node.name or node.outputs[0].name}_float"))
        self._insert(copy, maker)
        node.replace_input_with(0, self._named(copy.outputs[0], f"{data.name}_float", data, "float"))
        self._edit.change("sum", node, "reads its input through a Sum, so that the runtime leaves it in float")

    # -- small tools ---------------------------------------------------------------------------------------------
    def _insert(self, node: ir.Node, after: ir.Node | None) -> None:
        if after is not None:
            self._graph.insert_after(after, node)
        elif len(self._graph):
            self._graph.insert_before(self._graph[0], node)
        else:
            self._graph.append(node)

    def _named(self, value: ir.Value, wish: str, like: ir.Value, dtype: str) -> ir.Value:
        value.name = self._edit.fresh(wish)
        value.type = ir.TensorType(ir.DataType[dtype.upper()])
        value.shape = None if like.shape is None else ir.Shape(list(like.shape))
        return value


def _plain(node: ir.Node) -> Mapping[str, object]:
    return {name: attribute.value for name, attribute in node.attributes.items()}


def _is_quantized(value: ir.Value) -> bool:
    """Whether a QuantizeLinear reads this value, directly or behind what a runtime may take away first."""
    readers = [n for n, _ in value.uses()]
    for reader in readers:
        if reader.op_type in ("Relu", "Clip", "Identity"):
            readers += [n for n, _ in reader.outputs[0].uses()]
    return any(n.op_type == "QuantizeLinear" for n in readers)
