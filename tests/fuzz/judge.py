"""One seed judged: every lossless pass alone, the whole preset, and a few passes that spend quality."""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from passes import catalogue
from passes.kit.contract import Exactness, Pass, PassResult
from passes.kit.model import Model
from passes.kit.recipe import Recipe
from tests.fuzz.generate import Feeds, Made, make
from tests.fuzz.hearing import Hearing
from tests.fuzz.runs import Outputs, Runs
from tests.support.runtime import target

ALONE = tuple(dict.fromkeys(step.name for step in catalogue.LOSSLESS.steps))
"""The passes of the lossless preset, each once."""

TARGETS = ("x86-vnni", "x86-vnni", "x86-vnni", "x86-avx2", "arm64-dotprod")

SPENDING: dict[str, tuple[str, ...]] = {
    "equalize": ("equalize", "equalize{clip=min}"),
    "smooth": ("smooth", "smooth{alpha=0.5}", "smooth{givers=norms}"),
    "absorb-bias": ("absorb-bias",),
    "round-adaptively": ("round-adaptively", "round-adaptively{per-channel=no}"),
    "open-clip": ("open-clip", "open-clip{reach=2.0}"),
    "quantize-static": (
        "quantize-static",
        "quantize-static{observer=percentile}",
        "quantize-static{observer=entropy}",
        "quantize-static{observer=mse}",
        "quantize-static{observer=auto, correct-bias=true}",
        "quantize-static{observer=moving-average, per-channel=no}",
    ),
    "quantize-dynamic": ("quantize-dynamic", "quantize-dynamic{per-channel=false}"),
    "quantize-weights": (
        "quantize-weights",
        "quantize-weights{method=rtn, block=16}",
        "quantize-weights{method=hqq, bits=8}",
        "quantize-weights{method=awq, block=16}",
        "quantize-weights{method=gptq-awq, bits=2, block=16}",
    ),
    "quantize-fp8": ("quantize-fp8", "quantize-fp8{per-channel=false}"),
    "prune-channels": ("prune-channels{multiple=1}", "prune-channels{multiple=1, importance=l1, goal=size<=0.9x}"),
    "prune-heads": ("prune-heads{multiple=1}",),
    "prune-magnitude": ("prune-magnitude", "prune-magnitude{method=wanda}", "prune-magnitude{method=magnitude}"),
    "prune-nm": ("prune-nm", "prune-nm{n=1, m=2, method=wanda}"),
    "refit": ("prune-channels{multiple=1}, refit", "prune-magnitude, refit", "prune-nm, refit{ridge=0.01}"),
    "quantize-static16": ("quantize-static16", "quantize-static16{activation=int16}"),
    "convert-float16": ("convert-float16", "convert-float16{keep=[]}"),
}
"""Passes outside of the preset with the options that take turns."""

MAY_OVERFLOW = frozenset({"convert-float16"})
"""Passes to a type with another range: what overflows is turned down when the result is verified."""

ON_EACH = {"prune-heads": "Softmax"}
"""Passes for what few models hold, and an operator that tells which: they are tried on each of these."""

TURNS = 3
"""How many of them one seed tries."""

KEPT_ON_DATA = {"absorb-bias": 1e-4, "open-clip": 1e-5, "equalize": 1e-5, "equalize{clip=min}": 1e-5}
"""Recipes that leave the function as it is on the calibration data, and how far they may move the largest output."""


@dataclass(frozen=True)
class Failure:
    """A promise that did not hold: which recipe broke it, and how."""

    seed: int
    recipe: str
    what: str

    def __str__(self) -> str:
        return f"seed {self.seed}: {self.recipe}: {self.what}   (.venv/bin/python -m tests.fuzz {self.seed})"


@dataclass
class Verdict:
    """What came out of one seed. ``rejected`` says why the model was no test at all."""

    seed: int
    rejected: str = ""
    failures: list[Failure] = field(default_factory=list)
    fired: list[str] = field(default_factory=list)
    tried: list[str] = field(default_factory=list)
    changed: bool = False
    excused: int = 0
    ops: dict[str, int] = field(default_factory=dict)
    kinds: list[str] = field(default_factory=list)
    nodes: int = 0
    seconds: float = 0.0

    def fail(self, recipe: str, what: str) -> None:
        self.failures.append(Failure(self.seed, recipe, what.strip().replace("\n", " ")[:400]))


