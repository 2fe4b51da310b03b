"""Two models on the same samples: the drop, what flipped, what so many samples can show, and where it hurts most."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from optimizer.data.metrics import Metric
from optimizer.data.samples import Samples
from optimizer.faults import usage
from optimizer.measure.exact import holm, mcnemar
from optimizer.measure.stats import DropEstimate, corrected_alpha, detectable_by, paired_drop, resampled_drop
from optimizer.records import PairedQuality, SliceDrop
from passes.kit.options import closest

Array = np.ndarray[Any, Any]

SHOWN_SLICES = 3
MOST_SLICES = 1000
FEWEST = 2
"""Samples of a slice: one alone says nothing of a slice."""


def compare(
    model: str, provider: str, metric: Metric, base: Array, rows: Array, seed: int, cut: tuple[str, Array] | None = None
) -> PairedQuality:
    """The model with ``rows`` against the first one with ``base`` (float64 [n, k], row i from the same sample).

    ``cut`` is what slices are called by, and the slice of each sample [n].
    """
    drop = paired_drop(metric, base, rows, seed)
    lost, won = drop.discordant or (None, None)
    p = mcnemar(*drop.discordant)[0] if drop.discordant else None
    found = ranked(metric, base, rows, cut[1], seed) if cut is not None else []
    worst = tuple(_told(metric, base, rows, one, seed) for one in found[:SHOWN_SLICES])
    return PairedQuality(
        model, provider, metric.name, metric.higher_is_better, len(rows), drop.interval, lost, won, p,
        detectable_by(drop), cut[0] if cut is not None else "", len(found), worst,
    )  # fmt: skip


def slices_of(
    samples: Samples, metric: Metric, name: str | None, where: str = "--slice-by"
) -> tuple[str, Array] | None:
    """What samples are cut by: the array that ``name`` is, else the classes that a 0/1 metric scores; [n] texts.

    ``None`` when nothing was named and there are no classes. Raises a usage Fault, which says ``where`` the name comes
    from, for one that is not there, or that does not hold one value per sample.
    """
    wanted = name or (metric.label if metric.binary and metric.against == "labels" and not metric.function else None)
    if wanted is None:
        return None
    if wanted not in samples.labels:
        known = sorted(samples.labels)
        hint = f"Arrays of the data that are no inputs: {', '.join(known) or 'none'}"
        raise usage(f"the data has no array '{wanted}'{closest(wanted, known)}", where=where, hint=hint)
    values = np.asarray(samples.labels_of(0, len(samples))[wanted])
    if name is None and (values.ndim > 1 and values.size != len(values)):
        return None
    if values.size != len(samples):
        raise usage(f"'{wanted}' does not hold one value per sample", where=where)
    texts = values.reshape(-1).astype(str)
    if len(np.unique(texts)) > MOST_SLICES:
        if name is None:
            return None
        raise usage(f"'{wanted}' has more than {MOST_SLICES} values", where=where, hint="Cut it into ranges")
    return wanted, texts


def ranked(metric: Metric, base: Array, rows: Array, cut: Array, seed: int) -> list[tuple[str, Array, float]]:
    """Every slice that can be judged: name, which samples are in it (bool [n]), p-value of a loss corrected for all of
    them. The smallest p-value comes first, then the largest drop."""
    looked: list[tuple[str, Array, float, float]] = []
    for name in np.unique(cut) if not metric.grouped(rows) else ():
        inside = cut == name
        if inside.sum() < FEWEST:
            continue
        value, p = _worse(metric, base[inside], rows[inside], seed)
        if math.isfinite(value):
            looked.append((str(name), inside, value, p))
    corrected = holm([p for *_, p in looked])
    order = sorted(range(len(looked)), key=lambda i: (looked[i][3], -looked[i][2]))
    return [(looked[i][0], looked[i][1], corrected[i]) for i in order]


@dataclass(frozen=True)
class SliceBound:
    """One slice against a margin: its drop with bounds of its own at 95 %, and whether it is shown to lose more than
    the margin when all slices are looked at (5 % for all of them together)."""

    name: str
    drop: DropEstimate
    worse: bool


def bounded(metric: Metric, base: Array, rows: Array, cut: Array, margin: float, seed: int) -> list[SliceBound]:
    """Every slice against ``margin``, the largest drop that may be; none when the metric cannot be cut.

    That *all* slices are within the margin is shown when each of them is, at 95 % (an intersection-union test: Berger
    1982), without a correction. That *some* slice is beyond it is a claim picked from many, so its level is divided by
    their number (Bonferroni); bootstraps have a p-value in place of a bound so far out.
    """
    if metric.grouped(rows):
        return []
    names, found = np.unique(cut), list[SliceBound]()
    for name in names:
        inside = cut == name
        mine, theirs = base[inside], rows[inside]
        drop = paired_drop(metric, mine, theirs, seed)
        level = corrected_alpha(drop.alpha, len(names))
        found.append(SliceBound(str(name), drop, _beyond(metric, mine, theirs, drop, margin, level, seed)))
    return found


def _beyond(
    metric: Metric, base: Array, rows: Array, drop: DropEstimate, margin: float, level: float, seed: int
) -> bool:
    """Whether a drop of more than ``margin`` is shown at ``level``."""
    if not drop.lower_one_sided > margin:
        return False
    if drop.discordant is not None:
        return paired_drop(metric, base, rows, seed, level).lower_one_sided > margin
    return resampled_drop(metric, base, rows, seed).p_at_most(margin) <= level


def _told(metric: Metric, base: Array, rows: Array, one: tuple[str, Array, float], seed: int) -> SliceDrop:
    name, inside, p = one
    drop = paired_drop(metric, base[inside], rows[inside], seed)
    lost, won = drop.discordant or (None, None)
    return SliceDrop(name, int(inside.sum()), drop.interval, p, lost, won)


def _worse(metric: Metric, base: Array, rows: Array, seed: int) -> tuple[float, float]:
    """The drop in a slice and its one-sided p-value, not corrected; the drop is no number where the metric has none."""
    sign = 1.0 if metric.higher_is_better else -1.0
    value = sign * (metric.score(base) - metric.score(rows))
    if metric.outcomes(base, rows):
        gone, gained = (int((a > b).sum()) for a, b in ((base, rows), (rows, base)))
        return value, mcnemar(gone, gained)[1]
    if not math.isfinite(value):
        return value, 1.0
    found = resampled_drop(metric, base, rows, seed)
    return value, 1.0 if found.constant else found.p_at_most(0.0)


def all_against_first(
    judged: Mapping[tuple[str, str], tuple[Metric, Samples, Array]], first: str, seed: int, slice_by: str | None
) -> tuple[PairedQuality, ...]:
    """Every model but ``first`` against it, provider by provider. ``judged`` holds the rows by (model, provider).

    Models whose metric or number of samples is another are left out: their rows are not of the same samples.
    """
    found = []
    for (model, provider), (metric, samples, rows) in judged.items():
        base = judged.get((first, provider))
        if model == first or base is None or base[0].name != metric.name or base[2].shape != rows.shape:
            continue
        found.append(compare(model, provider, metric, base[2], rows, seed, slices_of(samples, metric, slice_by)))
    return tuple(found)
