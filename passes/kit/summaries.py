"""What a sample looks like, in a few numbers: the rows that drift is measured on. The unit is one sample.

A sample's row holds what changes when data changes: where its values lie (mean, quantiles, extremes, how many sit on an
extreme, as clipped ones do), how rough it is, and for images how the channels stand to each other. Values are rounded
to 2**-14 of the largest of the sample and shares to 2**-14, so that another processor's last bit makes no other row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, ClassVar, Self

import numpy as np

from passes.kit.fold import Array, Reducer

LEVELS = (5, 25, 50, 75, 95)
MOST_CHANNELS = 4
"""More channels than this are features of a network and not colours."""

MOST_COLUMNS = 32
"""Samples of at most so many values are rows of a table, whose columns are looked at one by one."""

GRAIN_FROM = 5
"""Roughness is measured on axes that are at least so long."""

_GRAIN = 14  # bits
_FIXED = {"clipped": ("clipped", "reach"), "text": ("length", "longest", "empty"), "classes": ()}
_LOWEST = float(np.finfo(np.float32).min)


@dataclass(frozen=True)
class Layout:
    """What is read from one sample. ``kind`` is ``numbers``, ``answers`` (scores of classes, or whatever else a model
    gives), ``flags``, ``text``, ``clipped`` (how much of a tensor lies outside ``floor`` .. ``ceiling``) or ``classes``
    (nothing but the class itself).

    ``columns`` values are looked at one by one; ``channels`` lie on ``axis`` of the sample; ``rough`` are the axes that
    roughness is measured along; ``broken`` counts what is not finite, ``distinct`` the different values of integers,
    ``sized`` the values of samples that differ in size.
    """

    kind: str = "numbers"
    columns: int = 0
    channels: int = 0
    axis: int = 0
    rough: tuple[int, ...] = ()
    broken: bool = False
    distinct: bool = False
    sized: bool = False
    floor: float = 0.0
    ceiling: float = 0.0

    def plain(self) -> dict[str, Any]:
        """As plain data, for :meth:`of_plain`."""
        return {**dataclasses.asdict(self), "rough": list(self.rough)}

    @classmethod
    def of_plain(cls, tree: Mapping[str, Any]) -> Self:
        """The layout that ``tree`` says. Raises ``TypeError`` or ``ValueError`` when it says none."""
        found = cls(**{**tree, "rough": tuple(int(a) for a in tree.get("rough", ()))})
        sizes = (found.columns, found.channels, found.axis)
        if found.kind not in (*_ROWS, "classes") or not all(
            isinstance(n, int) and 0 <= n <= MOST_COLUMNS for n in sizes
        ):
            raise ValueError(f"no layout of kind {found.kind!r}")
        return found

    def names(self) -> tuple[str, ...]:
        """What each place of a row is."""
        if self.kind in _FIXED:
            return _FIXED[self.kind]
        if self.kind == "flags":
            return ("true", "size") if self.sized else ("true",)
        scores = ("confidence", "margin", "entropy") if self.kind == "answers" and self.columns != 1 else ()
        if self.columns == 1:
            return ("value", *self._ends())
        columns = tuple(f"[{i}]" for i in range(self.columns))
        spread = ("mean", "deviation", "low", "high", "zeros")
        more = () if self.columns else ("at-low", "at-high", *(f"q{n}" for n in LEVELS))
        rough = ("edges", "grain", "grain-median") if self.rough else ()
        return (*scores, *columns, *spread, *more, *rough, *self._channel_names(), *self._ends())

    def _ends(self) -> tuple[str, ...]:
        flags = {"broken": self.broken, "distinct": self.distinct, "size": self.sized}
        return tuple(name for name, on in flags.items() if on)

    def _channel_names(self) -> tuple[str, ...]:
        each, pairs = range(self.channels), list(combinations(range(self.channels), 2))
        return (
            *(f"mean-{i}" for i in each),
            *(f"deviation-{i}" for i in each),
            *(f"mean-{i}-{j}" for i, j in pairs),
            *(f"correlation-{i}-{j}" for i, j in pairs),
        )


def layout_of(shape: tuple[int, ...], dtype: np.dtype[Any], *, sized: bool = False) -> Layout:
    """The layout of inputs whose samples have this shape (without a batch axis) and type; ``sized``: sizes differ."""
    if dtype.kind == "b":
        return Layout("flags", sized=sized)
    if dtype.kind in "OSU":
        return Layout("text")
    shape = _bare(shape)
    whole = dtype.kind in "iu"
    values = int(np.prod(shape))
    if values <= MOST_COLUMNS and not sized:
        return Layout(columns=values, broken=not whole)
    axis, channels = _channels(shape)
    spatial = [a for a in range(len(shape)) if not (channels and a == axis)][-2:]
    rough = tuple(a for a in spatial if shape[a] >= GRAIN_FROM)
    return Layout("numbers", 0, channels, axis, rough, broken=not whole, distinct=whole, sized=sized)


def layout_of_answers(shape: tuple[int, ...], dtype: np.dtype[Any], *, sized: bool = False) -> Layout:
    """The layout of outputs whose samples have this shape and type; ``sized``: sizes may differ."""
    if dtype.kind != "f":
        plain = layout_of(shape, dtype, sized=sized)
        return dataclasses.replace(plain, rough=(), channels=0)
    values = int(np.prod(shape))
    alone = values == 1 and not sized
    return Layout("answers" if values > 1 and shape[-1] > 1 else "numbers", int(alone), broken=True, sized=sized)


def rows(layout: Layout, batch: Array) -> Array:
    """A row for each sample of ``batch`` [samples, ...]: float32 [samples, len(layout.names())].

    Raises ``ValueError`` when the samples are not laid out like that.
    """
    if not batch.size or layout.kind == "classes":
        return np.zeros((len(batch), len(layout.names())), np.float32)
    with np.errstate(all="ignore"):
        found = _ROWS[layout.kind](layout, batch)
    stacked: Array = np.nan_to_num(np.stack(found, axis=1), nan=0.0).astype(np.float32)
    return stacked


def classes(batch: Array) -> Array | None:
    """The class of each sample: the place of its highest score, or the whole number that it is; int64 [samples].

    ``None`` when ``batch`` is neither scores [samples, classes] nor one integer a sample.
    """
    if batch.dtype.kind == "f" and batch.ndim == 2 and batch.shape[1] > 1:
        return np.asarray(batch.argmax(axis=1), np.int64)
    if batch.dtype.kind in "iu" and batch.size == len(batch):
        return np.asarray(batch.reshape(-1), np.int64)
    return None


@dataclass
class SampleRows(Reducer):
    """The rows of all samples, in the order that they came in; merging puts them end to end.

    State: ``rows`` float32 [samples, names]; ``classes`` int64 [samples], or [0] where there are none. It grows by one
    row a sample: fold it over parts of the data and let each part go.
    """

    layout: dict[str, Any]
    kind: ClassVar[str] = "sample-rows"
    per_sample: ClassVar[bool] = True

    def __post_init__(self) -> None:
        names = Layout.of_plain(self.layout).names()
        self.arrays = {"rows": np.zeros((0, len(names)), np.float32), "classes": np.zeros(0, np.int64)}

    def fold(self, batch: Array) -> None:
        sample = batch if batch.ndim and len(batch) == 1 else batch[None]
        self._add(rows(Layout.of_plain(self.layout), sample), classes(sample))

    def merge(self, other: Self) -> None:
        self._add(other.arrays["rows"], other.arrays["classes"])

    def _add(self, more: Array, labels: Array | None) -> None:
        self.arrays["rows"] = np.concatenate([self.arrays["rows"], more])
        if labels is not None:
            self.arrays["classes"] = np.concatenate([self.arrays["classes"], labels])


# -- rows of each kind -------------------------------------------------------------------------------------------------
def _numbers(layout: Layout, batch: Array) -> list[Array]:
    shaped = batch.reshape(len(batch), *_bare(batch.shape[1:])).astype(np.float64)
    flat = shaped.reshape(len(batch), -1)
    finite = np.isfinite(flat)
    if layout.columns and flat.shape[1] != layout.columns:
        raise ValueError(f"samples of {flat.shape[1]} values, where there were {layout.columns}")
    clean = flat if finite.all() else np.where(finite, flat, 0.0)
    unit = _unit(clean)
    ends = _ends(layout, flat, finite)
    if layout.columns == 1:
        return [_rounded(clean[:, 0], unit), *ends]
    if finite.all():
        spread, levels = _spread(layout, clean)
    else:
        kept = (row[good] if good.any() else np.zeros(1) for row, good in zip(flat, finite, strict=True))
        each = [_spread(layout, row[None]) for row in kept]
        spread = [np.concatenate(column) for column in zip(*(s for s, _ in each), strict=True)]
        levels = [np.concatenate(column) for column in zip(*(n for _, n in each), strict=True)]
    columns = list(clean.T) if layout.columns else []
    values = [_rounded(v, unit) for v in (*columns, *spread[:4])]
    shares = [_rounded(v, _SHARE) for v in spread[4:]]
    found = [*values, *shares, *(_rounded(v, unit) for v in levels)]
    whole = clean.reshape(shaped.shape)
    found += [_rounded(v, unit) for v in _roughness(layout, whole)]
    return [*found, *_between_channels(layout, whole, unit), *ends]


def _answers(layout: Layout, batch: Array) -> list[Array]:
    found = _numbers(layout, batch)
    if batch.shape[-1] < 2:  # nothing to choose from, this time
        return [np.ones(len(batch)), np.ones(len(batch)), np.zeros(len(batch)), *found]
    scores = np.nan_to_num(batch.astype(np.float64), nan=0.0, posinf=1e30, neginf=-1e30)
    given = (scores >= 0).all() and np.allclose(scores.sum(axis=-1), 1.0, atol=1e-3)
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    share = scores if given else powers / powers.sum(axis=-1, keepdims=True)
    best = np.partition(share, -2, axis=-1)[..., -2:]
    entropy = -(share * np.log(np.maximum(share, 1e-30))).sum(axis=-1)
    parts = (best[..., 1], best[..., 1] - best[..., 0], entropy)
    return [*(_rounded(p.reshape(len(batch), -1).mean(axis=1), _SHARE) for p in parts), *found]


def _flags(layout: Layout, batch: Array) -> list[Array]:
    flat = batch.reshape(len(batch), -1)
    sizes = [np.full(len(flat), float(flat.shape[1]))] if layout.sized else []
    return [_rounded(flat.mean(axis=1), _SHARE), *sizes]


def _text(layout: Layout, batch: Array) -> list[Array]:
    lengths = np.array([[len(v if isinstance(v, (str, bytes)) else str(v)) for v in s.reshape(-1)] for s in batch])
    return [lengths.mean(axis=1), lengths.max(axis=1).astype(np.float64), (lengths == 0).mean(axis=1)]


def _clipped(layout: Layout, batch: Array) -> list[Array]:
    flat = batch.reshape(len(batch), -1).astype(np.float64)
    outside = ((flat < layout.floor) | (flat > layout.ceiling)).mean(axis=1)
    up = flat.max(axis=1) / layout.ceiling if layout.ceiling > 0 else np.zeros(len(flat))
    bounded = _LOWEST < layout.floor < 0
    down = flat.min(axis=1) / layout.floor if bounded else np.zeros(len(flat))
    return [outside, _rounded(np.maximum(up, down), _SHARE)]


_ROWS = {"numbers": _numbers, "answers": _answers, "flags": _flags, "text": _text, "clipped": _clipped}
_SHARE = 2.0**-_GRAIN


def _spread(layout: Layout, flat: Array) -> tuple[list[Array], list[Array]]:
    """Mean, deviation, extremes, shares of zeros and of values on the extremes; then the levels."""
    low, high = flat.min(axis=1), flat.max(axis=1)
    spread = [flat.mean(axis=1), flat.std(axis=1), low, high, (flat == 0).mean(axis=1)]
    if layout.columns:
        return spread, []
    spread += [(flat == low[:, None]).mean(axis=1), (flat == high[:, None]).mean(axis=1)]
    ordered = np.sort(flat, axis=1)
    return spread, [ordered[:, (flat.shape[1] - 1) * n // 100] for n in LEVELS]


def _roughness(layout: Layout, shaped: Array) -> list[Array]:
    """Mean step between neighbours, and mean and median size of the second difference along every rough axis.

    On two axes that is Immerkær's mask, which smooth pictures hardly answer to and noise does (Fast noise variance
    estimation, Computer Vision and Image Understanding 64, 1996).
    """
    if not layout.rough:
        return []
    steps, grain = np.zeros(len(shaped)), shaped
    for axis in layout.rough:
        steps = steps + np.abs(np.diff(shaped, axis=axis + 1)).reshape(len(shaped), -1).mean(axis=1)
        grain = np.diff(grain, 2, axis=axis + 1)
    size = np.abs(grain).reshape(len(shaped), -1)
    if not size.shape[1]:
        return [steps, np.zeros(len(shaped)), np.zeros(len(shaped))]
    return [steps, size.mean(axis=1), np.median(size, axis=1)]


def _between_channels(layout: Layout, shaped: Array, unit: Array) -> list[Array]:
    if not layout.channels:
        return []
    planes = np.moveaxis(shaped, layout.axis + 1, 1).reshape(len(shaped), shaped.shape[layout.axis + 1], -1)
    if planes.shape[1] != layout.channels:
        raise ValueError(f"{planes.shape[1]} channels, where there were {layout.channels}")
    mean, deviation = planes.mean(axis=2), planes.std(axis=2)
    centred = planes - mean[..., None]
    pairs = list(combinations(range(layout.channels), 2))
    cross = [(centred[:, i] * centred[:, j]).mean(axis=1) / (deviation[:, i] * deviation[:, j]) for i, j in pairs]
    each = [*mean.T, *deviation.T, *(mean[:, i] - mean[:, j] for i, j in pairs)]
    return [
        *(_rounded(v, unit) for v in each),
        *(_rounded(np.nan_to_num(c, posinf=0, neginf=0), _SHARE) for c in cross),
    ]


def _ends(layout: Layout, flat: Array, finite: Array) -> list[Array]:
    found = [1.0 - finite.mean(axis=1)] if layout.broken else []
    if layout.distinct:
        found.append(np.array([len(np.unique(row)) / len(row) for row in flat]))
    if layout.sized:
        found.append(np.full(len(flat), float(flat.shape[1])))
    return found


def _unit(flat: Array) -> Array:
    """The step that values of each sample are rounded to: 2**-14 of the power of two above the largest."""
    return np.asarray(np.ldexp(1.0, np.frexp(np.abs(flat).max(axis=1))[1] - _GRAIN))


def _rounded(values: Array, unit: Array | float) -> Array:
    return np.asarray(np.rint(values / unit) * unit)


def _bare(shape: tuple[int, ...]) -> tuple[int, ...]:
    """``shape`` without axes of one element in front."""
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape


def _channels(shape: tuple[int, ...]) -> tuple[int, int]:
    """(axis, channels) of an image or of parallel signals; no channels when there is one only or too many."""
    if len(shape) in (2, 3) and 1 < shape[0] <= MOST_CHANNELS < min(shape[1:]):
        return 0, shape[0]
    if len(shape) == 3 and 1 < shape[2] <= MOST_CHANNELS < min(shape[:2]):
        return 2, shape[2]
    return 0, 0
