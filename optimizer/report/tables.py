"""Inspections, checks, doctor's findings and the cache as renderables for a terminal."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from optimizer.records import Ceilings, PassNote
from optimizer.report import words
from optimizer.report.benchmark import benchmark
from optimizer.report.console import line, table, title
from optimizer.report.inspection import Inspection
from optimizer.report.nouns import Bisection, Checked, Difference, Doctor, Elsewhere, Exported, Kept, Replayed

if TYPE_CHECKING:
    from rich.console import RenderableType

LONGEST_LIST = 12


def inspection(found: Inspection) -> RenderableType:
    """Everything that ``lathe inspect`` shows."""
    from rich.console import Group

    ports = [("input", str(p)) for p in found.inputs] + [("output", str(p)) for p in found.outputs]
    parts: list[RenderableType] = [line(kind, text) for kind, text in _shorten(ports)]
    opsets = ", ".join(f"{domain} {version}" for domain, version in found.opsets.items())
    parts.append(line("format", f"IR {found.ir_version}, opset {opsets or 'none'}"))
    if found.producer:
        parts.append(line("made by", found.producer))
    types = ", ".join(f"{words.size(n)} {kind}" for kind, n in found.weight_types.items())
    weights = f"{words.count(found.parameters)} parameters" + (f" in {types}" if types else "")
    parts.append(line("weights", weights))
    if found.external:
        parts.append(line("weight files", ", ".join(found.external)))
    parts += [line("work", _work(found)), line("quantized", found.quantized or "no")]
    inner = f", {found.subgraphs} nested graphs" if found.subgraphs else ""
    local = f", {found.functions} local functions" if found.functions else ""
    parts.append(line("operators", f"{found.nodes} in all{inner}{local}: {_ops(found.ops)}"))
    parts += [line("warning", text, "yellow") for text in found.warnings]
    if found.passes:
        parts += ["", title("what each pass would do"), pass_notes(found.passes)]
    return Group(*parts)


def pass_notes(notes: Sequence[PassNote]) -> RenderableType:
    """What each pass would do."""
    rows = [(n.name, n.exactness, _would(n), n.fault or _few((*n.left_out, *n.skips), 3)) for n in notes]
    return table(("pass", "promise", "would do", "remarks"), rows, last_wide=True)


def _would(note: PassNote) -> str:
    if note.fault:
        return "fail"
    return f"{note.changes} change{'s' if note.changes != 1 else ''}" if note.changes else "nothing"


def _few(texts: Sequence[str], most: int) -> str:
    rest = f"; and {len(texts) - most} more" if len(texts) > most else ""
    return "; ".join(texts[:most]) + rest


def _ops(ops: Mapping[str, int]) -> str:
    shown = [f"{name} {n}" for name, n in list(ops.items())[:LONGEST_LIST]]
    rest = f", and {len(ops) - LONGEST_LIST} other kinds" if len(ops) > LONGEST_LIST else ""
    return ", ".join(shown) + rest


def _shorten(ports: list[tuple[str, str]]) -> list[tuple[str, str]]:
    if len(ports) <= 2 * LONGEST_LIST:
        return ports
    return [*ports[:LONGEST_LIST], ("", f"and {len(ports) - 2 * LONGEST_LIST} more"), *ports[-LONGEST_LIST:]]


def _work(found: Inspection) -> str:
    text = f"{words.count(found.work.total)} multiply-accumulates a run"
    if found.assumed:
        text += " with " + ", ".join(f"{name}={size}" for name, size in found.assumed.items())
    if found.work.unknown:
        text += "; not counted: " + ", ".join(f"{n} {op}" for op, n in found.work.unknown.items())
    return text


def bisection(found: Bisection) -> RenderableType:
    """Where two models part, and what shows it."""
    from rich.console import Group
    from rich.text import Text

    notes = [line("warning", w, "yellow") for w in found.warnings]
    feeds = f"{found.feeds} input{'s' if found.feeds != 1 else ''}"
    if found.agree:
        text = f"{found.left} and {found.right} agree on {feeds} (tolerance {found.tolerance:g})"
        return Group(Text(text, "bold green"), *notes)
    parts: list[RenderableType] = [Text(f"{found.left} and {found.right} part at '{found.value}'", "bold red")]
    parts.append(line("difference", f"{found.difference}, on {found.feed}"))
    parts += [line("first", found.left_node), line("second", found.right_node)]
    parts.append(line("before it", f"{found.agreeing} of {found.values} common values agree"))
    if found.folder:
        nodes = f"{found.nodes} node{'s' if found.nodes != 1 else ''}"
        parts.append(line("reduced", f"to {nodes} in {found.folder}"))
    return Group(*parts, *notes)


def checked(report: Checked) -> RenderableType:
    """Every finding of ``lathe verify`` and the verdict."""
    from rich.console import Group
    from rich.text import Text

    marks = {True: Text("ok", "green"), False: Text("WRONG", "bold red")}
    rows = table(("", "check", "finding"), [], last_wide=True)
    for f in report.findings:
        rows.add_row(Text("note", "yellow") if f.ok and f.warning else marks[f.ok], Text(f.check), Text(f.detail))
    wrong = sum(not f.ok for f in report.findings)
    verdict = f"{report.folder} holds" if report.ok else f"{report.folder} does not hold: {wrong} of the checks failed"
    return Group(rows, Text(verdict, "bold green" if report.ok else "bold red"))


def doctor(found: Doctor) -> RenderableType:
    """What this machine can run, and what to mend."""
    from rich.console import Group

    packages = ", ".join(f"{name} {version}" for name, version in sorted(found.packages.items()))
    facts = [
        ("lathe", f"{found.version} on Python {found.python}, {found.system}"),
        ("cpu", f"{found.cpu}, {found.cores} core{'s' if found.cores != 1 else ''}"),
        ("features", ", ".join(found.features) or "none that a target asks for"),
        ("memory", words.size(found.memory_bytes)),
        ("target", found.target or "none fits: name one with --target"),
        ("packages", packages),
        ("optional", ", ".join(found.missing)),
        ("providers", ", ".join(found.providers) or "none"),
    ]
    parts: list[RenderableType] = [line(label, text) for label, text in facts if text]
    parts += ceilings(found.ceilings) if found.ceilings is not None else []
    parts += [line("problem", f"{p.what}. To mend it: {p.fix}", "bold red") for p in found.problems]
    if not found.problems:
        parts.append(line("verdict", "everything that Lathe needs is here", "green"))
    return Group(*parts)


def ceilings(found: Ceilings) -> list[RenderableType]:
    """What the machine can do at most, one column for each number of threads."""
    rows = [
        ("products of floats", "MAC/s", [words.count(c.float_macs.value) for c in found.at]),
        ("products of int8", "MAC/s", [words.count(c.int8_macs.value if c.int8_macs else None) for c in found.at]),
        ("reading memory", "per second", [words.size(int(c.memory.value)) for c in found.at]),
        ("reading caches", "per second", [words.size(int(c.cached.value)) for c in found.at]),
        ("calling a model", "", [words.milliseconds(c.call_ms.value) for c in found.at]),
        ("each further node", "", [words.milliseconds(c.node_ms.value) for c in found.at]),
    ]
    head = ("", *(f"{c.threads} thread{'s' if c.threads != 1 else ''}" for c in found.at), "")
    text = f"what it can do at most (onnxruntime {found.runtime}, measured {found.date})"
    cells = [(name, *values, unit) for name, unit, values in rows]
    first, last = found.at[0], found.at[-1]
    busy = last.float_macs.high < first.float_macs.low
    note = (
        f"{last.threads} threads did less than {first.threads}: the machine was busy, so measure again when it is not"
    )
    shown = table(head, cells, right=range(1, 1 + len(found.at)))
    return ["", title(text), shown, *([line("warning", note, "yellow")] if busy else [])]


def cache(entries: Sequence[Kept], folder: str) -> RenderableType:
    """How much of what lies in the cache."""
    from rich.console import Group

    kinds: dict[str, list[Kept]] = {}
    for entry in entries:
        kinds.setdefault(entry.kind, []).append(entry)
    rows = [(kind, str(len(found)), _total(found), _day(found)) for kind, found in sorted(kinds.items())]
    total = line(folder, f"{len(entries)} files, {_total(entries)}")
    head = ("kind", "files", "size", "last used")
    return Group(total, table(head, rows, right=(1, 2))) if rows else total


def _total(entries: Sequence[Kept]) -> str:
    return words.size(sum(e.size_bytes for e in entries))


def _day(entries: Sequence[Kept]) -> str:
    latest = datetime.datetime.fromtimestamp(max(e.used for e in entries))
    return latest.strftime("%Y-%m-%d %H:%M")


def export(found: Exported) -> RenderableType:
    """What was exported and how well it agrees with PyTorch."""
    from rich.console import Group

    parts: list[RenderableType] = [line("file", f"{found.path}, {words.size(found.size_bytes)}")]
    if found.exporter:
        parts.append(line("exporter", found.exporter))
    if found.parity is not None:
        p = found.parity
        worst = f" in '{p.worst}'" if p.worst else ""
        text = f"largest difference {p.max_abs:.2g}{worst}, {p.max_rel:.2g} of the largest value"
        parts.append(line("parity", f"{text} (allowed {p.tolerance:.2g}), on {', '.join(p.batches)}"))
    parts += [line("warning", text, "yellow") for text in found.warnings]
    return Group(*parts)


def elsewhere(reports: Sequence[Elsewhere]) -> RenderableType:
    """What was measured on other machines: each by itself, under its name."""
    from rich.console import Group

    parts: list[RenderableType] = []
    for report in reports:
        versions = ", ".join(f"{name} {version}" for name, version in report.environment["packages"].items())
        parts += [line("measured on", f"{report.machine}; {versions}; {report.started}"), benchmark(report.rows)]
        parts += [line("warning", w, "yellow") for w in report.warnings]
    if len(reports) > 1:
        parts.append(line("note", "latencies of different machines are not compared"))
    return Group(*parts)


def difference(found: Difference) -> RenderableType:
    """How two models differ, section by section."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    for heading, rows in found.sections().items():
        if rows:
            drawn = table((heading, "left", "right"), [], last_wide=True)
            for row in rows:
                drawn.add_row(Text(row.what), Text(row.left), Text(row.right))
            parts.append(drawn)
    same = "the models are equal: operators, attributes and weights" if found.same else "the models differ"
    return Group(*parts, Text(f"{found.left} and {found.right}: {same}", "bold"))


def replayed(found: Replayed) -> RenderableType:
    """Whether an artifact came out again, and what did not."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    for heading, rows in (("file", found.files), ("manifest", found.notes)):
        if rows:
            drawn = table((heading, "as shipped", "made again"), [], last_wide=True)
            for row in rows:
                drawn.add_row(Text(row.what), Text(row.left), Text(row.right))
            parts.append(drawn)
    said = "came out again, bit for bit" if found.identical else "came out again; versions differ"
    text = f"{found.artifact} {said if found.ok else 'did not come out the same'}"
    return Group(*parts, Text(text, "bold green" if found.ok else "bold red"))
