"""Whether outputs differ by more than rounding: the product's tolerance, and a last hearing where models cancel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from optimizer.verify.numerics import NOISE_FACTOR, Difference, Slack, compare, slack
from passes.kit.context import Feeds
from passes.kit.contract import Exactness
from tests.fuzz.runs import Array, Outputs, Runs

HALF_FLOOR = 1e-2
"""What float16 may move an output by, as a share of the largest: a few of its rounding steps, one after another."""

JITTER = {"float16": 2.0**-9, "float32": 2.0**-22, "float64": 2.0**-22}
"""Inputs, weights and everything between are shaken by two of their last bits to see how much rounding alone can move
an output. What lies between matters: a row of equal numbers, normalized, is rounding and nothing else."""

SHAKEN = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.FLOAT16: "float16"}
"""Element types of weights and of what lies between that are shaken."""

SHAKES = 3

RANDOM_OPSET = 21
"""The newest opset for which onnxruntime has RandomUniformLike."""

Noise = Mapping[str, float]


@dataclass(frozen=True)
class Hearing:
    """One comparison of ``after`` with ``before``. ``half``: the models compute in float16 somewhere."""

    runs: Runs
    before: onnx.ModelProto
    after: onnx.ModelProto
    half: bool
    rng: np.random.Generator

    def objections(
        self, probes: Sequence[Feeds], wanted: Outputs, found: Outputs, exactness: Exactness
    ) -> tuple[list[Difference], bool]:
        """Outputs that moved by more than the promise allows, and whether shaken bits had to be asked."""
        if exactness is Exactness.EXACT and self.half:
            exactness = Exactness.NUMERIC  # float16 is computed in float32 or not, as the casts happen to meet
        judged = [i for i, probe in enumerate(probes) if _counts(probe, wanted[i], exactness)]
        probes, pair = [probes[i] for i in judged], ([wanted[i] for i in judged], [found[i] for i in judged])
        allowed: Noise = _half_noise(pair[0]) if self.half else {}
        bad = _bad(*pair, exactness, allowed)
        if exactness is not Exactness.NUMERIC:
            return bad, False
        asked = False
        more: tuple[Callable[[], Noise], ...] = (
            lambda: self._runtime(probes),
            lambda: self._shaken(probes, pair[0]),
        )
        for i, source in enumerate(more):
            if bad:
                allowed, asked = _most(allowed, source()), i == 1
                bad = _bad(*pair, exactness, allowed)
        return bad, asked

    def _runtime(self, probes: Sequence[Feeds]) -> Noise:
        """How much the runtime's own optimizer moves the outputs of either model."""
        found: Noise = {}
        for proto in (self.before, self.after):
            data = proto.SerializeToString()
            off = self.runs.outputs(data, probes)
            try:
                on = self.runs.outputs(data, probes, optimize=True)
            except Exception:  # now and then it cannot
                continue
            found = _most(found, _noise(off, on))
        return found

    def _shaken(self, probes: Sequence[Feeds], wanted: Outputs) -> Noise:
        """How much the outputs move when inputs and weights move by rounding: what no algebra can keep still."""
        found: Noise = {}
        for _ in range(SHAKES):
            shaken = onnx.ModelProto()
            shaken.CopyFrom(self.before)
            for tensor in _weights(shaken):
                array = self._shake(onnx.numpy_helper.to_array(tensor))
                tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
            self._shake_between(shaken)
            moved = [{k: self._shake(v) for k, v in feed.items()} for feed in probes]
            try:
                outputs = self.runs.outputs(shaken.SerializeToString(), moved)
            except Exception:  # an operator that the older opset lacks: nothing is excused then
                continue
            found = _most(found, _noise(wanted, outputs))
        return found

    def _shake_between(self, proto: onnx.ModelProto) -> None:
        """Multiply every float32 and float16 value of the main graph by random numbers close to one."""
        for domain in proto.opset_import:
            if domain.domain in ("", "ai.onnx"):
                # onnxruntime has no newer one; what models hold is the same there, or the shaken copy does not run.
                domain.version = min(domain.version, RANDOM_OPSET)
        known = onnx.shape_inference.infer_shapes(proto).graph.value_info
        kinds = {v.name: v.type.tensor_type.elem_type for v in known if v.type.tensor_type.elem_type in SHAKEN}
        nodes: list[onnx.NodeProto] = []
        for node in proto.graph.node:
            nodes.append(node)
            for i, name in enumerate(node.output):
                if node.op_type != "Constant" and name in kinds:
                    node.output[i] = f"{name}/bare"
                    nodes += self._near(name, kinds[name])
        kept = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
        del proto.graph.node[:]
        proto.graph.node.extend(kept)

    def _near(self, name: str, kind: int) -> list[onnx.NodeProto]:
        """Nodes that make ``name`` out of ``name/bare``, in float32 (no random numbers are made in float16)."""
        jitter = JITTER[SHAKEN[kind]]
        around = {"low": 1 - jitter, "high": 1 + jitter, "seed": float(self.rng.integers(2**20))}
        steps: list[tuple[str, list[str], str, dict[str, float]]] = [
            ("Cast", [f"{name}/bare"], f"{name}/wide", {"to": onnx.TensorProto.FLOAT}),
            ("RandomUniformLike", [f"{name}/wide"], f"{name}/near", around),
            ("Mul", [f"{name}/wide", f"{name}/near"], f"{name}/moved", {}),
            ("Cast", [f"{name}/moved"], name, {"to": kind}),
        ]
        return [onnx.helper.make_node(op, inputs, [made], **given) for op, inputs, made, given in steps]

    def _shake(self, array: Array) -> Array:
        if array.dtype.kind != "f":
            return array
        jitter = JITTER[str(array.dtype)]
        return np.asarray(array * (1 + self.rng.uniform(-jitter, jitter, array.shape))).astype(array.dtype)


