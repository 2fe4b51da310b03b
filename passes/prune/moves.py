"""How labels go through operators that only move, join, cut and reshape."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from passes.kit.match import attribute, given
from passes.kit.model import constant
from passes.kit.shapes import Dim as Size
from passes.kit.shapes import Dims
from passes.prune.follow import Bounds, Dim, Folded, Sizes, Trail, name, refuse, rule
from passes.prune.labels import Array, Axes
from passes.prune.sizes import entries, number_in, of_shape


def whole_numbers(node: ir.Node, index: int, attribute_name: str = "") -> tuple[int, ...] | None:
    """The constant integers at an input, else in an attribute, else ``None``."""
    value = given(node, index)
    if value is not None:
        array = constant(value)
        return None if array is None else tuple(int(v) for v in array.reshape(-1))
    listed = attribute(node, attribute_name, None) if attribute_name else None
    return None if listed is None else tuple(int(v) for v in listed)


@rule("Transpose")
def transpose(node: ir.Node, at: Trail) -> None:
    held = at.labels.of(node.inputs[0])
    order = attribute(node, "perm", tuple(reversed(range(len(held)))))
    if len(order) != len(held):
        refuse(node, at, "its rank is not known")
        return
    at.labels.set(node.outputs[0], [held[int(axis)] for axis in order])
    hidden = at.folded.get(node.inputs[0]) if node.inputs[0] is not None else None
    if hidden is not None:
        at.folded[node.outputs[0]] = Folded(order.index(hidden.axis), hidden.dims, hidden.labels)


@rule("Concat")
def concat(node: ir.Node, at: Trail) -> None:
    """The parts keep their own labels along the axis and are tied together along the others."""
    held = [at.labels.of(v) for v in node.inputs]
    rank = len(held[0])
    axis = int(attribute(node, "axis", 0)) % max(1, rank)
    if any(len(axes) != rank for axes in held) or not rank:
        refuse(node, at, "its shapes are not known")
        return
    result: Axes = []
    for place in range(rank):
        if place == axis:
            result.append(_joined_end_to_end(node, at, axis))
            continue
        found = held[0][place]
        for axes in held[1:]:
            found = at.labels.join(found, axes[place], "Concat ties it to a value that cannot be cut")
        result.append(found)
    at.labels.set(node.outputs[0], result)


def _joined_end_to_end(node: ir.Node, at: Trail, axis: int) -> Array | None:
    parts = []
    for value in node.inputs:
        found, dims = at.labels.of(value)[axis], at.labels.shapes.of(value)
        size = dims[axis] if dims is not None else None
        if found is None and isinstance(size, int):
            found = at.labels.fresh(size, "it is joined to an input of the model, or to what cannot be cut")
        parts.append(found)
    if any(p is None for p in parts):
        for part in parts:
            at.labels.pin(part, "it is joined to a value whose size is not known")
        return None
    return np.concatenate([p for p in parts if p is not None])


@rule("Split")
def split(node: ir.Node, at: Trail) -> None:
    """Each part has its share of the labels."""
    held, dims = at.labels.of(node.inputs[0]), at.labels.shapes.of(node.inputs[0])
    axis = int(attribute(node, "axis", 0)) % max(1, len(held))
    along = held[axis] if held else None
    sizes = whole_numbers(node, 1, "split")
    if along is not None and sizes is None and given(node, 1) is None:
        each = -(-len(along) // len(node.outputs))
        sizes = tuple(min(each, len(along) - i * each) for i in range(len(node.outputs)))
    parts: list[Array | None] = [None] * len(node.outputs)
    if along is not None and sizes is not None and sum(sizes) == len(along) and len(sizes) == len(parts):
        ends = np.cumsum((0, *sizes))
        found = [along[a:b] for a, b in itertools.pairwise(ends)]
        at.fixes.append(Sizes(node, tuple(found)))
        parts = list(found)
    else:
        at.labels.pin(along, "the sizes of a Split are not known")
    if dims is None:
        refuse(node, at, "its shapes are not known")
    for output, part in zip(node.outputs, parts, strict=True):
        at.labels.set(output, [part if i == axis else a for i, a in enumerate(held)])


@rule("Slice")
def slice_(node: ir.Node, at: Trail) -> None:
    """A range of an axis keeps its labels, when it goes forward one by one."""
    held = at.labels.of(node.inputs[0])
    starts, ends = whole_numbers(node, 1, "starts"), whole_numbers(node, 2, "ends")
    axes, steps = whole_numbers(node, 3, "axes"), whole_numbers(node, 4)
    told = [given(node, i) for i in (3, 4)]
    if starts is None or ends is None or any(v is not None and constant(v) is None for v in told):
        known = whole_numbers(node, 3, "axes")
        if known is None or any(given(node, i) is None for i in (1, 2)):
            refuse(node, at, f"the bounds of {name(node)} are computed")
            return
        axes, starts, ends = known, (0,) * len(known), (0,) * len(known)  # only which axes counts then
        computed = True
    else:
        axes = axes if axes is not None else tuple(range(len(starts)))
        computed = False
    result = list(held)
    for entry, axis in enumerate(int(a) % max(1, len(held)) for a in axes):
        along = held[axis]
        step = steps[entry] if steps is not None else 1
        if along is None or computed or step != 1:
            at.labels.pin(along, f"{name(node)} takes out positions by number")
            result[axis] = None
            continue
        start, stop, _ = slice(starts[entry], ends[entry]).indices(len(along))
        result[axis] = along[start:stop]
        if stop > start:
            at.fixes.append(Bounds(node, entry, along, start, stop))
    at.labels.set(node.outputs[0], result)


@rule("Gather")
def gather(node: ir.Node, at: Trail) -> None:
    """Rows that are looked up keep the labels of their other axes."""
    held, indices = at.labels.of(node.inputs[0]), at.labels.of(node.inputs[1])
    if not held:
        refuse(node, at, "its rank is not known")
        return
    axis = int(attribute(node, "axis", 0)) % len(held)
    at.labels.pin(held[axis], f"{name(node)} looks positions up by number")
    at.labels.pin_all(node.inputs[1], f"{name(node)} looks positions up by number")
    at.labels.set(node.outputs[0], [*held[:axis], *([None] * len(indices)), *held[axis + 1 :]])


@rule("Squeeze", "Unsqueeze")
def squeeze(node: ir.Node, at: Trail) -> None:
    """Axes of size one come and go."""
    held, dims = at.labels.of(node.inputs[0]), at.labels.shapes.of(node.inputs[0])
    axes = whole_numbers(node, 1, "axes")
    if dims is None or (axes is None and (given(node, 1) is not None or node.op_type == "Unsqueeze")):
        refuse(node, at, "its shapes are not known")
        return
    if node.op_type == "Squeeze":
        gone = {a % len(held) for a in axes} if axes is not None else {i for i, d in enumerate(dims) if d == 1}
        if axes is None and any(not isinstance(d, int) for d in dims):
            refuse(node, at, "its shapes are not known")
            return
        for axis in gone:
            at.labels.pin(held[axis], f"{name(node)} takes the axis away")
        at.labels.set(node.outputs[0], [a for i, a in enumerate(held) if i not in gone])
        return
    rank = len(held) + len(axes or ())
    new = {a % rank for a in axes or ()}
    old = iter(held)
    at.labels.set(node.outputs[0], [None if i in new else next(old) for i in range(rank)])


@rule("Pad")
def pad(node: ir.Node, at: Trail) -> None:
    """Only axes that are not padded keep their labels."""
    held = at.labels.of(node.inputs[0])
    amounts = whole_numbers(node, 1, "pads")
    if amounts is None or len(amounts) != 2 * len(held):
        refuse(node, at, f"the amounts of {name(node)} are not known")
        return
    result: Axes = []
    for axis, along in enumerate(held):
        still = amounts[axis] == 0 and amounts[axis + len(held)] == 0
        if not still:
            at.labels.pin(along, f"{name(node)} adds positions")
        result.append(along if still else None)
    at.labels.set(node.outputs[0], result)


@rule("Resize", "Upsample")
def resize(node: ir.Node, at: Trail) -> None:
    """Axes that are scaled by one keep their labels."""
    held = at.labels.of(node.inputs[0])
    index = 1 if node.op_type == "Upsample" or len(node.inputs) == 2 else 2
    value = given(node, index)
    scales = constant(value) if value is not None else None
    if scales is None or len(scales) != len(held) or attribute(node, "axes", None) is not None:
        refuse(node, at, f"the scales of {name(node)} are not known for every axis")
        return
    result: Axes = []
    for along, scale in zip(held, scales, strict=True):
        if scale != 1:
            at.labels.pin(along, f"{name(node)} scales the axis")
        result.append(along if scale == 1 else None)
    at.labels.set(node.outputs[0], result)


@rule("Expand")
def expand(node: ir.Node, at: Trail) -> None:
    """Axes that are not widened keep their labels."""
    held, dims = at.labels.of(node.inputs[0]), at.labels.shapes.of(node.outputs[0])
    given_dims = at.labels.shapes.of(node.inputs[0])
    if dims is None or given_dims is None:
        refuse(node, at, "its shapes are not known")
        return
    lead = len(dims) - len(held)
    result: Axes = [*([None] * lead), *held]
    for place, along in enumerate(held):
        if along is None or given_dims[place] != dims[lead + place]:
            at.labels.pin(along, f"{name(node)} widens the axis")
            result[lead + place] = None
        else:
            note_dim(node, at, lead + place, along, _entries(node, len(dims)))
    at.labels.set(node.outputs[0], result)


def _entries(node: ir.Node, rank: int) -> int:
    """How many leading axes the shape that Expand takes does not name."""
    array = constant(given(node, 1))
    return rank - len(array) if array is not None else 0


@rule("Shape")
def shape(node: ir.Node, at: Trail) -> None:
    """Sizes may be asked for as long as they only shape other values (:mod:`passes.prune.sizes`)."""
    held = at.labels.of(node.inputs[0])
    at.sizes[node.outputs[0]] = of_shape(node, held, at.labels.shapes.of(node.inputs[0]))
    if node.outputs[0].is_graph_output():
        at.labels.pin_all(node.inputs[0], "its size is an output of the model")
    at.labels.set(node.outputs[0], [None])


# -- reshaping ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Block:
    """Neighbouring axes of the input that become neighbouring axes of the output (the same elements in order)."""

    reads: tuple[int, ...]
    makes: tuple[int, ...]


def blocks(before: Sequence[Size], after: Sequence[Size]) -> tuple[list[Block], Block]:
    """Axes that turn into each other, matched from both ends, and the block in the middle that cannot be matched."""
    front = _matched(before, after)
    used = (sum(len(b.reads) for b in front), sum(len(b.makes) for b in front))
    rest = (list(before[used[0] :]), list(after[used[1] :]))
    back = _matched(rest[0][::-1], rest[1][::-1])
    ends = [
        Block(tuple(sorted(len(before) - 1 - i for i in b.reads)), tuple(sorted(len(after) - 1 - i for i in b.makes)))
        for b in back
    ]
    last = (len(before) - sum(len(b.reads) for b in ends), len(after) - sum(len(b.makes) for b in ends))
    return front + ends, Block(tuple(range(used[0], last[0])), tuple(range(used[1], last[1])))


def _matched(before: Sequence[Size], after: Sequence[Size]) -> list[Block]:
    """Blocks from the front as long as sizes can be compared."""
    found: list[Block] = []
    i = j = 0
    while i < len(before) and j < len(after):
        a, b = i, j
        if before[i] == after[j] and before[i] is not None:
            i, j = i + 1, j + 1
        else:
            sizes = [before[i], after[j]]
            i, j = i + 1, j + 1
            while sizes[0] != sizes[1]:
                if not all(isinstance(s, int) and s > 0 for s in sizes):
                    return found
                short = 0 if sizes[0] < sizes[1] else 1  # type: ignore[operator]
                line, at = (before, i) if short == 0 else (after, j)
                if at >= len(line) or not isinstance(line[at], int):
                    return found
                sizes[short] = sizes[short] * line[at]  # type: ignore[operator]
                i, j = (i + 1, j) if short == 0 else (i, j + 1)
            if sizes[0] is None:
                return found
        found.append(Block(tuple(range(a, i)), tuple(range(b, j))))
    return found


@rule("Reshape", "Flatten")
def reshape(node: ir.Node, at: Trail) -> None:
    """Axes that are kept, merged or split keep their labels; a split axis goes by whole parts (heads, say)."""
    source, result = node.inputs[0], node.outputs[0]
    held, before = _unfolded(source, at)
    after = _sizes_after(node, at)
    if before is None or after is None or len(before) != len(held):
        refuse(node, at, "its shapes are not known")
        return
    found: Axes = [None] * len(after)
    matched, middle = blocks(before, after)
    for block in matched:
        _reshape_block(node, at, block, (held, before, after), found)
    hidden = [held[i] for i in middle.reads]
    if any(h is not None for h in hidden) and len(middle.makes) == 1:
        at.folded[result] = Folded(middle.makes[0], tuple(before[i] for i in middle.reads), hidden)
    else:
        for labels in hidden:
            at.labels.pin(labels, f"{name(node)} mixes it with axes of unknown size")
    if result.is_graph_output():
        for labels in hidden:
            at.labels.pin(labels, "it is part of an output of the model")
    at.labels.set(result, found)


def _unfolded(value: ir.Value | None, at: Trail) -> tuple[Axes, Dims | None]:
    """The labels and sizes of a value with what an axis hides in its place."""
    held, dims = at.labels.of(value), at.labels.shapes.of(value)
    hidden = at.folded.get(value) if value is not None else None
    if hidden is None or dims is None:
        return held, dims
    cut = slice(hidden.axis, hidden.axis + 1)
    wide, sizes = list(held), list(dims)
    wide[cut], sizes[cut] = hidden.labels, hidden.dims
    return wide, tuple(sizes)


def _sizes_after(node: ir.Node, at: Trail) -> Dims | None:
    """The sizes of a Reshape's result, as inferred and as the list of sizes says."""
    dims, listed = at.labels.shapes.of(node.outputs[0]), entries(given(node, 1), at.sizes)
    if listed is None or node.op_type != "Reshape":
        return dims
    told = [len(e) if isinstance(e, np.ndarray) else e if e not in (0, -1) else None for e in listed]
    if dims is None or len(dims) != len(told):
        return tuple(told)
    return tuple(d if d is not None else e for d, e in zip(dims, told, strict=True))


