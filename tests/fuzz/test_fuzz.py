"""A bounded run of the fuzz target on fixed seeds, and proof that it catches wrong passes."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict

import numpy as np
import onnx
import pytest

from passes import catalogue
from passes.clean import fold_constants
from passes.fuse import fold_batchnorm, fuse_activation, fuse_layernorm
from passes.kit.contract import PassResult
from tests.fuzz.campaign import Summary, table
from tests.fuzz.generate import make
from tests.fuzz.judge import SPENDING, judge

SEEDS = range(30)


@pytest.mark.parametrize("first", SEEDS[::10])
def test_every_pass_keeps_its_promises(first: int) -> None:
    failures = [str(f) for seed in range(first, first + 10) for f in judge(seed).failures]
    assert not failures, "\n".join(failures)


def test_the_same_seed_gives_the_same_bytes() -> None:
    for seed in (3, 7):
        one, two = make(seed), make(seed)
        assert one.model.SerializeToString() == two.model.SerializeToString()
        assert one.variant.SerializeToString() == two.variant.SerializeToString()
        assert one.variant.SerializeToString() != one.model.SerializeToString()


def test_models_are_valid_and_varied() -> None:
    ops: Counter[str] = Counter()
    kinds, opsets, bodies, free = set(), set(), 0, 0
    for seed in range(150):
        made = make(seed)
        onnx.checker.check_model(made.model)
        onnx.checker.check_model(made.variant)
        ops.update(n.op_type for n in made.model.graph.node)
        kinds |= {t.type.tensor_type.elem_type for t in made.model.graph.input}
        opsets |= {o.version for o in made.model.opset_import if not o.domain}
        bodies += any(a.type == onnx.AttributeProto.GRAPH for n in made.model.graph.node for a in n.attribute)
        free += any(d.dim_param for i in made.model.graph.input for d in i.type.tensor_type.shape.dim)
    assert len(ops) >= 60 and len(kinds) >= 5 and len(opsets) >= 10
    assert bodies >= 10 and free >= 50


def test_every_pass_of_the_catalogue_has_its_turn() -> None:
    named = {s.name for s in catalogue.LOSSLESS.steps} | set(SPENDING)
    assert named == set(catalogue.names())


# -- wrong passes are caught ------------------------------------------------------------------------------------------
def _fails(seeds: range, recipe: str) -> bool:
    return any(f.recipe == recipe for seed in seeds for f in judge(seed).failures)


def test_a_lost_epsilon_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = fold_batchnorm.attribute
    lost = lambda node, name, default: 0.1 if name == "epsilon" else right(node, name, default)  # noqa: E731
    monkeypatch.setattr(fold_batchnorm, "attribute", lost)
    assert _fails(range(20), "fold-batchnorm")


def test_the_wrong_branch_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = fold_constants.constant
    monkeypatch.setattr(fold_constants, "constant", lambda v: None if (a := right(v)) is None else np.logical_not(a))
    assert _fails(range(10), "fold-constants")


def test_a_pass_that_raises_or_lies_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: object, model: object, context: object) -> PassResult:
        raise KeyError("lost")

    monkeypatch.setattr(fuse_activation.FuseActivation, "apply", broken)
    monkeypatch.setattr(fuse_layernorm.FuseLayernorm, "apply", lambda s, m, c: PassResult(m, (object(),)))  # type: ignore[arg-type]
    told = [str(f) for f in judge(0).failures]
    assert any("raised KeyError" in line and "tests.fuzz 0" in line for line in told)
    assert any("fuse-layernorm raised ContractBroken" in line for line in told)


# -- the table --------------------------------------------------------------------------------------------------------
def test_the_table_says_what_is_missed() -> None:
    summary = Summary()
    summary.add(asdict(judge(1)))
    assert not summary.failures and "| models | 1 (seeds 1 to 1) |" in table(summary, 1, 1)
    summary.count = 1000
    missed = "\n".join(summary.missed())
    assert "quantize-fp8 fired" in missed or "equalize fired" in missed
    assert "models were changed" in missed and "operator types" in missed