SETTINGS = {"Pow": slice(1, None), "Resize": slice(1, None), "Upsample": slice(1, None), "Pad": slice(2, None)}
"""Inputs that say what to do: the square of a negative number is one, its power of 2.0000001 is NaN."""


def _weights(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
    """The float constants of the main graph, without those that are settings."""
    settings = {i for n in proto.graph.node if n.op_type in SETTINGS for i in n.input[SETTINGS[n.op_type]]}
    held = [(t.name, t) for t in proto.graph.initializer]
    for node in proto.graph.node:
        if node.op_type == "Constant":
            held += [(node.output[0], a.t) for a in node.attribute if a.name == "value"]
    return [t for name, t in held if t.data_type in SHAKEN and name not in settings]


def _counts(probe: Feeds, wanted: Mapping[str, Array], exactness: Exactness) -> bool:
    """Whether a probe is a fair question. Other rounding may turn a large number into infinity, and that into NaN;
    integers have no code for what is not finite, and one NaN of the model's own spoils a range."""
    if exactness is Exactness.NUMERIC:
        return _finite(wanted)
    return exactness is Exactness.EXACT or (_finite(probe) and _finite(wanted))


def _finite(arrays: Mapping[str, Array]) -> bool:
    return all(a.dtype.kind != "f" or bool(np.isfinite(a).all()) for a in arrays.values())


def _bad(wanted: Outputs, found: Outputs, exactness: Exactness, allowed: Noise) -> list[Difference]:
    return [x for x in compare(wanted, found, exactness, [Slack(allowed)] * len(wanted)) if not x.ok]


def _noise(one: Outputs, other: Outputs) -> Noise:
    """By how much runs that should agree differ, over all probes."""
    return _most({}, *(slack([pair], {}).noise for pair in zip(one, other, strict=True)))


def _half_noise(wanted: Outputs) -> Noise:
    """The rounding of float16 anywhere in the model, as noise."""
    largest: dict[str, float] = {}
    for outputs in wanted:
        for name, array in outputs.items():
            if array.dtype.kind == "f" and array.size:
                largest[name] = max(largest.get(name, 0.0), float(np.nan_to_num(np.abs(array), posinf=0).max()))
    return {name: HALF_FLOOR / NOISE_FACTOR * size for name, size in largest.items()}


def _most(*of: Noise) -> Noise:
    return {name: max(m.get(name, 0.0) for m in of) for m in of for name in m}
