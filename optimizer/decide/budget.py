"""What a result may cost: the terms of ``--budget``, read from text and written back to it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from optimizer.data.checks import closest
from optimizer.data.metrics import METRICS, Metric
from optimizer.faults import Fault, usage

KEEP = 0.01
"""Without a term of its own a budget keeps 99 % of the source's quality."""

EXAMPLES = "Examples: top1.drop<=0.005, top1.drop<=1%, latency<=0.5x, latency<=8ms, size<=4MB, none"

_TIME = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_BYTES = {"b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_UNITS = {"latency": _TIME, "size": _BYTES, "memory": _BYTES}
_WRITTEN = {"latency": "ms", "size": "B", "memory": "B"}
_TERM = re.compile(r"(?P<subject>[^<>=\s]+)\s*(?P<relation><=|>=|<|>|==?)\s*(?P<amount>\S+(?:\s+\S+)*)")
_AMOUNT = re.compile(r"(?P<number>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)\s*(?P<unit>%|[A-Za-z]*)")


@dataclass(frozen=True)
class Limit:
    """At most ``value``: milliseconds or bytes, or times the baseline's when ``relative``."""

    subject: str
    value: float
    relative: bool

    def text(self) -> str:
        """As ``--budget`` takes it."""
        return f"{self.subject}<={_number(self.value)}{'x' if self.relative else _WRITTEN[self.subject]}"

    def allowed(self, baseline: float | None) -> float | None:
        """The limit in milliseconds or bytes; None when it is relative to something that was not measured."""
        if not self.relative:
            return self.value
        return None if baseline is None else self.value * baseline

    def unmet(self, reached: float | None, baseline: float | None) -> str:
        """Why the limit does not hold, in words; empty when it does. What was not measured does not hold."""
        allowed = self.allowed(baseline)
        if reached is None or allowed is None:
            return f"{self.text()}: {self.subject} was not measured"
        if reached <= allowed:
            return ""
        return (
            f"{self.text()}: {self.subject} is {_told(self.subject, reached)}, allowed {_told(self.subject, allowed)}"
        )


@dataclass(frozen=True)
class Term:
    """One term. ``kind`` is ``drop`` (of a metric), ``limit`` or ``none`` (no quality asked for).

    For a drop ``relative`` means times the baseline's value; otherwise it is in the metric's unit.
    """

    kind: str
    subject: str = ""
    value: float = 0.0
    relative: bool = False

    def text(self) -> str:
        """As ``--budget`` takes it; reading it again gives the same term."""
        if self.kind == "none":
            return "none"
        if self.kind == "limit":
            return Limit(self.subject, self.value, self.relative).text()
        return f"{self.subject}.drop<={_number(self.value)}{'x' if self.relative else ''}"


@dataclass(frozen=True)
class Budget:
    """All terms hold together. ``explicit`` says whether the user gave any."""

    terms: tuple[Term, ...]
    explicit: bool

    @classmethod
    def parse(cls, texts: Sequence[str], metric: Metric | None) -> Budget:
        """Read ``--budget`` texts for a metric (None when quality is not measured).

        - ``METRIC.drop<=0.005`` (or just ``drop<=``): at most so much worse, in the metric's unit.
        - ``METRIC.drop<=1%``: for metrics on a scale up to 1 (top1, f1, auroc, agreement, correlations, cosine) one
          point, 0.01; for open-ended ones (perplexity, mse, mae, sqnr, a user's) 1 % of the baseline's value.
        - ``METRIC.drop<=0.01x``: 0.01 times the baseline's value, for every metric.
        - ``latency<=8ms`` (us, ms, s), ``size<=4MB``, ``memory<=1GB`` (kB, MB, GB are powers of 1000, KiB, MiB, GiB of
          1024), or ``0.5x`` of the baseline's.
        - ``none``: no quality is asked for.

        Unless a drop or ``none`` is given, 99 % of the baseline's value is kept (at most 1.01 of it for metrics where
        lower is better), written ``METRIC.drop<=0.01x``.

        Raises :class:`Fault` (USAGE) for text that cannot be read, with the closest known word.
        """
        terms = tuple(dict.fromkeys(_term(text.strip(), metric) for text in texts))
        kinds = {t.kind for t in terms}
        if {"none", "drop"} <= kinds:
            hint = "Leave one of them out"
            raise usage(
                "'none' and a limit on the drop contradict each other", where="--budget", hint=hint, code="bad-budget"
            )
        if metric is not None and not kinds & {"none", "drop"}:
            terms = (Term("drop", metric.base, KEEP, relative=True), *terms)
        return cls(terms, bool(texts))

    @property
    def unlimited(self) -> bool:
        """No quality is asked for: what ships is marked unproven."""
        return not any(t.kind == "drop" for t in self.terms)

    def quality_margin(self, baseline_value: float) -> float | None:
        """The largest drop allowed, in the metric's unit, for this baseline; None when none is asked for."""
        margins = [t.value * abs(baseline_value) if t.relative else t.value for t in self.terms if t.kind == "drop"]
        return min(margins, default=None)

    def limits(self) -> tuple[Limit, ...]:
        """Limits on latency, size and memory."""
        return tuple(Limit(t.subject, t.value, t.relative) for t in self.terms if t.kind == "limit")

    def texts(self) -> tuple[str, ...]:
        """Every term as text, the default included; parsing them again gives the same terms."""
        return tuple(t.text() for t in self.terms)

    def text(self) -> str:
        """All terms in one line, for people."""
        return ", ".join(self.texts()) or "none"


def _term(text: str, metric: Metric | None) -> Term:
    if text == "none":
        return Term("none")
    found = _TERM.fullmatch(text)
    if found is None:
        near = closest(text, ["none"])
        raise _unreadable(text, "it is not 'SUBJECT<=AMOUNT'", f"{near} {EXAMPLES}".strip())
    subject, relation, amount = found["subject"], found["relation"], found["amount"]
    drop = subject == "drop" or subject.endswith(".drop")
    _check_subject(text, subject, drop, metric)
    if relation != "<=":
        raise _unreadable(text, f"'{relation}' is not understood", f"Write {subject}<={amount}")
    parsed = _AMOUNT.fullmatch(amount)
    if parsed is None or not math.isfinite(float(parsed["number"])):
        raise _unreadable(text, f"'{amount}' is not an amount", EXAMPLES)
    number, unit = float(parsed["number"]), parsed["unit"]
    if drop:
        assert metric is not None
        return _drop(text, number, unit, metric)
    return _limit(text, subject, number, unit)


def _check_subject(text: str, subject: str, drop: bool, metric: Metric | None) -> None:
    if not drop and subject in _UNITS:
        return
    if not drop:
        raise _unreadable(text, f"'{subject}' is not known", _near_subject(subject, metric))
    if metric is None:
        message = "no quality is measured without data and a metric, so no drop can be limited"
        raise _unreadable(text, message, "Give --data, or leave this term out")
    named = subject.removesuffix("drop").removesuffix(".")
    if named not in ("", metric.base, metric.name, metric.word):
        if metric.function is not None:
            raise _unreadable(text, f"it speaks of '{named}', but the metric is '{metric.name}'", "Write drop<=...")
        known = [*METRICS, metric.base]
        near = closest(named, known) if named not in known else f"Write {metric.base}.drop, or give --metric {named}"
        raise _unreadable(text, f"it speaks of '{named}', but the metric is '{metric.name}'", near or EXAMPLES)


def _near_subject(subject: str, metric: Metric | None) -> str:
    names = [metric.base] if metric else list(METRICS)
    if subject in names:
        return f"Write {subject}.drop<=..."
    return closest(subject, [*_UNITS, *(f"{n}.drop" for n in names), "drop", "none"]) or EXAMPLES


def _drop(text: str, number: float, unit: str, metric: Metric) -> Term:
    if unit == "":
        return Term("drop", metric.base, number)
    if unit == "%":
        # A point of a metric that lives on a scale up to 1; a share of the baseline's value for all others.
        return Term("drop", metric.base, number / 100, relative=not metric.points)
    if unit == "x":
        return Term("drop", metric.base, number, relative=True)
    raise _unreadable(text, f"'{unit}' is not a unit of a drop", f"Write {metric.base}.drop<=0.005, <=1% or <=0.01x")


def _limit(text: str, subject: str, number: float, unit: str) -> Term:
    if number <= 0:
        raise _unreadable(text, "a limit must be above 0", EXAMPLES)
    if unit == "x":
        return Term("limit", subject, number, relative=True)
    if unit == "%":
        return Term("limit", subject, number / 100, relative=True)
    units = _UNITS[subject]
    if unit.lower() in units:
        return Term("limit", subject, number * units[unit.lower()])
    known = "us, ms, s" if subject == "latency" else "kB, MB, GB, KiB, MiB, GiB"
    what = f"'{unit}' is not a unit of {subject}" if unit else f"{subject} needs a unit"
    raise _unreadable(text, what, f"Use x (of the baseline's) or one of {known}")


def _unreadable(text: str, reason: str, hint: str) -> Fault:
    return usage(f"'{text}' cannot be read: {reason}", where="--budget", hint=hint, code="bad-budget")


def _number(value: float) -> str:
    """The shortest text that reads back as the same number."""
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)


def _told(subject: str, value: float) -> str:
    if subject == "latency":
        return f"{value:.4g} ms"
    return f"{value / 1e6:.4g} MB" if value >= 1e5 else f"{value:.0f} B"
