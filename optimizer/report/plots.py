"""The plots of ``report.html``, drawn by matplotlib as SVG that stands in the page and takes its colours from it.

Nothing in a drawing is a name that came with a model: marks carry numbers, and the tables beside them the names. Where
matplotlib is not installed there are no plots, and the page shows the tables instead.
"""

from __future__ import annotations

import importlib.util
import io
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from optimizer.records import FrontierPoint, Interval, Latency, LayerWork, Record, Roofline
from optimizer.report import frontier, words
from optimizer.report.markup import Html, tag

EXTRA = "lathe[report]"

INK, MUTED, LINE, CARD = "#010101", "#020202", "#030303", "#040404"
SOURCE, RESULT, GOOD, BAD = "#050505", "#060606", "#070707", "#080808"
_VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    LINE: "line",
    CARD: "card",
    SOURCE: "source",
    RESULT: "result",
    GOOD: "good",
    BAD: "bad",
}
"""Colours in which matplotlib draws, and the variable of the style sheet that each stands for."""

WIDTH, TEXT = 5.6, 12
"""Inches and points: at the width of a telephone the text is still some nine pixels high."""

BINS = 60
FAR = 4.0
"""A run that lies this many times the distance of the 90th percentile from the median is drawn at the edge."""


def installed() -> bool:
    """Whether there is a matplotlib to draw with."""
    return importlib.util.find_spec("matplotlib") is not None


def drawn(draw: Callable[[Any], None], height: float, name: str, title: str, told: str) -> Html | None:
    """What ``draw`` puts on a matplotlib figure, as an SVG element with ``title`` and ``told`` for those who do not see
    it. ``name`` is a word that no other drawing of the page has. ``None`` where nothing can be drawn."""
    if not installed():
        return None
    try:
        with _styled(name):
            from matplotlib.figure import Figure

            figure = Figure(figsize=(WIDTH, height), layout="constrained")
            draw(figure)
            stream = io.StringIO()
            figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    except (ImportError, OSError):  # a broken installation, or no place for its list of fonts
        return None
    except (ArithmeticError, ValueError):  # numbers that have no place on an axis
        return None
    return _inline(stream.getvalue(), name, title, told)


@contextmanager
def _styled(name: str) -> Iterator[None]:
    """matplotlib as it comes, whatever the user's own settings, in the page's colours."""
    import matplotlib as mpl

    own: dict[str, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "text.parse_math": False,
        "font.size": TEXT,
        "axes.edgecolor": LINE,
        "axes.labelcolor": MUTED,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "grid.color": LINE,
        "grid.linewidth": 0.7,
        "text.color": INK,
        "xtick.color": LINE,
        "ytick.color": LINE,
        "xtick.labelcolor": MUTED,
        "ytick.labelcolor": MUTED,
    }
    plain = {k: v for k, v in mpl.rcParamsDefault.items() if k not in ("backend", "backend_fallback")}
    with mpl.rc_context():
        mpl.rcParams.update(cast(Any, {**plain, **own}))
        yield


_STYLE = re.compile(r"\s*([a-z-]+)\s*:\s*([^;]+)")
_FONTS = frozenset(("font", "font-family", "font-style", "font-variant", "font-weight", "font-stretch"))


def _inline(text: str, name: str, title: str, told: str) -> Html:
    """matplotlib's file as an element of a page: no style of its own, no foreign names, ids that are its own."""
    ids: dict[str, str] = {}
    root = ET.fromstring(text)
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', text))
    body = [made for child in root if (made := _element(child, name, ids, used))]
    head = [tag("title", title, id=f"{name}-title"), tag("desc", told, id=f"{name}-told")]
    box = root.get("viewBox")
    labelled = f"{name}-title {name}-told"
    return tag("svg", head, body, viewBox=box, role="img", aria_labelledby=labelled)


def _element(node: ET.Element, name: str, ids: dict[str, str], used: set[str]) -> Html | None:
    kind = node.tag.rpartition("}")[2]
    if kind in ("metadata", "style"):
        return None
    attributes: dict[str, str | float | bool | None] = {}
    for key, value in node.attrib.items():
        plain = key.rpartition("}")[2]
        if plain == "style":
            attributes |= dict(_presentation(value, name))
        elif plain == "id":
            attributes |= {"id": f"{name}-{value}"} if value in used else {}
        elif plain not in ("space",):
            attributes[plain] = _linked(value, name)
    inner = [made for child in node if (made := _element(child, name, ids, used))]
    text = (node.text or "").strip()
    return tag(kind, text, inner, **attributes)


