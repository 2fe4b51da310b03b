"""Sizes of example inputs: made from texts, changed along named dimensions, and whether axis 0 is a batch.

Runs in the worker for user code, where it is loaded by path: standard library, and torch inside functions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Dims = Mapping[str, Mapping[int, str]]
"""Names of dynamic dimensions by input and axis."""

BATCH = "batch"
_ROW_TOLERANCE = 1e-3


def make(texts: Sequence[str], parameters: Sequence[str], seed: int) -> dict[str, Any]:
    """Seeded tensors from texts ``input:1,3,224,224`` or ``ids:1,16:int64``: normal numbers, or 0 and 1 for integers.

    The texts have been checked by the caller.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    made = {}
    for text in texts:
        name, _, rest = text.partition(":")
        sizes, _, kind = rest.partition(":")
        shape = [int(size) for size in re.findall(r"\d+", sizes)]
        dtype = getattr(torch, kind or "float32")
        if dtype.is_floating_point:
            made[name] = torch.randn(shape, generator=generator).to(dtype)
        else:
            made[name] = torch.randint(0, 2, shape, generator=generator).to(dtype)
    return {
        name: made[name] for name in [*[p for p in parameters if p in made], *[n for n in made if n not in parameters]]
    }


def declared(declaration: Any, names: Sequence[str]) -> dict[str, dict[int, str]]:
    """A ``dynamic_shapes`` tree of torch.export as names by input and axis; what is nested is left out."""
    pairs = declaration.items() if isinstance(declaration, Mapping) else zip(names, declaration or (), strict=False)
    found: dict[str, dict[int, str]] = {}
    for name, axes in pairs:
        listed = (
            axes.items() if isinstance(axes, Mapping) else enumerate(axes) if isinstance(axes, (list, tuple)) else ()
        )
        named = {axis: _dim_name(dim, name, axis) for axis, dim in listed if isinstance(axis, int) and dim is not None}
        if name in names and named:
            found[name] = {axis: dim for axis, dim in named.items() if dim}
    return found


def _dim_name(dim: Any, name: str, axis: int) -> str:
    if isinstance(dim, int):
        return ""
    own = dim if isinstance(dim, str) else getattr(dim, "__name__", "")
    return own if isinstance(own, str) and own.isidentifier() else f"{name}_dim_{axis}"


def sizes_of(names: Sequence[str], tensors: Sequence[Any], dims: Dims) -> dict[str, int]:
    """Present size of every named dimension."""
    found: dict[str, int] = {}
    for name, tensor in zip(names, tensors, strict=True):
        for axis, dim in dims.get(name, {}).items():
            found.setdefault(dim, int(tensor.shape[axis]))
    return found


def other_sizes(sizes: Mapping[str, int], dims: Dims) -> list[dict[str, int]]:
    """Changes that move each named dimension: one more, one less, twice, and a single one where it is a first axis.

    Twice, because a module may ask for multiples.
    """
    first = {dim for axes in dims.values() for axis, dim in axes.items() if axis == 0}
    changes: dict[tuple[str, int], None] = {}
    for dim, size in sizes.items():
        changes.update({(dim, other): None for other in (size + 1, size - 1, 2 * size) if other > 0})
        if dim in first and size != 1:
            changes[dim, 1] = None
    return [{dim: size} for dim, size in changes]


def resized(names: Sequence[str], tensors: Sequence[Any], dims: Dims, sizes: Mapping[str, int]) -> list[Any]:
    """The tensors with the dimensions in ``sizes`` cut or continued by repetition.

    Repeated rows are rotated along their last axis, so that no two rows are the same; values stay valid ones.
    """
    return [_resized(t, dims.get(n, {}), sizes) if sizes else t for n, t in zip(names, tensors, strict=True)]


