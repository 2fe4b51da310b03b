"""Splits: disjoint, exhaustive, stratified, and the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.data.checks import from_arrays
from optimizer.data.samples import Samples
from optimizer.data.split import Splits, split
from passes.kit.model import Port


def samples(labels: np.ndarray) -> Samples:
    x = np.zeros((len(labels), 2), np.float32)
    return from_arrays({"x": x, "labels": labels}, (Port("x", "FLOAT", ("n", 2)),))


def indices(splits: Splits) -> list[np.ndarray]:
    return [splits.calibrate.index, splits.select.index, splits.confirm.index]


@settings(max_examples=60, deadline=None)
@given(labels=st.lists(st.integers(0, 6), min_size=3, max_size=300), seed=st.integers(0, 5))
def test_parts_are_disjoint_exhaustive_proportional_and_repeatable(labels: list[int], seed: int) -> None:
    found, n = np.array(labels), len(labels)
    splits = split(samples(found), seed)
    parts = indices(splits)
    assert sorted(np.concatenate(parts).tolist()) == list(range(n))
    quarter = max(1, n // 4)
    assert [len(p) for p in parts] == [quarter, quarter, n - 2 * quarter]
    for other, part in zip(indices(split(samples(found), seed)), parts, strict=True):
        assert np.array_equal(other, part)
    for part in parts:
        assert (np.diff(part) > 0).all()
        if len(set(labels)) <= max(2, n // 2):
            for name in set(labels):
                share = (found == name).sum() * len(part) / n
                assert abs((found[part] == name).sum() - share) < 2


def test_calibration_is_capped_and_the_rest_confirms() -> None:
    parts = indices(split(samples(np.arange(4000) % 10), 0))
    assert [len(p) for p in parts] == [512, 1000, 2488]
    assert len(np.unique(np.concatenate(parts))) == 4000


def test_the_seed_and_one_hot_labels_count() -> None:
    labels = np.arange(200) % 4
    a, b = (indices(split(samples(labels), s))[0] for s in (0, 1))
    assert not np.array_equal(a, b)
    one_hot = split(samples(np.eye(4, dtype=np.int64)[labels]), 3)
    assert (
        np.bincount(labels[one_hot.calibrate.index]).tolist() == [13, 13, 12, 12]
        or np.ptp(np.bincount(labels[one_hot.calibrate.index])) <= 1
    )


@pytest.mark.parametrize("n", [1, 2])
def test_too_few_to_split_share_all_and_say_so(n: int) -> None:
    splits = split(samples(np.zeros(n, int)), 0)
    assert [len(p) for p in indices(splits)] == [n, n, n]
    assert "nothing is proven" in splits.warnings[0]


def test_few_samples_are_warned_about_and_still_disjoint() -> None:
    splits = split(samples(np.array([0, 1, 0, 1, 2])), 0)
    assert [len(p) for p in indices(splits)] == [1, 1, 3]
    assert "only 5 samples" in splits.warnings[0]
    assert split(samples(np.zeros(8, int)), 0).warnings == ()
