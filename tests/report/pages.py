"""A record that fills every section of ``report.html``."""

from __future__ import annotations

from dataclasses import replace

from optimizer.records import (
    Bound,
    Boundary,
    Ceiling,
    FrontierPoint,
    Interval,
    Latency,
    LayerWork,
    NodeCost,
    OpCost,
    Origin,
    Profile,
    Record,
    Roofline,
    Sensitivity,
)
from tests.report.records import LET_GO, OPTIMIZED, RECIPE

HOSTILE = '<script>document.title="owned"</script>"\'><img src=x onerror=alert(1)>'
"""A name as a hostile model would have it."""


def near(value: float, share: float = 0.03) -> Interval:
    return Interval(value, value * (1 - share), value * (1 + share))


def profile(name: str = "/layer1/conv", scale: float = 1.0) -> Profile:
    ops = (OpCost("Conv", 9, near(0.8 * scale)), OpCost("Gemm", 1, near(0.05 * scale)))
    nodes = (NodeCost(name, "Conv", near(0.2 * scale)),)
    return Profile(120, near(0.9 * scale), near(0.08), ops, nodes)


CEILING = Ceiling(1, near(45e9), near(320e9), near(12e9), near(35e9), near(0.01), near(0.0006))


def roofline(name: str = "/layer1/conv", *, integer: bool = False) -> Roofline:
    macs = (0, 40_000_000) if integer else (40_000_000, 0)
    return Roofline(
        *macs,
        Interval(3e6, 3e6, 9e6),
        14,
        near(0.9),
        Interval(0.2, 0.2, 0.7),
        near(0.02),
        Bound.COMPUTE,
        near(0.75),
        True,
        "compute-bound: its multiply-accumulates alone would take 75% of the time",
        ("8-bit integers: their products run up to 7.1 times as fast here",),
        CEILING,
        "2026-11-26",
        (LayerWork(name, 4_000_000, 60_000, 0.1, integer),),
    )


def around(name: str, core: Latency, whole: Latency) -> Boundary:
    before, after = "resize=256, normalize=imagenet", "softmax"
    takes, gives = ("pixels: UINT8[n, height, width, 3]",), (f"{name}: FLOAT[n, 5]",)
    return Boundary(before, after, takes, gives, 2e-5, 11, core, whole, near(1.4))


def full(name: str = "/layer1/conv") -> Record:
    """Everything measured; ``name`` stands wherever a model's own names do."""
    base, final = OPTIMIZED.baseline, OPTIMIZED.final
    assert base and final and base.latency_ms and final.latency_ms
    slow = replace(base.latency_ms, quantiles=tuple(1.1 + 0.01 * i for i in range(40)), p90=1.4, p99=1.5)
    fast = replace(final.latency_ms, quantiles=(*(0.5 + 0.004 * i for i in range(39)), 9.0))
    points = (
        FrontierPoint("int8 static", RECIPE, near(2.31), 0.52, Interval(0.002, -0.001, 0.005), 1_210_000, True),
        FrontierPoint("8-bit weights", "tidy", near(1.2), 1.0, Interval(0.0, -0.001, 0.001), 1_300_000, True),
        FrontierPoint("source", "", near(1.0), 1.2, None, 4_700_000, False),
    )
    return replace(
        OPTIMIZED,
        artifact=None,
        source=name,
        baseline=replace(
            base, latency_ms=slow, load_ms=31.0, first_ms=9.0, profile=profile(name, 1.3), roofline=roofline(name)
        ),
        final=replace(final, latency_ms=fast, profile=profile(name, 0.6), roofline=roofline(name, integer=True)),
        steps=(*OPTIMIZED.steps, replace(LET_GO, label=name, verdict=replace(LET_GO.verdict, reason=name))),
        warnings=(name, *OPTIMIZED.warnings),
        frontier=points,
        sensitivity=Sensitivity("one by one", {name: 0.01, "b": 0.001}, {name: 0.2}, 1.0),
        date="2026-11-26",
        boundary=around(name, fast, slow),
        origin=Origin("ab" * 32, "cd" * 32, 0, 1, 1, "top1", {"confirm": "ef" * 32}),
    )
