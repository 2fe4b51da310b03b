"""Numbers with the units that a person reads, and the sentences that say what a compile came to."""

from __future__ import annotations

import shlex
from pathlib import PurePath

from optimizer.records import Confidence, Interval, Latency, Measured, Outcome, Quality, Record, Step

IN_POINTS = frozenset({"top1", "top5", "f1", "auroc", "agreement"})
"""Metrics between 0 and 1 that people read in percent, and their differences in points."""

SAME_SPEED = 0.005
NOTHING = "-"


def significant(number: float, digits: int = 3) -> str:
    """``digits`` significant digits without an exponent for everyday sizes: 0.0453, 1.23, 45.6, 1235."""
    if number == 0 or not 1e-6 <= abs(number) < 1e9:
        return f"{number:.{digits}g}"
    size = len(str(int(abs(number)))) if abs(number) >= 1 else 0
    if not size:
        return f"{float(f'{number:.{digits}g}'):.9f}".rstrip("0")
    return f"{number:.{max(0, digits - size)}f}"


def milliseconds(ms: float | None) -> str:
    """``0.0453 ms``, ``12.3 ms``; seconds from a thousand on."""
    if ms is None:
        return NOTHING
    return f"{significant(ms / 1e3)} s" if ms >= 1e3 else f"{significant(ms)} ms"


def size(count: int | None) -> str:
    """Bytes in kB, MB or GB (powers of ten, like the limits in a budget)."""
    if count is None:
        return NOTHING
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{significant(count / scale)} {unit}"
    return f"{count} B"


def count(number: float | None) -> str:
    """A large number in words: 1.23 M, 4.56 G."""
    if number is None:
        return NOTHING
    for unit, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{significant(number / scale)} {unit}"
    return f"{number:.0f}" if float(number).is_integer() else significant(number)


def duration(seconds: float) -> str:
    """``4.2 s``, ``45 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def times(speedup: Interval | None, *, interval: bool = True) -> str:
    """``2.31x [2.25, 2.38]``."""
    if speedup is None:
        return NOTHING
    text = f"{speedup.value:.2f}x"
    return f"{text} [{speedup.low:.2f}, {speedup.high:.2f}]" if interval else text


def faster(speedup: Interval) -> str:
    """A speed-up in a sentence, honest about there being none."""
    span = f"[{speedup.low:.2f}, {speedup.high:.2f}]"
    if speedup.value > 1 + SAME_SPEED:
        return f"{speedup.value:.2f}x faster {span}"
    if speedup.value < 1 - SAME_SPEED:
        return f"slower, at {speedup.value:.2f}x the speed {span}"
    return f"as fast as the source {span}"


def change(drop: Interval | None, quality: Quality | None, *, interval: bool = True) -> str:
    """How far the metric moved, in its own direction: ``-0.2 points [-0.5, +0.1]`` for a drop of 0.002 of top1."""
    if drop is None:
        return NOTHING
    up = quality is None or quality.higher_is_better
    value, low, high = (-drop.value, -drop.high, -drop.low) if up else (drop.value, drop.low, drop.high)
    if quality is not None and quality.metric in IN_POINTS:
        text, span = f"{_signed(100 * value, 1)} points", [_signed(100 * v, 1) for v in (low, high)]
    else:
        text, span = _moved(value), [_moved(low), _moved(high)]
    return f"{text} [{span[0]}, {span[1]}]" if interval else text


def amount(metric: str, drop: float) -> str:
    """The size of a drop: ``1.2 points``, or the number in the metric's own unit."""
    return f"{significant(100 * drop, 2)} points" if metric.partition(":")[0] in IN_POINTS else significant(drop, 2)


def can_show(samples: int, metric: str, drop: float, share: float | None = None) -> str:
    """What so many samples can show (80 % power at one-sided 95 %); ``share`` is what was assumed to come out
    differently."""
    assumed = f", if {share:.0%} of them come out differently" if share is not None else ""
    return f"{samples:,} samples can show a drop of {amount(metric, drop)} or more{assumed}"


def metric_value(quality: Quality | None) -> str:
    """``96.3 %`` for metrics read in percent, else the number."""
    if quality is None:
        return NOTHING
    if quality.metric in IN_POINTS:
        return f"{100 * quality.value:.1f} %"
    return significant(quality.value, 4)


def latency(found: Latency | None) -> str:
    """The median with its interval."""
    if found is None:
        return NOTHING
    return f"{milliseconds(found.p50)} [{significant(found.low)}, {significant(found.high)}]"


def headline(record: Record) -> str:
    """The one line that says what came out."""
    if record.outcome is Outcome.NONE:
        why = (record.error or {}).get("message") or "no recipe meets the limits that were set"
        return f"no artifact: {why}"
    if record.outcome is Outcome.UNCHANGED:
        return "unchanged: nothing that was tried is better than the source, so the source ships as it is"
    speed = faster(record.speedup) if record.speedup else "speed not measured"
    if record.outcome is Outcome.LOSSLESS:
        return f"{speed}, nothing spent: only lossless passes were kept"
    quality = record.final.quality if record.final else None
    if record.quality_drop is None or quality is None:
        return f"{speed}, quality not measured ({record.confidence})"
    return f"{speed} at {change(record.quality_drop, quality)} {quality.metric} ({record.confidence})"


