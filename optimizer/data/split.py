"""One source of data becomes three parts that are never looked at for the same purpose twice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from optimizer.data.samples import Array, Samples

CALIBRATE_MOST = 512
"""Calibration gains nothing from more samples than this; they are worth more as proof."""

FEW = 8


@dataclass(frozen=True)
class Splits:
    """Calibrate fits a recipe's numbers, select chooses between recipes, confirm proves the chosen one."""

    calibrate: Samples
    select: Samples
    confirm: Samples
    warnings: tuple[str, ...] = ()


def split(samples: Samples, seed: int) -> Splits:
    """A quarter to calibrate (at most 512), a quarter to select, the rest to confirm; disjoint, exhaustive, seeded.

    With integer class labels every part holds each class in proportion, to within two samples (largest remainders
    first, ties drawn by ``seed``). What the cap on calibration frees goes to confirm, where it narrows the interval
    that the answer rests on. Under 3 samples all parts are the same samples, said in ``warnings``: then nothing is
    held out. Indices are sorted inside a part, so memory-mapped data is read front to back.
    """
    n = len(samples)
    if n < 3:
        text = (
            f"{n} sample{'s are' if n > 1 else ' is'} too few to split: calibration, selection and confirmation share"
        )
        return Splits(samples, samples, samples, (f"{text} them, so nothing is proven",))
    quarter = max(1, n // 4)
    sizes = (min(CALIBRATE_MOST, quarter), quarter)
    parts = _parts(_strata(samples), sizes, np.random.default_rng(seed))
    warnings: tuple[str, ...] = ()
    if n < FEW:
        warnings = (f"only {n} samples: {len(parts[2])} are left to confirm with, so intervals will be very wide",)
    calibrate, select, confirm = (samples.take(p) for p in parts)
    return Splits(calibrate, select, confirm, warnings)


def _strata(samples: Samples) -> Array:
    """The class of each sample: int64 [n]. Without class labels everything is one class."""
    n = len(samples)
    for array in samples.labels.values():
        classes = _classes(array, samples.index)
        # More than a class for every second sample is an identity or a measurement, not a class.
        if classes is not None and len(np.unique(classes)) <= max(2, n // 2):
            return np.unique(classes, return_inverse=True)[1].reshape(-1).astype(np.int64)
    return np.zeros(n, np.int64)


def _classes(array: Array, index: Array) -> Array | None:
    """Labels [N] or [N, 1] of integers, booleans or text, or one-hot [N, C], as one value per sample; else None."""
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim == 1 and array.dtype.kind in "iubU":
        return np.asarray(array[index])
    if array.ndim == 2 and array.dtype.kind in "iub":
        rows = np.asarray(array[index])
        if ((rows == 0) | (rows == 1)).all() and (rows.sum(axis=1) == 1).all():
            return np.asarray(rows.argmax(axis=1))
    return None


def _parts(strata: Array, sizes: tuple[int, ...], rng: np.random.Generator) -> list[Array]:
    """Indices of each part of the wanted sizes, then of the rest."""
    pools = [rng.permutation(np.flatnonzero(strata == c)) for c in range(int(strata.max()) + 1)]
    parts: list[Array] = []
    for size in sizes:
        quotas = _apportion(np.array([len(p) for p in pools]), size, rng)
        parts.append(np.sort(np.concatenate([p[:q] for p, q in zip(pools, quotas, strict=True)])))
        pools = [p[q:] for p, q in zip(pools, quotas, strict=True)]
    parts.append(np.sort(np.concatenate(pools)))
    return parts


def _apportion(counts: Array, size: int, rng: np.random.Generator) -> Array:
    """``size`` places shared out in proportion to ``counts`` by largest remainder (Hamilton's method)."""
    exact = counts * (size / counts.sum())
    quotas: Array = np.floor(exact).astype(np.int64)
    order = np.lexsort((rng.random(len(counts)), quotas - exact))
    quotas[order[: size - int(quotas.sum())]] += 1
    return quotas
