"""What a benchmark tells beside speed: what bounds each model, where its time goes, and what inferences cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from optimizer.records import BenchmarkRow, Interval, Profile
from optimizer.report import words
from optimizer.report.benchmark import place, short_names
from optimizer.report.console import line, table, title

if TYPE_CHECKING:
    from rich.console import RenderableType

MOST_OPS = 8
MOST_NODES = 5


def beside(rows: Sequence[BenchmarkRow], *, profiled: bool = False) -> RenderableType:
    """Everything that ``rows`` hold of it, readable at 80 columns; ``profiled`` shows the profiles too."""
    from rich.console import Group

    names = short_names([r.model for r in rows])
    parts: list[RenderableType] = _costs(rows, names) + _bounds(rows, names)
    for row in rows if profiled else ():
        if row.profile is not None:
            parts += _profile(f"{names[row.model]} ({_scene(row)})", row.profile)
    return Group(*parts)


def _scene(row: BenchmarkRow) -> str:
    return f"batch {row.batch}, {row.threads} thread{'s' if row.threads != 1 else ''}"


def _labels(rows: Sequence[BenchmarkRow], names: dict[str, str]) -> list[str]:
    """Names of rows, with where they were measured when that is not the same for all."""
    scenes, places = {(r.batch, r.threads) for r in rows}, {place(r) for r in rows}
    beside = [
        (f" on {place(r, short=True)}" if len(places) > 1 else "") + (f", {_scene(r)}" if len(scenes) > 1 else "")
        for r in rows
    ]
    return [names[r.model] + text for r, text in zip(rows, beside, strict=True)]


def _costs(rows: Sequence[BenchmarkRow], names: dict[str, str]) -> list[RenderableType]:
    found = [r for r in rows if r.per_million is not None or r.energy is not None]
    if not found:
        return []
    cells = [
        (label, _span(r.per_million), _span(r.energy.joules, 1e3) if r.energy else words.NOTHING)
        for label, r in zip(_labels(found, names), found, strict=True)
    ]
    notes = [line("energy", text) for text in dict.fromkeys(r.energy.says for r in found if r.energy)]
    head = ("model", "price of a million", "mJ each")
    return [title("what inferences cost, one run after the other"), table(head, cells, right=(1, 2)), *notes]


def _span(found: Interval | None, scale: float = 1.0) -> str:
    if found is None:
        return words.NOTHING
    low, high = (words.significant(v * scale) for v in (found.low, found.high))
    return f"{words.significant(found.value * scale)} [{low}, {high}]"


def _bounds(rows: Sequence[BenchmarkRow], names: dict[str, str]) -> list[RenderableType]:
    held = [r for r in rows if r.roofline is not None]
    if not held:
        hint = "not known before `lathe doctor --measure` has found out what this machine can do"
        return [line("what bounds them", hint, "dim")] if any(r.latency for r in rows) else []
    roofs = [r.roofline for r in held if r.roofline is not None]
    parts: list[RenderableType] = ["", title(f"what bounds them (ceilings of {roofs[0].measured})")]
    for label, roof in zip(_labels(held, names), roofs, strict=True):
        help_ = f". Would help: {'; '.join(roof.advice)}" if roof.advice else ""
        parts.append(line(label, roof.says + help_))
    return parts


def _profile(name: str, found: Profile) -> list[RenderableType]:
    whole = sum(o.ms.value for o in found.ops) or 1.0
    ops = [(o.op, str(o.nodes), _us(o.ms), f"{o.ms.value / whole:.0%}") for o in found.ops[:MOST_OPS]]
    if len(found.ops) > MOST_OPS:
        rest = sum(o.ms.value for o in found.ops[MOST_OPS:])
        nodes = sum(o.nodes for o in found.ops[MOST_OPS:])
        ops.append(
            (f"{len(found.ops) - MOST_OPS} others", str(nodes), words.significant(rest * 1e3), f"{rest / whole:.0%}")
        )
    ops.append(("outside of kernels", "", _us(found.rest), ""))
    slow = [(n.node, n.op, _us(n.ms)) for n in found.nodes[:MOST_NODES]]
    return [
        "",
        title(f"{name}: us of one run by the runtime's profile, {found.runs} runs"),
        table(("operator", "nodes", "us", "share"), ops, right=(1, 2, 3)),
        table(("slowest nodes", "operator", "us"), slow, right=(2,)),
    ]


def _us(ms: Interval) -> str:
    reach = max(ms.high - ms.value, ms.value - ms.low) * 1e3
    return f"{words.significant(ms.value * 1e3)} ±{words.significant(reach, 2)}"
