"""Preprocessing and postprocessing as ONNX operators around a model: standard ones, but for decoding files.

The parts get names of their own under ``lathe/``, the model in the middle keeps all of its names, and :func:`core`
takes the parts off again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto
from onnx import helper as h

from optimizer.boundary.text import After, Postprocess, Preprocess
from optimizer.faults import Fault, usage
from passes.kit.model import Model, Port
from passes.quantize.opset import raised

Array = np.ndarray[Any, Any]

PREFIX = "lathe/"
PIXELS, ENCODED = "pixels", "encoded"
DECODER = "com.microsoft.extensions"
LEAST_OPSET = 18
"""Resize has ``antialias``."""

_FLOATS = {"FLOAT", "FLOAT16", "DOUBLE"}


def image_port(inputs: Sequence[Port], steps: Preprocess) -> tuple[Port, bool]:
    """The input that takes images and whether its channels come first. Raises a usage Fault when there is none, or when
    the steps do not give what it takes."""
    four = [p for p in inputs if p.type in _FLOATS and p.dims is not None and len(p.dims) == 4]
    if len(four) != 1:
        told = ", ".join(map(str, inputs))
        raise _misfit(steps.text, f"the model has {len(four)} inputs of four dimensions, not one ({told})")
    dims = four[0].dims or ()
    wanted = (1,) if steps.gray else (1, 3)
    first = dims[1] in wanted or dims[3] not in wanted
    if steps.channels_first and not first:
        raise _misfit(steps.text, f"the model takes channels last: {four[0]}")
    channels = dims[1] if first else dims[3]
    if isinstance(channels, int) and channels not in wanted:
        raise _misfit(
            steps.text, f"the model takes {channels} channels, the steps give {' or '.join(map(str, wanted))}"
        )
    high, wide = (dims[2], dims[3]) if first else (dims[1], dims[2])
    fixed = [d for d in (high, wide) if isinstance(d, int)]
    if steps.gives is None and steps.shorter is not None and fixed:
        raise _misfit(steps.text, f"'resize={steps.shorter}' keeps the proportions, but the model takes {high}x{wide}")
    if steps.gives is not None and any(
        isinstance(d, int) and d != g for d, g in zip((high, wide), steps.gives, strict=True)
    ):
        raise _misfit(steps.text, f"the steps give {steps.gives[0]}x{steps.gives[1]}, the model takes {high}x{wide}")
    return four[0], first


def channels_of(port: Port, first: bool, steps: Preprocess) -> int:
    """Channels of the images that are read: three, unless the network takes gray ones as they are."""
    own = (port.dims or ())[1 if first else 3]
    return 1 if own == 1 and not steps.gray else 3


def wrap(model: Model, before: Preprocess | None, after: Postprocess | None) -> Model:
    """``model`` with its preprocessing in front and its postprocessing behind.

    Raises a usage :class:`~optimizer.faults.Fault` when the steps do not fit the model, or when it is too old to be
    brought to an opset in which they can be said.
    """
    if before is not None and (before.shorter or before.size) and model.opset < LEAST_OPSET:
        lifted = raised(model, LEAST_OPSET)
        if isinstance(lifted, str):
            raise _misfit(before.text, f"'resize' needs opset {LEAST_OPSET}: {lifted}")
        model = lifted
    proto = model.to_proto()
    if before is not None:
        _Before(proto, model).put(before)
    if after is not None:
        _After(proto, model, after.text).put(after)
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(_inner(model, proto))
    found = Model.from_proto(proto)
    found.ir.metadata_props.update(model.ir.metadata_props)
    return found


def _inner(model: Model, proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """What ``model`` declares of inputs and outputs that are values in the middle of ``proto`` now."""
    own = model.to_proto().graph
    outside = {v.name for v in (*proto.graph.input, *proto.graph.output)}
    return [v for v in (*own.input, *own.output) if v.name not in outside]


def core(model: Model, inputs: Sequence[Port], outputs: Sequence[str]) -> Model:
    """The model inside of a wrapped one, whose inputs and names of outputs are these. Raises ``KeyError`` otherwise."""
    fork = model.fork()
    graph = fork.graph
    values = {v.name: v for v in (*graph.inputs, *(o for node in graph for o in node.outputs))}
    made: list[ir.Value] = []
    for port in inputs:
        inner = values[port.name]
        if inner.is_graph_input():
            made.append(inner)
            continue
        shape = None if port.dims is None else ir.Shape(port.dims)
        fresh = ir.Value(name=port.name, shape=shape, type=ir.TensorType(ir.DataType[port.type]))
        inner.name = f"{PREFIX}made"
        ir.convenience.replace_all_uses_with(inner, fresh)
        made.append(fresh)
    graph.outputs[:] = [values[name] for name in outputs]
    graph.inputs[:] = made
    _drop_unused(graph)
    fork.forget_digest()
    return fork


def _drop_unused(graph: ir.Graph) -> None:
    for node in reversed(list(graph)):
        if str(node.name).startswith(PREFIX) and not any(o.uses() or o.is_graph_output() for o in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if name.startswith(PREFIX) and not value.uses():
            del graph.initializers[name]


def _misfit(text: str, message: str) -> Fault:
    return usage(message, where=f"'{text}'", hint="Change the steps, or leave them out", code="bad-boundary")


class _Part:
    """Nodes that are put around the graph of ``proto``."""

    def __init__(self, proto: onnx.ModelProto, part: str) -> None:
        self.graph = proto.graph
        self.proto = proto
        self.nodes: list[onnx.NodeProto] = []
        self._prefix = f"{PREFIX}{part}/"

    def op(self, kind: str, *inputs: str, into: Sequence[str] = (), domain: str = "", **attributes: Any) -> str:
        """One operator; the name of its first output, made up unless ``into`` names them."""
        name = f"{self._prefix}{len(self.nodes)}"
        outputs = list(into) or [f"{name}/out"]
        self.nodes.append(h.make_node(kind, list(inputs), outputs, name=name, domain=domain, **attributes))
        return outputs[0]

    def const(self, values: Any, kind: Any) -> str:
        """A constant; the same one is kept once."""
        array = np.asarray(values, kind)
        name = f"{self._prefix}const/{array.dtype}{array.tolist()}".replace(" ", "")
        if all(t.name != name for t in self.graph.initializer):
            self.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        return name

    def ints(self, *values: int) -> str:
        return self.const(values, np.int64)


class _Before(_Part):
    def __init__(self, proto: onnx.ModelProto, model: Model) -> None:
        super().__init__(proto, "before")
        self._inputs = model.signature.inputs

    def put(self, steps: Preprocess) -> None:
        port, first = image_port(self._inputs, steps)
        dims = list(port.dims or ())
        name = self._free(ENCODED if steps.decode else PIXELS)
        channels = channels_of(port, first, steps)
        last = self._image(steps, self._pixels(steps, name, channels))
        if first:
            last = self.op("Transpose", last, perm=[0, 3, 1, 2])
        self.op("Cast", last, into=[port.name], to=_elem(port))
        open_size = steps.shorter is not None or steps.size is not None
        high, wide = (dims[2], dims[3]) if first else (dims[1], dims[2])
        shape = (
            ["bytes"] if steps.decode else [dims[0], *(("height", "width") if open_size else (high, wide)), channels]
        )
        outer = h.make_tensor_value_info(name, TensorProto.UINT8, shape)
        ports = [outer if i.name == port.name else i for i in self.graph.input]
        _replace(self.graph.input, ports)
        _replace(self.graph.node, [*self.nodes, *self.graph.node])

    def _free(self, name: str) -> str:
        taken = {i.name for i in self.graph.input} | {o for n in self.graph.node for o in n.output}
        return name if name not in taken else f"{name}_in"

    def _pixels(self, steps: Preprocess, name: str, channels: int) -> str:
        """float32 [N, H, W, C], levels 0..255."""
        value = name
        if steps.decode:
            self.proto.opset_import.append(h.make_opsetid(DECODER, 1))
            value = self.op("DecodeImage", name, domain=DECODER, color_space="rgb")
            value = self.op("Unsqueeze", value, self.ints(0))
            value = self.op("Expand", value, self.ints(1, 1, 1, 3))  # gray files come out with one channel
        if steps.gray or (steps.decode and channels == 1):
            value = self._gray(value)
        return self.op("Cast", value, to=TensorProto.FLOAT)

    def _gray(self, value: str) -> str:
        """Pillow's conversion: (19595 R + 38470 G + 7471 B + 2**15) >> 16, which float64 holds exactly."""
        wide = self.op("Cast", value, to=TensorProto.DOUBLE)
        weighted = self.op("Mul", wide, self.const([19595.0, 38470.0, 7471.0], np.float64))
        total = self.op("ReduceSum", weighted, self.ints(3), keepdims=1)
        scaled = self.op(
            "Mul", self.op("Add", total, self.const(2.0**15, np.float64)), self.const(2.0**-16, np.float64)
        )
        return self.op("Floor", scaled)

    def _image(self, steps: Preprocess, value: str) -> str:
        if steps.shorter is not None or steps.size is not None:
            value = self._resize(steps, value)
        if steps.crop is not None:
            value = self._crop(steps.crop, value)
        if steps.bgr:
            value = self.op("Gather", value, self.ints(2, 1, 0), axis=3)
        if steps.factor is not None:
            value = self.op("Mul", value, self.const(steps.factor, np.float32))
        if steps.mean:
            value = self.op("Sub", value, self.const(steps.mean, np.float32))
            value = self.op("Div", value, self.const(steps.std, np.float32))
        return value

    def _resize(self, steps: Preprocess, value: str) -> str:
        shape = self.op("Shape", value)
        sides = self.op("Slice", shape, self.ints(1), self.ints(3), self.ints(0))
        if steps.size is not None:
            wanted = self.ints(*steps.size)
        else:
            short = self.op("ReduceMin", sides, self.ints(0), keepdims=1)
            wanted = self.op("Div", self.op("Mul", sides, self.ints(int(steps.shorter or 0))), short)
        outer = [self.op("Slice", shape, self.ints(i), self.ints(i + 1), self.ints(0)) for i in (0, 3)]
        sizes = self.op("Concat", outer[0], wanted, outer[1], axis=0)
        return self.op(
            "Resize", value, "", "", sizes,
            mode="linear", antialias=1, exclude_outside=1, coordinate_transformation_mode="half_pixel",
        )  # fmt: skip

    def _crop(self, crop: tuple[int, int], value: str) -> str:
        """Start at half of what is left over, halves rounded to even."""
        sides = self.op("Slice", self.op("Shape", value), self.ints(1), self.ints(3), self.ints(0))
        left = self.op("Sub", sides, self.ints(*crop))
        half = self.op("Div", left, self.ints(2))
        odd = self.op("Mul", *(self.op("Mod", v, self.ints(2)) for v in (left, half)))
        start = self.op("Add", half, odd)
        return self.op("Slice", value, start, self.op("Add", start, self.ints(*crop)), self.ints(1, 2))