def _reshape_block(node: ir.Node, at: Trail, block: Block, sides: tuple[Axes, Dims, Dims], found: Axes) -> None:
    held, before, after = sides
    tracked = [axis for axis in block.reads if held[axis] is not None]
    for axis in tracked[1:]:
        at.labels.pin(held[axis], f"{name(node)} merges it with another axis that can be cut")
    if not tracked:
        return
    labels = held[tracked[0]]
    assert labels is not None
    if any(not isinstance(before[i], int) for i in block.reads):
        at.labels.pin(labels, f"{name(node)} merges it with an axis of unknown size")
        return
    inner = math.prod(int(before[i] or 0) for i in block.reads if i > tracked[0])
    outer = math.prod(int(before[i] or 0) for i in block.reads if i < tracked[0])
    flat = np.tile(np.repeat(labels, inner), outer)
    sizes = [int(after[i] or 0) for i in block.makes]
    which = _part_to_follow(node, at, flat, sizes)
    parts = np.moveaxis(flat.reshape(sizes), which, 0).reshape(sizes[which], -1)
    whole = np.array([at.labels.together(p) for p in parts])
    found[block.makes[which]] = whole
    note_dim(node, at, block.makes[which], whole)


def _part_to_follow(node: ir.Node, at: Trail, flat: Array, sizes: Sequence[int]) -> int:
    """Which of the new axes can be cut: the one whose positions have one label each already, else the first of more
    than one position, else the next one when that turned out to be pinned (:func:`passes.prune.groups.study`)."""
    roots = at.labels.roots(flat).reshape(sizes)
    for axis, size in enumerate(sizes):
        parts = np.moveaxis(roots, axis, 0).reshape(size, -1)
        if size > 1 and (parts == parts[:, :1]).all() and len(np.unique(parts[:, 0])) == len(np.unique(roots)):
            return axis
    able = [axis for axis, size in enumerate(sizes) if size > 1] or [0]
    chosen = able[at.chosen.get(node, 0) % len(able)]  # one more than there are: none could be cut, back to the first
    at.splits[node] = (len(able), flat)
    return chosen


def note_dim(node: ir.Node, at: Trail, place: int, labels: Array, offset: int = 0) -> None:
    """Remember that a size in the shape that ``node`` takes must follow its axis; pin it when it cannot be written."""
    if node.op_type == "Flatten" or place < offset:
        return
    entry = place - offset
    listed = entries(given(node, 1), at.sizes)
    held = listed[entry] if listed is not None and entry < len(listed) else None
    if isinstance(held, np.ndarray):
        at.labels.join(held, labels, f"{name(node)} takes its size from an axis that cannot be cut")
    elif held == (-1 if node.op_type == "Reshape" else 1):
        return
    elif held is None or number_in(node.inputs[1], entry, at.sizes) is None:  # type: ignore[arg-type]
        at.labels.pin(labels, f"{name(node)} computes the size of the axis")
    else:
        at.fixes.append(Dim(node, entry, labels))
