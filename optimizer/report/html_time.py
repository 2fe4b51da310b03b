"""The sections of ``report.html`` that have plots and bars: latencies, the frontier, operators, ceilings, layers."""

from __future__ import annotations

from collections.abc import Sequence

from optimizer.records import Interval, Profile, Record, Roofline
from optimizer.report import frontier, plots, words
from optimizer.report.markup import Child, Html, bar, join, table, tag

Section = Html | None

MOST_OPS = 10
SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)


def figure(drawing: Html | None, caption: str, numbers: Html, summary: str = "The numbers as a table") -> Html:
    """A plot with its numbers folded behind it; the numbers themselves where there is no plot."""
    if drawing is None:
        return join([tag("p", caption, class_="note"), numbers])
    return tag("figure", drawing, tag("figcaption", caption), tag("details", tag("summary", summary), numbers))


# -- latency and the frontier ------------------------------------------------------------------------------------------
def latency(record: Record) -> Section:
    """How the runs of source and result spread."""
    sides = [(n, m.latency_ms) for n, m in (("source", record.baseline), ("result", record.final)) if m is not None]
    found = [(name, y) for name, y in sides if y is not None and y.quantiles]
    if not found:
        return None
    rows = [
        (f"{share:.0%} of runs take at most", *(words.milliseconds(_quantile(y.quantiles, share)) for _, y in found))
        for share in SHARES
    ]
    numbers = table(("", *(name for name, _ in found)), rows, right=range(1, 1 + len(found)))
    given = dict(found)
    drawing = plots.latency(given.get("source"), given.get("result"))
    count = len(found[0][1].quantiles)
    caption = f"Each mark stands for one run in {count}, fastest to slowest; the dashed lines are the latencies above."
    if plots.beyond([y for _, y in found]):
        caption += " The marks at the right edge lie beyond it."
    return figure(drawing, caption if drawing else "", numbers)


def _quantile(quantiles: Sequence[float], share: float) -> float:
    return quantiles[min(len(quantiles) - 1, int(share * len(quantiles)))]


def frontier_of(record: Record) -> Section:
    """What nothing else beats in quality, speed and size together."""
    rows = frontier.rows(record)
    if not rows:
        return None
    numbered = [(f"{i + 1}. {label}", *cells) for i, (label, *cells) in enumerate(rows)]
    numbers = table(frontier.HEAD, numbered, right=(1, 2, 3), kind="stack")
    text = (
        "Measured on the select samples; nothing else that was tried is better in quality, speed and size together. "
        "Filled: what ships. The lines are 95 % intervals, the area is the size of the file."
    )
    drawing = plots.pareto(record)
    if drawing is None:
        return join([tag("p", text.partition(" Filled")[0], class_="note"), numbers])
    return tag("div", tag("figure", drawing, tag("figcaption", text)), numbers)


# -- operators ---------------------------------------------------------------------------------------------------------
def operators(record: Record) -> Section:
    """Time by operator type, before and after, and the slowest nodes of what ships."""
    was = record.baseline.profile if record.baseline else None
    now = record.final.profile if record.final else None
    if was is None and now is None:
        return None
    same = record.recipe == ""
    shown = [("source", was), ("result", None if same else now)]
    sides = [(name, found) for name, found in shown if found is not None]
    names = _operator_names([found for _, found in sides])
    most = max((o.ms.value for _, found in sides for o in found.ops), default=0.0) or 1.0
    rows = [_operator_row(op, sides, most) for op in names[:MOST_OPS]]
    if len(names) > MOST_OPS:
        rows.append(_rest_row(names[MOST_OPS:], sides))
    rows.append(("outside of kernels", "", *(_us(found.rest) for _, found in sides)))
    head = ("operator", "", *(f"{name}, us" for name, _ in sides))
    last = sides[-1][1]
    nodes = [(n.node, n.op, _us(n.ms)) for n in last.nodes]
    return join(
        [
            tag("p", _how(sides), class_="note"),
            _legend([name for name, _ in sides]) if len(sides) > 1 else None,
            table(head, rows, right=range(2, 2 + len(sides)), kind="stack"),
            tag(
                "details",
                tag("summary", f"The slowest nodes of the {sides[-1][0]}"),
                table(("node", "operator", "us"), nodes, right=(2,)),
            ),
            _no_ceilings(record),
        ]
    )


def _how(sides: Sequence[tuple[str, Profile]]) -> str:
    runs = ", ".join(f"{found.runs} runs of the {name}" for name, found in sides)
    return (
        f"Microseconds of one run by the runtime's own profile, after its fusions ({runs}). Profiling takes time "
        "itself, so that the sum is more than the latency: it says how a run divides, not how long it is."
    )


def _operator_names(found: Sequence[Profile]) -> list[str]:
    times: dict[str, float] = {}
    for profile in found:
        for op in profile.ops:
            times[op.op] = max(times.get(op.op, 0.0), op.ms.value)
    return sorted(times, key=lambda name: (-times[name], name))


def _operator_row(op: str, sides: Sequence[tuple[str, Profile]], most: float) -> tuple[Child, ...]:
    costs = [(name, next((o for o in found.ops if o.op == op), None)) for name, found in sides]
    bars = tag("div", [bar(cost.ms.value / most if cost else 0.0, name) for name, cost in costs])
    return (op, Html(bars), *(_us(cost.ms, cost.nodes) if cost else words.NOTHING for _, cost in costs))


