"""Seeded synthetic inputs: enough to check and time a model when there is no data. Never a basis for accuracy."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from optimizer.data.checks import from_arrays
from optimizer.data.samples import Array, Samples
from optimizer.faults import bad_input
from passes.kit.model import Port

DYNAMIC_SIZES = (16, 64, 224, 256, 512)
"""Sizes that a dynamic dimension may get (a sequence, an image side): the first unless the caller says otherwise.

Models that halve an image five times want multiples of 32, those that take pieces of sound want hundreds of values.
"""

LOOKED_AT = 64
"""How many real samples are looked at for sizes and ranges."""

WORDS = ("alpha", "beta", "gamma", "delta")
_BATCH_NAMES = {"n", "batch", "batch_size", "batchsize", "b", "bs"}


def synthetic(
    inputs: tuple[Port, ...],
    count: int,
    seed: int,
    *,
    bounds: Mapping[str, tuple[float, float]] | None = None,
    dims: Mapping[str, int] | None = None,
    size: int = DYNAMIC_SIZES[0],
) -> Samples:
    """``count`` seeded samples for ``inputs``.

    Floats are normal (mean 0, deviation 1), integers 0 or 1 (every index and flag survives that; inputs whose name
    says ``mask`` get ones), booleans coin flips, text a few words. ``bounds`` gives ``{input: (low, high)}``: then
    floats are uniform in [low, high) and integers in low..high-1 (a vocabulary's size, say). ``dims`` gives sizes for
    dynamic dimensions by name (``sequence``) or place (``input_ids:1``); otherwise a batch dimension is 1, others
    ``size``.

    When axis 0 of every input is a batch axis the samples can be put together into any batch; otherwise each sample is
    one whole feed. Each input draws from its own stream, so adding an input does not change the others.

    Raises :class:`Fault` when an input is not a tensor.
    """
    bounds, dims = bounds or {}, dims or {}
    batches = _batch_dims(inputs)
    merged = _can_batch(inputs, dims)
    arrays: dict[str, Array] = {}
    for port in inputs:
        rng = np.random.default_rng([seed, zlib.crc32(port.name.encode())])
        shape = _shape(port, dims, batches, size)
        if port.dims == ():
            arrays[port.name] = _draw(port, rng, (), bounds)
        elif merged:
            arrays[port.name] = _draw(port, rng, (count, *shape[1:]), bounds)
        else:
            arrays[port.name] = _draw(port, rng, (count, *shape), bounds)
    made = from_arrays(arrays, inputs, where="synthetic data")
    if len(made) == count:
        return made
    # Only constants (or no inputs at all): the same feed, as often as asked.
    return made.take(np.zeros(count, np.int64))


def guesses(inputs: tuple[Port, ...], count: int, seed: int) -> Iterator[Samples]:
    """:func:`synthetic` samples in other and other sizes of the open dimensions, likeliest first.

    Where no dimension has a name, a recurrent state [layers, ?, width] takes the batch on axis 1 if nothing else runs.
    """
    carried = {
        f"{p.name}:1": 1
        for p in inputs
        if p.dims
        and len(p.dims) == 3
        and p.dims[1] is None
        and isinstance(p.dims[0], int)
        and isinstance(p.dims[2], int)
    }
    for dims in ({}, carried) if carried else ({},):
        for size in DYNAMIC_SIZES:
            yield synthetic(inputs, count, seed, dims=dims, size=size)


def like(real: Samples, count: int, seed: int) -> Samples:
    """``count`` seeded samples with the sizes of ``real`` ones, and numbers from the range that the first of them span.

    A made-up feed that a model could meet says more than one it never will: a vocabulary of two words, or an image of
    16 by 16, leaves many models badly conditioned or does not run at all. No value of ``real`` is handed on but its
    lowest and highest. Masks stay full.
    """
    if not len(real):
        return synthetic(real.ports, count, seed)
    feeds = [feed for feed, _ in real.take(np.arange(min(LOOKED_AT, len(real)))).feeds(1)]
    dims: dict[str, int] = {}
    bounds: dict[str, tuple[float, float]] = {}
    for port in real.ports:
        held = [feed[port.name] for feed in feeds]
        axes = enumerate(held[0].shape if port.dims is not None else ())
        dims.update({f"{port.name}:{axis}": size for axis, size in axes if axis or real.whole})
        if (span := _span(held)) is not None and not _is_mask(port):
            bounds[port.name] = span
    return synthetic(real.ports, count, seed, bounds=bounds, dims=dims)


def _span(arrays: Sequence[Array]) -> tuple[float, float] | None:
    """(low, high) for :func:`synthetic` to draw between what ``arrays`` hold, or ``None`` when that has no ends."""
    if arrays[0].dtype.kind not in "iuf":
        return None
    ends = [(a[np.isfinite(a)].min(), a[np.isfinite(a)].max()) for a in arrays if np.isfinite(a).any()]
    if not ends:
        return None
    low, high = min(e[0] for e in ends).item(), max(e[1] for e in ends).item()
    if arrays[0].dtype.kind in "iu":
        return (low, high + 1) if high < np.iinfo(np.int64).max else None
    return (low, high) if np.isfinite(high - low) else None


def _shape(port: Port, dims: Mapping[str, int], batches: set[str], size: int) -> tuple[int, ...]:
    if port.dims is None:
        return (1, size)
    sizes: list[int] = []
    for axis, dim in enumerate(port.dims):
        chosen = dims.get(f"{port.name}:{axis}", dims.get(dim) if isinstance(dim, str) else None)
        if isinstance(dim, int):
            sizes.append(dim)
        elif chosen is not None:
            sizes.append(chosen)
        else:
            batch = dim in batches if isinstance(dim, str) else axis == 0
            sizes.append(1 if batch else size)
    return tuple(sizes)


def _batch_dims(inputs: tuple[Port, ...]) -> set[str]:
    """Names of dimensions that count samples: named so, or first on some input and nowhere else."""
    first = {p.dims[0] for p in inputs if p.dims and isinstance(p.dims[0], str)}
    later = {d for p in inputs for d in (p.dims or ())[1:] if isinstance(d, str)}
    named = {d for d in first | later if d.lower() in _BATCH_NAMES}
    # A rank-1 input whose only dimension is called otherwise (``[sequence]``) still counts as samples when it stands
    # alone: there is nothing else to slice it by.
    return named | (first - later)


def _can_batch(inputs: tuple[Port, ...], dims: Mapping[str, int]) -> bool:
    """Whether axis 0 is the batch on every input that has axes."""
    batches = _batch_dims(inputs)
    shaped = [p for p in inputs if p.dims != ()]
    for port in shaped:
        if port.dims is None:
            continue
        if not port.dims or isinstance(port.dims[0], int):
            return False
        first = port.dims[0]
        if first is not None and first not in batches:
            return False
        if f"{port.name}:0" in dims or first in dims or any(d in batches for d in port.dims[1:]):
            return False
    return bool(shaped)


def _draw(
    port: Port, rng: np.random.Generator, shape: tuple[int, ...], bounds: Mapping[str, tuple[float, float]]
) -> Array:
    try:
        dtype: np.dtype[Any] = np.dtype(ir.DataType[port.type].numpy())
    except (KeyError, TypeError):
        message = f"input '{port.name}' is of type {port.type}: no synthetic value can be made for it"
        raise bad_input(message, hint="Give real data with --data", code="wrong-type") from None
    if dtype.kind == "O":
        return np.asarray(rng.choice(np.array(WORDS), shape))
    if dtype.kind == "b":
        return np.ones(shape, bool) if _is_mask(port) else np.asarray(rng.integers(0, 2, shape) > 0)
    low, high = bounds.get(port.name, (None, None))
    if dtype.kind in "iu":
        if low is None or high is None:
            return np.ones(shape, dtype) if _is_mask(port) else np.asarray(rng.integers(0, 2, shape)).astype(dtype)
        return np.asarray(rng.integers(int(low), max(int(high), int(low) + 1), shape)).astype(dtype)
    values = rng.standard_normal(shape) if low is None or high is None else rng.uniform(low, high, shape)
    return np.asarray(values).astype(dtype)


def _is_mask(port: Port) -> bool:
    return "mask" in port.name.lower()
