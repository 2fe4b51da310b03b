"""Rows of scenarios as tables for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from optimizer.records import Interval, ScenarioRow
from optimizer.report import words
from optimizer.report.benchmark import short_names
from optimizer.report.console import line, table, title

if TYPE_CHECKING:
    from rich.console import RenderableType

HEAD = ("model", "driver", "result", "p50/p90/p99 ms", "better")


def scenarios(rows: Sequence[ScenarioRow]) -> RenderableType:
    """A table for every scenario, then what cannot stand in one: reasons, what loadgen misses, real-time factors."""
    from rich.console import Group

    names = short_names([r.model for r in rows])
    parts: list[RenderableType] = []
    for _, found in groupby(rows, key=lambda r: (r.scenario, r.provider, r.batch, r.threads, r.bound_ms)):
        group = list(found)
        parts += [title(_scene(group[0])), table(HEAD, [_cells(r, names[r.model]) for r in group], right=(3,))]
        parts += [line(names[r.model], text) for r in group for text in _remarks(r)]
        parts += [line(names[r.model], r.reason, "yellow") for r in group if r.reason]
    parts += [line("warning", w, "yellow") for w in dict.fromkeys(w for r in rows for w in r.warnings)]
    return Group(*parts)


def _scene(row: ScenarioRow) -> str:
    threads = f"{row.threads} thread{'s' if row.threads != 1 else ''}"
    bound = f", p99 within {words.milliseconds(row.bound_ms)}" if row.bound_ms else ""
    where = f"{row.provider}, batch {row.batch}, {threads}, wall time"
    return f"{row.scenario}: {row.judged_by} in {row.unit}{bound}\n{where}"


def _cells(row: ScenarioRow, name: str) -> tuple[str, ...]:
    if row.result is None:
        return (name, row.driver, "none", "", "")
    tails = [row.percentiles.get(p) for p in ("50", "90", "99")]
    shown = "/".join(words.significant(t) if t is not None else words.NOTHING for t in tails)
    return (name, row.driver, interval(row.result), shown if any(tails) else words.NOTHING, words.times(row.against))


def interval(found: Interval) -> str:
    """``845 [812, 880]``; a single restart has none."""
    if not math.isfinite(found.high):
        return f"{words.significant(found.value)} [one restart]"
    return f"{words.significant(found.value)} [{words.significant(found.low)}, {words.significant(found.high)}]"


def _remarks(row: ScenarioRow) -> list[str]:
    told = []
    if row.held is not None:
        where = f"each of {row.restarts} restarts" if row.restarts > 1 else "the only restart"
        told.append(f"{words.significant(row.held)} queries/s were held in {where}")
    if row.real_time_factor is not None:
        keeps = "keeps up" if row.real_time_factor.value < 1 else "falls behind"
        told.append(f"real-time factor {interval(row.real_time_factor)}: it {keeps}")
    if row.verdict:
        missed = ", ".join(name.lower() for name, ok in row.checks.items() if not ok)
        told.append(f"loadgen says {row.verdict}" + (f": not satisfied: {missed}" if missed else ""))
    return told