def _resized(tensor: Any, axes: Mapping[int, str], sizes: Mapping[str, int]) -> Any:
    import torch

    for axis, dim in axes.items():
        have, want = tensor.shape[axis], sizes.get(dim)
        if want is None or want == have or have == 0:
            continue
        rows = torch.arange(want) % have
        grown = tensor.index_select(axis, rows)
        if axis == 0 and want > have and tensor.ndim > 1:
            parts = [torch.roll(grown[i], shifts=i // have, dims=-1) for i in range(want)]
            grown = torch.stack(parts)
        tensor = grown
    return tensor


def differ_only_in(names: Sequence[str], tensors: Sequence[Any], others: Sequence[Any], dims: Dims) -> bool:
    """Whether two lists of tensors have the same sizes outside of the named dimensions."""

    def fixed(name: str, tensor: Any) -> list[int]:
        return [size for axis, size in enumerate(tensor.shape) if axis not in dims.get(name, {})]

    return all(fixed(n, a) == fixed(n, b) for n, a, b in zip(names, tensors, others, strict=True))


def label(sizes: Mapping[str, int], number: int) -> str:
    """``batch=3, sequence=24``; ``the example`` without named dimensions, ``data`` for the user's data."""
    told = ", ".join(f"{dim}={size}" for dim, size in sizes.items())
    return told if number == 0 and told else f"data {told}".strip() if number else "the example"


def batch_candidates(names: Sequence[str], tensors: Sequence[Any]) -> dict[str, dict[int, str]]:
    """Axis 0 of every input whose first axis has the same size as that of the first input with one."""
    sized = [(name, int(t.shape[0])) for name, t in zip(names, tensors, strict=True) if t.ndim]
    return {name: {0: BATCH} for name, size in sized if size == sized[0][1]}


def not_a_batch(
    run: Callable[[Sequence[Any]], Sequence[Any]], names: Sequence[str], tensors: Sequence[Any], dims: Dims
) -> str:
    """Why axis 0 of the inputs is no batch, or nothing: outputs must follow its size and rows must not mix."""
    rows = max(2, *sizes_of(names, tensors, dims).values())
    try:
        several = run(resized(names, tensors, dims, {BATCH: rows}))
        single = run(resized(names, resized(names, tensors, dims, {BATCH: rows}), dims, {BATCH: 1}))
        run(resized(names, tensors, dims, {BATCH: rows + 1}))
    except Exception as error:
        return f"the module does not run at another batch size ({type(error).__name__})"
    for many, one in zip(several, single, strict=True):
        if many.ndim == 0 or many.shape[0] != rows or one.ndim == 0 or one.shape[0] != 1:
            return "an output does not follow the size of axis 0"
        if not _close(many[:1], one):
            return "rows along axis 0 depend on one another"
    return ""


def _close(a: Any, b: Any) -> bool:
    import torch

    if a.shape != b.shape:
        return False
    if not a.is_floating_point():
        return bool(torch.equal(a, b))
    scale = max(1.0, float(torch.nan_to_num(b.float()).abs().max())) if b.numel() else 1.0
    return bool(torch.allclose(a.float(), b.float(), rtol=0, atol=_ROW_TOLERANCE * scale, equal_nan=True))


def output_axes(
    run: Callable[[Sequence[Any]], Sequence[Any]],
    names: Sequence[str],
    tensors: Sequence[Any],
    outputs: Sequence[str],
    dims: Dims,
) -> dict[str, dict[int, str]]:
    """Which axes of the outputs move with a named dimension, found by moving it.

    An axis with the dimension's own size takes its name; one that moves otherwise gets a name of its own.
    """
    base = run(tensors)
    found: dict[str, dict[int, str]] = {}
    for change in other_sizes(sizes_of(names, tensors, dims), dims):
        ((dim, size),) = change.items()
        try:
            moved = run(resized(names, tensors, dims, change))
        except Exception:
            continue
        for name, before, after in zip(outputs, base, moved, strict=True):
            for axis, (old, new) in enumerate(zip(before.shape, after.shape, strict=False)):
                if old != new:
                    named = dim if new == size else f"{name}_dim_{axis}"
                    found.setdefault(name, {}).setdefault(axis, named)
    return found
