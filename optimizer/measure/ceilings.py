"""What this machine can do at most through the runtime: products of floats and of bytes, reading memory, calling.

Each ceiling is a tiny model of one kind of work, timed like any other model. A ceiling is what the best moments reach:
its value is what the fastest tenth of the runs does, its lower end the median run, its upper end the fastest block.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import onnx

from optimizer.faults import Fault
from optimizer.measure.latency import Effort, Timing, compare
from optimizer.plain import from_plain
from optimizer.records import Ceiling, Ceilings, Interval, to_plain
from optimizer.runtime import hardware
from optimizer.runtime.sessions import Site
from optimizer.store.store import Store, key_of
from optimizer.workers.pool import CallFailed, WorkerDied
from passes.kit.model import Model

Array = np.ndarray[Any, Any]

ROWS, INNER, COLUMNS = 512, 1024, 1024
CACHED_BYTES = 1 << 20
"""A working set that fits the second-level cache of any server."""

BEYOND_CACHE = 2
LEAST_MEMORY_BYTES = 128 << 20
TINY_NODES = 64
EFFORT = Effort(3, 1.5)


@dataclass(frozen=True)
class Probe:
    """A small model, what it is fed, and the work of one run (multiply-accumulates, or bytes read)."""

    text: str
    feed: dict[str, Array]
    work: float = 0.0
    weight: Array | None = None

    def model(self) -> Model:
        """The model itself."""
        proto = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17]>\n' + self.text)
        if self.weight is not None:
            proto.graph.initializer.append(onnx.numpy_helper.from_array(self.weight, "w"))
        return Model.from_proto(proto)


def kept(store: Store, site: Site) -> Ceilings | None:
    """The ceilings that were measured on this machine with this runtime and provider, if any were."""
    tree = store.get_answer(_key(site))
    try:
        return from_plain(Ceilings, tree) if tree is not None else None
    except ValueError:  # of another version of Lathe
        return None


def measure(store: Store, sites: Sequence[Site], tell: Callable[[str], None], effort: Effort = EFFORT) -> Ceilings:
    """Measure the ceilings at each site (one provider, several numbers of threads) and keep them.

    Takes some twelve seconds a site, and memory for twice the last-level cache. Raises a Fault when the provider
    cannot run the plainest of the models.
    """
    host = hardware.host()
    rows = []
    for site in sites:
        tell(f"{site.provider}, {site.threads} thread{'s' if site.threads != 1 else ''}")
        rows.append(_ceiling(store, site, effort))
    made = Ceilings(
        host.cpu,
        host.cores,
        sites[0].runtime,
        sites[0].provider,
        datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        hardware.last_cache_bytes(),
        tuple(rows),
    )
    store.put_answer(_key(sites[0]), to_plain(made))
    return made


def _key(site: Site) -> str:
    host = hardware.host()
    return key_of("ceilings", host.cpu, host.cores, host.memory_bytes, site.runtime, site.provider)


def _ceiling(store: Store, site: Site, effort: Effort) -> Ceiling:
    def timed(probe: Probe) -> Timing:
        (timing,) = compare([store.put_model(probe.model())], [probe.feed], site, effort)
        return timing

    def fastest(probe: Probe) -> Interval:
        return rate(timed(probe), probe.work)

    one, many = (timed(tiny(nodes)).latency() for nodes in (1, 1 + TINY_NODES))
    spans = ((one.p50, many.p50), (one.high, many.low), (one.low, many.high))
    node_ms = Interval(*(max(0.0, (b - a) / TINY_NODES) for a, b in spans))
    try:
        int8 = fastest(int8_product())
    except (Fault, WorkerDied, CallFailed):  # a provider without 8-bit products
        int8 = None
    return Ceiling(
        site.threads,
        fastest(float_product()),
        int8,
        fastest(reading(memory_bytes())),
        fastest(reading(CACHED_BYTES)),
        Interval(one.p50, one.low, one.high),
        node_ms,
    )


def rate(timing: Timing, work: float) -> Interval:
    """Work per second: of the fastest tenth of the runs, between the median run and the fastest block."""
    runs = np.concatenate([block for restart in timing.blocks for block in restart])
    best = min(median for restart in timing.medians() for median in restart)
    fast, middle = (float(np.quantile(runs, q)) for q in (0.1, 0.5))
    low, value, high = (work / ms * 1e3 for ms in (middle, fast, min(best, fast)))
    return Interval(value, min(low, value), high)


# -- the models --------------------------------------------------------------------------------------------------------
def float_product() -> Probe:
    """A matrix product of floats with a constant matrix, as layers have it."""
    rng = np.random.default_rng(0)
    left, right = (rng.random(shape, np.float32) for shape in ((ROWS, INNER), (INNER, COLUMNS)))
    text = f"g (float[{ROWS}, {INNER}] x) => (float[{ROWS}, {COLUMNS}] y) {{ y = MatMul (x, w) }}"
    return Probe(text, {"x": left}, ROWS * INNER * COLUMNS, right)


def int8_product() -> Probe:
    """The same of unsigned bytes with a constant matrix of signed ones."""
    rng = np.random.default_rng(0)
    left = rng.integers(0, 127, (ROWS, INNER), np.uint8)  # small enough that no instruction set saturates
    right = rng.integers(-63, 63, (INNER, COLUMNS), np.int8)
    text = f"g (uint8[{ROWS}, {INNER}] x) => (int32[{ROWS}, {COLUMNS}] y) {{ y = MatMulInteger (x, w) }}"
    return Probe(text, {"x": left}, ROWS * INNER * COLUMNS, right)


def reading(count: int) -> Probe:
    """One row times a matrix of ``count`` bytes: every byte is read once and used once, as in a layer at batch 1."""
    rows = max(1, count // (4 * COLUMNS))
    text = f"g (float[1, {rows}] x, float[{rows}, {COLUMNS}] m) => (float[1, {COLUMNS}] y) {{ y = MatMul (x, m) }}"
    feed = {"x": np.ones((1, rows), np.float32), "m": np.ones((rows, COLUMNS), np.float32)}
    return Probe(text, feed, 4.0 * rows * COLUMNS)


def tiny(nodes: int) -> Probe:
    """A chain of additions of two numbers: nothing but calls."""
    names = ["x", *(f"v{i}" for i in range(nodes - 1)), "y"]
    chain = " ".join(f"{b} = Add ({a}, s)" for a, b in pairwise(names))
    return Probe(f"g (float[1] x, float[1] s) => (float[1] y) {{ {chain} }}", {n: np.ones(1, np.float32) for n in "xs"})


def memory_bytes() -> int:
    """A working set far above the last-level cache, as far as the memory that is free allows."""
    wanted = max(LEAST_MEMORY_BYTES, BEYOND_CACHE * hardware.last_cache_bytes())
    return min(wanted, hardware.available_memory() // 8)