def _presentation(style: str, name: str) -> Iterator[tuple[str, str]]:
    """A style as attributes, for the page's policy allows no styles in the middle of it."""
    for key, value in _STYLE.findall(style):
        if key == "font":
            if size := re.search(r"([\d.]+)px", value):
                yield "font-size", size[1]
        elif key not in _FONTS:
            variable = _VARIABLES.get(value.strip().lower())
            yield key, f"var(--{variable})" if variable else _linked(value.strip(), name)


def _linked(value: str, name: str) -> str:
    return " ".join(re.sub(r"(^|url\()#", rf"\g<1>#{name}-", value).split())


# -- latency -----------------------------------------------------------------------------------------------------------
def latency(source: Latency | None, result: Latency | None) -> Html | None:
    """Every mark one run in so many, where it lies in time: the source above, the result below."""
    given = [(k, c, y) for k, c, y in (("source", SOURCE, source), ("result", RESULT, result)) if y and y.quantiles]
    if not given:
        return None
    shown = [y for _, _, y in given]
    low = min(min(y.quantiles) for y in shown)
    high = max(min(max(y.quantiles), _far(y)) for y in shown)
    room = (high - low) * 0.04 or 0.05 * high or 1.0
    edges = (low - room, high + room)

    def draw(figure: Any) -> None:
        rows = figure.subplots(len(given), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (name, colour, found) in zip(rows, given, strict=True):
            _dots(axes, found.quantiles, edges, colour)
            axes.set_title(name, loc="left", fontsize=TEXT, color=MUTED)
            axes.axvline(found.p50, color=colour, linewidth=1, linestyle=(0, (3, 2)), zorder=0)
        rows[-1].set_xlabel(f"ms for one run ({shown[0].clock} time)")

    share = len(shown[0].quantiles)
    told = "; ".join(f"{name}: half of the runs take less than {words.milliseconds(y.p50)}" for name, _, y in given)
    title = f"How long runs take: each mark is one run in {share}"
    return drawn(draw, 1.1 + 0.95 * len(given), "latency", title, told)


def beyond(found: Sequence[Latency]) -> bool:
    """Whether some runs lie so far out that they are drawn at the edge."""
    edge = max(min(max(y.quantiles), _far(y)) for y in found)
    return any(q > edge for y in found for q in y.quantiles)


def _far(found: Latency) -> float:
    q = found.quantiles
    high = q[int(0.9 * len(q))]
    return found.p50 + FAR * max(high - found.p50, 0.01 * found.p50)


def _dots(axes: Any, quantiles: Sequence[float], edges: tuple[float, float], colour: str) -> None:
    low, high = edges
    step = (high - low) / BINS
    stacks: dict[int, int] = {}
    x, y = [], []
    for q in quantiles:
        place = min(BINS - 1, int((min(q, high) - low) / step))
        stacks[place] = stacks.get(place, 0) + 1
        x.append(low + (place + 0.5) * step)
        y.append(stacks[place] - 0.5)
    size = (WIDTH * 72 * 0.88 / BINS) ** 2 * 0.6
    axes.scatter(x, y, s=size, color=colour, linewidths=0)
    axes.set_xlim(low, high)
    axes.set_ylim(0, max(10, max(stacks.values()) + 0.5))
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)


# -- quality against speed ---------------------------------------------------------------------------------------------
def pareto(record: Record) -> Html | None:
    """The frontier: to the right what is faster, upwards what keeps more quality. Marks carry the rows' numbers."""
    points = record.frontier
    if len(points) < frontier.WORTH_SHOWING:
        return None
    quality = record.final.quality if record.final else None
    in_points = quality is not None and quality.metric in words.IN_POINTS
    scale = 100.0 if in_points else 1.0
    name = quality.metric if quality is not None else "quality"
    largest = max(p.size_bytes for p in points) or 1

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        axes.grid(True)
        for i, point in enumerate(points):
            _mark(axes, point, i + 1, scale, largest, frontier.ships(point, record))
        axes.margins(0.12, 0.2)
        axes.set_xlabel("times as fast as the source")
        axes.set_ylabel(f"{name} gained or lost" + (" (points)" if in_points else ""))

    told = f"{len(points)} recipes that nothing else beats; the table has the numbers. What ships is filled."
    title = "Quality against speed: further right is faster, further up keeps more; the area of a mark is its size"
    return drawn(draw, 3.9, "pareto", title, told)


