"""``report.html``: a record as one page for a browser. It loads nothing, runs nothing, and fits a telephone and paper.

Every section is made of the record alone, and one whose numbers are not there is left out. Whatever came with a model
is text (:mod:`optimizer.report.markup`), so a node called ``<script>`` is a name like any other.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace

from optimizer.records import Confidence, Interval, Judgement, Measured, Outcome, PassNote, Record, Step
from optimizer.report import html_time, plots, style, words
from optimizer.report.html_time import Section
from optimizer.report.markup import Html, join, table, tag

_JUDGED = {
    Judgement.ACCEPTED: "good",
    Judgement.REJECTED: "bad",
    Judgement.FAULTED: "bad",
    Judgement.UNDECIDED: "maybe",
    Judgement.SKIPPED: "",
}
MOST_REMARKS = 3


def page(record: Record) -> str:
    """The whole page. The same record gives the same bytes, as far as the same matplotlib draws the plots."""
    made = [(name, title, body) for name, title, make in _SECTIONS if (body := make(record)) is not None]
    name = words.source_name(record)
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=style.policy()),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="generator", content="Lathe"),
        tag("title", f"{name}: {record.outcome}"),
        tag("style", Html(style.SHEET)),
    )
    main = tag(
        "main",
        _masthead(record, name),
        _tiles(record),
        tag("nav", [tag("a", title, href=f"#{key}") for key, title, _ in made], aria_label="Sections"),
        [tag("section", tag("h2", title), body, id=key) for key, title, body in made],
        _footer(),
    )
    return "<!doctype html>\n" + tag("html", head, "\n", tag("body", main), lang="en") + "\n"


# -- the top -----------------------------------------------------------------------------------------------------------
def _masthead(record: Record, name: str) -> Html:
    tones = {Confidence.PROVEN: "good", Confidence.UNDECIDED: "maybe", Confidence.UNPROVEN: "maybe"}
    if record.outcome is Outcome.NONE:
        badges = [_badge("no artifact", "bad")]
    else:
        badges = [_badge(record.outcome.value, "good"), _badge(record.confidence.value, tones[record.confidence])]
    return tag(
        "header",
        tag("div", tag("span", tag("b", "LATHE"), " report"), tag("span", record.date), class_="brand"),
        tag("h1", name),
        tag("div", badges, class_="badges"),
        tag("p", _capital(words.headline(record)) + ".", class_="lead"),
        tag("p", f"Measured on {words.scene(record)}. Spans in brackets are 95 % intervals.", class_="note"),
    )


def _badge(text: str, tone: str) -> Html:
    return tag("span", text, class_=f"badge {tone}".strip())


def _tiles(record: Record) -> Html | None:
    was, now = record.baseline, record.final
    if was is None or now is None or record.outcome is Outcome.NONE:
        return None
    tiles = []
    if record.speedup is not None:
        tiles.append(_tile("speed", f"{record.speedup.value:.2f}x", _span(record.speedup), first=True))
    if record.quality_drop is not None and now.quality is not None:
        moved = words.change(record.quality_drop, now.quality)
        value, _, span = moved.partition(" [")
        told = f"{value} [{span}" if span else value
        tiles.append(_tile(now.quality.metric, words.metric_value(now.quality), told))
    if was.latency_ms and now.latency_ms:
        tiles.append(
            _tile("latency", words.milliseconds(now.latency_ms.p50), _from(words.milliseconds(was.latency_ms.p50)))
        )
    if was.size_bytes and now.size_bytes:
        tiles.append(_tile("size", words.size(now.size_bytes), _from(words.size(was.size_bytes))))
    return tag("div", tiles, class_="tiles") if tiles else None


def _from(text: str) -> str:
    return f"from {text}"


def _span(found: Interval) -> str:
    return f"[{found.low:.2f}, {found.high:.2f}]"


def _tile(what: str, big: str, span: str, *, first: bool = False) -> Html:
    return tag(
        "div",
        tag("div", what, class_="what"),
        tag("div", big, class_="big"),
        tag("div", span, class_="span"),
        class_="tile first" if first else "tile",
    )


def _footer() -> Html:
    hint = ""
    if not plots.installed():
        hint = f" Plots are drawn where matplotlib is installed: pip install '{plots.EXTRA}'."
    text = "Every number here stands in evidence.json beside this page; `lathe report DIR` makes the page again." + hint
    return tag("footer", _with_code(text))


# -- sections ----------------------------------------------------------------------------------------------------------
def _measured(record: Record) -> Html | None:
    was, now = record.baseline, record.final
    rows = words.before_and_after(record)
    at = next((i + 1 for i, row in enumerate(rows) if row[0] == "latency"), len(rows))
    for name, key in (("99 % of runs within", "p99"), ("90 % of runs within", "p90")):
        tails = [_tail(m, key) for m in (was, now)]
        rows[at:at] = [(name, tails[0], tails[1])] if any(t != words.NOTHING for t in tails) else []
    for name, key in (("time to load", "load_ms"), ("first run", "first_ms")):
        rows += _times(name, [getattr(m, key, None) for m in (was, now)])
    if not rows:
        return None
    notes = [text for text in (_runs(was, now), _samples(was, now)) if text]
    return join([table(("", "source", "result"), rows), tag("p", " ".join(notes), class_="note") if notes else None])


def _tail(found: Measured | None, key: str) -> str:
    """A tail of the latency with its interval, where there are enough runs for them."""
    latency = found.latency_ms if found else None
    span: Interval | None = getattr(latency, f"{key}_interval", None)
    text = words.milliseconds(getattr(latency, key, None))
    return f"{text} [{words.significant(span.low)}, {words.significant(span.high)}]" if span else text


def _runs(was: Measured | None, now: Measured | None) -> str:
    found = [m.latency_ms for m in (was, now) if m and m.latency_ms]
    return f"Latency over {' and '.join(str(y.runs) for y in found)} runs ({found[0].clock} time)." if found else ""


def _samples(was: Measured | None, now: Measured | None) -> str:
    found = [m.quality for m in (was, now) if m and m.quality]
    if not found:
        return ""
    text = f"{found[0].metric} on {found[0].samples} samples"
    if not all(math.isfinite(end) for q in found for end in (q.low, q.high)):
        return f"{text}."
    ends = [[words.metric_value(replace(q, value=end)) for end in (q.low, q.high)] for q in found]
    return f"{text}: {' and '.join(f'[{low}, {high}]' for low, high in ends)}."


def _times(name: str, found: Sequence[float | None]) -> list[tuple[str, str, str]]:
    """A row of two times, unless neither is known."""
    was, now = (words.milliseconds(ms) for ms in found)
    return [(name, was, now)] if any(ms is not None for ms in found) else []


def _ships(record: Record) -> Html | None:
    if record.outcome is Outcome.NONE:
        return None
    parts: list[Html | None] = []
    if record.recipe:
        parts.append(tag("pre", tag("code", record.recipe)))
    else:
        parts.append(tag("p", "The source as it is."))
    if record.confirm:
        need = f" ({record.confirm.need})" if record.confirm.need else ""
        proven = record.outcome is Outcome.OPTIMIZED and record.quality_drop is not None
        intro = f"Confirmed on samples that nobody had looked at: {record.confirm.judgement}, " if proven else "Why: "
        parts.append(tag("p", f"{intro}{record.confirm.reason}{need}."))
    if checks := words.checks(record):
        parts.append(tag("p", f"Checked: {checks}."))
    notes = next((s.passes for s in reversed(record.steps) if s.recipe == record.recipe and s.passes), ())
    if notes:
        parts.append(_passes(notes))
    return join(parts)


def _passes(notes: Sequence[PassNote]) -> Html:
    rows = [(tag("code", n.name), n.exactness, str(n.changes), _remarks(n)) for n in notes if n.changes or _remarks(n)]
    idle = [n.name for n in notes if not (n.changes or _remarks(n))]
    found = table(("pass", "promise", "changes", "remarks"), rows, right=(2,), kind="stack") if rows else None
    nothing = f"Found nothing to do: {', '.join(dict.fromkeys(idle))}." if idle else ""
    return join([found, tag("p", nothing, class_="note") if nothing else None])


def _remarks(note: PassNote) -> str:
    texts = [
        *([f"left out: {note.fault}"] if note.fault else []),
        *(f"left out: {t}" for t in note.left_out),
        *note.skips,
    ]
    rest = f"; and {len(texts) - MOST_REMARKS} more" if len(texts) > MOST_REMARKS else ""
    return "; ".join(texts[:MOST_REMARKS]) + rest


def _tried(record: Record) -> Html | None:
    if not record.steps:
        return None
    rows = [_tried_cells(step, record) for step in record.steps]
    text = "Each is a whole recipe. What was let go stands here with the reason."
    return join(
        [
            tag("p", text, class_="note"),
            table(("recipe", "verdict", "measured", "why"), rows, kind="stack"),
            tag("details", tag("summary", "The recipes in full"), [_recipe(step) for step in record.steps]),
        ]
    )


def _tried_cells(step: Step, record: Record) -> tuple[Html | str, ...]:
    label, verdict, measured, why = words.step_cells(step)
    ships = record.outcome is not Outcome.NONE and step.recipe == record.recipe
    badge = _badge("ships", "good") if ships else _badge(verdict, _JUDGED[step.verdict.judgement])
    return label, badge, measured, why


def _recipe(step: Step) -> Html:
    return join([tag("h3", step.label or "recipe"), tag("pre", tag("code", step.recipe))])


def _edges(record: Record) -> Html | None:
    found = words.edges(record)
    return tag("ul", [tag("li", text) for text in found]) if found else None


def _warnings(record: Record) -> Html | None:
    return tag("ul", [tag("li", text) for text in record.warnings]) if record.warnings else None


def _where(record: Record) -> Html | None:
    packages = record.environment.get("packages")
    flat = {k: v for k, v in record.environment.items() if not isinstance(v, (dict, list))}
    facts = [
        (
            key.removesuffix("_bytes"),
            words.size(value) if key.endswith("_bytes") and isinstance(value, int) else str(value),
        )
        for key, value in flat.items()
    ]
    facts += [("target", record.target), ("provider", record.provider), ("date", record.date)]
    if isinstance(packages, dict):
        facts.append(("packages", ", ".join(f"{k} {v}" for k, v in sorted(packages.items()))))
    pairs = [(tag("dt", key), tag("dd", text)) for key, text in facts if text]
    return tag("dl", pairs) if record.environment else None


def _again(record: Record) -> Html | None:
    origin = record.origin
    if origin is None or record.outcome is Outcome.NONE:
        return None
    parts = [
        "lathe optimize",
        shlex.quote(record.source),
        f"--recipe {shlex.quote(record.recipe)}" if record.recipe else "-O0",
    ]
    parts += ["--data DATA"] if origin.data else []
    parts += [f"--metric {shlex.quote(origin.metric)}"] if origin.metric else []
    if (edges := record.boundary) is not None:
        steps = (("preprocess", edges.preprocess), ("postprocess", edges.postprocess))
        parts += [f"--{flag} {shlex.quote(text)}" for flag, text in steps if text]
    parts += [f"--budget {shlex.quote(text)}" for text in record.budget]
    parts += [f"--target {shlex.quote(record.target)}", f"--provider {shlex.quote(record.provider)}"]
    parts.append(f"--seed {origin.seed} --batch {origin.batch} --threads {origin.threads}")
    facts = [("source", origin.source_digest), ("result", origin.model_digest)]
    facts += [(f"data to {split}", digest) for split, digest in origin.data.items()]
    return join(
        [
            tag("p", "The same recipe on the same inputs with the same versions gives the same model, byte for byte:"),
            tag("pre", tag("code", " \\\n  ".join(parts))),
            tag(
                "p",
                _with_code("Whether this copy is whole and gives the same answers on your machine: `lathe verify DIR`"),
            ),
            tag(
                "details",
                tag("summary", "Digests (SHA-256)"),
                tag("dl", [(tag("dt", k), tag("dd", tag("code", v))) for k, v in facts if v]),
            ),
        ]
    )


def _with_code(text: str) -> Html:
    """Text with the parts between backticks as code."""
    return join(tag("code", part) if i % 2 else part for i, part in enumerate(text.split("`")))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


_SECTIONS: tuple[tuple[str, str, Callable[[Record], Section]], ...] = (
    ("measured", "What was measured", _measured),
    ("latency", "How long runs take", html_time.latency),
    ("frontier", "Quality, speed and size", html_time.frontier_of),
    ("ships", "What ships", _ships),
    ("edges", "Before and after the network", _edges),
    ("tried", "What was kept and let go", _tried),
    ("operators", "Where the time goes", html_time.operators),
    ("bounds", "What bounds it", html_time.bounds),
    ("layers", "What layers cost", html_time.layers),
    ("warnings", "Warnings", _warnings),
    ("where", "Where it was measured", _where),
    ("again", "How to make it again", _again),
)
