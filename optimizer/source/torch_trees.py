"""Arguments and results of a module as flat lists of named tensors.

Runs in the worker for user code, where it is loaded by path: standard library and numpy, torch inside functions.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Arguments:
    """What a call of ``forward`` gets."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Leaf:
    """The place of tensor number ``index`` inside nested arguments."""

    index: int


@dataclass(frozen=True)
class Results:
    """Flat outputs: names and tensors in order, and what was no tensor."""

    names: list[str]
    tensors: list[Any]
    skipped: list[str] = field(default_factory=list)


def tensor(thing: Any) -> Any:
    """A torch tensor of a numpy array or number, a tensor as it is."""
    import torch

    if isinstance(thing, torch.Tensor):
        return thing
    array = np.asarray(thing)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
    return torch.from_numpy(np.array(array, order="C"))


def array(value: Any) -> np.ndarray[Any, Any]:
    """A numpy array of a tensor; bfloat16, which numpy lacks, becomes float32."""
    import torch

    plain = value.detach().cpu()
    if plain.dtype == torch.bfloat16:
        plain = plain.float()
    return np.asarray(plain.contiguous().numpy())


def as_arguments(made: Any, parameters: Sequence[str]) -> Arguments:
    """What an example function returned, as a call: a tensor, a tuple or list of arguments (a last dict of named ones
    included), or a dict of named arguments. numpy arrays become tensors."""
    made = _tensors(made)
    if isinstance(made, Mapping):
        if set(made) <= set(parameters):
            return Arguments((), {str(k): v for k, v in made.items()})
        return Arguments((made,), {})
    if isinstance(made, (tuple, list)):
        if made and isinstance(made[-1], Mapping) and made[-1] and set(made[-1]) <= set(parameters[len(made) - 1 :]):
            return Arguments(tuple(made[:-1]), dict(made[-1]))
        return Arguments(tuple(made), {})
    return Arguments((made,), {})


def _tensors(thing: Any) -> Any:
    if isinstance(thing, (np.ndarray, np.generic)):
        return tensor(thing)
    if isinstance(thing, Mapping):
        return {key: _tensors(value) for key, value in thing.items()}
    if isinstance(thing, (tuple, list)) and not hasattr(thing, "_fields"):
        return type(thing)(_tensors(value) for value in thing)
    return thing


def flatten_arguments(bound: inspect.BoundArguments) -> tuple[inspect.BoundArguments, list[str], list[Any]]:
    """The same call with a :class:`Leaf` for every tensor, and the tensors with their names.

    A tensor argument has its parameter's name; nested ones add ``_0``, ``_1`` or the key.
    """
    names: list[str] = []
    tensors: list[Any] = []

    def leaf(name: str, thing: Any) -> Any:
        import torch

        if isinstance(thing, torch.Tensor):
            names.append(name)
            tensors.append(thing.detach().cpu())
            return Leaf(len(tensors) - 1)
        return _rebuilt(thing, lambda key, value: leaf(f"{name}_{key}", value))

    kinds = bound.signature.parameters
    for name, value in bound.arguments.items():
        if kinds[name].kind is inspect.Parameter.VAR_KEYWORD:
            bound.arguments[name] = {key: leaf(key, inner) for key, inner in value.items()}
        else:
            bound.arguments[name] = leaf(name, value)
    return bound, unique(names), tensors


def _rebuilt(thing: Any, change: Any) -> Any:
    if isinstance(thing, Mapping):
        return {key: change(key, value) for key, value in thing.items()}
    if isinstance(thing, tuple) and hasattr(thing, "_fields"):
        return type(thing)(*(change(key, getattr(thing, key)) for key in thing._fields))
    if isinstance(thing, (tuple, list)):
        return type(thing)(change(i, value) for i, value in enumerate(thing))
    return thing


def fill(tree: inspect.BoundArguments, tensors: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments with ``tensors`` in the leaves' places."""

    def put(thing: Any) -> Any:
        return tensors[thing.index] if isinstance(thing, Leaf) else _rebuilt(thing, lambda _, value: put(value))

    return put(tree.args), put(dict(tree.kwargs))


def built_in(tree: inspect.BoundArguments) -> list[str]:
    """``name=value`` of the arguments without a tensor in them; None is not worth telling."""

    def has_leaf(thing: Any) -> bool:
        if isinstance(thing, Leaf):
            return True
        inner = thing.values() if isinstance(thing, Mapping) else thing if isinstance(thing, (tuple, list)) else ()
        return any(has_leaf(value) for value in inner)

    plain = {n: v for n, v in tree.arguments.items() if v is not None and v != () and v != {} and not has_leaf(v)}
    return [f"{name}={str(value)[:40]}" for name, value in plain.items()]


def flatten_results(result: Any) -> Results:
    """A module's result as named tensors: ``output``, ``output_1`` ... by position, keys and fields by their names."""
    import torch

    found = Results([], [], [])

    def visit(name: str, thing: Any) -> None:
        if isinstance(thing, torch.Tensor):
            found.names.append(name or _next(found.names))
            found.tensors.append(thing)
            return
        inner = _parts(thing)
        if inner is None:
            if thing is not None:
                found.skipped.append(f"output '{name or len(found.names)}' ({type(thing).__name__})")
            return
        for key, value in inner:
            visit(key if not name else f"{name}_{key}" if key else _next(found.names, name), value)

    visit("", result)
    return Results(unique(found.names), found.tensors, found.skipped)


def _next(names: Sequence[str], stem: str = "output") -> str:
    number = sum(name == stem or name.startswith(f"{stem}_") for name in names)
    return stem if number == 0 else f"{stem}_{number}"


def _parts(thing: Any) -> list[tuple[str, Any]] | None:
    if isinstance(thing, Mapping):
        return [(str(key), value) for key, value in thing.items()]
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        return [(f.name, getattr(thing, f.name)) for f in dataclasses.fields(thing)]
    if isinstance(thing, tuple) and hasattr(thing, "_fields"):
        return [(name, getattr(thing, name)) for name in thing._fields]
    if isinstance(thing, (tuple, list)):
        return [("", value) for value in thing]
    return None


def unique(names: Sequence[str]) -> list[str]:
    """The names, later repetitions with ``_1``, ``_2`` ... added."""
    return free_of(names, ())


def free_of(names: Sequence[str], taken: Sequence[str]) -> list[str]:
    """The names, changed where they repeat or are ``taken``: a graph has one value of each name."""
    used, result = set(taken), []
    for name in names:
        number, free = 0, name
        while free in used:
            number += 1
            free = f"{name}_out" if number == 1 and name in taken else f"{name}_{number}"
        used.add(free)
        result.append(free)
    return result
