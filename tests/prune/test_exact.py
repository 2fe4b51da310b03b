"""Taking units out is exact: what is left computes what the whole would with these units' weights at zero."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from passes.kit.model import Model, constant
from passes.prune.cut import NotValid, take_out
from passes.prune.groups import Group, Structure, study
from passes.prune.refit import Refit
from tests.fuzz.generate import make as fuzzed
from tests.prune.nets import make
from tests.support.runtime import Array, LocalContext, run

SEEDS = range(320)
PER_TEST = 40
CLOSE = 2e-5


def masked(model: Model, structure: Structure, groups: list[Group], gone: set[int]) -> Model:
    """``model`` with zeros in every weight, of products and what is added to them, that makes or reads ``gone``.

    Independent of the cutting: nothing changes its shape.
    """
    fork = model.fork()
    products = {id(v) for n in structure.trail.products for v in n.node.inputs}
    shifts = {
        id(v) for n in model.graph for v in n.inputs if n.op_type == "Add" and v is not None and constant(v) is not None
    }
    touched = {v.name for v in structure.trail.labels.held if id(v) in products or id(v) in shifts}
    arrays: dict[str, Array] = {}
    for group in groups:
        for (name, axis), places in group.slots.items():
            if name not in touched:
                continue
            array = arrays.setdefault(name, np.array(_held(fork, name)))
            for unit, positions in zip(group.units, places, strict=True):
                if unit in gone:
                    index: list[object] = [slice(None)] * array.ndim
                    index[axis] = positions
                    array[tuple(index)] = 0  # type: ignore[index]
    for name, array in arrays.items():
        _hold(fork, name, array)
    return fork


def _held(model: Model, name: str) -> Array:
    value = next(v for v in _constants(model) if v.name == name)
    array = constant(value)
    assert array is not None
    return array


def _constants(model: Model) -> list[ir.Value]:
    return [*model.graph.initializers.values(), *(n.outputs[0] for n in model.graph if n.op_type == "Constant")]


def _hold(model: Model, name: str, array: Array) -> None:
    value = next(v for v in _constants(model) if v.name == name)
    tensor = ir.Tensor(array, name=name)
    maker = value.producer()
    if maker is None:
        value.const_value = tensor
    else:
        maker.attributes["value"] = ir.AttrTensor("value", tensor)
        value.const_value = None


def judge(proto: onnx.ModelProto, feed: dict[str, Array], seed: int) -> str:
    """``cut``, ``refused`` or ``not comparable``; raises AssertionError when cutting was wrong."""
    model = Model.from_proto(proto)
    source = model.fork()
    structure = study(source)
    assert all(r.reason and r.where for r in structure.refused)
    if not structure.groups:
        return "refused"
    rng = np.random.default_rng(seed)
    gone = {int(u) for g in structure.groups for u in rng.permutation(g.units)[: rng.integers(1, g.size)]}
    try:
        cut = take_out(model.fork(), gone)
    except NotValid as error:
        raise AssertionError(f"seed {seed}: {error}") from error
    onnx.checker.check_model(cut.to_proto(), full_check=True)
    assert cut.signature == model.signature
    before = run(masked(source, structure, list(structure.groups), gone), feed)
    after = run(cut, feed)
    for name, wanted in before.items():
        got = after[name]
        assert got.shape == wanted.shape
        if wanted.dtype.kind == "f" and wanted.dtype != np.float16:
            if not np.isfinite(wanted).all():
                return "not comparable"
            scale = max(1.0, float(np.abs(wanted).max(initial=0)))
            assert np.abs(got - wanted).max(initial=0) <= CLOSE * scale, f"seed {seed}: {name}"
    return "cut"


@pytest.mark.parametrize("first", SEEDS[::PER_TEST])
def test_generated_networks(first: int) -> None:
    found = Counter(judge(*make(seed), seed) for seed in range(first, first + PER_TEST))
    assert found["cut"] >= 0.8 * PER_TEST, found


def test_refit_of_generated_networks_moves_them_towards_the_original() -> None:
    shares = []
    for seed in range(8):
        proto, feed = make(seed)
        model = Model.from_proto(proto)
        structure = study(model.fork())
        rng = np.random.default_rng(seed)
        gone = {int(u) for g in structure.groups for u in rng.permutation(g.units)[: g.size // 3]}
        if not gone:
            continue
        cut = take_out(model.fork(), gone)
        feeds = [{"x": rng.standard_normal(feed["x"].shape).astype(np.float32)} for _ in range(24)]
        result = Refit()(cut, LocalContext(feeds, original=model))
        onnx.checker.check_model(result.model.to_proto(), full_check=True)
        errors = [
            sum(float(np.square(run(m, f)["y"] - run(model, f)["y"]).sum()) for f in feeds) for m in (cut, result.model)
        ]
        assert np.isfinite(errors).all()
        shares.append(errors[1] / max(errors[0], 1e-12))
    assert len(shares) >= 5 and np.median(shares) < 0.7, shares


def test_generated_graphs_of_all_kinds() -> None:
    found: Counter[str] = Counter()
    for seed in range(60):
        made = fuzzed(seed)
        found[judge(made.model, made.feeds[0], seed)] += 1
    assert found["cut"] >= 5, found
