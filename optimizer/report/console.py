"""The closing words of a compile for a terminal: what came out, what was kept, what was let go, and why."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from optimizer.records import Confidence, Judgement, Outcome, Record
from optimizer.report import frontier, words

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

MOST_WIDE = 22
"""Columns for names: longer ones wrap."""

_COLOURS = {
    Judgement.ACCEPTED: "green",
    Judgement.REJECTED: "red",
    Judgement.UNDECIDED: "yellow",
    Judgement.FAULTED: "bold red",
    Judgement.SKIPPED: "dim",
}


def closing(record: Record) -> RenderableType:
    """The whole closing report, readable at 80 columns."""
    from rich.console import Group

    parts: list[RenderableType] = [_headline(record), ""]
    if rows := words.before_and_after(record):
        parts += [title(f"measured on {words.scene(record)}"), table(("", "source", "result"), rows)]
    if record.steps:
        parts += [title("what was tried"), tried(record)]
    if found := frontier.rows(record):
        parts += [title("what nothing else beats"), table(frontier.HEAD, found, last_wide=False)]
    if record.sensitivity and record.sensitivity.layers:
        text = f"the most sensitive of {len(record.sensitivity.layers)} layers ({record.sensitivity.method})"
        parts += [title(text), table(frontier.LAYER_HEAD, frontier.layer_rows(record.sensitivity)[:5], right=(1, 2))]
    if record.confirm and record.confirm.reason:
        parts.append(line("why", record.confirm.reason))
    if checks := words.checks(record):
        parts.append(line("checked", checks))
    parts += [line("edges", text) for text in words.edges(record)]
    parts += [line("warning", warning, "yellow") for warning in record.warnings]
    if record.artifact:
        parts.append(line("artifact", record.artifact))
        parts.append(line("report", f"{record.artifact}/report.html"))
    parts.append(line("took", words.duration(record.seconds)))
    if step := words.next_step(record):
        parts.append(line("next", step))
    return Group(*parts)


def tried(record: Record) -> Table:
    """Every recipe that was tried. The one that ships is marked."""
    from rich.text import Text

    shown = table(("recipe", "verdict", "measured", "why"), [], last_wide=True)
    for step in record.steps:
        label, verdict, measured, why = words.step_cells(step, "\n")
        ships = bool(record.artifact) and step.recipe == record.recipe
        shown.add_row(
            Text(label, "bold" if ships else ""),
            Text("ships" if ships else verdict, _COLOURS[step.verdict.judgement]),
            Text(measured),
            Text(why),
        )
    return shown


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    last_wide: bool = False,
    right: Sequence[int] = (),
    names: int | None = None,
) -> Table:
    """A plain table whose cells are text as it stands (brackets are no markup).

    ``last_wide`` gives the last column all the room that the others, which do not wrap, leave. ``right`` aligns
    columns to the right, ``names`` is how wide the first column may be.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD, expand=last_wide)
    for i, name in enumerate(head):
        stretches = last_wide and i == len(head) - 1
        narrow = names or (MOST_WIDE if last_wide else None) if i == 0 else None
        made.add_column(
            Text(name),
            overflow="fold",
            ratio=1 if stretches else None,
            max_width=narrow,
            no_wrap=last_wide and not stretches and i > 0,
            justify="right" if i in right else "left",
        )
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    return made


def title(text: str) -> Text:
    """What stands over a table."""
    from rich.text import Text

    return Text(text, "italic")


def line(label: str, text: str, colour: str = "") -> RenderableType:
    """``label: text``, with further lines hanging under the text."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(Text(f"{label}:", colour or "bold"), Text(text))
    return grid


def to_text(shown: RenderableType, width: int = 80) -> str:
    """What a terminal of that width without colours would show."""
    from rich.console import Console

    stream = io.StringIO()
    console = Console(file=stream, width=width, color_system=None, force_terminal=False, highlight=False, markup=False)
    console.print(shown)
    return "\n".join(row.rstrip() for row in stream.getvalue().splitlines()) + "\n"


def _headline(record: Record) -> Text:
    from rich.text import Text

    sure = record.confidence is Confidence.PROVEN or record.outcome is Outcome.LOSSLESS
    colours = {Outcome.NONE: "bold red", Outcome.UNCHANGED: "bold"}
    colour = colours.get(record.outcome, "bold green" if sure else "bold yellow")
    return Text.assemble((f"{words.source_name(record)}: ", "bold"), (words.headline(record), colour))
