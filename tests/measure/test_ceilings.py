"""Ceilings: the models do the work that they are credited with, and what is kept is found again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from optimizer.measure import ceilings
from optimizer.measure.latency import Effort, Timing
from optimizer.runtime import hardware
from optimizer.runtime.sessions import Site
from optimizer.store.store import Store
from passes.kit.work import node_work, traffic
from tests.support import runtime

SITE = Site("CPUExecutionProvider", 1, "1.31")


@pytest.mark.parametrize("made", [ceilings.float_product(), ceilings.int8_product()], ids=["float", "int8"])
def test_a_product_does_the_work_that_is_counted(made: ceilings.Probe) -> None:
    (node,) = node_work(made.model())
    assert node.macs == made.work and node.integer == (made.weight is not None and made.weight.dtype == np.int8)


def test_reading_reads_what_is_counted() -> None:
    made = ceilings.reading(1 << 20)
    model = made.model()
    ports = 4 * (256 + 1024)
    assert made.work == 1 << 20 and traffic(model, node_work(model)).least == made.work + ports


def test_a_chain_of_tiny_nodes_is_not_folded(tmp_path: Path) -> None:
    made = ceilings.tiny(5)
    assert runtime.run(made.model(), made.feed, optimize=True)["y"] == 6.0
    assert len(node_work(made.model())) == 5


def test_a_rate_is_that_of_the_best_moments() -> None:
    runs = np.array([10.0] * 2 + [20.0] * 8)
    found = ceilings.rate(Timing(((runs[:5],), (runs[5:],)), "cpu", 1.0, 1.0, 0), 1000.0)
    assert (found.low, found.value) == (50_000.0, 100_000.0) and found.high == 100_000.0


def test_what_was_measured_is_kept_for_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "last_cache_bytes", lambda: 1 << 20)
    monkeypatch.setattr(ceilings, "LEAST_MEMORY_BYTES", 1 << 22)
    store = Store(tmp_path)
    assert ceilings.kept(store, SITE) is None
    made = ceilings.measure(store, [SITE], lambda _: None, Effort(1, 0.02, least=2))
    assert ceilings.kept(store, SITE) == made
    assert ceilings.kept(store, Site(SITE.provider, 1, "1.30")) is None, "another runtime is another ceiling"
    (at,) = made.at
    assert at.float_macs.value > 1e8 and at.memory.value > 1e8 and 0 < at.call_ms.value < 10
    assert at.int8_macs is not None and at.float_macs.low <= at.float_macs.value <= at.float_macs.high
    store.put_answer(ceilings._key(SITE), {"cpu": 3})
    assert ceilings.kept(store, SITE) is None, "of another version of Lathe"
