"""What a pass is and what it promises; the base class holds every pass to its word."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from passes.kit.context import Context, Site, forbidden
from passes.kit.model import Model, names_in
from passes.kit.options import describe, fit


class Exactness(enum.Enum):
    """How far a pass may move the outputs.

    EXACT: bit-equal when the runtime's own optimizer is off. NUMERIC: the same algebra with other rounding.
    LOSSY: spends quality, so a recipe that holds it must be judged on data.
    """

    EXACT = "exact"
    NUMERIC = "numeric"
    LOSSY = "lossy"


class ContractBroken(RuntimeError):
    """A pass did what it promised not to do (changed the signature, or changed a model without saying so)."""


@dataclass(frozen=True)
class Change:
    """One rewrite that was made: which rule, at which node or value."""

    rule: str
    where: str
    detail: str = ""


@dataclass(frozen=True)
class Skip:
    """One rewrite that was looked at and refused, with the reason."""

    rule: str
    where: str
    reason: str


@dataclass(frozen=True)
class PassResult:
    """What came out of a pass. ``changes`` is empty if and only if ``model`` is the model that went in."""

    model: Model
    changes: tuple[Change, ...] = ()
    skips: tuple[Skip, ...] = ()


class Edit:
    """What a pass holds while it works on a fork: it collects changes and skips, and knows which names are free."""

    def __init__(self, fork: Model, forbidden: frozenset[Site] = frozenset()) -> None:
        self._forbidden = forbidden
        self.changes: list[Change] = []
        self.skips: list[Skip] = []
        self._taken = names_in(fork)

    def allows(self, rule: str, where: object) -> bool:
        """Whether a rewrite may be made. Asked before the graph is touched; a refusal is noted as a skip.

        A rewrite is forbidden when it was found to change what the model computes: the compile goes on without it.
        """
        if (rule, place(where)) not in self._forbidden:
            return True
        self.skip(rule, where, "it changed what the model computes, so it is left out")
        return False

    def change(self, rule: str, where: object, detail: str = "") -> None:
        """Note a rewrite that was made at a node, a value or a named place."""
        self.changes.append(Change(rule, place(where), detail))

    def skip(self, rule: str, where: object, reason: str) -> None:
        """Note a rewrite that was refused; the same refusal is noted once."""
        skip = Skip(rule, place(where), reason)
        if skip not in self.skips:
            self.skips.append(skip)

    def fresh(self, wish: str) -> str:
        """``wish``, or ``wish_1``, ``wish_2`` ... when the name is taken; the name is taken afterwards."""
        name, number = wish, 0
        while name in self._taken:
            number += 1
            name = f"{wish}_{number}"
        self._taken.add(name)
        return name

    def initializer(self, graph: ir.Graph, wish: str, array: np.ndarray[Any, Any]) -> ir.Value:
        """Register ``array`` as a new initializer of ``graph`` under a free name and return its value."""
        name = self.fresh(wish)
        tensor = ir.Tensor(np.asarray(array, order="C"), name=name)
        shape = ir.Shape(array.shape)
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
        graph.register_initializer(value)
        return value


@dataclass(frozen=True)
class Pass:
    """Base of every pass: a frozen dataclass whose fields are its options.

    A subclass sets ``name`` (kebab-case), ``exactness`` and, when it wraps native code that could take the process
    down, ``native = True``; it implements :meth:`apply`. Its docstring is its page in ``lathe passes NAME``.
    """

    name: ClassVar[str]
    exactness: ClassVar[Exactness]
    native: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for info in describe(type(self)):
            fit(info, getattr(self, info.name.replace("-", "_")))

    def apply(self, model: Model, context: Context) -> PassResult:
        """Return the rewritten model. ``model`` itself is never touched: work on ``model.fork()``."""
        raise NotImplementedError

    def __call__(self, model: Model, context: Context) -> PassResult:
        """Run :meth:`apply` and hold it to the contract. Raises :class:`ContractBroken`."""
        result = self.apply(model, context)
        if not result.changes:
            return PassResult(model, (), result.skips)
        if result.model is model:
            raise ContractBroken(f"{self.name} reports changes but returned the model it was given")
        result.model.forget_digest()
        if result.model.signature != model.signature:
            raise ContractBroken(f"{self.name} changed the signature: {model.signature} -> {result.model.signature}")
        return result

    @classmethod
    def page(cls) -> str:
        """The documentation of the pass: its class docstring."""
        return inspect.cleandoc(cls.__doc__ or "")

    def options(self) -> dict[str, object]:
        """Options that differ from their defaults, by kebab-case name."""
        return {
            f.name.replace("_", "-"): getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default
        }


GraphRewrite = Callable[[ir.Graph, Edit], None]


def rewrite_graphs(
    model: Model, rewrite: GraphRewrite, context: Context | None = None, *, rounds: int = 3
) -> PassResult:
    """Fork ``model`` and run ``rewrite`` on each of its graphs, nested ones too, until nothing changes.

    At most ``rounds`` times. ``rewrite`` edits the graph in place and reports to the :class:`Edit`. With ``context``
    the edit knows which single rewrites must be left out (:meth:`Edit.allows`).
    """
    fork = model.fork()
    edit = Edit(fork, forbidden(context))
    for _ in range(rounds):
        before = len(edit.changes)
        for graph in list(fork.graphs()):
            rewrite(graph, edit)
        if len(edit.changes) == before:
            break
    return PassResult(fork if edit.changes else model, tuple(edit.changes), tuple(edit.skips))


def place(where: object) -> str:
    """A readable place: the name of a node, else of its first output, else of a value."""
    if isinstance(where, ir.Node):
        return where.name or next((o.name for o in where.outputs if o.name), where.op_type)
    if isinstance(where, ir.Value):
        return where.name or "?"
    return str(where)
