"""Adversarial inputs: what they hold, what a model may refuse, and that right rewrites pass them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from optimizer.runtime.sessions import Site
from optimizer.store.store import Store
from optimizer.verify.adversaries import CORNERS, Kind, adversaries, nudged
from optimizer.verify.verifier import Verifier
from passes import catalogue
from passes.kit.model import Port
from tests.support.corpus import CASES, Case
from tests.support.runtime import LocalContext, model

SITE = Site("CPUExecutionProvider", 1, "test")
PORTS = (Port("x", "FLOAT", ("n", 4, "h")), Port("i", "INT64", ("n",)))
BASE = {"x": np.random.default_rng(0).uniform(1, 2, (1, 4, 5)).astype(np.float32), "i": np.array([3])}


def by_name() -> dict[str, dict[str, np.ndarray]]:  # type: ignore[type-arg]
    return {p.name: dict(p.feed) for p in adversaries(PORTS, BASE, 0)}


def test_they_hold_what_data_do_not() -> None:
    found = by_name()
    assert np.isnan(found["NaN"]["x"]).any() and not np.isnan(found["NaN"]["x"]).all()
    assert {np.inf, -np.inf} <= set(found["infinities"]["x"].flat)
    assert np.abs(found["large"]["x"]).max() > 100 and (found["large"]["x"] < 0).any()
    tiny = np.abs(found["tiny"]["x"])
    assert 0 < tiny.max() < 1e-30 and (tiny < np.finfo(np.float32).tiny).any(), "some are denormal"
    assert set(found["corners"]["x"].flat) == set(np.float32(CORNERS))
    assert not found["zeros"]["x"].any() and found["signs"]["x"].max() < 0 and found["signs"]["i"][0] < 0


def test_open_dimensions_take_other_sizes_and_integers_stay_among_those_that_were_seen() -> None:
    feeds = [f for name, f in by_name().items() if name.startswith("sizes")]
    assert len(feeds) >= 2 and len({f["x"].shape for f in feeds}) == len(feeds)
    for feed in feeds:
        assert feed["x"].shape[0] == feed["i"].shape[0] and feed["x"].shape[1] == 4 and set(feed["i"]) == {3}


def test_the_same_seed_gives_the_same_and_heavy_models_get_fewer() -> None:
    one, two = by_name(), by_name()
    assert all(np.array_equal(one[k]["x"], two[k]["x"], equal_nan=True) for k in one)
    assert len(adversaries(PORTS, BASE, 0, weight_bytes=1 << 30)) == 2


def test_a_nudge_moves_every_float_by_a_few_last_bits() -> None:
    moved = nudged(BASE)
    gap = np.abs(moved["x"] / BASE["x"] - 1)
    assert gap.min() > 0 and gap.max() < 1e-6 and moved["i"] == BASE["i"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


@pytest.fixture
def verifiers(store: Store) -> Iterator[list[Verifier]]:
    made: list[Verifier] = []
    yield made
    for verifier in made:
        verifier.close()


def test_what_the_source_refuses_is_no_measure(store: Store, verifiers: list[Verifier]) -> None:
    source = model(
        """<ir_version: 8, opset_import: ["": 17]> g (int64[n] x) => (float[n, 2] y) { y = Gather(w, x) }""",
        w=np.ones((4, 2), np.float32),
    )
    verifiers.append(verifier := Verifier(SITE, store, [{"x": np.array([3, 1])}]))
    kept, refused = verifier.tolerated(source, adversaries(source.signature.inputs, verifier.probes[0], 0))
    assert refused == ["signs"], "there is no row -7"
    assert {p.kind for p in kept} == {Kind.PLAIN}


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_right_rewrites_pass_them(case: Case, store: Store, verifiers: list[Verifier]) -> None:
    source = case.build()
    verifiers.append(verifier := Verifier(SITE, store, [dict(f) for f in case.feeds]))
    tried = adversaries(source.signature.inputs, verifier.probes[0], 0)
    verifier.adversaries, verifier.refused = verifier.tolerated(source, tried)
    assert verifier.adversaries
    for subject in catalogue.build(catalogue.LOSSLESS):
        if not subject.native:
            result = subject(source, LocalContext())
            assert not verifier.check(source, result.model, subject.exactness).fault, subject.name
            source = result.model
