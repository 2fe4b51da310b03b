"""What a pass is and what it promises; the base class holds every pass to its word."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import ClassVar

import onnx_ir as ir

from passes.kit.context import Context
from passes.kit.model import Model
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


class Log:
    """Collects changes and skips while a pass works."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.skips: list[Skip] = []

    def change(self, rule: str, where: object, detail: str = "") -> None:
        self.changes.append(Change(rule, place(where), detail))

    def skip(self, rule: str, where: object, reason: str) -> None:
        skip = Skip(rule, place(where), reason)
        if skip not in self.skips:
            self.skips.append(skip)


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


GraphRewrite = Callable[[ir.Graph, Log], None]


def rewrite_graphs(model: Model, rewrite: GraphRewrite, *, repeat: int = 3) -> PassResult:
    """Fork ``model`` and run ``rewrite`` on each of its graphs, nested ones too, until nothing changes.

    At most ``repeat`` rounds. ``rewrite`` edits the graph in place and reports to the :class:`Log`. Stale names of
    removed values are dropped from the table of map types.
    """
    fork, log = model.fork(), Log()
    for _ in range(repeat):
        before = len(log.changes)
        for graph in list(fork.graphs()):
            rewrite(graph, log)
        if len(log.changes) == before:
            break
    return PassResult(fork if log.changes else model, tuple(log.changes), tuple(log.skips))


def place(where: object) -> str:
    """A readable place: the name of a node, else of its first output, else of a value."""
    if isinstance(where, ir.Node):
        return where.name or next((o.name for o in where.outputs if o.name), where.op_type)
    if isinstance(where, ir.Value):
        return where.name or "?"
    return str(where)
