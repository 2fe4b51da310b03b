"""Inputs that look for trouble: what no real sample holds, but a caller may send, and where wrong rewrites show."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from passes.kit.model import Port

Array = np.ndarray[Any, Any]
Feed = Mapping[str, Array]

CORNERS = (-6.0, -3.0, -2.5, -1.5, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 1.5, 2.5, 3.0, 6.0)
"""Bounds of clamps, ties of roundings, both zeros; their repetition makes ties of maxima."""

SIGNED = (-1, -7, 2, -4, 7, -5, 0, 3, -2, 1, -3, 5, -6, 4, 6)
"""Integers of both signs, odd negative ones first: they tell divisions and remainders apart. No shape grows large."""

DECADES = {2: (-2.0, 2.5), 4: (-2.0, 4.0), 8: (-2.0, 6.0)}
"""Powers of ten of large values, by the bytes of the type: far from what data hold, and squares of squares fit."""

TINY = {2: (-8.0, -4.0), 4: (-44.0, -36.0), 8: (-320.0, -300.0)}
"""Powers of ten of tiny values: below and about the smallest normal number."""

MODEL_BYTES = ((16 << 20, 99), (256 << 20, 4))
"""Up to so many bytes of weights a model meets so many adversaries; larger ones meet two."""


class Kind(enum.StrEnum):
    """How far from data a probe is. A LOSSY pass answers for REAL and PLAIN ones only."""

    REAL = "real"
    PLAIN = "plain"
    HARSH = "harsh"
    SPECIAL = "special"


@dataclass(frozen=True, eq=False)
class Probe:
    """One feed for verification; ``name`` says what it is made of."""

    name: str
    kind: Kind
    feed: Feed


def adversaries(ports: Sequence[Port], base: Feed, seed: int, weight_bytes: int = 0) -> list[Probe]:
    """Feeds made from ``base``, one that the model runs on: its shapes, and where integers must fit its values.

    Those that most often tell come first; models with many weights get fewer. Feeds that equal an earlier one are
    left out. The model may refuse any of them: whoever asks finds out.
    """
    most = next((count for limit, count in MODEL_BYTES if weight_bytes <= limit), 2)
    found: list[Probe] = []
    seen = {_content(base)}
    for probe in _all(ports, base, np.random.default_rng([seed, 0xAD])):
        content = _content(probe.feed)
        if content not in seen:
            seen.add(content)
            found.append(probe)
    return found[:most]


def _all(ports: Sequence[Port], base: Feed, rng: np.random.Generator) -> Iterator[Probe]:
    yield Probe("NaN", Kind.SPECIAL, _map(base, lambda a: _sprinkled(a, rng, (np.nan,))))
    yield from _sizes(ports, base, rng)
    yield Probe("corners", Kind.PLAIN, _map(base, lambda a: _corners(a, rng)))
    yield Probe("zeros", Kind.PLAIN, {k: _filled(a, 0) for k, a in base.items()})
    yield Probe("large", Kind.HARSH, _map(base, lambda a: _magnitudes(a, rng, DECADES)))
    yield Probe("infinities", Kind.SPECIAL, _map(base, lambda a: _sprinkled(a, rng, (np.inf, -np.inf))))
    yield Probe("tiny", Kind.HARSH, _map(base, lambda a: _magnitudes(a, rng, TINY)))
    yield Probe("ones", Kind.PLAIN, {k: _filled(a, 1) for k, a in base.items()})
    yield Probe("signs", Kind.PLAIN, {k: _signs(a) for k, a in base.items()})


def _sizes(ports: Sequence[Port], base: Feed, rng: np.random.Generator) -> Iterator[Probe]:
    """Other sizes of the open dimensions: every one another number, then all of them larger, then a batch alone."""
    opened: dict[str, int] = {}
    for port in ports:
        for axis, dim in enumerate(port.dims or ()):
            if not isinstance(dim, int) and port.name in base:
                opened.setdefault(dim or f"?{axis}", base[port.name].shape[axis])
    if not opened:
        return
    first = {str(p.dims[0] or "?0") for p in ports if p.dims and not isinstance(p.dims[0], int)}
    plans = (
        {d: (3 if d in first else size + 1 + i) for i, (d, size) in enumerate(opened.items())},
        {d: (2 if d in first else 2 * size) for d, size in opened.items()},
        {d: (4 if d in first else size) for d, size in opened.items()},
    )
    for plan in plans:
        feed = {p.name: _resized(base[p.name], p, plan, rng) for p in ports if p.name in base}
        told = ", ".join(f"{d}={size}" for d, size in plan.items())
        yield Probe(f"sizes {told}", Kind.PLAIN, feed)


def _resized(array: Array, port: Port, plan: Mapping[str, int], rng: np.random.Generator) -> Array:
    dims = port.dims if port.dims is not None else array.shape
    shape = [d if isinstance(d, int) else plan[d or f"?{axis}"] for axis, d in enumerate(dims)]
    if not array.size:
        return np.zeros(shape, array.dtype)
    return np.asarray(rng.choice(array.reshape(-1), shape), array.dtype)


def _map(base: Feed, change: Any) -> Feed:
    """``change`` made to the float inputs; the others stay."""
    return {name: change(a) if a.dtype.kind == "f" else a for name, a in base.items()}


def _filled(array: Array, number: int) -> Array:
    return np.full_like(array, number) if array.dtype.kind in "fiub" else array


def _corners(array: Array, rng: np.random.Generator) -> Array:
    """Every corner, in an order that is not the same in every row."""
    picks = np.concatenate([rng.permutation(CORNERS) for _ in range(array.size // len(CORNERS) + 1)])
    return picks[: array.size].reshape(array.shape).astype(array.dtype)


def _signs(array: Array) -> Array:
    """Negated floats, small integers of both signs, inverted truth."""
    if array.dtype.kind == "f":
        return np.asarray(-array)
    if array.dtype.kind == "i":
        return np.resize(np.array(SIGNED, array.dtype), array.shape)
    return np.asarray(~array) if array.dtype.kind == "b" else array


def _magnitudes(array: Array, rng: np.random.Generator, decades: Mapping[int, tuple[float, float]]) -> Array:
    low, high = decades.get(array.dtype.itemsize, decades[4])
    sizes = 10.0 ** rng.uniform(low, high, array.shape)
    return np.asarray(np.where(rng.random(array.shape) < 0.5, -sizes, sizes)).astype(array.dtype)


def _sprinkled(array: Array, rng: np.random.Generator, specials: tuple[float, ...]) -> Array:
    """One element in sixteen, at least one of each, is special; the rest stays as it was."""
    if not array.size:
        return array
    count = max(len(specials), array.size // 16)
    changed = array.reshape(-1).copy()
    where = rng.permutation(array.size)[:count]
    changed[where] = np.resize(np.array(specials, array.dtype), len(where))
    return changed.reshape(array.shape)


def nudged(feed: Feed) -> dict[str, Array]:
    """``feed`` with every float moved by a few units in its last place: how far the outputs move is how far rounding
    alone may move them, because a backward-stable computation is the exact one of such an input."""
    rng = np.random.default_rng(0)
    moved = {}
    for name, array in feed.items():
        if array.dtype.kind != "f":
            moved[name] = np.asarray(array)
            continue
        steps = rng.integers(1, 4, array.shape) * rng.choice((-1, 1), array.shape)
        unit = float(np.finfo(array.dtype).eps)
        with np.errstate(all="ignore"):
            moved[name] = np.asarray(array * (1 + steps * unit)).astype(array.dtype)
    return moved


def _content(feed: Feed) -> bytes:
    return b"|".join(_bytes(feed[name]) for name in sorted(feed))


def _bytes(array: Array) -> bytes:
    text = "\0".join(map(str, array.flat)).encode() if array.dtype.hasobject else array.tobytes()
    return f"{array.dtype}{array.shape}".encode() + text
