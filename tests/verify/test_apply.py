"""A recipe is verified pass by pass: what is wrong, raises or crashes is named and left out, the rest goes on."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from optimizer.runtime.answers import World
from optimizer.runtime.sessions import Site
from optimizer.store.store import Store, key_of
from optimizer.verify.apply import Builder
from optimizer.verify.verifier import Verifier
from passes.kit.context import Context
from passes.kit.contract import Edit, Exactness, Pass, PassResult, rewrite_graphs
from passes.kit.model import Model, constant
from passes.kit.options import option
from passes.kit.recipe import Recipe
from tests.support.runtime import model, op_types, target

TEXT = """<ir_version: 8, opset_import: ["" : 17]> g (float[n,8] x) => (float[n,8] y) {
    a = Identity(x)
    b = Add(a, one)
    c = Relu(b)
    y = Mul(c, two)
}"""


class _Nudge(Pass):
    """Adds `by` to every scalar constant."""

    by: float

    def apply(self, model: Model, context: Context) -> PassResult:
        def rewrite(graph: ir.Graph, edit: Edit) -> None:
            for value in list(graph.initializers.values()):
                array = constant(value)
                if array is not None and array.shape == ():
                    value.const_value = ir.Tensor(np.asarray(array + np.float32(self.by)), name=value.name)
                    edit.change("nudge", value)

        return rewrite_graphs(model, rewrite, rounds=1)


@dataclass(frozen=True)
class Wrong(_Nudge):
    """Changes what is computed and says that it does not."""

    name = "wrong"
    exactness = Exactness.NUMERIC
    by: float = option(0.5, "how much")


@dataclass(frozen=True)
class Drift(_Nudge):
    """Moves the outputs by less than one comparison allows."""

    name = "drift"
    exactness = Exactness.NUMERIC
    by: float = option(8e-7, "how much")


@dataclass(frozen=True)
class Raises(Pass):
    """Raises."""

    name = "raises"
    exactness = Exactness.EXACT

    def apply(self, model: Model, context: Context) -> PassResult:
        raise ValueError("no such thing")


@dataclass(frozen=True)
class Renames(Pass):
    """Breaks the signature."""

    name = "renames"
    exactness = Exactness.EXACT

    def apply(self, model: Model, context: Context) -> PassResult:
        def rewrite(graph: ir.Graph, edit: Edit) -> None:
            graph.outputs[0].name = "z"
            edit.change("rename", graph.outputs[0])

        return rewrite_graphs(model, rewrite, rounds=1)


@dataclass(frozen=True)
class Crashes(Pass):
    """Takes its process down, as native code can."""

    name = "crashes"
    exactness = Exactness.EXACT
    native = True

    def apply(self, model: Model, context: Context) -> PassResult:
        os.kill(os.getpid(), signal.SIGSEGV)
        return PassResult(model)


@dataclass(frozen=True)
class CrashesUnsaid(Crashes):
    """Takes its process down without a word about native code."""

    name = "crashes-unsaid"
    native = False


@dataclass(frozen=True)
class Exits(Pass):
    """Ends the program, as a script may."""

    name = "exits"
    exactness = Exactness.EXACT

    def apply(self, model: Model, context: Context) -> PassResult:
        raise SystemExit(7)


@dataclass(frozen=True)
class Chatty(Pass):
    """Prints, and spoils the model that it was given."""

    name = "chatty"
    exactness = Exactness.EXACT

    def apply(self, model: Model, context: Context) -> PassResult:
        print("hello from a pass")
        model.graph.outputs[0].name = "spoiled"
        return PassResult(model)


@dataclass(frozen=True)
class Asks(Pass):
    """Asks for a value of the model, prints it, and changes nothing."""

    name = "asks"
    exactness = Exactness.EXACT

    def apply(self, model: Model, context: Context) -> PassResult:
        print(context.run(model, [{"x": np.zeros((1, 8), np.float32)}], ["b"]))
        return PassResult(model)


STRANGERS = (Wrong, Drift, Raises, Renames, Crashes, CrashesUnsaid, Exits, Chatty, Asks)
EXTRA: dict[str, type[Pass]] = {c.name: c for c in STRANGERS}


@pytest.fixture
def builder(tmp_path: Path) -> Iterator[Builder]:
    site = Site("CPUExecutionProvider", 1, "test")
    store = Store(tmp_path / "cache")
    probes = [{"x": np.random.default_rng(0).normal(size=(n, 8)).astype(np.float32)} for n in (1, 3)]
    verifier = Verifier(site, store, probes)
    yield Builder(World(target(), 0, site, store, key_of), verifier, store, EXTRA)
    verifier.close()


@pytest.fixture
def source() -> Model:
    return model(TEXT, one=np.float32(1), two=np.float32(2))


def test_a_good_recipe_is_applied_and_remembered(builder: Builder, source: Model) -> None:
    first = builder.build(source, Recipe.parse("tidy"))
    assert "Identity" not in op_types(first.model) and not first.faults and not first.lossy
    again = builder.build(source, Recipe.parse("tidy"))
    assert again.model.digest() == first.model.digest()
    assert again.notes == first.notes, "the second time comes from the store, seconds included"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("wrong", "output 'y' differs by"),
        ("raises", "it raised ValueError: no such thing"),
        ("renames", "changed the signature"),
        ("crashes", "SIGSEGV"),
        ("crashes-unsaid", "SIGSEGV"),
        ("exits", "the worker process ended"),
    ],
)
def test_a_faulty_pass_is_named_and_left_out(builder: Builder, source: Model, name: str, says: str) -> None:
    found = builder.build(source, Recipe.parse(f"{name}, tidy"))
    (fault,) = found.faults
    assert fault.name == name and says in fault.fault
    assert found.recipe == Recipe.parse("tidy"), "the recipe that ships is the one that was applied"
    assert "Identity" not in op_types(found.model)


@pytest.mark.parametrize("name", ["chatty", "asks"])
def test_what_a_pass_of_someone_else_prints_or_spoils_stays_with_it(
    builder: Builder, source: Model, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    found = builder.build(source, Recipe.parse(name))
    assert not found.faults and found.model is source
    assert source.graph.outputs[0].name == "y"
    assert capfd.readouterr().out == "", "stdout is for data"


def test_folding_a_weight_is_bit_equal_although_the_runtime_packs_constant_weights(builder: Builder) -> None:
    rng = np.random.default_rng(0)
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[n,8] x) => (float[n,1,32] h) {
        w = Concat<axis = 1>(w1, w2)
        s = Unsqueeze(x, axis)
        y, h3, c3 = LSTM<hidden_size = 32>(s, w, r)
        h = Identity(h3)
    }"""
    weights = {name: rng.normal(size=(1, 64, 8)).astype(np.float32) for name in ("w1", "w2")}
    source = model(text, **weights, r=rng.normal(size=(1, 128, 32)).astype(np.float32), axis=np.int64([1]))
    found = builder.build(source, Recipe.parse("fold-constants"))
    assert not found.faults and "Concat" not in op_types(found.model)


