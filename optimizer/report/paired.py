"""Models beside the first one on the same samples, as lines for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from optimizer.records import Interval, PairedQuality, Quality, SliceDrop
from optimizer.report import words
from optimizer.report.benchmark import short_names
from optimizer.report.console import line, title

if TYPE_CHECKING:
    from rich.console import RenderableType

SHOWN_AT = 0.05
"""From here on down a corrected p-value shows something."""


def paired(found: Sequence[PairedQuality]) -> RenderableType:
    """What each model loses, what flipped, what so many samples can show, and the worst slice."""
    from rich.console import Group

    names = short_names([p.model for p in found])
    parts: list[RenderableType] = [title("quality beside the first model, on the same samples")]
    for one in found:
        parts += [line(names[one.model] if i == 0 else "", text) for i, text in enumerate(lines(one))]
    return Group(*parts)


def lines(one: PairedQuality) -> list[str]:
    """The comparison in words, one thing a line."""
    told = [f"{one.metric} {_moved(one, one.drop)} on {one.samples:,} samples ({one.provider})"]
    if one.lost is not None and one.p is not None:
        told.append(f"{one.lost} lost, {one.won} won: {one.flip_rate:.2%} of outcomes flipped; "
                    f"McNemar's exact p = {one.p:.2g}")  # fmt: skip
    if one.detectable is not None:
        told.append(words.can_show(one.samples, one.metric, one.detectable))
    if one.slices:
        told.append(_worst(one, one.slices[0]))
    return told


def _moved(one: PairedQuality, drop: Interval) -> str:
    quality = Quality(one.metric.partition(":")[0], 0.0, 0.0, 0.0, one.higher_is_better, one.samples)
    return words.change(drop, quality)


def _worst(one: PairedQuality, worst: SliceDrop) -> str:
    flips = f", {worst.lost} lost and {worst.won} won" if worst.lost is not None else ""
    said = "is shown to be worse" if worst.p <= SHOWN_AT else "is not shown to be worse"
    return (
        f"worst of {one.looks} slices by '{one.sliced_by}': {worst.name} {_moved(one, worst.drop)} on "
        f"{worst.samples:,} samples{flips}; it {said} (p = {worst.p:.2g}, corrected for {one.looks} looks)"
    )
