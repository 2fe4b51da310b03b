"""A gate's record for people and for GitHub: the console, the step summary, annotations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from optimizer.records import GateRecord, Ruled, Ruling
from optimizer.report import markdown, words
from optimizer.report.console import line, table

if TYPE_CHECKING:
    from rich.console import RenderableType

COLOURS: Mapping[Ruling, str] = {
    Ruling.PASS: "green",
    Ruling.FAIL: "bold red",
    Ruling.UNDECIDED: "yellow",
    Ruling.SKIPPED: "dim",
}
MARKS: Mapping[Ruling, str] = {
    Ruling.PASS: "✅",
    Ruling.FAIL: "❌",
    Ruling.UNDECIDED: "❔",
    Ruling.SKIPPED: "⏭️",
}
HEAD = ("rule", "verdict", "allowed", "found")
NODES_SHOWN = 20


def found(ruled: Ruled) -> str:
    """What was found, and what would decide it."""
    return f"{ruled.found}; needs {ruled.need}" if ruled.need else ruled.found


def told(ruled: Ruled) -> str:
    """What was found beside what is allowed."""
    return f"{found(ruled)} (allowed: {ruled.allowed})" if ruled.allowed else found(ruled)


def headline(record: GateRecord) -> str:
    """The verdict in one line: how many rules hold, or which do not."""
    ruling = record.ruling
    if ruling is Ruling.PASS:
        count = len(record.rules)
        return (
            f"pass: {count} rules hold" if count > 1 else "pass: the rule holds" if count else "pass: no rule is asked"
        )
    names = ", ".join(r.rule for r in record.rules if r.ruling is ruling)
    return f"{ruling.value}: {names}"


def console(record: GateRecord) -> RenderableType:
    """Every rule with its ruling, then the verdict."""
    from rich.console import Group
    from rich.text import Text

    shown = table(("rule", "verdict", "finding"), [], last_wide=True)
    for r in record.rules:
        shown.add_row(Text(r.rule), Text(r.ruling.value, COLOURS[r.ruling]), Text(told(r)))
    against = f" against {record.baseline}" if record.baseline else ""
    parts: list[RenderableType] = [shown]
    parts += [line("warning", text, "yellow") for text in record.warnings]
    parts.append(line("took", words.duration(record.seconds)))
    closing = Text.assemble(f"{record.artifact}{against}: ", (headline(record), COLOURS[record.ruling]))
    return Group(*parts, closing)


def summary(record: GateRecord) -> str:
    """Markdown for a GitHub step summary or a merge request."""
    against = f" against `{_code(record.baseline)}`" if record.baseline else ""
    rows = [(r.rule, f"{MARKS[r.ruling]} {r.ruling.value}", r.allowed, found(r)) for r in record.rules]
    parts = [
        f"## {MARKS[record.ruling]} lathe gate: {record.ruling.value}",
        f"`{_code(record.artifact)}`{against}, policy `{_code(record.policy)}`, {words.duration(record.seconds)}.",
        markdown.table(HEAD, [tuple(map(_plain, row)) for row in rows]),
    ]
    nodes = [(r.rule, n.node, n.op, n.detail) for r in record.rules for n in r.nodes]
    if nodes:
        few = markdown.table(
            ("rule", "node", "operator", "finding"), [tuple(map(_plain, n)) for n in nodes[:NODES_SHOWN]]
        )
        rest = f"\n\nand {len(nodes) - NODES_SHOWN} more" if len(nodes) > NODES_SHOWN else ""
        parts.append(f"<details><summary>{len(nodes)} nodes</summary>\n\n{few}{rest}\n\n</details>")
    parts += [f"- warning: {_plain(w)}" for w in record.warnings]
    return "\n\n".join(parts) + "\n"


def workflow_commands(record: GateRecord) -> tuple[str, ...]:
    """Annotations for GitHub Actions: an error for every rule that fails, a warning for every undecided one."""
    levels = {Ruling.FAIL: "error", Ruling.UNDECIDED: "warning"}
    return tuple(
        f"::{levels[r.ruling]} file={_property(record.file)},title={_property('lathe gate: ' + r.rule)}"
        f"::{_data(told(r))}"
        for r in record.rules
        if r.ruling in levels
    )


def _plain(text: str) -> str:
    """Names of nodes and files are a stranger's text: no HTML and no Markdown comes of them."""
    plain = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in "\\`*_[]#!~" else c for c in plain)


def _code(text: str) -> str:
    return " ".join(text.replace("`", "'").split())


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