def test_a_verdict_holds_for_the_inputs_that_it_was_reached_on(builder: Builder, source: Model) -> None:
    world, store = builder.world, builder.store
    blind = Verifier(
        world.site, store, [{"x": np.full((1, 8), -100, np.float32)}]
    )  # Relu gives zeros whatever is added
    try:
        assert not Builder(world, blind, store, EXTRA).build(source, Recipe.parse("wrong")).faults
    finally:
        blind.close()
    (fault,) = builder.build(source, Recipe.parse("wrong")).faults
    assert "output 'y' differs by" in fault.fault, "not the drift of the whole chain"


def test_a_model_of_sequences_is_verified_like_any_other(builder: Builder) -> None:
    source = model(
        """<ir_version: 8, opset_import: ["" : 17]> g (seq(float[2]) xs) => (float[2] y) {
            i = Constant<value_int = 1>()
            a = SequenceAt(xs, i)
            b = Identity(a)
            y = Mul(b, two)
        }""",
        two=np.float32(2),
    )
    world, store = builder.world, builder.store
    verifier = Verifier(world.site, store, [{"xs": [np.ones(2, np.float32), np.float32([1, 3])]}])
    try:
        found = Builder(world, verifier, store, EXTRA).build(source, Recipe.parse("wrong, tidy"))
    finally:
        verifier.close()
    assert [f.name for f in found.faults] == ["wrong"]
    assert "Identity" not in op_types(found.model)


def test_a_chain_that_drifts_is_bisected_to_the_pass(builder: Builder, source: Model) -> None:
    found = builder.build(source, Recipe.parse("tidy, " + ", ".join(["drift"] * 12)))
    assert found.faults and all(f.name == "drift" for f in found.faults)
    kept = len(found.recipe.steps)
    assert 1 < kept < 13, "some drifts fit into the tolerance, not all of them together"
