"""Sums over samples: how samples are batched or sharded changes no bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from passes.kit.reducers import build
from passes.kit.sums import ChannelMeanAbs, ChunkedSum, Gram

Array = np.ndarray[Any, Any]
KINDS = (Gram, ChannelMeanAbs)
SHAPES = ((200, 6), (200, 3, 6), (150, 2, 2, 6))


def folded(kind: type[ChunkedSum], samples: Array, cuts: tuple[int, ...]) -> ChunkedSum:
    reducer = kind()
    for part in np.split(samples, cuts):
        reducer.fold(part)
    return reducer


def numbers(shape: tuple[int, ...]) -> Array:
    rng = np.random.default_rng(3)
    return (rng.standard_normal(shape) * np.exp(4 * rng.standard_normal(shape))).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_batches_change_no_bit(kind: type[ChunkedSum], shape: tuple[int, ...]) -> None:
    samples = numbers(shape)
    whole = folded(kind, samples, ())
    for cuts in ((1, 2, 3, 70), tuple(range(16, len(samples), 16)), (64, 128)):
        assert folded(kind, samples, cuts).total().tobytes() == whole.total().tobytes()
    rows = samples.reshape(-1, 6).astype(np.float64)
    wanted = rows.T @ rows if kind is Gram else np.abs(rows).sum(axis=0)
    np.testing.assert_allclose(whole.total(), wanted, rtol=1e-12, atol=1e-12 * np.abs(wanted).max())
    assert whole.rows == len(rows)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(64 * 40 + 9, 5), (64 * 9 + 5, 2, 5)])
def test_shards_cut_at_chunks_change_no_bit(kind: type[ChunkedSum], shape: tuple[int, ...]) -> None:
    samples = numbers(shape)
    whole = folded(kind, samples, ())
    for edge in (64, 64 * 4, 64 * 7):
        first, second = folded(kind, samples[:edge], ()), folded(kind, samples[edge:], (30,))
        first.merge(second)
        assert first.total().tobytes() == whole.total().tobytes()
        assert first.rows == whole.rows
        first.fold(samples[:100])  # and it goes on
        more = folded(kind, np.concatenate([samples, samples[:100]]), ())
        assert first.total().tobytes() == more.total().tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_memory_does_not_grow(kind: type[ChunkedSum]) -> None:
    held = []
    for count in (100, 1000):
        reducer = folded(kind, numbers((count, 8)), tuple(range(7, count, 7)))
        held.append(max(a.nbytes for a in reducer.arrays.values()))
    assert held[0] == pytest.approx(held[1], abs=64 * 8 * 8)


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_travels(kind: type[ChunkedSum]) -> None:
    samples = numbers((70, 4))
    reducer = folded(kind, samples, ())
    back = build(reducer.spec())
    back.arrays = {k: np.asarray(v) for k, v in reducer.arrays.items()}
    assert isinstance(back, kind) and back.total().tobytes() == reducer.total().tobytes()


def test_nothing_seen_is_an_error_and_means_are_means() -> None:
    with pytest.raises(ValueError, match="nothing"):
        Gram().total()
    seen = ChannelMeanAbs()
    seen.fold(np.array([[1, -2], [-3, 4]], np.float32))
    np.testing.assert_array_equal(seen.mean(), [2, 3])
    line = ChannelMeanAbs()
    line.fold(np.array([1, -2], np.float32))
    np.testing.assert_array_equal(line.mean(), [1, 2])
