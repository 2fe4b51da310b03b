"""What counts as proved: structure and constants do, other algebra does not, and a wrong rewrite never."""

from __future__ import annotations

import numpy as np
import pytest

from optimizer.verify.proofs import Counts, count, unproved
from passes import catalogue
from passes.kit.contract import Change, PassResult
from passes.kit.recipe import Recipe
from tests.support.corpus import CASES
from tests.support.runtime import LocalContext, model
from tests.verify.mutations.catalogue import MUTATIONS, STRUCTURE, Mutation

HEAD = '<ir_version: 10, opset_import: ["": 20]> g (float[n, 8] x) => (float[n, 8] y) '


def counted(name: str, body: str, **weights: np.ndarray) -> Counts:  # type: ignore[type-arg]
    before = model(HEAD + "{" + body + "}", **weights)
    (subject,) = catalogue.build(Recipe.parse(name))
    result = subject(before, LocalContext())
    assert result.changes, "the pass has something to do"
    return count(before, result)


@pytest.mark.parametrize(
    "body",
    [
        "a = Identity(x)  y = Relu(a)",
        "y = Relu(x)  dead = Exp(x)",
        "a = Relu(x)  b = Relu(x)  y = Add(a, b)",
        "a = Dropout(x)  y = Relu(a)",
        "a = Transpose<perm = [1, 0]>(x)  b = Transpose<perm = [1, 0]>(a)  y = Relu(b)",
    ],
    ids=["identity", "dead", "twin", "dropout", "transposes"],
)
def test_structure_is_proved(body: str) -> None:
    counts = counted("tidy", body)
    assert counts.proved >= 1 and counts.tested == counts.unreached == 0


def test_constants_are_proved_by_the_reference_evaluator() -> None:
    counts = counted(
        "fold-constants", "c = Add(u, v)  d = Sqrt(c)  y = Mul(x, d)", u=np.float32([2]), v=np.float32([3])
    )
    assert counts == Counts(proved=2)


def test_other_algebra_is_tested_and_what_stands_beside_it_is_still_proved() -> None:
    body = "a = Identity(x)  r = Relu(a)  c = Clip(r, low, high)  i = Identity(c)  y = Neg(i)"
    before = model(HEAD + "{" + body + "}", low=np.float32(0), high=np.float32(6))
    tidy, fuse = catalogue.build(Recipe.parse("tidy, fuse-activation"))
    fused = fuse(before, LocalContext())
    both = tidy(fused.model, LocalContext())
    result = PassResult(both.model, fused.changes + both.changes)
    counts = count(before, result)
    assert counts.tested >= 1 and counts.proved >= 1
    assert counts.proved + counts.tested == len(result.changes)


def test_a_change_inside_a_branch_is_unreached() -> None:
    case = next(c for c in CASES if c.name == "branch")
    before = case.build()
    after = before.fork()
    inner = next(n for g in list(after.graphs())[1:] for n in g if n.op_type == "Relu")
    inner.op_type = "LeakyRelu"
    after.forget_digest()
    where = inner.name or str(inner.outputs[0].name)
    assert count(before, PassResult(after, (Change("leaky", where),))) == Counts(unreached=1)


@pytest.mark.parametrize("mutation", [m for m in MUTATIONS if m.caught != STRUCTURE], ids=lambda m: m.name)
def test_a_wrong_rewrite_is_never_proved(mutation: Mutation) -> None:
    before = mutation.model()
    after = mutation.mutant()(before, LocalContext()).model
    assert unproved(before, after), "its output at least"
