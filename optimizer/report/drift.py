"""What came of holding new data against an artifact, and how it is told."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optimizer.records import to_plain

if TYPE_CHECKING:
    from rich.console import RenderableType

SHOWN = 12
LEAST = 1e-16
"""Smaller p-values are told as smaller than this."""


class Drift(enum.StrEnum):
    """The word of the verdict."""

    OK = "ok"
    DRIFT = "drift"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Change:
    """A statistic whose distribution is another than when the artifact was made.

    ``part`` is input, tensor, output or label; ``p`` is adjusted for the number of tests (Holm), to be read against
    ``alpha`` of its part; ``before`` and ``now`` are medians over samples, or means where the median says nothing.
    """

    part: str
    name: str
    statistic: str
    test: str
    p: float
    alpha: float
    before: float
    now: float


@dataclass(frozen=True)
class Clipped:
    """How much of a quantized tensor has no integer of its own: the share of its values, now and on data that
    calibration had not seen. ``hurt``: it grew, by more than chance and by more than one value in a thousand."""

    tensor: str
    before: float
    now: float
    p: float
    hurt: bool


@dataclass(frozen=True)
class DriftRecord:
    """The single truth of a check of data. ``shift`` is the least shift of a statistic, in its standard deviations,
    that would have been found 95 % of the time; ``tests`` how many there were; ``need`` what would decide an undecided
    one; ``reason`` is one line for people. ``alpha`` bounds the chance that the verdict is drift and nothing changed.
    """

    verdict: Drift
    reason: str
    samples: int
    reference: int
    alpha: float
    tests: int = 0
    shift: float | None = None
    need: str = ""
    changes: tuple[Change, ...] = ()
    clipping: tuple[Clipped, ...] = ()
    warnings: tuple[str, ...] = ()
    artifact: str = ""
    data: str = ""
    ran: int = 0

    @property
    def hurt(self) -> tuple[Clipped, ...]:
        """The tensors whose quantization is being hurt."""
        return tuple(c for c in self.clipping if c.hurt)

    def as_json(self) -> dict[str, Any]:
        """The object that ``--json`` prints."""
        return {"schema": "lathe.check-data/1", **to_plain(self)}


def lines(record: DriftRecord) -> list[str]:
    """The record as text, the verdict first."""
    found = [f"{record.verdict.value}: {record.reason}"]
    if record.need:
        found.append(f"  {record.need}")
    shown = record.changes[:SHOWN]
    found += [f"  {change_text(c)}" for c in shown]
    if len(record.changes) > len(shown):
        found.append(f"  and {len(record.changes) - len(shown)} more (--json lists them all)")
    if record.clipping:
        found.append(f"  {clipping_text(record)}")
    shift = "" if record.shift is None else f"; a shift of {record.shift:.2g} deviations would have been found"
    ran = f", the model ran on {record.ran}" if record.ran else ""
    found.append(
        f"  {record.samples:,} samples against {record.reference:,} that the artifact remembers{ran}: {record.tests} "
        f"tests, at most {record.alpha:.1%} false alarms in all{shift}"
    )
    return found


def change_text(change: Change) -> str:
    """One change for people."""
    name = f"'{change.name}' " if change.name else ""
    chance = f"p {change.p:.1g}" if change.p > LEAST else f"p < {LEAST:g}"
    return f"{change.part} {name}{change.statistic}: {change.before:.4g} -> {change.now:.4g} ({chance})"


def clipping_text(record: DriftRecord) -> str:
    """Whether quantization is being hurt, in one line."""
    worst = max(record.clipping, key=lambda c: (c.hurt, c.now - c.before))
    told = f"{worst.now:.3%} of the values of '{worst.tensor}' are clipped, {worst.before:.3%} when it was made"
    if not record.hurt:
        return f"quantization is not being hurt: {told}"
    return f"quantization is being hurt in {len(record.hurt)} of {len(record.clipping)} tensors: {told}"


def checked(record: DriftRecord) -> RenderableType:
    """The record for a terminal."""
    from rich.text import Text

    colours = {Drift.OK: "green", Drift.DRIFT: "red", Drift.UNDECIDED: "yellow"}
    first, *rest = [*lines(record), *(f"  warning: {w}" for w in record.warnings)]
    word, _, reason = first.partition(":")
    return Text.assemble((word, f"bold {colours[record.verdict]}"), f":{reason}", *(f"\n{text}" for text in rest))