class _After(_Part):
    def __init__(self, proto: onnx.ModelProto, model: Model, text: str) -> None:
        super().__init__(proto, "after")
        self._outputs = model.signature.outputs
        self._text = text

    def put(self, steps: Postprocess) -> None:
        kept = {o.name: o for o in self.graph.output}
        source = ""
        for step in steps.steps:
            last = step is steps.steps[-1]
            if step.name == "nms":
                self._nms(step, kept)
                continue
            port = self._scores(step)
            source = source or port.name
            kept.pop(port.name, None)
            self._one(step, port, source, kept)
            if step.name == "softmax" and not last:
                source = "probabilities"
        _replace(self.graph.output, list(kept.values()))
        self.graph.node.extend(self.nodes)

    def _one(self, step: After, port: Port, source: str, kept: dict[str, Any]) -> None:
        dims = list(port.dims or ())
        if step.name == "softmax":
            self.op("Softmax", source, into=["probabilities"], axis=-1)
            kept["probabilities"] = h.make_tensor_value_info("probabilities", _elem(port), dims)
            return
        kept.pop("probabilities", None)
        if step.name == "argmax":
            self.op("ArgMax", source, into=["class"], axis=-1, keepdims=0)
            kept["class"] = h.make_tensor_value_info("class", TensorProto.INT64, dims[:-1])
            return
        k = int(step.options["k"])
        if isinstance(dims[-1], int) and k > dims[-1]:
            raise _misfit(self._text, f"topk={k} of '{port.name}', which has {dims[-1]} classes")
        self.op("TopK", source, self.ints(k), into=["scores", "classes"], axis=-1)
        kept["scores"] = h.make_tensor_value_info("scores", _elem(port), [*dims[:-1], k])
        kept["classes"] = h.make_tensor_value_info("classes", TensorProto.INT64, [*dims[:-1], k])

    def _scores(self, step: After) -> Port:
        named = step.options.get("output")
        fitting = [p for p in self._outputs if p.type in _FLOATS and p.dims is not None and len(p.dims) >= 2]
        if named is not None:
            fitting = [p for p in fitting if p.name == named]
        if len(fitting) != 1:
            told = ", ".join(map(str, self._outputs))
            which = f"'{named}' is no output of scores" if named else f"{len(fitting)} outputs could be meant"
            raise _misfit(self._text, f"{step.name}: {which} ({told}); name one with {step.name}{{output=...}}")
        return fitting[0]

    def _nms(self, step: After, kept: dict[str, Any]) -> None:
        """Boxes [N, boxes, 4] and scores [N, classes, boxes] as the operator has them, by name or by shape."""
        boxes, scores = self._boxes(step)
        limits = [
            self.ints(int(step.options.get("max", 100))),
            self.const([step.options.get("iou", 0.5)], np.float32),
            self.const([step.options.get("score", 0.25)], np.float32),
        ]
        center = int(bool(step.options.get("center", False)))
        chosen = self.op("NonMaxSuppression", boxes, scores, *limits, center_point_box=center)
        image, box = (self.op("Gather", chosen, self.ints(*places), axis=1) for places in ((0,), (0, 2)))
        self.op("GatherND", boxes, box, into=["detected_boxes"])
        self.op("GatherND", scores, chosen, into=["detected_scores"])
        self.op("Squeeze", self.op("Gather", chosen, self.ints(1), axis=1), self.ints(1), into=["detected_classes"])
        self.op("Squeeze", image, self.ints(1), into=["detected_images"])
        for name in (boxes, scores):
            kept.pop(name, None)
        for name, kind, dims in (
            ("detected_boxes", TensorProto.FLOAT, ["found", 4]),
            ("detected_scores", TensorProto.FLOAT, ["found"]),
            ("detected_classes", TensorProto.INT64, ["found"]),
            ("detected_images", TensorProto.INT64, ["found"]),
        ):
            kept[name] = h.make_tensor_value_info(name, kind, dims)

    def _boxes(self, step: After) -> tuple[str, str]:
        three = [p for p in self._outputs if p.type == "FLOAT" and p.dims is not None and len(p.dims) == 3]
        boxes = step.options.get("boxes") or next((p.name for p in three if (p.dims or ())[2] == 4), None)
        scores = step.options.get("scores") or next((p.name for p in three if p.name != boxes), None)
        known = {p.name for p in three}
        if boxes not in known or scores not in known or boxes == scores:
            told = ", ".join(map(str, self._outputs))
            message = f"nms needs outputs of boxes [N, boxes, 4] and of scores [N, classes, boxes] ({told})"
            raise _misfit(self._text, message)
        return str(boxes), str(scores)


def _elem(port: Port) -> int:
    return int(TensorProto.DataType.Value(port.type))


def _replace(field: Any, items: Sequence[Any]) -> None:
    copies = [type(i).FromString(i.SerializeToString()) for i in items]
    del field[:]
    field.extend(copies)
