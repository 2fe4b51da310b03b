"""What the smaller reports hold: plain data that the rooms above fill in and this room turns into text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from optimizer.records import Ceilings, Coverage, Interval, Latency, Quality


@dataclass(frozen=True)
class Problem:
    """Something that does not work here, and the one line that mends it."""

    what: str
    fix: str


@dataclass(frozen=True)
class Bisection:
    """Where two models part: the first value that differs, the nodes that make it, on which feed and by how much.

    ``values`` counts the named values that both have, ``agreeing`` those before the first difference; ``nodes`` is how
    many nodes the reduced pair in ``folder`` has, when one was asked for.
    """

    left: str
    right: str
    agree: bool
    feeds: int
    tolerance: float
    values: int = 0
    agreeing: int = 0
    feed: str = ""
    value: str = ""
    difference: str = ""
    left_node: str = ""
    right_node: str = ""
    folder: str = ""
    nodes: int | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Doctor:
    """What this machine can run. ``features`` are the CPU features that targets ask for and this CPU has,
    ``missing`` optional packages with the line that installs them, ``ceilings`` what it was measured to do at most."""

    version: str
    python: str
    system: str
    cpu: str
    cores: int
    memory_bytes: int
    features: tuple[str, ...]
    target: str | None
    packages: Mapping[str, str]
    providers: tuple[str, ...]
    problems: tuple[Problem, ...] = ()
    missing: tuple[str, ...] = ()
    ceilings: Ceilings | None = None


class Row(Protocol):
    """One line of a benchmark: a model under one provider, batch size and number of threads."""

    @property
    def model(self) -> str: ...
    @property
    def provider(self) -> str: ...
    @property
    def batch(self) -> int: ...
    @property
    def threads(self) -> int: ...
    @property
    def latency(self) -> Latency | None: ...
    @property
    def throughput(self) -> float | None: ...
    @property
    def speedup(self) -> Interval | None: ...
    @property
    def memory_bytes(self) -> int | None: ...
    @property
    def load_ms(self) -> float | None: ...
    @property
    def size_bytes(self) -> int | None: ...
    @property
    def quality(self) -> Quality | None: ...
    @property
    def reason(self) -> str: ...
    @property
    def asked(self) -> str: ...
    @property
    def coverage(self) -> Sequence[Coverage]: ...
    @property
    def memory(self) -> Interval | None: ...
    @property
    def first_ms(self) -> float | None: ...


class Check(Protocol):
    """One finding of the receiver's check."""

    @property
    def check(self) -> str: ...
    @property
    def ok(self) -> bool: ...
    @property
    def detail(self) -> str: ...
    @property
    def warning(self) -> bool: ...


class Checked(Protocol):
    """What the receiver's check came to."""

    @property
    def ok(self) -> bool: ...
    @property
    def findings(self) -> Sequence[Check]: ...
    @property
    def folder(self) -> str: ...


class Kept(Protocol):
    """One file of the cache; ``used`` is seconds since the epoch."""

    @property
    def path(self) -> Path: ...
    @property
    def kind(self) -> str: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def used(self) -> float: ...


class Agreement(Protocol):
    """How far an exported model is from the PyTorch module."""

    @property
    def max_abs(self) -> float: ...
    @property
    def max_rel(self) -> float: ...
    @property
    def tolerance(self) -> float: ...
    @property
    def batches(self) -> Sequence[str]: ...
    @property
    def worst(self) -> str: ...


class Exported(Protocol):
    """What an export came to; ``parity`` is ``None`` for a source that was ONNX already."""

    @property
    def path(self) -> str: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def exporter(self) -> str | None: ...
    @property
    def parity(self) -> Agreement | None: ...
    @property
    def warnings(self) -> Sequence[str]: ...


class Elsewhere(Protocol):
    """A benchmark that another machine made."""

    @property
    def machine(self) -> str: ...
    @property
    def rows(self) -> Sequence[Row]: ...
    @property
    def environment(self) -> Mapping[str, Any]: ...
    @property
    def started(self) -> str: ...
    @property
    def warnings(self) -> Sequence[str]: ...


@dataclass(frozen=True)
class Differing:
    """One thing that is not the same on both sides, each side in words."""

    what: str
    left: str
    right: str


@dataclass(frozen=True)
class Difference:
    """How two models or artifacts differ; ``same`` says that operators, attributes and weights are equal."""

    left: str
    right: str
    same: bool
    recipe: tuple[Differing, ...] = ()
    made: tuple[Differing, ...] = ()
    signature: tuple[Differing, ...] = ()
    operators: tuple[Differing, ...] = ()
    weights: tuple[Differing, ...] = ()
    measured: tuple[Differing, ...] = ()

    def sections(self) -> dict[str, tuple[Differing, ...]]:
        """What differs, by heading, in the order in which it is told."""
        return {
            "recipe": self.recipe,
            "made from and for": self.made,
            "inputs and outputs": self.signature,
            "operators": self.operators,
            "weights": self.weights,
            "measured": self.measured,
        }


@dataclass(frozen=True)
class Replayed:
    """An artifact made again. ``ok`` says that every file came out with its digest, ``identical`` that the manifest did
    too; ``files`` are those that did not (SHA-256), ``notes`` what else differs (versions, the recipe that was left).
    ``folder`` holds what was made, empty when it was not kept."""

    artifact: str
    ok: bool
    identical: bool
    files: tuple[Differing, ...]
    notes: tuple[Differing, ...]
    folder: str = ""
