"""Benchmarks for a terminal: a table of speed for every setting, who ran what, what models weigh, and sweeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import PurePath
from typing import TYPE_CHECKING

from optimizer.plan import ProviderText
from optimizer.records import Coverage, Latency, Noise, Sweep
from optimizer.report import words
from optimizer.report.console import line, table, title
from optimizer.report.nouns import Row
from optimizer.runtime.providers import short_name

if TYPE_CHECKING:
    from rich.console import RenderableType


MOST_WIDE = 26
"""Columns for names of models and of providers with their options: longer ones wrap."""

SPEED = ("model", "p50 ms", "p90", "p99", "per s", "speed-up")
WEIGHT = ("model", "size", "memory", "load", "first run", "other clock", "quality")


def benchmark(rows: Sequence[Row], noise: Sequence[Noise] = (), sweeps: Sequence[Sweep] = ()) -> RenderableType:
    """One table of speed for every batch size and number of threads, all models and providers in it; then who ran what
    and what each model weighs; then the sweeps."""
    from rich.console import Group

    names = short_names([*(r.model for r in rows), *(s.model for s in sweeps)])
    several = len({place(r) for r in rows}) > 1
    parts: list[RenderableType] = []
    for (batch, threads), found in groupby(rows, key=lambda r: (r.batch, r.threads)):
        here = list(found)
        clock = next((f", {r.latency.clock} time" for r in here if r.latency), "")
        scene = f"batch {batch}, {threads} thread{'s' if threads != 1 else ''}{clock}"
        parts.append(title(scene if several else f"{place(here[0])}, {scene}"))
        parts.append(_grouped(SPEED, here, names, _speed, several, right=4))
        parts += [line("noise", _noise(n)) for n in noise if n.threads == threads and n.batch == batch]
    best = _one_each(rows)
    parts.append(_grouped(WEIGHT, best, names, _weight, several, right=5))
    parts += _who_ran(best, names)
    reasons = dict.fromkeys((f"{names[r.model]} on {place(r)}", r.reason) for r in rows if r.reason)
    parts += [line(name, reason, "yellow") for name, reason in reasons]
    for swept in sweeps:
        parts += _sweep(swept, names)
    return Group(*parts)


def _grouped(
    head: Sequence[str],
    rows: Sequence[Row],
    names: Mapping[str, str],
    cells_of: Callable[[Row], tuple[str, ...]],
    several: bool,
    right: int,
) -> RenderableType:
    """A table in which the rows of each provider stand under its name; columns with nothing in them are left out. The
    ``right`` columns after the first are numbers."""
    cells: list[tuple[str, ...]] = []
    for where, found in groupby(rows, key=lambda r: place(r, short=True)):
        cells += [(where, *[""] * (len(head) - 1))] if several else []
        cells += [(("  " if several else "") + names[r.model], *cells_of(r)) for r in found]
    kept = [i for i in range(len(head)) if not i or any(row[i] not in ("", words.NOTHING) for row in cells)]
    shown = [tuple(row[i] for i in kept) for row in cells]
    numbers = tuple(at for at, i in enumerate(kept) if 0 < i <= right)
    return table(tuple(head[i] for i in kept), shown, right=numbers, names=MOST_WIDE)


def place(row: Row | Sweep, *, short: bool = False) -> str:
    """Where something was measured: the provider with its options, and whose place it takes."""
    name = _short(row.provider) if short else row.provider
    return f"{name}, not {_short(row.asked)}" if row.asked else name


def _short(provider: str) -> str:
    told = ProviderText.parse(provider)
    return ProviderText(short_name(told.name), told.options).text


def _speed(row: Row) -> tuple[str, ...]:
    found = row.latency
    if found is None:
        return ("failed", "", "", "", "")
    tails = [words.significant(v) if v is not None else words.NOTHING for v in (found.p90, found.p99)]
    rate = words.count(row.throughput) if row.throughput else words.NOTHING
    return (middle(found), *tails, rate, words.times(row.speedup))


def middle(found: Latency) -> str:
    """The median in milliseconds with the farther end of its interval."""
    spread = max(found.high - found.p50, found.p50 - found.low) / found.p50 if found.p50 else 0.0
    return f"{words.significant(found.p50)} ±{spread:.1%}"


def _noise(noise: Noise) -> str:
    same = f"the first row against itself came to {words.times(noise.ratio)}"
    if noise.ratio.low <= 1 <= noise.ratio.high:
        return f"{same}: ratios are resolved down to {noise.resolves:.1%}"
    return f"{same}: this machine is uneasy, so do not trust differences below {noise.resolves:.1%}"


def _one_each(rows: Sequence[Row]) -> list[Row]:
    """One row for each model on each provider: the first that has numbers."""
    best: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = (place(row), row.model)
        if key not in best or best[key].latency is None:
            best[key] = row
    return list(best.values())


def _weight(row: Row) -> tuple[str, ...]:
    quality = f"{words.metric_value(row.quality)} {row.quality.metric}" if row.quality else words.NOTHING
    times = (words.milliseconds(row.load_ms), words.milliseconds(row.first_ms))
    other = words.NOTHING
    if row.latency is not None and row.latency.other_ms is not None:
        other = f"{'wall' if row.latency.clock == 'cpu' else 'cpu'} {words.milliseconds(row.latency.other_ms)}"
    return (words.size(row.size_bytes), words.size(row.memory_bytes), *times, other, quality)


def _who_ran(rows: Sequence[Row], names: Mapping[str, str]) -> Iterator[RenderableType]:
    """Who ran what, by the profile: one line for each provider where all models went the same way."""
    told: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        if row.coverage:
            text = ran(row.coverage, ProviderText.parse(row.provider).name)
            told.setdefault(place(row, short=True), {}).setdefault(text, []).append(names[row.model])
    for where, texts in told.items():
        for text, models in texts.items():
            yield line(f"on {where}", text if len(texts) == 1 else f"{', '.join(models)}: {text}")


def ran(coverage: Sequence[Coverage], provider: str) -> str:
    """``14 of 14 nodes ran there``, with the share of the multiply-accumulates when some did not."""
    mine = [c for c in coverage if c.provider == provider]
    nodes, total = sum(c.nodes for c in mine), sum(c.nodes for c in coverage)
    devices = ", ".join(dict.fromkeys(c.device for c in mine if c.device))
    where = f"there (on {devices})" if devices else "there"
    if nodes == total:
        return f"all {total} nodes ran {where}"
    macs = [c.macs for c in coverage]
    part = ""
    if None not in macs and any(macs):
        part = f" and {sum(c.macs or 0 for c in mine) / sum(m or 0 for m in macs):.1%} of the multiply-accumulates"
    return f"{nodes} of {total} nodes{part} ran {where}"


# -- sweeps ------------------------------------------------------------------------------------------------------------
def _sweep(found: Sweep, names: Mapping[str, str]) -> Iterator[RenderableType]:
    fixed = []
    if found.kind != "batch":
        fixed.append(f"batch {found.batch}")
    if found.kind != "threads":
        fixed.append(f"{found.threads} thread{'s' if found.threads != 1 else ''}")
    clock = next((f", {p.latency.clock} time" for p in found.points if p.latency), "")
    yield title(f"{found.kind} sweep of {names[found.model]} on {place(found)}, {', '.join(fixed)}{clock}")
    against = "time, to before" if found.kind not in ("batch", "threads") else "throughput, to before"
    cells = []
    for p in found.points:
        if p.latency is None:
            cells.append((str(p.value), "failed", "", "", ""))
            continue
        rest = (words.count(p.throughput), words.size(p.memory_bytes), words.times(p.growth))
        cells.append((str(p.value), middle(p.latency), *rest))
    yield table((found.kind, "p50 ms", "per s", "memory", against), cells, right=(0, 1, 2, 3))
    for p in found.points:
        if p.reason and p.reason != found.why:
            yield line(f"{found.kind} {p.value}", p.reason, "yellow")
    if found.suggested is not None:
        yield line(f"suggested {found.kind}", f"{found.suggested}, since {found.why}", "green")
    elif found.why:
        yield line(f"{found.kind} sweep", found.why, "yellow")


def short_names(models: Sequence[str]) -> dict[str, str]:
    """Model names without the folders that are not needed to tell them apart."""
    unique = list(dict.fromkeys(models))
    for depth in range(1, 1 + max((len(PurePath(m).parts) for m in unique), default=0)):
        short = {m: "/".join(PurePath(m).parts[-depth:]) for m in unique}
        if len(set(short.values())) == len(unique):
            return short
    return {m: m for m in unique}