def _mark(axes: Any, point: FrontierPoint, number: int, scale: float, largest: int, ships: bool) -> None:
    moved = _moved(point.drop, scale)
    colour = RESULT if ships else (GOOD if point.holds else BAD)
    x, across = point.speedup.value, _reach(point.speedup)
    axes.errorbar(
        x, moved.value, xerr=across, yerr=_reach(moved), color=colour, linewidth=1, alpha=0.55, zorder=2, fmt="none"
    )
    area = 170 + 500 * point.size_bytes / largest
    axes.scatter(x, moved.value, s=area, facecolor=colour if ships else CARD, edgecolor=colour, linewidth=1.8, zorder=3)
    ink = CARD if ships else colour
    axes.annotate(str(number), (x, moved.value), ha="center", va="center_baseline", color=ink, zorder=4)


def _moved(drop: Interval | None, scale: float) -> Interval:
    """A drop as the way that the metric went, with both ends finite."""
    if drop is None:
        return Interval(0.0, 0.0, 0.0)
    value = -drop.value * scale
    low, high = (-end * scale if math.isfinite(end) else value for end in (drop.high, drop.low))
    return Interval(value, low, high)


def _reach(found: Interval) -> list[list[float]]:
    low, high = (end if math.isfinite(end) else found.value for end in (found.low, found.high))
    return [[max(0.0, found.value - low)], [max(0.0, high - found.value)]]


# -- the roofline ------------------------------------------------------------------------------------------------------
def roofline(source: Roofline | None, result: Roofline | None, latencies: Sequence[float | None]) -> Html | None:
    """Work done in a second against work for each byte, under what the machine can do. Large marks are whole models,
    small ones their layers."""
    given = [
        (colour, found, ms)
        for colour, found, ms in zip((SOURCE, RESULT), (source, result), latencies, strict=True)
        if found is not None and ms
    ]
    if not given:
        return None

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: f"{value:g}")
            axis.set_minor_formatter(lambda value, _: "")
        axes.grid(True, which="major")
        for colour, found, ms in given:
            for layer in found.layers:
                _layer(axes, layer, colour)
            macs = found.float_macs + found.int8_macs
            if macs and found.bytes.value:
                x = macs / found.bytes.value
                axes.plot([macs / found.bytes.high, x], [macs / ms / 1e6] * 2, color=colour, linewidth=1.2, zorder=3)
                axes.scatter([x], [macs / ms / 1e6], s=110, color=colour, zorder=4, linewidths=0)
        _roofs(axes, given[-1][1])
        axes.set_xlabel("multiply-accumulates for each byte")
        axes.set_ylabel("billions of them a second")

    told = "; ".join(found.says for _, found, _ in given)
    title = "What the machine can do (lines) and what is reached: whole models as large marks, layers as small ones"
    return drawn(draw, 3.9, "roofline", title, told)


def _layer(axes: Any, layer: LayerWork, colour: str) -> None:
    x, y = layer.macs / layer.bytes, layer.macs / layer.ms / 1e6
    kind = "s" if layer.integer else "o"
    axes.scatter([x], [y], s=20, marker=kind, facecolor=CARD, edgecolor=colour, linewidth=1.1, alpha=0.9, zorder=2)


def _roofs(axes: Any, found: Roofline) -> None:
    """The ceilings as lines over what is drawn already."""
    ceiling, (left, right) = found.ceiling, axes.get_xlim()
    roofs: list[tuple[str, float, Any]] = [("fp32", ceiling.float_macs.value / 1e9, "-")]
    if ceiling.int8_macs is not None:
        roofs.append(("int8", ceiling.int8_macs.value / 1e9, (0, (5, 2))))
    slopes = [("memory", ceiling.memory.value / 1e9), ("caches", ceiling.cached.value / 1e9)]
    top = max(height for _, height, _ in roofs)
    left, right = min(left, 0.1 * roofs[0][1] / slopes[1][1]), max(right, 3 * top / slopes[0][1])
    for name, height, dashes in roofs:
        axes.axhline(height, color=MUTED, linewidth=1.3, linestyle=dashes, zorder=1)
        axes.annotate(f"{name} {height:.3g}", (right, height), (-3, 3), ha="right", va="bottom", **_NEAR)
    for (name, slope), (away, edge) in zip(slopes, ((0.88, "top"), (1.12, "bottom")), strict=True):
        end = min(right, top / slope)
        axes.plot([left, end], [slope * left, slope * end], color=MUTED, linewidth=1.1, linestyle=":", zorder=1)
        x, turned = left * 1.2, math.degrees(math.atan(slope))
        told: dict[str, Any] = {"rotation": turned, "rotation_mode": "anchor", "transform_rotates_text": True}
        axes.text(x, slope * x * away, f"{name} {slope:.3g} GB/s", va=edge, fontsize=TEXT - 1, color=MUTED, **told)
    axes.set_xlim(left, right)
    axes.set_ylim(top=top * 2)


_NEAR: dict[str, Any] = {"textcoords": "offset points", "fontsize": TEXT - 1, "color": MUTED}
