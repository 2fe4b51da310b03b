"""``report.md``: a record as plain Markdown, for whoever receives the artifact."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from optimizer.records import Outcome, PassNote, Record, Step, Verdict
from optimizer.report import frontier, words


def report(record: Record) -> str:
    """The whole page. Says nothing of where on a disk things lie."""
    parts = [
        f"# {words.source_name(record)}: {record.outcome}",
        _escape(words.headline(record)),
        _escape(f"Measured on {words.scene(record)}."),
        _measured(record),
        _what_ships(record),
        _list("Before and after the network", words.edges(record)),
        _tried(record.steps),
        _frontier(record),
        _sensitivity(record),
        _list("Warnings", record.warnings),
        _environment(record),
        _how_to_use(record),
    ]
    return "\n\n".join(p for p in parts if p) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; pipes and line breaks inside cells are escaped."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    lines += ["| " + " | ".join(_escape(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _measured(record: Record) -> str:
    rows = words.before_and_after(record)
    if not rows:
        return ""
    notes = []
    for side, found in (("source", record.baseline), ("result", record.final)):
        if found and found.latency_ms:
            notes.append(f"{side}: {found.latency_ms.runs} runs, {found.latency_ms.clock} time")
        if found and found.quality:
            notes.append(f"{side}: {found.quality.metric} on {found.quality.samples} samples")
    caption = f"\n\nIntervals are 95 %. {'; '.join(notes)}." if notes else ""
    return "## What was measured\n\n" + table(("", "source", "result"), rows) + _escape(caption)


def _what_ships(record: Record) -> str:
    if record.outcome is Outcome.NONE:
        return ""
    shipped = f"Recipe: `{record.recipe}`" if record.recipe else "The source as it is."
    text = f"## What ships\n\n{shipped}"
    if record.confirm:
        text += _escape(f"\n\n{_why(record, record.confirm)}.")
    notes = next((s.passes for s in reversed(record.steps) if s.recipe == record.recipe and s.passes), ())
    if notes:
        rows = [(n.name, n.exactness, str(n.changes), _remarks(n)) for n in notes]
        text += "\n\n" + table(("pass", "promise", "changes", "remarks"), rows)
    if checks := words.checks(record):
        text += _escape(f"\n\nChecked: {checks}.")
    return text


def _why(record: Record, verdict: Verdict) -> str:
    need = f" ({verdict.need})" if verdict.need else ""
    if record.outcome is Outcome.OPTIMIZED and record.quality_drop is not None:
        return f"Confirmed on samples that nobody had looked at: {verdict.judgement}, {verdict.reason}{need}"
    return f"Why: {verdict.reason}{need}"


def _remarks(note: PassNote) -> str:
    if note.fault:
        return f"left out: {note.fault}"
    texts = (*(f"left out: {text}" for text in note.left_out), *note.skips)
    shown = "; ".join(texts[:3])
    return f"{shown}; and {len(texts) - 3} more" if len(texts) > 3 else shown


def _tried(steps: Sequence[Step]) -> str:
    if not steps:
        return ""
    rows = [words.step_cells(s) for s in steps]
    return "## What was tried\n\n" + table(("recipe", "verdict", "measured", "why"), rows)


def _frontier(record: Record) -> str:
    rows = frontier.rows(record)
    if not rows:
        return ""
    text = "Measured on the select samples; nothing else that was tried is better in quality, speed and size together."
    return f"## Quality, speed and size\n\n{text}\n\n![frontier](frontier.svg)\n\n" + table(frontier.HEAD, rows)


def _sensitivity(record: Record) -> str:
    found = record.sensitivity
    rows = frontier.layer_rows(found)
    if found is None or not rows:
        return ""
    text = (
        f"Signal over noise at the outputs when a layer alone is quantized ({found.method}), and what its integer "
        f"kernel saves in one run by the runtime's profile. {len(found.layers)} layers in all; `evidence.json` holds "
        "the rest."
    )
    return "## What layers cost\n\n" + _escape(text) + "\n\n" + table(frontier.LAYER_HEAD, rows)


def _list(title: str, lines: Sequence[str]) -> str:
    return f"## {title}\n\n" + "\n".join(f"- {_escape(line)}" for line in lines) if lines else ""


def _environment(record: Record) -> str:
    flat = {k: v for k, v in record.environment.items() if not isinstance(v, dict)}
    packages = record.environment.get("packages")
    lines = [f"{k.removesuffix('_bytes')}: {words.size(v) if k.endswith('_bytes') else v}" for k, v in flat.items()]
    if isinstance(packages, dict):
        lines.append("packages: " + ", ".join(f"{k} {v}" for k, v in sorted(packages.items())))
    return _list("Where it was measured", lines)


def _how_to_use(record: Record) -> str:
    if record.outcome is Outcome.NONE:
        return ""
    has = "takes and gives what is said above" if record.boundary else "has the inputs and outputs of the source"
    return (
        f"## How to use it\n\n`model.onnx` {has}. `lathe verify .` checks that nothing was changed "
        "on the way and that it gives the same answers on your machine; `manifest.json` says how to make it again, "
        "`evidence.json` holds every measurement, and `report.html` shows them in a browser."
    )


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\r", " ").replace("\n\n", "\0").replace("\n", " ").replace("\0", "\n\n")
