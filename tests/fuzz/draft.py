"""A model while it is being made up: values whose types and shapes are known, and a seeded source of chance.

Steps (:func:`step`) are functions that add a few nodes to a :class:`Draft`. A step that finds nothing to work on raises
:class:`Dull`, and another one is tried.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper as h

Array = np.ndarray[Any, Any]
Dim = int | str
Dims = tuple[Dim, ...]

FLOATS = ("float32", "float16", "float64")
INTS = ("int64", "int32", "int8", "uint8")
LARGEST = 4096
"""No value has more elements than this for the sizes that are fed."""


class Dull(Exception):
    """A step found nothing to work on."""


@dataclass(frozen=True)
class Held:
    """One value: element type (numpy's name), dimensions, and what is known of its numbers.

    ``settled``: no pass may change a bit of it, so that operators with jumps (Floor, ArgMax, Cast to integers) may
    read it. ``wide``: about how large its elements get for ordinary inputs.
    """

    name: str
    kind: str
    dims: Dims
    settled: bool = True
    wide: float = 1.0

    @property
    def rank(self) -> int:
        return len(self.dims)


@dataclass
class Draft:
    """The graph so far. ``sizes`` holds, for each symbol of a dimension, the numbers that are fed."""

    rng: np.random.Generator
    opset: int
    sizes: dict[str, tuple[int, ...]]
    prefix: str = ""
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: list[onnx.TensorProto] = field(default_factory=list)
    inputs: list[Held] = field(default_factory=list)
    values: list[Held] = field(default_factory=list)
    weights: dict[tuple[Any, ...], list[Held]] = field(default_factory=dict)
    functions: list[onnx.FunctionProto] = field(default_factory=list)
    domains: set[str] = field(default_factory=set)
    count: int = 0

    # -- chance ---------------------------------------------------------------------------------------------------
    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def one(self, of: Sequence[Any]) -> Any:
        if not of:
            raise Dull
        return of[int(self.rng.integers(len(of)))]

    def between(self, low: int, high: int) -> int:
        """A number from ``low`` to ``high``, both included."""
        return int(self.rng.integers(low, high + 1))

    def normal(self, *shape: int, scale: float = 1.0, kind: str = "float32") -> Array:
        return np.asarray(self.rng.standard_normal(shape) * scale).astype(kind)

    def positive(self, *shape: int, kind: str = "float32") -> Array:
        return np.asarray(np.abs(self.rng.standard_normal(shape)) + 0.5).astype(kind)

    # -- values ---------------------------------------------------------------------------------------------------
    def pick(self, test: Callable[[Held], bool] = lambda v: True, kinds: Sequence[str] = FLOATS) -> Held:
        """A value that passes ``test``; later ones are likelier. Raises :class:`Dull` when there is none."""
        found = [v for v in self.values if v.kind in kinds and v.wide <= 1e3 and test(v)]
        if not found:
            raise Dull
        return found[max(self.between(0, len(found) - 1), self.between(0, len(found) - 1))]

    def fresh(self, stem: str) -> str:
        self.count += 1
        return f"{self.prefix}{stem.lower()}{self.count}"

    def elements(self, dims: Dims) -> int:
        return int(np.prod([max(self.sizes[d]) if isinstance(d, str) else d for d in dims], dtype=np.int64))

    def settles(self, *values: Held) -> bool:
        return all(v.settled for v in values)

    # -- building -------------------------------------------------------------------------------------------------
    def op(
        self,
        kind: str,
        inputs: Sequence[Held | str],
        dims: Dims,
        *,
        dtype: str = "",
        settled: bool = False,
        wide: float | None = None,
        keep: bool = True,
        domain: str = "",
        **attributes: Any,
    ) -> Held:
        """Add a node with one output. Its type is that of the first input unless ``dtype`` names one."""
        return self.ops(
            kind, inputs, [(dtype, dims)], settled=settled, wide=wide, keep=keep, domain=domain, **attributes
        )[0]

    def ops(
        self,
        kind: str,
        inputs: Sequence[Held | str],
        outputs: Sequence[tuple[str, Dims]],
        *,
        settled: bool = False,
        wide: float | None = None,
        keep: bool = True,
        domain: str = "",
        **attributes: Any,
    ) -> list[Held]:
        """Add a node with several outputs, given as (type, dimensions)."""
        held = [v for v in inputs if isinstance(v, Held)]
        first = held[0].kind if held else "float32"
        if any(self.elements(dims) > LARGEST for _, dims in outputs):
            raise Dull
        largest = max((v.wide for v in held), default=1.0) if wide is None else wide
        # The CPU runtime computes float16 in float32, and drops the rounding in between where two casts meet.
        settled = settled and all((t or first) != "float16" for t, _ in outputs)
        found = [Held(self.fresh(kind), t or first, tuple(dims), settled, largest) for t, dims in outputs]
        names = [v.name if isinstance(v, Held) else v for v in inputs]
        node = h.make_node(kind, names, [v.name for v in found], self.fresh(f"n_{kind}"), domain=domain, **attributes)
        self.nodes.append(node)
        if domain:
            self.domains.add(domain)
        if keep:
            self.values += found
        return found

    def weight(self, array: Array, *, shared: bool = False) -> Held:
        """A constant: an initializer or a Constant node. ``shared`` may hand out one that is in use already."""
        array = np.asarray(array)
        key = (str(array.dtype), array.shape)
        known = self.weights.setdefault(key, [])
        if shared and known and self.chance(0.15):
            return self.one(known)
        wide = float(np.abs(array.astype(np.float64)).max(initial=0)) if array.dtype.kind in "fiu" else 1.0
        held = Held(self.fresh("w"), str(array.dtype), array.shape, True, wide)
        tensor = onnx.numpy_helper.from_array(array, held.name)
        if self.chance(0.25):
            self.nodes.append(h.make_node("Constant", [], [held.name], self.fresh("n_constant"), value=tensor))
        else:
            self.tensors.append(tensor)
        known.append(held)
        return held

    def number(self, value: float, kind: str = "float32", rank: int = 0) -> Held:
        return self.weight(np.full((1,) * rank, value, kind))

    def ints(self, *values: int) -> Held:
        return self.weight(np.array(values, np.int64))

    def axes(self, since: int, axes: Sequence[int]) -> tuple[list[Held], dict[str, Any]]:
        """Axes as an input from opset ``since`` on, as an attribute before."""
        return ([self.ints(*axes)], {}) if self.opset >= since else ([], {"axes": list(axes)})

    def last(self) -> Held:
        return self.values[-1]


Step = Callable[[Draft], None]
STEPS: list[tuple[Step, float, int]] = []
"""Every step with its weight and the opset from which it can be taken."""


def step(weight: float = 1.0, since: int = 1) -> Callable[[Step], Step]:
    """Register a function as a step."""

    def note(function: Step) -> Step:
        STEPS.append((function, weight, since))
        return function

    return note
