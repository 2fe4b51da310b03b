"""An explanation as a renderable for a terminal: what each layer costs, what did not fuse, where time goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from optimizer.measure.explain import FLOAT, Advice, Explanation, Layer
from optimizer.report import words
from optimizer.report.console import line, table, title

if TYPE_CHECKING:
    from rich.console import RenderableType

MOST_LAYERS = 12
MOST_ROWS = 8
LAYER_HEAD = ("layer", "form", "SQNR", "cosine", "alone", "float", "now")
BROKEN_DB = 20.0
"""Below this the runtime does not compute what the file says: steps that integers round otherwise move far less."""


def explanation(found: Explanation, *, everything: bool = False) -> RenderableType:
    """Everything that ``lathe explain`` shows, readable at 80 columns."""
    from rich.console import Group

    parts: list[RenderableType] = [*_head(found), ""]
    shown = found.layers if everything else _worst(found.layers)
    if shown:
        of = (
            f"{len(shown)} of {len(found.layers)} layers, the worst first"
            if len(shown) < len(found.layers)
            else "layers"
        )
        parts += [title(f"{of} (times in us of one run)"), table(LAYER_HEAD, map(_cells, shown), right=(2, 3, 4, 5, 6))]
    parts += _floats(found) + _unfused(found) + _islands(found)
    parts += [title("where the time goes (us of one run, by the runtime's profile)"), _times(found), ""]
    parts += [title("what to try next"), *(_advice(i + 1, a) for i, a in enumerate(found.advice))]
    parts += [line("warning", text, "yellow") for text in found.warnings]
    return Group(*parts)


def _head(found: Explanation) -> list[RenderableType]:
    forms = [y.form for y in found.layers]
    counted = ", ".join(
        f"{forms.count(form)} {form}" for form in sorted(set(forms), key=lambda f: (-forms.count(f), f))
    )
    parts = [
        line("model", f"{found.name}: {found.quantized or 'float'}"),
        line("compared with", f"{found.reference}, on {found.samples} samples"),
        line("layers", counted or "none with weights"),
    ]
    if found.output_db is not None:
        parts.append(line("outputs", f"{_db(found.output_db)} signal over noise"))
    if found.runtime_db is not None and found.runtime_db < BROKEN_DB:
        text = f"its optimizer moves the outputs to {_db(found.runtime_db)} of what the file says"
        parts.append(line("runtime", text, "bold red"))
    gained = f", {found.before_ms / found.after_ms:.2f}x" if found.after_ms else ""
    was, now = (words.milliseconds(ms) for ms in (found.before_ms, found.after_ms))
    return [*parts, line("time", f"{was} float, {now} now{gained} (kernels, with the profiler on)")]


def _worst(layers: Sequence[Layer]) -> list[Layer]:
    """The layers whose errors weigh most: alone where that was measured, else by their own result."""
    if len(layers) <= MOST_LAYERS:
        return list(layers)
    known = [y for y in layers if y.form != FLOAT and (y.alone_db is not None or y.sqnr_db is not None)]
    return sorted(known, key=lambda y: (y.alone_db if y.alone_db is not None else y.sqnr_db or 0.0, y.layer))[
        :MOST_LAYERS
    ]


def _cells(layer: Layer) -> tuple[str, ...]:
    form = layer.form
    if form == FLOAT and layer.kernel.startswith(("QLinear", "QGemm")):
        form = "float, run as int8"
    return (
        layer.layer,
        form,
        _db(layer.sqnr_db),
        words.NOTHING if layer.cosine is None else f"{layer.cosine:.4f}",
        _db(layer.alone_db),
        _us(layer.before_ms),
        _us(layer.after_ms),
    )


def _floats(found: Explanation) -> list[RenderableType]:
    """Why layers are float, one line for each reason."""
    why: dict[str, list[str]] = {}
    for layer in found.layers:
        if layer.form == FLOAT:
            why.setdefault(layer.why or "no reason is known: the file does not say", []).append(layer.layer)
    if not why:
        return []
    lines = [line(_listed(names), reason) for reason, names in why.items()]
    return [title("left in float"), *lines, ""]


def _unfused(found: Explanation) -> list[RenderableType]:
    if not found.unfused:
        return []
    rows = [
        (u.node, u.op, "its weight too, on every run" if u.weight else "its input", _us(u.ms))
        for u in found.unfused[:MOST_ROWS]
    ]
    head = ("node", "runs in float as", "is dequantized", "us")
    return [title(f"quantize/dequantize pairs that did not fuse: {len(found.unfused)}"), table(head, rows, right=(3,))]


def _islands(found: Explanation) -> list[RenderableType]:
    if not found.islands:
        return []
    rows = [(_listed(i.nodes), _listed(i.ops), str(i.conversions), _us(i.ms)) for i in found.islands[:MOST_ROWS]]
    head = ("nodes", "operators", "conversions", "us")
    return [title(f"float islands between integers: {len(found.islands)}"), table(head, rows, right=(2, 3))]


def _times(found: Explanation) -> RenderableType:
    was, now = ({o.op: o for o in ops} for ops in (found.before, found.after))
    order = sorted({*was, *now}, key=lambda op: (-max((t[op].ms for t in (was, now) if op in t), default=0.0), op))
    rows = []
    for op in order[:MOST_ROWS]:
        cells = [(str(t[op].count), _us(t[op].ms)) if op in t else (words.NOTHING, words.NOTHING) for t in (was, now)]
        rows.append((op, *cells[0], *cells[1]))
    rest = [sum(t[op].ms for op in order[MOST_ROWS:] if op in t) for t in (was, now)]
    if len(order) > MOST_ROWS:
        rows.append((f"{len(order) - MOST_ROWS} others", "", _us(rest[0]), "", _us(rest[1])))
    return table(("operator", "float", "us", "now", "us"), rows, right=(1, 2, 3, 4))


def _advice(number: int, advice: Advice) -> RenderableType:
    recipe = f"\n--recipe '{advice.recipe}'" if advice.recipe else ""
    return line(str(number), advice.text + recipe)


def _listed(names: Sequence[str], most: int = 3) -> str:
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def _db(value: float | None) -> str:
    return words.NOTHING if value is None else f"{value:.1f} dB"


def _us(ms: float | None) -> str:
    return words.NOTHING if ms is None else words.significant(ms * 1e3)
