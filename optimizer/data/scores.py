"""The arithmetic of metrics, in numpy alone.

A *row function* turns one batch (output, target) into float64 rows [n, k], one per sample. A *combiner* turns rows and
weights [b, n] into scores [b]: weights of one give the plain score, weights that count how often a sample was drawn
give the score of a bootstrap resample, all of them in one go.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from optimizer.data.samples import Array

IGNORED = -100
"""A token label with this value is not scored."""

SQNR_CEILING_DB = 200.0
"""Reported when there is no noise at all; float64 itself ends near 320 dB, float32 near 150."""


class Unfit(ValueError):
    """The arrays do not have the form that a metric needs; the text says why."""


# -- rows: classes ---------------------------------------------------------------------------------------------------
def top_rows(output: Array, target: Array, k: int = 1) -> Array:
    """0/1 [N, 1]: is the label among the ``k`` best. Output float [N, C] or labels [N]; target [N], [N, 1], one-hot.

    With output [N, S, C] and target [N, S] rows are (right, scored tokens) [N, 2]; label -100 is not scored.
    Ties count for the model only when fewer than ``k`` classes score strictly higher, the lowest index first for k = 1.
    A row that holds NaN is wrong.
    """
    if output.dtype.kind != "f":
        return _equal(output, target)
    if output.ndim == 3:
        return _token_rows(output, target, k)
    if output.ndim != 2:
        raise Unfit(f"it needs outputs [N, C], got {list(output.shape)}")
    return _hits(output, classes(target, output.shape[1]), k)[:, None].astype(np.float64)


def _token_rows(output: Array, target: Array, k: int) -> Array:
    if target.shape != output.shape[:2]:
        raise Unfit(f"labels {list(target.shape)} do not line up with outputs {list(output.shape)}")
    scored = target != IGNORED
    safe = np.where(scored, target, 0)
    right = [np.count_nonzero(_hits(o, t, k) & s) for o, t, s in zip(output, safe, scored, strict=True)]
    return np.stack([np.array(right, np.float64), scored.sum(axis=1).astype(np.float64)], axis=1)


def _hits(scores: Array, wanted: Array, k: int) -> Array:
    clean = ~np.isnan(scores).any(axis=-1)
    if k == 1:
        return np.asarray((scores.argmax(axis=-1) == wanted) & clean)
    own = np.take_along_axis(scores, wanted[:, None].astype(np.int64), axis=-1)
    return np.asarray(((scores > own).sum(axis=-1) < k) & clean)


def _equal(output: Array, target: Array) -> Array:
    """Outputs that are labels themselves: equality per sample, all elements of it."""
    given = output.reshape(len(output), -1)
    wanted = target.reshape(len(target), -1)
    if given.shape != wanted.shape:
        raise Unfit(f"labels {list(target.shape)} do not line up with outputs {list(output.shape)}")
    if (given.dtype.kind in "OUS") != (wanted.dtype.kind in "OUS"):
        raise Unfit("the output gives text and the labels are numbers, or the other way round")
    same = codes(given) == codes(wanted)
    return np.asarray(same.all(axis=1))[:, None].astype(np.float64)


def classes(target: Array, count: int) -> Array:
    """Class indices int64 [N] from [N], [N, 1], one-hot or probabilities [N, C]. Raises :class:`Unfit` otherwise."""
    if target.ndim == 2 and target.shape[1] == count and count > 1:
        return np.asarray(target.argmax(axis=1))
    flat = target.reshape(-1) if target.ndim == 1 or target.shape[1:] == (1,) else None
    if flat is None:
        raise Unfit(f"labels {list(target.shape)} are not one class per sample")
    if flat.dtype.kind not in "iub" and not (flat.dtype.kind == "f" and (flat == np.round(flat)).all()):
        raise Unfit("labels are not class numbers")
    found = flat.astype(np.int64)
    if found.size and (found.min() < 0 or found.max() >= count):
        raise Unfit(f"labels run from {found.min()} to {found.max()}, but the output has {count} classes")
    return found


def codes(values: Array) -> Array:
    """Numbers float64 that are equal where values are: text becomes 48 bits of its SHA-256."""
    if values.dtype.kind not in "OUS":
        return values.astype(np.float64)
    words, inverse = np.unique(values.astype(str), return_inverse=True)
    coded = [int.from_bytes(hashlib.sha256(str(w).encode()).digest()[:6], "big") for w in words]
    return np.array(coded, np.float64)[inverse].reshape(values.shape)


def f1_rows(output: Array, target: Array) -> Array:
    """(predicted, wanted) class [N, 2]. Output float [N, C] or labels [N]."""
    if output.dtype.kind == "f":
        if output.ndim != 2:
            raise Unfit(f"it needs outputs [N, C], got {list(output.shape)}")
        wanted = classes(target, output.shape[1])
        predicted = np.where(np.isnan(output).any(axis=1), -1, output.argmax(axis=1))
        return np.stack([predicted, wanted], axis=1).astype(np.float64)
    if output.size != target.size:
        raise Unfit(f"labels {list(target.shape)} do not line up with outputs {list(output.shape)}")
    return np.stack([codes(output.reshape(-1)), codes(target.reshape(-1))], axis=1)


def auroc_rows(output: Array, target: Array) -> Array:
    """(scores..., class) [N, c + 1]: one score for two classes (second minus first, or the only one), else C of them.

    With more than two classes rows that are no probabilities already go through a softmax, as one-versus-rest
    compares a class's score across samples.
    """
    if output.ndim == 1 or output.shape[1:] == (1,):
        return np.stack([output.reshape(-1).astype(np.float64), classes(target, 2)], axis=1)
    if output.ndim != 2:
        raise Unfit(f"it needs outputs [N], [N, 1] or [N, C], got {list(output.shape)}")
    wanted = classes(target, output.shape[1])
    scores = output.astype(np.float64)
    if scores.shape[1] == 2:
        return np.stack([scores[:, 1] - scores[:, 0], wanted], axis=1)
    given = sums_to_one(scores)
    return np.concatenate([np.where(given[:, None], scores, softmax(scores)), wanted[:, None]], axis=1)


def agreement_rows(output: Array, reference: Array) -> Array:
    """0/1 [N, 1]: does the model choose what the reference chose; [N, S, C]: (equal choices, choices) [N, 2]."""
    if output.shape != reference.shape:
        raise Unfit(f"outputs {list(output.shape)} and reference {list(reference.shape)} differ in shape")
    if output.dtype.kind == "f" and output.ndim in (2, 3):
        chosen = reference.argmax(axis=-1)
        return top_rows(output, chosen[:, None] if output.ndim == 2 else chosen)
    return _equal(output, reference)


# -- rows: numbers ---------------------------------------------------------------------------------------------------
def _aligned(output: Array, target: Array) -> tuple[Array, Array]:
    """Both as float64 [N, values per sample]."""
    if output.size != target.size or output.ndim == 0:
        raise Unfit(f"labels {list(target.shape)} do not line up with outputs {list(output.shape)}")
    n = len(output)
    return output.reshape(n, -1).astype(np.float64), target.reshape(n, -1).astype(np.float64)


def squared_rows(output: Array, target: Array) -> Array:
    """(sum of squared errors, number of values) [N, 2]."""
    given, wanted = _aligned(output, target)
    return _with_count(((given - wanted) ** 2).sum(axis=1), given.shape[1])


def absolute_rows(output: Array, target: Array) -> Array:
    """(sum of absolute errors, number of values) [N, 2]."""
    given, wanted = _aligned(output, target)
    return _with_count(np.abs(given - wanted).sum(axis=1), given.shape[1])


def pair_rows(output: Array, target: Array) -> Array:
    """(outputs..., targets...) [N, 2 v] for v values per sample."""
    return np.concatenate(_aligned(output, target), axis=1)


def cosine_rows(output: Array, reference: Array) -> Array:
    """(dot product, squared length, squared length of the reference) [N, 3]."""
    given, wanted = _aligned(output, reference)
    return np.stack([(given * wanted).sum(axis=1), (given**2).sum(axis=1), (wanted**2).sum(axis=1)], axis=1)


def sqnr_rows(output: Array, reference: Array) -> Array:
    """(energy of the reference, energy of the difference) [N, 2]."""
    given, wanted = _aligned(output, reference)
    return np.stack([(wanted**2).sum(axis=1), ((given - wanted) ** 2).sum(axis=1)], axis=1)


def perplexity_rows(output: Array, target: Array) -> Array:
    """(sum of negative log likelihoods in nats, tokens) [N, 2] from logits [N, S, C] and shifted labels [N, S].

    A model that ends in a Softmax gives probabilities: their logarithms are the logits, down to the smallest number.
    """
    if output.ndim != 3 or target.shape != output.shape[:2]:
        raise Unfit(f"it needs logits [N, S, C] and labels [N, S], got {list(output.shape)} and {list(target.shape)}")
    rows = np.zeros((len(output), 2))
    for row, logits, wanted in zip(rows, output, target, strict=True):
        scored = wanted != IGNORED
        chosen = classes(wanted[scored], output.shape[2])
        wide = logits[scored].astype(np.float64)  # one sample at a time: a vocabulary's logits are large
        given = sums_to_one(wide)
        wide[given] = np.log(np.maximum(wide[given], np.finfo(output.dtype).tiny))
        highest = wide.max(axis=1, keepdims=True, initial=-np.inf)
        normaliser = np.log(np.exp(wide - highest).sum(axis=1)) + highest[:, 0]
        row[:] = (normaliser - wide[np.arange(len(chosen)), chosen]).sum(), len(chosen)
    return rows


def _with_count(sums: Array, count: int) -> Array:
    counts: Array = np.full(len(sums), float(count))
    return np.stack([sums, counts], axis=1)


def sums_to_one(scores: Array) -> Array:
    """Which rows [N] of float64 [N, C] are probabilities already."""
    return np.asarray((scores.min(axis=1, initial=0.0) >= 0) & (np.abs(scores.sum(axis=1) - 1) < 1e-3))


def softmax(scores: Array) -> Array:
    """Softmax over the last axis, float64."""
    raised = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=-1, keepdims=True))


# -- combiners -------------------------------------------------------------------------------------------------------
def mean(rows: Array, weights: Array) -> Array:
    """Rows [n, 1]: their mean. Rows [n, 2]: the sum of the first column over the sum of the second."""
    with np.errstate(invalid="ignore", divide="ignore"):
        if rows.shape[1] == 1:
            return np.asarray(weights @ rows[:, 0] / weights.sum(axis=1))
        sums = weights @ rows
        return np.asarray(sums[:, 0] / sums[:, 1])


def exp_mean(rows: Array, weights: Array) -> Array:
    """exp of :func:`mean`: perplexity."""
    with np.errstate(over="ignore"):
        return np.asarray(np.exp(mean(rows, weights)))


def mean_cosine(rows: Array, weights: Array) -> Array:
    """Mean of the samples' cosines. Two zero vectors agree (1), one alone does not (0)."""
    dot, given, wanted = rows.T
    zero = (given == 0) | (wanted == 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = np.where(zero, (given == wanted).astype(np.float64), dot / np.sqrt(given * wanted))
    return mean(np.clip(cosines, -1, 1)[:, None], weights)


def pooled_cosine(rows: Array, weights: Array) -> Array:
    """Cosine between all values of all samples: for one value per sample, where a cosine is only a sign."""
    dot, given, wanted = (weights @ rows).T
    zero = (given == 0) | (wanted == 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Array = np.where(zero, (given == wanted).astype(np.float64), dot / np.sqrt(given * wanted))
    return np.asarray(np.clip(found, -1, 1))


def decibels(rows: Array, weights: Array) -> Array:
    """Signal to quantization noise in dB: 10 log10(energy of the reference / energy of the difference), at most 200."""
    signal, noise = (weights @ rows).T
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio: Array = np.where(noise == 0, np.inf, 10 * np.log10(signal / noise))
    return np.asarray(np.minimum(ratio, SQNR_CEILING_DB))


def macro_f1(rows: Array, weights: Array) -> Array:
    """Mean over the classes that occur (wanted or predicted) of 2 tp / (2 tp + fp + fn), scikit-learn's ``macro``."""
    from scipy import sparse

    names, inverse = np.unique(rows, return_inverse=True)
    predicted, wanted = inverse.reshape(rows.shape).T
    n = len(rows)

    def per_class(chosen: Array, keep: Array) -> Array:
        one_hot = sparse.csr_array((keep.astype(np.float64), (chosen, np.arange(n))), shape=(len(names), n))
        return np.asarray(one_hot @ weights.T)

    everything = np.ones(n, bool)
    right = per_class(wanted, predicted == wanted)
    both = per_class(predicted, everything) + per_class(wanted, everything)
    present = both > 0
    scores = np.divide(2 * right, both, out=np.zeros_like(both), where=present)
    return np.asarray(scores.sum(axis=0) / present.sum(axis=0))


def area(rows: Array, weights: Array) -> Array:
    """Area under the ROC curve (Mann-Whitney, ties count half): of class 1, or the mean of one-versus-rest.

    Classes that do not occur (or nothing but them) are left out; NaN when none is left.
    """
    scores, wanted = rows[:, :-1], rows[:, -1]
    if scores.shape[1] == 1:
        return _binary_area(scores[:, 0], wanted == 1, weights)
    each = np.stack([_binary_area(scores[:, c], wanted == c, weights) for c in range(scores.shape[1])])
    known = ~np.isnan(each)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(known, each, 0).sum(axis=0) / known.sum(axis=0))


def _binary_area(scores: Array, positive: Array, weights: Array) -> Array:
    if np.isnan(scores).any():
        return np.full(len(weights), np.nan)
    order, starts, _ = _tied(scores)
    ordered, truth = weights[:, order], positive[order]
    wins = np.add.reduceat(ordered * truth, starts, axis=1)
    losses = np.add.reduceat(ordered * ~truth, starts, axis=1)
    below = np.cumsum(losses, axis=1) - losses
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((wins * (below + losses / 2)).sum(axis=1) / (wins.sum(axis=1) * losses.sum(axis=1)))


def _tied(values: Array) -> tuple[Array, Array, Array]:
    """(order that sorts, start of each group of equal values in that order, group of each value)."""
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return np.argsort(group, kind="stable"), starts, group.reshape(-1)


def correlation(rows: Array, weights: Array) -> Array:
    """Pearson's r between outputs and targets, averaged over the values of a sample."""
    width = rows.shape[1] // 2
    columns = [_pearson(rows[:, v][None], rows[:, width + v][None], weights) for v in range(width)]
    return np.asarray(np.mean(columns, axis=0))


def rank_correlation(rows: Array, weights: Array) -> Array:
    """Spearman's rho: Pearson's r of the midranks inside each resample, averaged over the values of a sample."""
    width = rows.shape[1] // 2
    columns = [
        _pearson(_midranks(rows[:, v], weights), _midranks(rows[:, width + v], weights), weights) for v in range(width)
    ]
    return np.asarray(np.mean(columns, axis=0))


def _midranks(values: Array, weights: Array) -> Array:
    """Rank [b, n] of every value in a sample where it stands ``weights`` times; equal values share their mean rank."""
    if np.isnan(values).any():
        return np.full(weights.shape, np.nan)
    order, starts, group = _tied(values)
    sizes = np.add.reduceat(weights[:, order], starts, axis=1)
    ranks = np.cumsum(sizes, axis=1) - sizes + (sizes + 1) / 2
    return np.asarray(ranks[:, group])


def _pearson(x: Array, y: Array, weights: Array) -> Array:
    """Weighted correlation of [1 or b, n] with [1 or b, n]. NaN when one of them does not vary."""
    total = weights.sum(axis=1, keepdims=True)

    def centred(values: Array) -> Any:
        return values - (weights * values).sum(axis=1, keepdims=True) / total

    dx, dy = centred(x), centred(y)
    top = (weights * dx * dy).sum(axis=1)
    bottom = np.sqrt((weights * dx * dx).sum(axis=1) * (weights * dy * dy).sum(axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.clip(top / bottom, -1, 1))