def _rest_row(names: Sequence[str], sides: Sequence[tuple[str, Profile]]) -> tuple[Child, ...]:
    sums = [sum(o.ms.value for o in found.ops if o.op in names) for _, found in sides]
    return (f"{len(names)} other operators", "", *(words.significant(ms * 1e3) for ms in sums))


def _legend(names: Sequence[str]) -> Html:
    return tag("div", [tag("span", tag("span", class_=f"key {name}"), name) for name in names], class_="legend")


def _us(ms: Interval, nodes: int | None = None) -> str:
    reach = max(ms.high - ms.value, ms.value - ms.low) * 1e3
    text = f"{words.significant(ms.value * 1e3)} ±{words.significant(reach, 2)}"
    return f"{text} ({nodes})" if nodes and nodes > 1 else text


def _no_ceilings(record: Record) -> Html | None:
    held = [side.roofline for side in (record.baseline, record.final) if side is not None]
    if any(held):
        return None
    text = "What bounds the model is not told: the ceilings of the machine were not measured (lathe doctor --measure)."
    return tag("p", text, class_="note")


# -- ceilings ----------------------------------------------------------------------------------------------------------
def bounds(record: Record) -> Section:
    """The roofline: what holds source and result back, and what would help."""
    was = record.baseline.roofline if record.baseline else None
    now = record.final.roofline if record.final and record.recipe else None
    sides = [(name, found) for name, found in (("source", was), ("result", now)) if found is not None]
    if not sides:
        return None
    latencies = [m.latency_ms.p50 if m and m.latency_ms else None for m in (record.baseline, record.final)]
    drawing = plots.roofline(was, now, latencies)
    ceiling = sides[-1][1].ceiling
    caption = (
        f"Lines: what this machine did at most with {ceiling.threads} thread{'s' if ceiling.threads != 1 else ''}, "
        f"measured on {sides[-1][1].measured}. Large marks: the whole model; small ones: its layers (squares run on "
        "integers). A mark far below the lines leaves room; one on a line does not."
    )
    advice = [tag("li", text) for text in sides[-1][1].advice]
    return join(
        [
            [tag("p", tag("strong", f"{name.capitalize()}: "), found.says + ".") for name, found in sides],
            [tag("p", "What would help:"), tag("ul", advice)] if advice else None,
            figure(drawing, caption if drawing else "", _bound_rows(sides)),
        ]
    )


def _bound_rows(sides: Sequence[tuple[str, Roofline]]) -> Html:
    found = [f for _, f in sides]
    rows: list[tuple[str, ...]] = [
        ("multiply-accumulates, float", *(words.count(f.float_macs) for f in found)),
        ("multiply-accumulates, int8", *(words.count(f.int8_macs) for f in found)),
        ("bytes moved", *(f"{words.size(int(f.bytes.low))} to {words.size(int(f.bytes.high))}" for f in found)),
        ("nodes run", *(str(f.nodes) for f in found)),
        ("time of the products alone", *(_ms(f.compute_ms) for f in found)),
        ("time of the bytes alone", *(_ms(f.bandwidth_ms) for f in found)),
        ("time of the calls alone", *(_ms(f.overhead_ms) for f in found)),
    ]
    ceiling = found[-1].ceiling
    int8 = words.NOTHING if ceiling.int8_macs is None else f"{words.count(ceiling.int8_macs.value)} a second"
    roofs = [
        ("products of floats", f"{words.count(ceiling.float_macs.value)} a second"),
        ("products of 8-bit integers", int8),
        ("reading memory", f"{words.size(int(ceiling.memory.value))} a second"),
        ("reading the caches", f"{words.size(int(ceiling.cached.value))} a second"),
        ("calling a model", words.milliseconds(ceiling.call_ms.value)),
        ("each further node", words.milliseconds(ceiling.node_ms.value)),
    ]
    head = ("", *(name for name, _ in sides))
    return join([table(head, rows), tag("h3", "The ceilings"), table(("", f"{ceiling.threads} thread(s)"), roofs)])


def _ms(ms: Interval) -> str:
    if ms.low == ms.high:
        return words.milliseconds(ms.value)
    return f"{words.milliseconds(ms.value)} [{words.significant(ms.low)}, {words.significant(ms.high)}]"


# -- layers ------------------------------------------------------------------------------------------------------------
def layers(record: Record) -> Section:
    """What each layer does to the outputs when it alone is quantized, and what its integers save."""
    found = record.sensitivity
    rows = frontier.layer_rows(found)
    if found is None or not rows:
        return None
    most = max(found.layers.values(), default=0.0) or 1.0
    ranked = [(name, bar(found.layers[name] / most, "bad"), noise, saves) for name, noise, saves in rows]
    text = (
        f"The most damaging of {len(found.layers)} layers: signal over noise at the outputs when a layer alone is "
        f"quantized ({found.method}), and what its integer kernel saves in one run by the runtime's profile. The bars "
        "are the error itself."
    )
    return join(
        [tag("p", text, class_="note"), table(("layer", "error", "alone", "saves"), ranked, right=(2, 3), kind="stack")]
    )
