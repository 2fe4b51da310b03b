"""Remembering, while an artifact is made, what its data looks like: on samples that calibration did not see.

Inputs, outputs and labels are remembered, and of each tensor with a fixed quantization grid how much of it was clipped.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from optimizer.data.samples import Kind, Samples
from optimizer.data.split import Splits
from optimizer.measure.adequacy import limits
from optimizer.runtime.answers import World
from optimizer.watch import feeding
from optimizer.watch.reference import Reference
from optimizer.watch.sketches import K, Pile, fits
from optimizer.watch.verdict import Key
from passes.kit.model import Model
from passes.kit.summaries import Layout, layout_of, layout_of_answers

INPUT_BYTES = 90_000
"""What the sketches of one input may take: with more statistics fewer samples are remembered."""

OUTPUT_BYTES = 60_000
TENSOR_BYTES = 400_000
"""What one output, and all tensors together, may take."""

FEWEST = 64
"""So many samples are run through the model in any case, where there are so many."""

SECONDS = 30.0
"""No more samples are run through the model after about so long."""

TRIED = 16
"""Samples that tell how long one takes."""

MOST_OUTPUTS = 8


def remember(model: Model, world: World, splits: Splits, seed: int) -> Reference:
    """What the held-out samples look like, outside and inside of ``model``. The number remembered is set by the room
    that the sketches may take, and for what the model makes of them also by time."""
    held = held_out(splits)
    inputs = _inputs(held[0])
    room = min((fits(INPUT_BYTES, pile.layout.names()) for pile in inputs.values()), default=K)
    chosen = _some(held, room, seed)
    for samples in chosen:
        feeding.fill_inputs(inputs, samples)
    labels = {name: Pile(Layout("classes")) for name in _labels(chosen)}
    for samples in chosen:
        feeding.fill_labels(labels, samples)
    inside = _inside(model, world, chosen[0])
    names = [pile.layout.names() for (part, _), pile in inside.items() if part == "output"]
    tensors = sum(part == "tensor" for part, _ in inside)
    rooms = [fits(OUTPUT_BYTES, n) for n in names] + [max(FEWEST, fits(TENSOR_BYTES // max(1, tensors), ("", "")))]
    if inside:
        _run(inside, model, world, chosen, min(rooms), seed)
    piles: dict[Key, Pile] = {
        **{("input", name): pile for name, pile in inputs.items()},
        **inside,
        **{("label", name): pile for name, pile in labels.items()},
    }
    return Reference({key: pile.seen() for key, pile in piles.items()}, held[0].whole)


def held_out(splits: Splits) -> list[Samples]:
    """The samples that were not calibrated with; all, when nothing was held out."""
    if splits.confirm is splits.select:
        return [splits.select]
    return [part for part in (splits.select, splits.confirm) if len(part)]


def _some(parts: Sequence[Samples], most: int, seed: int) -> list[Samples]:
    """At most ``most`` samples of all parts together, drawn by ``seed``, in order."""
    total = sum(map(len, parts))
    drawn = np.sort(np.random.default_rng(seed).permutation(total)[:most])
    found, start = [], 0
    for part in parts:
        mine = drawn[(drawn >= start) & (drawn < start + len(part))] - start
        start += len(part)
        if len(mine):
            found.append(part.take(mine))
    return found


def _inputs(samples: Samples) -> dict[str, Pile]:
    feed = feeding.first_feed(samples)
    piles = {}
    for port in samples.ports:
        if samples.slicing[port.name].kind is Kind.CONSTANT:
            continue
        array = feeding.apart(np.asarray(feed[port.name]), samples.whole, 1)
        sized = feeding.sized(port, samples.whole)
        piles[port.name] = Pile(layout_of(array.shape[1:], array.dtype, sized=sized))
    return piles


def _labels(parts: Sequence[Samples]) -> list[str]:
    """Labels that every part has and that name classes: no more of them than half the samples."""
    shared = set.intersection(*(set(feeding.class_labels(part)) for part in parts))
    found = []
    for name in sorted(shared):
        values = np.concatenate([part.labels_of(0, len(part))[name].reshape(-1) for part in parts])
        if len(np.unique(values)) <= max(2, len(values) // 2) and len(values) == sum(map(len, parts)):
            found.append(name)
    return found


def _inside(model: Model, world: World, samples: Samples) -> dict[Key, Pile]:
    """An empty pile for every output that is a tensor of numbers, and for every tensor with a fixed grid."""
    ports = {port.name: port for port in model.signature.outputs if port.dims is not None}
    names = list(ports)[:MOST_OUTPUTS]
    feed = feeding.first_feed(samples)
    fed = samples.fed(1)
    (given,) = world.run(model, [feed], names) if names else ({},)
    piles: dict[Key, Pile] = {}
    for name, value in given.items():
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub" or not value.size:
            continue
        alone = value.ndim > 0 and len(value) == fed
        shape, sized = value.shape[1:] if alone else value.shape, feeding.sized(ports[name], samples.whole)
        piles["output", name] = Pile(layout_of_answers(shape, value.dtype, sized=sized))
    for name, (low, high) in limits(model).items():
        if ("output", name) not in piles:
            piles["tensor", name] = Pile(Layout("clipped", floor=low, ceiling=high))
    return piles


def _run(piles: dict[Key, Pile], model: Model, world: World, parts: Sequence[Samples], most: int, seed: int) -> None:
    """Run samples through the model: at most ``most``, and as many as there is time for, judged by the first few."""
    named = {name: pile for (_, name), pile in piles.items()}
    tried = parts[0].take(np.arange(min(TRIED, len(parts[0]))))
    started = time.monotonic()
    feeding.fill_inside({name: Pile(pile.layout) for name, pile in named.items()}, model, world, tried)
    affordable = int(SECONDS * len(tried) / max(1e-9, time.monotonic() - started))
    for part in _some(parts, min(most, max(FEWEST, affordable)), seed):
        feeding.fill_inside(named, model, world, part)
