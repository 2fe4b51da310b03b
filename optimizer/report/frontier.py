"""The frontier of a compile as table cells and as a drawing: quality against speed, size as the area of a dot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from optimizer.records import FrontierPoint, Outcome, Quality, Record, Sensitivity
from optimizer.report import words

HEAD = ("recipe", "speed-up", "quality", "size", "budget")
LAYER_HEAD = ("layer", "error alone", "saves")
WORTH_SHOWING = 3
"""With fewer points (the source and one other) the frontier says nothing that the table of tries does not."""

MOST_LAYERS = 12

WIDTH, HEIGHT, MARGIN = 640, 400, 64
_MET, _MISSED, _SHIPS = "#2b7a3d", "#b3402e", "#1d4f91"


def rows(record: Record) -> list[tuple[str, ...]]:
    """Cells of the frontier, fastest first; empty when there is too little to show."""
    if len(record.frontier) < WORTH_SHOWING:
        return []
    quality = record.final.quality if record.final else None
    return [_cells(point, quality, ships(point, record)) for point in record.frontier]


def ships(point: FrontierPoint, record: Record) -> bool:
    """Whether this is what ships."""
    return record.outcome is not Outcome.NONE and point.recipe == record.recipe


def _cells(point: FrontierPoint, quality: Quality | None, shipped: bool) -> tuple[str, ...]:
    moved = words.change(point.drop, quality, interval=False) if point.drop is not None else words.NOTHING
    met = "ships" if shipped else ("met" if point.holds else "not met")
    return point.label, words.times(point.speedup), moved, words.size(point.size_bytes), met


def layer_rows(evidence: Sensitivity | None) -> list[tuple[str, ...]]:
    """The most damaging layers: what each does to the outputs alone, and what its integers save."""
    if evidence is None:
        return []
    ranked = sorted(evidence.layers, key=lambda n: (-evidence.layers[n], n))[:MOST_LAYERS]
    return [(name, decibels(evidence.layers[name]), _saves(evidence.saved_ms.get(name))) for name in ranked]


def decibels(share: float) -> str:
    """A relative squared error as signal over noise."""
    return "none" if share <= 0 else f"{-10 * math.log10(share):.1f} dB"


def _saves(ms: float | None) -> str:
    if ms is None:
        return words.NOTHING
    return f"{ms * 1e3:+.0f} us"


# -- the drawing -------------------------------------------------------------------------------------------------------
def svg(record: Record) -> str:
    """A drawing of everything on the frontier: speed-up to the right, quality lost upwards, size as the dot's area.

    Empty when there is too little to show. Needs no fonts or scripts of its own.
    """
    points = record.frontier
    if len(points) < WORTH_SHOWING:
        return ""
    quality = record.final.quality if record.final else None
    scale = 100.0 if quality is not None and quality.metric in words.IN_POINTS else 1.0
    lost = [max(0.0, p.drop.value) * scale if p.drop else 0.0 for p in points]
    x = _Axis([p.speedup.value for p in points], MARGIN, WIDTH - MARGIN, 0.05)
    y = _Axis([0.0, *lost], HEIGHT - MARGIN, MARGIN, 0.08)
    unit = "points" if scale > 1 else ""
    name = f"{quality.metric if quality else 'quality'} lost" + (f" ({unit})" if unit else "")
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f"<title>{escape(words.source_name(record))}: quality against speed</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        *_grid(x, y),
        _text(WIDTH / 2, HEIGHT - 16, "times faster than the source", "middle"),
        f'<text x="16" y="{HEIGHT / 2:.0f}" text-anchor="middle" transform="rotate(-90 16 {HEIGHT / 2:.0f})">'
        f"{escape(name)}</text>",
    ]
    largest = max(p.size_bytes for p in points)
    marked = sorted(zip(points, lost, strict=True), key=lambda pair: -pair[0].size_bytes)
    for i, (point, value) in enumerate(marked):
        parts += _dot(point, x.at(point.speedup.value), y.at(value), largest, ships(point, record), i)
    return "\n".join([*parts, "</svg>"]) + "\n"


class _Axis:
    """Numbers to pixels, with round ticks."""

    def __init__(self, values: Sequence[float], start: float, end: float, room: float) -> None:
        low, high = min(values), max(values)
        spread = (high - low) or abs(high) or 1.0
        self.low, self.high = low - spread * room, high + spread * room
        self.start, self.end = start, end

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * f for f in (1, 2, 5, 10) if power * f >= rough)
        first = math.ceil(self.low / step)
        return [i * step for i in range(first, math.floor(self.high / step) + 1)]


def _grid(x: _Axis, y: _Axis) -> list[str]:
    lines = []
    for tick in x.ticks():
        lines.append(f'<path d="M{x.at(tick):.1f} {y.end} V{y.start}" stroke="#ddd"/>')
        lines.append(_text(x.at(tick), y.start + 18, f"{tick:.4g}x", "middle"))
    for tick in y.ticks():
        lines.append(f'<path d="M{x.start} {y.at(tick):.1f} H{x.end}" stroke="#ddd"/>')
        lines.append(_text(x.start - 8, y.at(tick) + 4, f"{tick:.4g}", "end"))
    return lines


def _dot(point: FrontierPoint, left: float, top: float, largest: int, shipped: bool, index: int) -> list[str]:
    radius = 4 + 12 * math.sqrt(point.size_bytes / max(1, largest))
    colour = _SHIPS if shipped else (_MET if point.holds else _MISSED)
    said = f"{point.label}, {words.size(point.size_bytes)}" + (" (ships)" if shipped else "")
    anchor, gap = ("end", -radius - 4) if left > WIDTH * 0.6 else ("start", radius + 4)
    height = top + 4 + (10 if index % 2 else -10)
    return [
        f'<circle cx="{left:.1f}" cy="{top:.1f}" r="{radius:.1f}" fill="{colour}" fill-opacity="0.55">'
        f"<title>{escape(said)}</title></circle>",
        _text(left + gap, height, said, anchor),
    ]


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
