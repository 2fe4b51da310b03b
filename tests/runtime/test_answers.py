"""What a pass is told about the world: right, remembered, the same at every batch, and in bounded memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimizer.data.checks import from_arrays
from optimizer.data.samples import Samples
from optimizer.runtime import answers as module
from optimizer.runtime.answers import World
from optimizer.runtime.sessions import Site
from optimizer.store.store import Store, key_of
from passes.kit.context import NoData
from passes.kit.model import Model
from passes.kit.reducers import ChannelMaxAbs, Histogram, MinMax, SampleExtremes
from tests.support.runtime import model, run, target

TEXT = """<ir_version: 8, opset_import: ["" : 17]> g (float[n,6] x) => (float[n,6] y) {
    h = MatMul(x, w)
    y = Tanh(h)
}"""
SITE = Site("CPUExecutionProvider", 1, "test")
rng = np.random.default_rng(0)
DATA = rng.normal(size=(37, 6)).astype(np.float32)


@pytest.fixture
def subject() -> Model:
    return model(TEXT, w=rng.normal(size=(6, 6)).astype(np.float32))


def world(tmp_path: Path, subject: Model, samples: Samples | None) -> World:
    return World(target(), 0, SITE, Store(tmp_path), key_of, samples)


def samples_of(subject: Model) -> Samples:
    return from_arrays({"x": DATA}, subject.signature.inputs)


def reducers() -> dict[str, Any]:
    return {"x": MinMax(), "h": ChannelMaxAbs(axis=-1), "y": Histogram(-1.0, 1.0, 64)}


def test_inputs_inner_values_and_outputs_are_folded_over_every_sample_once(tmp_path: Path, subject: Model) -> None:
    told = world(tmp_path, subject, samples_of(subject)).stats(subject, reducers())
    inside = run(subject, {"x": DATA}, ["h", "y"])
    assert told["x"].arrays["count"] == DATA.size and told["x"].low == DATA.min() and told["x"].high == DATA.max()  # type: ignore[attr-defined]
    np.testing.assert_allclose(told["h"].arrays["high"], np.abs(inside["h"]).max(0), rtol=1e-6)
    assert told["y"].arrays["counts"].sum() == DATA.size


def test_the_answer_does_not_depend_on_how_samples_are_grouped(
    tmp_path: Path, subject: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []
    for room in (1, 130, 1 << 20):
        monkeypatch.setattr(module, "PARCEL_BYTES", room)
        told.append(world(tmp_path / str(room), subject, samples_of(subject)).stats(subject, reducers()))
    for name in reducers():
        for key in told[0][name].arrays:
            assert all(np.array_equal(told[0][name].arrays[key], t[name].arrays[key]) for t in told)


def test_padding_of_a_models_own_batch_is_left_out_and_samples_are_told_apart(tmp_path: Path) -> None:
    fixed = model(TEXT.replace("[n,", "[5,"), w=np.eye(6, dtype=np.float32))
    told = world(tmp_path, fixed, samples_of(fixed)).stats(fixed, {"x": MinMax(), "h": SampleExtremes()})
    assert told["x"].arrays["count"] == DATA.size
    assert told["h"].arrays["samples"] == len(DATA)
    means = told["h"].means()  # type: ignore[attr-defined]
    assert means == pytest.approx((DATA.min(1).mean(dtype=float), DATA.max(1).mean(dtype=float)), rel=1e-12)


def test_a_question_is_answered_once(tmp_path: Path, subject: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    first = world(tmp_path, subject, samples_of(subject))
    before = first.stats(subject, reducers())
    monkeypatch.setattr(World, "_fold", lambda *_: pytest.fail("asked again"))
    again = world(tmp_path, subject, samples_of(subject))
    after = again.stats(subject, reducers())
    assert first.answered == again.answered and len(again.answered) == 1
    assert all(np.array_equal(before[n].arrays[k], after[n].arrays[k]) for n in before for k in before[n].arrays)


def test_without_data_nothing_is_made_up(tmp_path: Path, subject: Model) -> None:
    with pytest.raises(NoData):
        world(tmp_path, subject, None).stats(subject, reducers())
    with pytest.raises(NoData):
        world(tmp_path, subject, None).cost(subject)


def test_runs_and_costs(tmp_path: Path, subject: Model) -> None:
    asked = world(tmp_path, subject, samples_of(subject))
    (told,) = asked.run(subject, [{"x": DATA[:2]}], ["h", "x"])
    np.testing.assert_array_equal(told["x"], DATA[:2])
    np.testing.assert_array_equal(told["h"], run(subject, {"x": DATA[:2]}, ["h"])["h"])
    assert 0 < asked.cost(subject) < 100


def test_an_unknown_value_is_said(tmp_path: Path, subject: Model) -> None:
    with pytest.raises(KeyError, match="nowhere"):
        world(tmp_path, subject, samples_of(subject)).stats(subject, {"nowhere": MinMax()})


def test_the_first_samples_are_handed_out_one_a_feed(tmp_path: Path, subject: Model) -> None:
    found = world(tmp_path, subject, samples_of(subject)).sampled(3)
    assert len(found) == 3
    for row, feed in zip(DATA, found, strict=False):
        np.testing.assert_array_equal(feed["x"], row[None])
    assert len(world(tmp_path, subject, samples_of(subject)).sampled(10**6)) == len(DATA)
    with pytest.raises(NoData):
        world(tmp_path, subject, None).sampled(1)
