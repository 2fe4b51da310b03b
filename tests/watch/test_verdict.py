"""Ok, drift, undecided: what each takes, and that little data or data that never varies is never called wrong."""

from __future__ import annotations

import numpy as np
import pytest

from optimizer.report.drift import Drift, lines
from optimizer.watch.sketches import MOST_CLASSES, OTHER, Array, Pile, Seen
from optimizer.watch.verdict import Key, judge
from passes.kit.summaries import Layout, layout_of, rows

FLAT = layout_of((1, 12, 12), np.dtype(np.float32))


def images(count: int, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    level, spread = rng.uniform(0.3, 0.6, (2, count, 1, 1, 1))
    return np.clip(level + spread * 0.3 * rng.standard_normal((count, 1, 12, 12)), 0, 1).astype(np.float32)


def seen(batch: Array, layout: Layout = FLAT) -> Seen:
    pile = Pile(layout)
    pile.add(rows(layout, batch))
    return pile.seen()


def key(name: str = "x", part: str = "input") -> Key:
    return part, name


BEFORE = {key(): seen(images(600, 0))}


def test_the_same_distribution_is_ok_and_a_darker_one_is_drift() -> None:
    same = judge(BEFORE, {key(): seen(images(300, 1))})
    assert same.verdict is Drift.OK and same.shift is not None and same.shift < 0.6 and not same.changes
    darker = judge(BEFORE, {key(): seen(images(300, 1) * 0.8)})
    assert darker.verdict is Drift.DRIFT
    assert "mean" in {c.statistic for c in darker.changes} and all(c.p <= c.alpha for c in darker.changes)
    assert lines(darker)[0].startswith("drift: the data is not what the artifact was made for (1 thing changed)")


@pytest.mark.parametrize("count", [1, 2, 5, 20, 60])
def test_few_samples_are_undecided_and_say_how_many_would_do(count: int) -> None:
    found = judge(BEFORE, {key(): seen(images(count, 2))})
    assert found.verdict is Drift.UNDECIDED
    need = int(found.need.split()[0])
    assert judge(BEFORE, {key(): seen(images(need, 3))}).verdict is Drift.OK


def test_one_sample_that_is_off_alone_proves_nothing() -> None:
    assert judge(BEFORE, {key(): seen(images(1, 2) * 255)}).verdict is Drift.UNDECIDED
    assert judge(BEFORE, {key(): seen(images(20, 2) * 255)}).verdict is Drift.DRIFT


def test_few_remembered_samples_leave_it_undecided_for_good() -> None:
    found = judge({key(): seen(images(40, 0))}, {key(): seen(images(5000, 1))})
    assert found.verdict is Drift.UNDECIDED and "make the artifact with more data" in found.need


def test_what_never_varied_is_no_basis_for_a_test() -> None:
    constant = np.full((600, 1, 12, 12), 0.5, np.float32)
    alone = {key(): seen(constant)}
    assert judge(alone, {key(): seen(constant[:300])}).verdict is Drift.UNDECIDED
    other = judge(alone, {key(): seen(constant[:300] * 2)})
    assert other.verdict is Drift.UNDECIDED and "input 'x' never varied" in other.reason
    both = {**BEFORE, key("c"): seen(constant)}
    assert judge(both, {key(): seen(images(300, 1)), key("c"): seen(constant[:300])}).verdict is Drift.OK
    stuck = judge(both, {key(): seen(images(300, 1)), key("c"): seen(constant[:300] * 2)})
    assert stuck.verdict is Drift.UNDECIDED and "'c'" in stuck.reason


def test_nothing_in_common_is_undecided() -> None:
    assert judge(BEFORE, {}).verdict is Drift.UNDECIDED
    assert judge({}, {}).verdict is Drift.UNDECIDED


def test_clipping_beyond_what_it_was_says_that_quantization_is_hurt() -> None:
    layout = Layout("clipped", floor=-3.0, ceiling=3.0)
    rng = np.random.default_rng(0)
    before = {key("t", "tensor"): seen(rng.standard_normal((500, 64)), layout)}
    for scale, hurt in ((1.0, False), (1.5, True)):
        now = {key("t", "tensor"): seen(scale * rng.standard_normal((300, 64)), layout)}
        found = judge(before, now)
        assert [bool(c.hurt) for c in found.clipping] == [hurt]
        assert (found.verdict is Drift.DRIFT) == hurt
        said = "quantization is being hurt in 1 of 1 tensors" if hurt else "quantization is not being hurt"
        assert any(said in text for text in lines(found))


def test_labels_that_change_their_shares_are_drift() -> None:
    def counted(shares: list[float], seed: int) -> Seen:
        pile = Pile(Layout("classes"))
        labels = np.random.default_rng(seed).choice(len(shares), 400, p=shares)
        pile.add(np.zeros((400, 0), np.float32), labels)
        return pile.seen()

    before = {key("labels", "label"): counted([0.5, 0.3, 0.2], 0)}
    assert judge(before, {key("labels", "label"): counted([0.5, 0.3, 0.2], 1)}).verdict is Drift.OK
    found = judge(before, {key("labels", "label"): counted([0.3, 0.3, 0.4], 1)})
    assert found.verdict is Drift.DRIFT and found.changes[0].statistic == "class 2 (%)"


def test_false_alarms_stay_within_alpha_whatever_is_looked_at() -> None:
    everything = rows(FLAT, images(900, 7))
    rng, alarms = np.random.default_rng(8), 0
    for _ in range(60):
        order = rng.permutation(900)
        sides = []
        for part in (order[:600], order[600:800]):
            pile = Pile(FLAT)
            pile.add(everything[part])
            sides.append({key(): pile.seen()})
        alarms += judge(sides[0], sides[1]).verdict is Drift.DRIFT
    assert alarms <= 4  # at most one is expected; five or more come once in three thousand runs


# -- piles ---------------------------------------------------------------------------------------------------------
def test_piles_merge_whoever_filled_them_and_survive_being_written_down() -> None:
    batch = rows(FLAT, images(500, 3))
    whole, first, second = Pile(FLAT), Pile(FLAT), Pile(FLAT)
    whole.add(batch)
    first.add(batch[:123])
    second.add(batch[123:])
    first.merge(Pile.of_state(second.state()))
    assert first.count == 500
    assert first.seen().items.tobytes() == whole.seen().items.tobytes()
    np.testing.assert_allclose(first.seen().means, whole.seen().means, rtol=1e-6, atol=1e-9)
    with pytest.raises(ValueError, match="different layouts"):
        first.merge(Pile(Layout("flags")))


def test_memory_does_not_grow_with_the_samples_nor_with_the_classes() -> None:
    layout = Layout("numbers", columns=1)
    pile, sizes = Pile(layout, known=[10**6]), []
    for start in (0, 50_000, 100_000):
        labels = np.arange(start, start + 50_000)
        pile.add(labels[:, None].astype(np.float32), labels)
        sizes.append(pile.seen().items.shape[1])
    pile.add(np.zeros((1, 1), np.float32), np.array([10**6]))
    assert max(sizes) < 4000 and len(pile.classes) <= MOST_CLASSES + 3
    assert pile.classes[10**6] == 1 and pile.classes[OTHER] > 0
