"""What bounds a model: its work held against what the machine can do. Pure.

Three times are set against the latency that was measured: what the multiply-accumulates would take at the ceiling of
matrix products, what the bytes would take at the ceiling of reading, and what calling so many nodes takes. Whichever
comes nearest to the latency bounds it, if it comes near at all: half of it. Below that the honest answer is that none
does. (Williams, Waterman & Patterson 2009 hold the first two against each other; small models need the third.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from optimizer.measure.profile import Counted
from optimizer.records import Bound, Ceiling, Ceilings, Interval, Latency, Profile, Roofline

EXPLAINS = 0.5
"""Share of the latency from which a ceiling is what holds the model back."""

EXCEEDED = 1.1
"""A model that comes this much over a ceiling shows that the ceiling was measured too low."""

CACHED_BELOW = 0.5
"""Share of the last-level cache under which what a model moves stays in it from run to run."""

_PLAIN = {Bound.COMPUTE: "its multiply-accumulates", Bound.BANDWIDTH: "its bytes", Bound.OVERHEAD: "calling its nodes"}
_NAMES = {Bound.COMPUTE: "compute", Bound.BANDWIDTH: "bandwidth", Bound.OVERHEAD: "overhead"}


@dataclass(frozen=True)
class Shares:
    """How much of the latency each ceiling accounts for."""

    of: Mapping[Bound, Interval]

    @property
    def largest(self) -> Bound:
        return max(self.of, key=lambda b: self.of[b].value)


def at(ceilings: Ceilings | None, provider: str, threads: int) -> Ceiling | None:
    """The ceiling for these threads, if it was measured."""
    if ceilings is None or ceilings.provider != provider:
        return None
    return next((c for c in ceilings.at if c.threads == threads), None)


def hold(
    work: Counted, nodes: int, latency: Latency, ceilings: Ceilings, ceiling: Ceiling, profile: Profile | None = None
) -> Roofline | None:
    """The work of one run against a ceiling; ``None`` when some of the work could not be counted."""
    if work.unknown or (work.int8_macs and ceiling.int8_macs is None) or latency.p50 <= 0:
        return None
    compute = _taken(work.float_macs, ceiling.float_macs)
    if ceiling.int8_macs is not None:
        compute = _sum(compute, _taken(work.int8_macs, ceiling.int8_macs))
    cached = 0 < work.bytes.value < CACHED_BELOW * ceilings.cache_bytes
    speed = ceiling.cached if cached else ceiling.memory
    bandwidth = Interval(
        work.bytes.value / speed.value * 1e3, work.bytes.low / speed.high * 1e3, work.bytes.high / speed.low * 1e3
    )
    overhead = _sum(ceiling.call_ms, _times(max(0, nodes - 1), ceiling.node_ms))
    shares = Shares(
        {
            bound: Interval(ms.value / latency.p50, ms.low / latency.p50, ms.high / latency.p50)
            for bound, ms in ((Bound.COMPUTE, compute), (Bound.BANDWIDTH, bandwidth), (Bound.OVERHEAD, overhead))
        }
    )
    bound = shares.largest if shares.of[shares.largest].value >= EXPLAINS else Bound.NOTHING
    made = Roofline(
        work.float_macs,
        work.int8_macs,
        work.bytes,
        nodes,
        compute,
        bandwidth,
        overhead,
        bound,
        shares.of[shares.largest],
        cached,
        _says(bound, shares),
        (),
        ceiling,
        ceilings.date,
        work.layers,
    )
    return replace(made, advice=_advice(made, ceilings, profile))


def _taken(work: float, speed: Interval) -> Interval:
    """Milliseconds of so much work at so much per second."""
    return Interval(work / speed.value * 1e3, work / speed.high * 1e3, work / speed.low * 1e3)


def _times(count: int, each: Interval) -> Interval:
    return Interval(count * each.value, count * each.low, count * each.high)


def _sum(a: Interval, b: Interval) -> Interval:
    return Interval(a.value + b.value, a.low + b.low, a.high + b.high)


# -- in words ----------------------------------------------------------------------------------------------------------
def _says(bound: Bound, shares: Shares) -> str:
    largest = shares.largest
    share = shares.of[largest]
    if bound is Bound.NOTHING:
        maybe = [_NAMES[b] for b, s in shares.of.items() if s.high >= EXPLAINS]
        doubt = f"; it may still be {' or '.join(maybe)}" if maybe else ""
        return f"no ceiling explains the time: {_PLAIN[largest]} alone would take {_percent(share)} of it{doubt}"
    if share.low > EXCEEDED:
        return (
            f"{_NAMES[bound]}-bound: it runs at {_percent(share)} of the ceiling, so that was measured on a busier "
            "machine (measure again: lathe doctor --measure)"
        )
    rivals = [b for b, s in shares.of.items() if b is not bound and s.high >= share.low and s.high >= EXPLAINS]
    doubt = f" ({' and '.join(_NAMES[b] for b in rivals)} may weigh as much)" if rivals else ""
    return f"{_NAMES[bound]}-bound: {_PLAIN[bound]} alone would take {_percent(share)} of the time{doubt}"


def _percent(share: Interval) -> str:
    low, high = (f"{min(9.99, v):.0%}"[:-1] for v in (share.low, share.high))
    return f"{share.value:.0%}" if low == high else f"{share.value:.0%} [{low}, {high}]"


def _advice(found: Roofline, ceilings: Ceilings, profile: Profile | None) -> tuple[str, ...]:
    if found.bound is Bound.COMPUTE:
        return tuple(_of_compute(found, ceilings))
    if found.bound is Bound.BANDWIDTH:
        return tuple(_of_bandwidth(found))
    return tuple(_of_overhead(found) if found.bound is Bound.OVERHEAD else _of_nothing(profile))


def _of_compute(found: Roofline, ceilings: Ceilings) -> list[str]:
    ceiling, texts = found.ceiling, []
    if found.float_macs > found.int8_macs and ceiling.int8_macs is not None:
        gain = ceiling.int8_macs.value / ceiling.float_macs.value
        if gain > 1.1:
            texts.append(f"8-bit integers: their products run up to {gain:.1f} times as fast here")
    most = max(ceilings.at, key=lambda c: c.float_macs.value)
    if most.threads != ceiling.threads and most.float_macs.low > ceiling.float_macs.high:
        gain = most.float_macs.value / ceiling.float_macs.value
        texts.append(f"{most.threads} threads: up to {gain:.1f} times the multiply-accumulates a second")
    return [*texts, "fewer multiply-accumulates: a smaller input, pruning, a smaller model"]


def _of_bandwidth(found: Roofline) -> list[str]:
    texts = ["a larger batch: the weights are read once for all samples in it"]
    if found.float_macs > found.int8_macs:
        texts.insert(0, "smaller weights: 8 or 4 bits are a quarter or an eighth of the bytes")
    return texts


def _of_overhead(found: Roofline) -> list[str]:
    each = found.ceiling.node_ms.value * 1e3
    return [
        "a larger batch: one call for several samples",
        f"fewer nodes: {found.nodes} run at about {each:.2g} us each before they compute anything",
    ]


def _of_nothing(profile: Profile | None) -> list[str]:
    whole = sum(o.ms.value for o in profile.ops) if profile is not None else 0.0
    if profile is None or whole <= 0:
        return ["see which operators take the time: lathe benchmark --profile"]
    top = profile.ops[0]
    share = top.ms.value / whole
    nodes = f"{top.nodes} node{'s' if top.nodes != 1 else ''}"
    return [f"a look at {top.op}, where most of the kernels' time goes ({share:.0%}, {nodes})"]