def next_step(record: Record) -> str:
    """What to do now, one line."""
    if record.outcome is Outcome.NONE:
        return (record.error or {}).get("hint") or "loosen the limit, or see in the table what each recipe reached"
    need = record.confirm.need if record.confirm else ""
    if record.confidence is Confidence.UNDECIDED and need:
        return f"give {need} to decide it"
    if record.confidence is Confidence.UNPROVEN and record.outcome is Outcome.OPTIMIZED:
        return "give --data and --metric to have the quality measured"
    given = [word for library in record.libraries for word in ("--custom-ops", library)]
    return shlex.join(["lathe", "verify", record.artifact, *given]) if record.artifact else ""


def before_and_after(record: Record) -> list[tuple[str, str, str]]:
    """Rows of what was measured: name, source, result. Rows with nothing in them are left out."""
    empty = Measured(None, None, 0)
    was, now = record.baseline or empty, record.final or empty
    metric = next((m.quality.metric for m in (was, now) if m.quality), "quality")
    rows = [
        (metric, metric_value(was.quality), metric_value(now.quality)),
        ("latency", latency(was.latency_ms), latency(now.latency_ms)),
        ("size", size(was.size_bytes or None), size(now.size_bytes or None)),
        ("memory", size(was.memory_bytes), size(now.memory_bytes)),
    ]
    return [row for row in rows if row[1:] != (NOTHING, NOTHING)]


def step_cells(step: Step, separator: str = ", ") -> tuple[str, str, str, str]:
    """A tried recipe: label, what became of it, what it measured (speed, quality, size; separated), why."""
    measured = [
        times(step.speedup, interval=False) if step.speedup else "",
        change(step.drop, step.quality, interval=False) if step.drop else "",
        size(step.size_bytes) if step.size_bytes else "",
    ]
    why = step.verdict.reason + (f"; {step.verdict.need}" if step.verdict.need else "")
    faults = [f"{n.name} was left out: {n.fault}" for n in step.passes if n.fault and n.fault not in why]
    label, judgement = step.label or step.recipe, str(step.verdict.judgement)
    faults += [f"{n.name} was kept without {text}" for n in step.passes for text in n.left_out]
    return label, judgement, separator.join(filter(None, measured)), "; ".join(filter(None, [why, *faults]))


def checks(record: Record) -> str:
    """How the lossless rewrites of what ships are known to be right, in one line; empty when there are none."""
    notes = next((s.passes for s in reversed(record.steps) if s.recipe == record.recipe and s.passes), ())
    proved, tested = sum(n.proved for n in notes), sum(n.tested for n in notes)
    unreached = sum(n.unreached for n in notes)
    inputs = record.checked_on
    if not (proved or tested or unreached) or inputs is None:
        return ""
    parts = [f"{proved} proved", f"{tested} tested"]
    if unreached:
        parts.append(f"{unreached} where no input is known to lead")
    refused = f"; the source does not run on: {', '.join(inputs.refused)}" if inputs.refused else ""
    fed = f"on {inputs.real} ordinary and {len(inputs.adversarial)} adversarial inputs{refused}"
    count = proved + tested + unreached
    return f"{count} lossless rewrite{'s' if count != 1 else ''}: {', '.join(parts)} {fed}"


def source_name(record: Record) -> str:
    """The source without its folder."""
    return PurePath(record.source).name or record.source


def scene(record: Record) -> str:
    """Provider, target and budget in one line."""
    parts = [record.provider, f"target {record.target}", "budget " + (" and ".join(record.budget) or "default")]
    return ", ".join(parts)


def _signed(number: float, digits: int) -> str:
    rounded = round(number, digits) + 0.0  # no minus zero
    return f"{rounded:+.{digits}f}" if rounded else f"{rounded:.{digits}f}"


def _moved(number: float) -> str:
    if not number:
        return "0"
    return ("+" if number > 0 else "") + significant(number)


def edges(record: Record) -> list[str]:
    """What stands before and after the network in the artifact, what it takes and gives with that, what it costs."""
    found = record.boundary
    if found is None:
        return []
    lines = [f"takes {', '.join(found.inputs)}", f"gives {', '.join(found.outputs)}"]
    lines += [
        f"{place}: {text}" for place, text in (("before", found.preprocess), ("after", found.postprocess)) if text
    ]
    core, whole = found.core_latency_ms.p50, found.latency_ms.p50
    alone = f"the network alone {significant(core)} ms"
    lines.append(f"with them {significant(whole)} ms, {alone}: {whole - core:.2g} ms are theirs")
    if found.images:
        gap = f"at most {found.worst_difference:.1g} of the range of pixels"
        lines.append(f"what the network is given differs by {gap} from the Python reference, on {found.images} images")
    return lines