def judge(seed: int) -> Verdict:
    """Make the model of a seed and hold every pass to its promises."""
    start = time.process_time()
    verdict = Verdict(seed)
    try:
        made = make(seed)
    except Exception:
        verdict.fail("generator", traceback.format_exc(limit=-2))
        return verdict
    _describe(made.model, verdict)
    bench = _Bench(made, verdict)
    if bench.accepted():
        bench.lossless()
        bench.preset()
        bench.spending()
    verdict.seconds = time.process_time() - start
    return verdict


def _describe(model: onnx.ModelProto, verdict: Verdict) -> None:
    verdict.ops = dict(Counter(f"{n.domain}::{n.op_type}" if n.domain else n.op_type for n in _nodes(model.graph.node)))
    found = {t.type.tensor_type.elem_type for t in (*model.graph.input, *model.graph.output)}
    found |= {t.data_type for t in model.graph.initializer}
    try:
        inferred = onnx.shape_inference.infer_shapes(model)
        found |= {t.type.tensor_type.elem_type for t in inferred.graph.value_info}
    except onnx.shape_inference.InferenceError:
        pass  # a help for the table only
    verdict.kinds = sorted(onnx.TensorProto.DataType.Name(k).lower() for k in found if k)
    verdict.nodes = sum(verdict.ops.values())


def _nodes(nodes: Any) -> Iterator[onnx.NodeProto]:
    for n in nodes:
        yield n
        for a in n.attribute:
            if a.type == onnx.AttributeProto.GRAPH:
                yield from _nodes(a.g.node)


@dataclass(frozen=True, eq=False)
class _Written:
    """A model with its protobuf and its bytes, made once."""

    model: Model
    proto: onnx.ModelProto
    data: bytes

    @classmethod
    def of(cls, model: Model) -> _Written:
        proto = model.to_proto()
        return cls(model, proto, proto.SerializeToString(deterministic=True))


