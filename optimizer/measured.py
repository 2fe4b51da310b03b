"""The nouns that records are made of: intervals, where the time of a run goes, and what a machine can do at most."""

from __future__ import annotations

import enum
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % two-sided interval (``low <= value <= high``)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class OpCost:
    """An operator type in the graph that the runtime runs: its nodes, and milliseconds of one run in all of them."""

    op: str
    nodes: int
    ms: Interval


@dataclass(frozen=True)
class NodeCost:
    """A node of the graph that the runtime runs, and its milliseconds of one run without what it calls."""

    node: str
    op: str
    ms: Interval


@dataclass(frozen=True)
class Profile:
    """Where the time of one run goes by the runtime's own profile, intervals over runs.

    ``whole`` are all kernels, ``rest`` is what a run takes outside of them; profiling costs time itself, so the two
    come to more than the latency. ``ops`` are all operator types and ``nodes`` the slowest nodes, most expensive first.
    """

    runs: int
    whole: Interval
    rest: Interval
    ops: tuple[OpCost, ...]
    nodes: tuple[NodeCost, ...]


@dataclass(frozen=True)
class Ceiling:
    """What this machine can do at most, as measured with ``threads`` threads: multiply-accumulates per second of a
    matrix product of floats and of 8-bit integers, bytes per second to and from memory and a working set that fits the
    caches, milliseconds for calling a model at all, and for each node in it."""

    threads: int
    float_macs: Interval
    int8_macs: Interval | None
    memory: Interval
    cached: Interval
    call_ms: Interval
    node_ms: Interval


@dataclass(frozen=True)
class Ceilings:
    """The ceilings of one machine. ``cache_bytes`` is its last-level cache (0: not known), ``date`` when it was
    measured."""

    cpu: str
    cores: int
    runtime: str
    provider: str
    date: str
    cache_bytes: int
    at: tuple[Ceiling, ...]


class Bound(enum.StrEnum):
    """What takes most of a model's time."""

    COMPUTE = "compute"
    BANDWIDTH = "bandwidth"
    OVERHEAD = "overhead"
    NOTHING = "none"


@dataclass(frozen=True)
class LayerWork:
    """A layer against its kernel: multiply-accumulates and bytes of one run, and the milliseconds that it took."""

    layer: str
    macs: int
    bytes: int
    ms: float
    integer: bool


@dataclass(frozen=True)
class Roofline:
    """How near one model comes to what the machine can do.

    ``float_macs`` and ``int8_macs`` are the work of one run, ``bytes`` what it moves (weights, inputs and outputs once
    as the value and lower end; the upper end as if nothing stayed in a register between nodes), ``nodes`` how many the
    runtime runs. ``compute_ms``, ``bandwidth_ms`` and ``overhead_ms`` are what the run would take if nothing else than
    that ceiling held it back; ``share`` is the largest of them over the latency. ``cached`` says that the bytes were
    held against the caches' ceiling, because they fit.
    """

    float_macs: int
    int8_macs: int
    bytes: Interval
    nodes: int
    compute_ms: Interval
    bandwidth_ms: Interval
    overhead_ms: Interval
    bound: Bound
    share: Interval
    cached: bool
    says: str
    advice: tuple[str, ...]
    ceiling: Ceiling
    measured: str
    layers: tuple[LayerWork, ...] = ()


@dataclass(frozen=True)
class Energy:
    """Joules of one inference, and in words whose energy that is. ``measured``: by a counter, not an estimate."""

    joules: Interval
    says: str
    measured: bool
