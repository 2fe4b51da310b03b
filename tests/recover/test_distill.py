"""Training without the training code: torch computes what the runtime does, and a student learns from its teacher."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from optimizer import recovering
from optimizer.data.samples import Kind, Samples, Slicing
from optimizer.faults import Fault, cannot
from optimizer.plan import Settings, SourceRequest
from optimizer.progress import Silent
from optimizer.recover import distill as distilling
from optimizer.recover.distill import FITTED_RATE, Distilled, Lesson, Room, common, distill
from optimizer.recover.graph import torch_graph, with_weights
from optimizer.recovering import rate_behind
from optimizer.runtime.sessions import Site
from optimizer.store.store import Store
from passes import catalogue
from passes.kit.model import Model, constant
from passes.kit.recipe import Recipe
from passes.prune.prune_channels import PruneChannels
from passes.quantize.quantize_weights import QuantizeWeights
from tests.prune.nets import make
from tests.support.runtime import Array, LocalContext, model, run

torch = pytest.importorskip("torch", reason="torch is not installed")

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
TEXT = """g (float[n,6] x) => (float[n,5] y) {
    a = MatMul(x, w1) b = Add(a, b1) h = Relu(b) c = MatMul(h, w2) d = Add(c, b2) s = Add(d, x)
    i = MatMul(s, w3) j = Relu(i) y = MatMul(j, w4) }"""
rng = np.random.default_rng(2)
SITE = Site("CPUExecutionProvider", 1, "test")


def normal(*shape: int) -> Array:
    return np.asarray(rng.standard_normal(shape) / np.sqrt(shape[0]), np.float32)


def teacher() -> Model:
    return model(
        HEAD + TEXT, w1=normal(6, 16), b1=normal(16), w2=normal(16, 6), b2=normal(6), w3=normal(6, 12), w4=normal(12, 5)
    )


def samples(subject: Model, count: int = 64) -> Samples:
    ports = subject.signature.inputs
    inputs = {"x": rng.standard_normal((count, 6)).astype(np.float32)}
    return Samples(ports, inputs, {}, {"x": Slicing(Kind.ROWS, np.dtype(np.float32))}, np.arange(count))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    yield Store(tmp_path / "cache")


def room(store: Store, whole: Model, held: Samples, over: int = 10**6) -> Room:
    asked: list[int] = []

    def score(subject: Model) -> float:
        feeds = [f for f, _ in held.feeds(1)]
        return -sum(float(((run(subject, f)["y"] - run(whole, f)["y"]) ** 2).sum()) for f in feeds[:16])

    def told(done: int, planned: int, left: float | None) -> None:
        assert 0 < done <= planned
        asked.append(done)

    return Room(SITE, store, held, score, told, lambda: len(asked) >= over, False)


def pruned(whole: Model, held: Samples) -> Model:
    feeds = [f for f, _ in held.feeds(1)]
    return PruneChannels(multiple=1, ratio=0.3)(whole, LocalContext(feeds)).model


@pytest.mark.parametrize("first", [0, 20])
def test_torch_computes_what_the_runtime_does(first: int) -> None:
    for seed in range(first, first + 20):
        proto, feed = make(seed)
        if any(n.op_type == "ConvTranspose" for n in proto.graph.node):
            continue
        subject = Model.from_proto(proto)
        with torch.no_grad():
            got = torch_graph(subject)({k: torch.tensor(v) for k, v in feed.items()})
        for name, wanted in run(subject, feed).items():
            np.testing.assert_allclose(got[name].numpy(), wanted, rtol=2e-3, atol=2e-3, err_msg=f"seed {seed}")


def test_weights_come_back_where_they_were() -> None:
    proto, feed = make(3)
    subject = Model.from_proto(proto)
    held = {k: v.numpy() for k, v in torch_graph(subject).weights.items()}
    same = run(with_weights(subject, held), feed)
    for name, wanted in run(subject, feed).items():
        np.testing.assert_array_equal(same[name], wanted)
    moved = run(with_weights(subject, {k: v + 0.5 for k, v in held.items()}), feed)
    assert any(not np.allclose(moved[n], same[n]) for n in same)


def test_a_student_learns_what_was_pruned(store: Store) -> None:
    whole = teacher()
    held = samples(whole)
    student = pruned(whole, held)
    assert common(student, whole) == {"s": None}
    place = room(store, whole, held)
    found = distill(student, whole, Lesson(steps=160, rate=3e-3), place)
    assert found.steps > 0
    assert place.score(found.model) > 0.5 * place.score(student), found.note
    assert found.model.signature == whole.signature


def test_a_training_that_diverges_ships_what_was_there_before(store: Store) -> None:
    whole = teacher()
    held = samples(whole)
    student = pruned(whole, held)
    found = distill(student, whole, Lesson(steps=24, rate=1e30), room(store, whole, held))
    assert found.steps == 0 and found.model is student
    assert "no checkpoint was better" in found.note


def test_what_was_interrupted_goes_on_where_it_was(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = teacher()
    held = samples(whole)
    student = pruned(whole, held)
    lesson = Lesson(steps=48, rate=3e-3)
    distill(student, whole, lesson, room(store, whole, held, over=4))
    trained: list[int] = []
    ask = distilling._ask

    def counting(worker: object, job: str, **args: object) -> object:
        trained.extend([int(args["steps"])] if job == "train" else [])  # type: ignore[call-overload]
        return ask(worker, job, **args)  # type: ignore[arg-type]

    monkeypatch.setattr(distilling, "_ask", counting)
    again: Distilled = distill(student, whole, lesson, room(store, whole, held))
    assert 0 < sum(trained) < 48, "the steps before were not made again"
    straight = distill(student, whole, lesson, room(Store(store.root.parent / "other"), whole, held))
    assert again.steps == straight.steps
    np.testing.assert_allclose(
        run(again.model, {"x": np.ones((1, 6), np.float32)})["y"],
        run(straight.model, {"x": np.ones((1, 6), np.float32)})["y"],
        atol=1e-4,
    )


def test_minutes_bound_the_training(store: Store) -> None:
    whole = teacher()
    held = samples(whole)
    found = distill(pruned(whole, held), whole, Lesson(minutes=1e-6), room(store, whole, held))
    assert found.note.startswith("1 steps")


def test_operators_that_cannot_be_trained_are_named(store: Store) -> None:
    text = "g (float[n,6] x) => (float[n,6] y) { a = MatMul(x, w) y = CumSum(a, one) }"
    whole = model(HEAD + text, w=normal(6, 6), one=np.array(1))
    with pytest.raises(Fault, match="CumSum cannot be trained"):
        distill(whole, whole, Lesson(steps=2), room(store, whole, samples(teacher())))


# -- with quantizers in the loop ---------------------------------------------------------------------------------------
FORMS = ("quantize-static{weight_range=7}", "quantize-weights{method=rtn, bits=2, block=16, accuracy_level=0}")


def codes_of(subject: Model) -> dict[str, Array]:
    held = {n: constant(v) for n, v in subject.graph.initializers.items()}
    return {n: a for n, a in held.items() if a is not None and a.dtype in (np.int8, np.uint8) and a.size > 4}


@pytest.mark.parametrize("form", FORMS)
def test_integers_are_trained_as_they_are_stored(form: str, store: Store) -> None:
    whole = teacher()
    held = samples(whole)
    feeds = [f for f, _ in held.feeds(1)]
    (subject,) = catalogue.build(Recipe.parse(form))
    student = subject(whole, LocalContext(feeds)).model
    place = room(store, whole, held)
    found = distill(student, whole, Lesson(steps=120, rate=3e-3), place)
    assert place.score(found.model) > 0.75 * place.score(student), found.note
    before, after = codes_of(student), codes_of(found.model)
    assert before.keys() == after.keys() and any(not np.array_equal(before[n], after[n]) for n in before)
    for name, array in after.items():
        assert array.dtype == before[name].dtype and array.shape == before[name].shape
        assert "weight_range" not in form or np.abs(array).max() <= 7
    assert [n.op_type for n in found.model.graph] == [n.op_type for n in student.graph]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_codes_stay_what_they_are_until_they_are_trained(bits: int) -> None:
    whole = model(HEAD + "g (float[n,40] x) => (float[n,24] y) { y = MatMul(x, w) }", w=normal(40, 24))
    for symmetric in (False, True):
        subject = QuantizeWeights(method="rtn", bits=bits, block=16, symmetric=symmetric, accuracy_level=0)
        student = subject(whole, LocalContext()).model
        graph = torch_graph(student)
        same = with_weights(student, graph.arrays())
        assert same.digest() == student.digest()
        feed = {"x": normal(3, 40)}
        with torch.no_grad():
            got = graph({"x": torch.tensor(feed["x"])})["y"].numpy()
        np.testing.assert_allclose(got, run(student, feed)["y"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("made_by", "rate"),
    [
        ("", None),
        ("tidy, prune-channels{ratio=0.25}", None),
        ("prune-channels{ratio=0.25}, refit", FITTED_RATE),
        ("prune-channels{ratio=0.25}, refit, quantize-static", None),
    ],
)
def test_what_was_refitted_is_trained_gently(made_by: str, rate: float | None) -> None:
    assert rate_behind(Recipe.parse(made_by) if made_by else Recipe()) == rate


def test_what_cannot_be_trained_is_told_and_what_was_found_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    bench = SimpleNamespace(
        watch=Silent(), settings=Settings(SourceRequest("")), source=SimpleNamespace(model=None), splits=None
    )
    climb: Any = SimpleNamespace(bench=bench, warn=said.append)

    def refuse(*_: object) -> None:
        raise cannot("ConvTranspose cannot be trained", code=distilling.NOT_TRAINABLE)

    monkeypatch.setattr(recovering, "distill", refuse)
    monkeypatch.setattr(recovering, "_room", lambda _: None)
    recovering._teach(climb, Model.__new__(Model), Recipe(), "narrow", [])
    assert said == ["'narrow' is not trained: ConvTranspose cannot be trained"]