class _Bench:
    """The work on one seed: the model, its outputs, and the passes' context."""

    def __init__(self, made: Made, verdict: Verdict) -> None:
        self.made, self.verdict = made, verdict
        self.rng = np.random.default_rng([made.seed, 1])
        self.runs = Runs(made.feeds, target(TARGETS[made.seed % len(TARGETS)]), made.seed)
        self.half = "float16" in verdict.kinds
        self.subject = _Written.of(Model.from_proto(_copy(made.variant)))
        self.lean = self.subject
        self.probes: list[Feeds] = []
        self.first: PassResult | None = None

    # -- is it a test at all? -------------------------------------------------------------------------------------
    def accepted(self) -> bool:
        """Whether checker and runtime take the model, and both spellings agree to the bit."""
        try:
            onnx.checker.check_model(self.made.model)
            onnx.checker.check_model(self.made.variant)
            self.base_outputs = self.runs.outputs(self.made.model.SerializeToString(), self.made.feeds)
        except Exception as error:
            self.verdict.rejected = f"{type(error).__name__}: {error}".strip().replace("\n", " ")[:300]
            return False
        self.probes, base = list(self.made.feeds), list(self.base_outputs)
        for feed in self.made.hard:  # what the model itself cannot do asks nothing of a pass
            try:
                base += self.runs.outputs(self.made.model.SerializeToString(), [feed])
            except Exception:
                continue
            self.probes.append(feed)
        self.base_outputs = base
        try:
            before = self.outputs(self.subject)
        except Exception as error:
            self.verdict.fail("variant", f"does not run: {error}")
            return False
        self._hold("variant", self.base_outputs, before, Exactness.EXACT, self.made.model, self.made.variant)
        return not self.verdict.failures

    def outputs(self, of: _Written, *, optimize: bool = False) -> Outputs:
        return self.runs.outputs(of.data, self.probes, optimize=optimize)

    # -- the passes -----------------------------------------------------------------------------------------------
    def lossless(self) -> None:
        """Every pass of the preset alone on the variant."""
        for name in ALONE:
            result = self._apply(catalogue.find(name)(), name, self.subject.model)
            if result is not None and result.changes:
                self._check(name, self.subject, result.model, catalogue.find(name).exactness)
                if name == ALONE[0]:
                    self.first = result
                if self.rng.random() < 0.2:
                    self._again(name, result.model)
        if self.subject.model.to_bytes() != self.subject.data:
            self.verdict.fail("preset", "a pass changed the model that it was given")

    def preset(self) -> None:
        """All of them in a row, held against the other spelling."""
        lean = self.subject.model
        for i, subject in enumerate(catalogue.build(catalogue.LOSSLESS)):
            result = self.first if not i and self.first else self._apply(subject, "preset", lean, note=False)
            if result is None:
                return
            self.verdict.changed |= bool(result.changes)
            lean = result.model
        if lean is self.subject.model:
            return
        source = _Written(self.subject.model, self.made.model, self.made.model.SerializeToString())
        self.lean = self._check("preset", source, lean, Exactness.NUMERIC) or self.subject

    def spending(self) -> None:
        """The next few passes that need data, on the model as it is or as the preset leaves it."""
        names = list(SPENDING)
        turns = [names[(self.made.seed * TURNS + turn) % len(names)] for turn in range(TURNS)]
        turns += [n for n, op in ON_EACH.items() if op in self.verdict.ops and n not in turns]
        for name in turns:
            text = str(self.rng.choice(SPENDING[name]))
            self._spend(text, self.lean if self.rng.random() < 0.7 else self.subject)

    def _spend(self, text: str, before: _Written) -> None:
        """One recipe of passes that need data."""
        self.runs.original, model = before.model, before.model
        for subject in catalogue.build(Recipe.parse(text)):
            result = self._apply(subject, text, model)
            if result is None:
                return
            model = result.model
        if model is not before.model:
            self._check(text, before, model, subject.exactness, KEPT_ON_DATA.get(text))

    def _apply(self, subject: Pass, text: str, model: Model, *, note: bool = True) -> PassResult | None:
        try:
            result = subject(model, self.runs)
        except Exception as error:
            trace = traceback.extract_tb(error.__traceback__)[-1]
            at = f"{trace.filename.rpartition('/')[2]}:{trace.lineno}"
            self.verdict.fail(text, f"{subject.name} raised {type(error).__name__} at {at}: {error}")
            return None
        if note:
            self.verdict.tried.append(subject.name)
            if result.changes:
                self.verdict.fired.append(subject.name)
        return result

    def _again(self, name: str, model: Model) -> None:
        second = self._apply(catalogue.find(name)(), name, model, note=False)
        if second is not None and second.changes:
            self.verdict.fail(name, f"a second run changes it again: {second.changes[0]}")

    # -- the promises ---------------------------------------------------------------------------------------------
    def _check(
        self, text: str, before: _Written, after: Model, exactness: Exactness, kept: float | None = None
    ) -> _Written | None:
        """Valid, loadable, the same signature, and outputs within the promise. ``None`` when it cannot be run."""
        if after.signature != before.model.signature:
            self.verdict.fail(text, f"signature: {before.model.signature} -> {after.signature}")
        try:
            written = _Written.of(after)
            onnx.checker.check_model(written.proto)
        except Exception as error:
            self.verdict.fail(text, f"the result is not valid: {error}")
            return None
        try:
            found = self.outputs(written)
            if exactness is Exactness.LOSSY and self._optimizes(before):
                self.outputs(written, optimize=True)
        except Exception as error:
            self.verdict.fail(text, f"the result does not run: {error}")
            return None
        wanted = self.outputs(before)
        if text.partition("{")[0] not in MAY_OVERFLOW:
            self._hold(text, wanted, found, exactness, before.proto, written.proto)
        if kept is not None:
            count = len(self.made.feeds)
            self._stays(text, wanted[:count], found[:count], kept)
        return written

    def _optimizes(self, of: _Written) -> bool:
        """Whether the runtime gets the model through its own optimizer: now and then it does not."""
        try:
            return bool(self.outputs(of, optimize=True))
        except Exception:
            return False

    def _hold(
        self,
        text: str,
        wanted: Outputs,
        found: Outputs,
        exactness: Exactness,
        before: onnx.ModelProto,
        after: onnx.ModelProto,
    ) -> None:
        hearing = Hearing(self.runs, before, after, self.half, self.rng)
        bad, late = hearing.objections(self.probes, wanted, found, exactness)
        self.verdict.excused += late and not bad
        if bad:
            self.verdict.fail(text, "; ".join(map(str, bad[:3])))

    def _stays(self, text: str, wanted: Outputs, found: Outputs, share: float) -> None:
        """On the calibration data the function is the same up to ``share`` of the largest output."""
        if self.half:
            return
        for a, b in zip(wanted, found, strict=True):
            for name, x in a.items():
                if x.dtype.kind != "f" or not np.isfinite(x).all() or not x.size:
                    continue
                worst = float(np.abs(b[name].astype(np.float64) - x).max())
                if worst > share * float(np.abs(x).max()):
                    self.verdict.fail(text, f"output '{name}' moves by {worst:.3g} on the calibration data")


def _copy(proto: onnx.ModelProto) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    return made
