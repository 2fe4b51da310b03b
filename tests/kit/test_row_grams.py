"""Gram matrices of a few rows of each sample, with the sums beside the products."""

from __future__ import annotations

import numpy as np

from passes.kit.reducers import build
from passes.kit.sums import Gram

rng = np.random.default_rng(0)


def test_ones_bring_the_sums_and_the_number_of_rows() -> None:
    rows = rng.standard_normal((5, 7, 3))
    gram = Gram(ones=True)
    gram.fold(rows)
    flat = rows.reshape(-1, 3)
    np.testing.assert_allclose(gram.total()[:3, :3], flat.T @ flat)
    np.testing.assert_allclose(gram.total()[-1], [*flat.sum(0), 35])


def test_at_most_so_many_rows_of_each_sample_evenly_spaced() -> None:
    rows = rng.standard_normal((2, 640, 3))
    gram = Gram(most=64, ones=True)
    gram.fold(rows)
    assert gram.total()[-1, -1] == 128
    few = rows[:, np.linspace(0, 639, 64).astype(int)].reshape(-1, 3)
    np.testing.assert_allclose(gram.total()[:3, :3], few.T @ few)


def test_the_parameters_come_back() -> None:
    assert build(Gram(most=64, ones=True).spec()) == Gram(most=64, ones=True)
