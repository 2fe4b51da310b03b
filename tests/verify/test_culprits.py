"""A wrong rewrite among right ones is found, reduced to a few nodes, left out alone, and can be run again by anyone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from optimizer.runtime.answers import World
from optimizer.runtime.sessions import Site
from optimizer.store.store import Store, key_of
from optimizer.verify.apply import REPRODUCERS, Builder
from optimizer.verify.culprits import without_culprits
from optimizer.verify.reduce import first_difference, reduce
from optimizer.verify.verifier import Verifier
from passes.kit.context import Context, Without
from passes.kit.contract import Edit, Exactness, Pass, PassResult, rewrite_graphs
from passes.kit.match import compute
from passes.kit.model import Model
from passes.kit.options import option
from passes.kit.recipe import Recipe
from tests.support.runtime import LocalContext, model, op_types, run, target

LAYERS = 12


def chain() -> Model:
    """Twelve times Neg(Neg(x)) + 1, with a Relu between."""
    steps = ["h0 = Identity(x)"]
    for i in range(LAYERS):
        steps += [f"a{i} = Neg(h{i})", f"b{i} = Neg(a{i})", f"h{i + 1} = Add(b{i}, one)"]
    body = "  ".join([*steps, f"y = Relu(h{LAYERS})"])
    text = f'<ir_version: 8, opset_import: ["": 17]> g (float[n, 8] x) => (float[n, 8] y) {{ {body} }}'
    return model(text, one=np.float32(1))


@dataclass(frozen=True)
class DropNegs(Pass):
    """Removes Neg(Neg(x)), except that it spoils some of them."""

    name = "drop-negs"
    exactness = Exactness.EXACT

    spoiled: tuple[str, ...] = option((), "which")
    asks: bool = option(True, "whether it asks before it rewrites")
    brittle: bool = option(False, "whether it raises when it may not rewrite")

    def apply(self, model: Model, context: Context) -> PassResult:
        def rewrite(graph: ir.Graph, edit: Edit) -> None:
            for node in list(graph):
                first = node.inputs[0].producer() if node.op_type == "Neg" and node.inputs[0] is not None else None
                if first is None or first.op_type != "Neg" or (self.asks and not edit.allows("negs", node)):
                    if first is not None and first.op_type == "Neg" and self.brittle:
                        raise ValueError("all or nothing")
                    continue
                name = str(node.outputs[0].name)
                compute(edit, node.outputs[0], "Abs" if name in self.spoiled else "Identity", [first.inputs[0]])
                edit.change("negs", name)

        return rewrite_graphs(model, rewrite, context)


FEED = {"x": -np.ones((2, 8), np.float32) * 20}


@pytest.fixture
def builder(tmp_path: Path) -> Iterator[Builder]:
    site = Site("CPUExecutionProvider", 1, "test")
    store = Store(tmp_path / "cache")
    verifier = Verifier(site, store, [FEED])
    yield Builder(World(target(), 0, site, store, key_of), verifier, store, {"drop-negs": DropNegs})
    verifier.close()


def test_the_compile_goes_on_without_the_wrong_rewrite_alone(builder: Builder) -> None:
    found = builder.build(chain(), Recipe.parse('drop-negs{spoiled=["b3", "b7"]}'))
    (note,) = found.notes
    assert not note.fault and note.changes == LAYERS - 2
    assert op_types(found.model).count("Neg") == 4 and "Abs" not in op_types(found.model)
    assert [text.split(":")[0] for text in note.left_out] == ["negs at b3", "negs at b7"]
    assert all("drop-negs was kept without negs at" in line for line in found.fault_lines())
    assert builder.build(chain(), Recipe.parse('drop-negs{spoiled=["b3", "b7"]}')).notes == (note,), "from the store"


def test_the_reproducer_holds_a_few_nodes_and_shows_the_fault(builder: Builder) -> None:
    (note,) = builder.build(chain(), Recipe.parse('drop-negs{spoiled=["b5"]}')).notes
    (told,) = note.left_out
    match = re.search(r"reproducer: (.+) in the cache folder, (\d+) nodes", told)
    assert match and int(match[2]) <= 3
    folder = builder.store.root / match[1]
    assert {p.name for p in folder.iterdir()} == {"before.onnx", "after.onnx", "feed.npz", "README.txt"}
    assert "lathe debug bisect before.onnx after.onnx --data feed.npz" in (folder / "README.txt").read_text()
    feed = {name: array[0] for name, array in np.load(folder / "feed.npz").items()}
    one, other = (run(Model.from_proto(onnx.load(folder / f)), feed) for f in ("before.onnx", "after.onnx"))
    assert one.keys() == other.keys() and any(not np.array_equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("options", ['spoiled=["b3"], asks=false', f"spoiled={[f'b{i}' for i in range(6)]}"])
def test_a_pass_that_does_not_ask_or_is_wrong_everywhere_goes_as_a_whole(builder: Builder, options: str) -> None:
    found = builder.build(chain(), Recipe.parse(f"drop-negs{{{options}}}".replace("'", '"')))
    assert found.faults and not found.notes[0].left_out and found.model.digest() == chain().digest()


def test_why_there_was_no_bisection_is_told(builder: Builder) -> None:
    (note,) = builder.build(chain(), Recipe.parse('drop-negs{spoiled=["b3"], brittle=true}')).faults
    assert "without some of its rewrites: it raised ValueError: all or nothing" in note.fault


def test_why_there_is_no_reproducer_is_told(builder: Builder) -> None:
    (builder.store.root / REPRODUCERS).write_text("a file where the folder belongs")
    (note,) = builder.build(chain(), Recipe.parse('drop-negs{spoiled=["b5"]}')).notes
    (told,) = note.left_out
    assert "no reproducer: " in told and not note.fault and note.changes == LAYERS - 1


def test_bisection_needs_few_runs() -> None:
    source, runs = chain(), 0
    subject = DropNegs(spoiled=("b9",))

    def again(sites: frozenset[tuple[str, str]]) -> PassResult:
        nonlocal runs
        runs += 1
        return subject(source, Without(LocalContext(), sites))

    def fails(after: Model) -> str:
        return "" if np.array_equal(run(source, FEED)["y"], run(after, FEED)["y"]) else "differs"

    found = without_culprits(again, fails, subject(source, LocalContext()))
    assert found is not None and [c.site for c in found[1]] == [("negs", "b9")] and runs <= 5


def values(subject: Model, feed: dict[str, np.ndarray], names: list[str]) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    return run(subject, feed, names)


def test_two_models_part_at_the_first_value_that_differs() -> None:
    left, right = chain(), DropNegs(spoiled=("b4",))(chain(), LocalContext()).model
    found = first_difference(left, right, FEED, values)  # type: ignore[arg-type]
    assert found is not None and found.value == "b4" and "Neg" in found.left and "Abs" in found.right
    assert "h4" in found.agreeing and first_difference(left, left.fork(), FEED, values) is None  # type: ignore[arg-type]


def test_a_part_inside_of_which_a_branch_reads_from_outside() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[2] x, bool c) => (float[2] y) {
        a = Neg(x)
        b = Exp(a)
        i = If(c) <then_branch = t () => (float[2] p) { p = Add(b, k) },
                   else_branch = e () => (float[2] q) { q = Neg(b) }>
        y = Relu(i)
    }"""
    left = model(text, k=np.float32([1, 2]))
    right = left.fork()
    next(n for g in list(right.graphs())[1:] for n in g if n.op_type == "Add").op_type = "Mul"
    right.forget_digest()
    feed = {"x": np.float32([1, 2]), "c": np.array(True)}
    pair = reduce(left, right, feed, values)  # type: ignore[arg-type]
    assert pair is not None and pair.output == "i" and set(pair.feed) == {"b", "c"}
    assert not np.array_equal(run(pair.left, pair.feed)["i"], run(pair.right, pair.feed)["i"])
    assert reduce(left, right, feed | {"c": np.array(False)}, values) is None  # type: ignore[arg-type]
