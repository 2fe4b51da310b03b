"""Every wrong rewrite is caught, and by the check that is there for it: with that check off it goes through."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from optimizer.runtime import sessions
from optimizer.runtime.sessions import Site
from optimizer.store.store import Store
from optimizer.verify.adversaries import adversaries
from optimizer.verify.verifier import Verifier
from optimizer.workers.pool import Worker
from passes.kit.model import Model
from tests.support.runtime import LocalContext
from tests.verify.mutations.catalogue import ADVERSARIAL, MUTATIONS, REAL, STRUCTURE, Mutation

SITE = Site("CPUExecutionProvider", 1, "test")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with sessions.worker() as found:
        yield found


def verifier(mutation: Mutation, source: Model, store: Store, worker: Worker) -> Verifier:
    made = Verifier(SITE, store, [dict(mutation.feed)], _worker=worker)
    tried = adversaries(source.signature.inputs, mutation.feed, 0, source.weight_bytes())
    made.adversaries, made.refused = made.tolerated(source, tried)
    return made


def blinded(whole: Verifier, caught: str) -> Verifier:
    """The same verifier with one check off."""
    kept = whole.adversaries if caught == STRUCTURE else ()
    probes = () if caught == REAL else whole.probes
    return Verifier(SITE, whole.store, probes, kept, structural=caught == ADVERSARIAL, _worker=whole._worker)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_a_wrong_rewrite_is_caught_by_the_check_that_is_there_for_it(
    mutation: Mutation, store: Store, worker: Worker
) -> None:
    source = mutation.model()
    result = mutation.mutant()(source, LocalContext())
    assert result.changes
    whole = verifier(mutation, source, store, worker)
    assert not whole.check(source, source.fork(), mutation.exactness).fault, "the model itself holds"
    assert whole.check(source, result.model, mutation.exactness).fault
    assert not blinded(whole, mutation.caught).check(source, result.model, mutation.exactness).fault


def test_there_are_enough_of_them() -> None:
    names = [m.name for m in MUTATIONS]
    assert len(set(names)) == len(names) >= 25
    assert sum(m.caught == ADVERSARIAL for m in MUTATIONS) >= 5
