"""``report.html`` as a document: whole, self-contained, deaf to what a model's names say, and readable."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from optimizer.package import evidence
from optimizer.records import Interval, Latency, Record
from optimizer.report import html, plots, style
from optimizer.report.markup import Html, tag
from tests.report import pages, records

needs_plots = pytest.mark.skipif(
    not plots.installed(), reason="matplotlib is not installed: pip install 'lathe[report]'"
)

VOID = {"meta", "br"}


class Reader(HTMLParser):
    """Elements with their attributes; fails when one is closed that is not open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((name, dict(attributes)))
        if name not in VOID:
            self._open.append(name)

    def handle_endtag(self, name: str) -> None:
        assert self._open.pop() == name

    def handle_data(self, text: str) -> None:
        self.texts.append(text)

    def ids(self) -> list[str]:
        return [a["id"] or "" for _, a in self.elements if "id" in a]


@pytest.mark.parametrize("record", records.ALL.values(), ids=records.ALL)
def test_every_outcome_gives_a_whole_page(record: Record) -> None:
    page = Reader(html.page(record))
    assert "residual_cnn.onnx" in "".join(page.texts) and "/home/someone" not in "".join(page.texts)
    assert len(set(page.ids())) == len(page.ids())


def test_every_section_is_there_when_its_numbers_are_and_only_then() -> None:
    shown = set(Reader(html.page(pages.full())).ids())
    names = {name for name, _, _ in html._SECTIONS}
    assert names <= shown
    bare = replace(records.OPTIMIZED, warnings=(), environment={})
    assert names & set(Reader(html.page(bare)).ids()) == {"measured", "ships", "tried"}


def test_the_numbers_of_the_record_are_on_the_page() -> None:
    text = " ".join(Reader(html.page(pages.full())).texts)
    for told in (
        "2.31x",
        "[2.25, 2.38]",
        "-0.2 points",
        "top1.drop<=0.5%",
        "31.0 ms",
        "75% of the time",
        "45.0 G",
        "20.0 dB",
    ):
        assert told in text, told
    assert "--recipe 'tidy, quantize-static{exclude=[\"/head/*\"]}'" in text and "ef" * 32 in text


def test_what_a_model_calls_itself_is_text() -> None:
    page = html.page(pages.full(pages.HOSTILE))
    plain = html.page(pages.full())
    names, usual = ([name for name, _ in Reader(p).elements] for p in (page, plain))
    assert names == usual and "script" not in names and "img" not in names
    assert "owned" in "".join(Reader(page).texts)
    handlers = [key for _, attributes in Reader(page).elements for key in attributes if key.startswith("on")]
    assert not handlers


def test_the_page_loads_and_runs_nothing() -> None:
    page = Reader(html.page(pages.full(pages.HOSTILE)))
    for name, attributes in page.elements:
        assert name not in ("script", "link", "img", "iframe", "object", "base", "form")
        assert "style" not in attributes and "src" not in attributes
        for key in ("href", "xlink:href"):
            assert (attributes.get(key) or "#").startswith("#")
        for value in attributes.values():
            assert all(part.startswith("#") for part in re.findall(r"url\(([^)]*)", value or ""))
    policies = [a["content"] for n, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies == [style.policy()] and "default-src 'none'" in style.policy() and "unsafe" not in style.policy()
    assert "@import" not in style.SHEET and "url(" not in style.SHEET


def test_the_same_record_gives_the_same_bytes() -> None:
    first = html.page(pages.full())
    assert html.page(pages.full()) == first
    again = evidence.record(evidence.of(pages.full(), "int8 static"))
    assert html.page(again) == first


@needs_plots
def test_plots_have_words_and_tables_beside_them() -> None:
    page = Reader(html.page(pages.full()))
    drawings = [a for name, a in page.elements if name == "svg" and a.get("role") == "img"]
    assert len(drawings) == 3
    ids = set(page.ids())
    assert all(part in ids for a in drawings for part in (a["aria-labelledby"] or "").split())
    linked = [a["href"] for name, a in page.elements if name == "use"]
    assert linked and all((href or "")[1:] in ids for href in linked)
    colours = {v for _, a in page.elements for k, v in a.items() if k in ("fill", "stroke") and v != "none"}
    assert colours and all((c or "").startswith("var(--") for c in colours), colours


def test_without_the_library_the_numbers_stand_in_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "installed", lambda: False)
    page = Reader(html.page(pages.full()))
    assert not [a for name, a in page.elements if name == "svg" and a.get("role") == "img"]
    text = " ".join(page.texts)
    assert "pip install 'lathe[report]'" in text and "50% of runs take at most" in text and "reading memory" in text
    assert {name for name, _, _ in html._SECTIONS} <= set(page.ids())


def test_intervals_without_ends_are_not_shown() -> None:
    record = pages.full()
    assert record.final and record.final.quality
    endless = replace(record.final.quality, low=float("-inf"), high=float("inf"))
    page = html.page(replace(record, final=replace(record.final, quality=endless)))
    assert "top1 on 573 samples." in page and "inf" not in " ".join(Reader(page).texts).split()


@needs_plots
def test_odd_numbers_are_drawn_too() -> None:
    same = Latency(0.0, 0.0, 0.0, "cpu", 100, quantiles=(0.0,) * 40)
    record = pages.full()
    assert record.baseline and record.final
    odd = replace(
        record,
        baseline=replace(record.baseline, latency_ms=same),
        final=replace(record.final, latency_ms=same),
        frontier=tuple(
            replace(p, drop=Interval(0.1, float("-inf"), float("inf")), size_bytes=0) for p in record.frontier
        ),
    )
    assert html.page(odd).count('role="img"') == 3 - 1  # no latency, no place under the roofs


def test_text_can_be_read_in_light_and_in_dark() -> None:
    blocks = re.findall(r":root \{(.*?)\}", style.SHEET, re.S)
    light, dark, paper = (dict(re.findall(r"--([a-z-]+): (#[0-9a-f]+)", block)) for block in blocks)
    for colours in (light, dark, {**light, **paper}):
        grounds = [colours[g] for g in ("card", "page", "soft")]
        for name, ground in itertools.product(("ink", "muted", "result", "good", "bad", "maybe"), grounds):
            assert contrast(colours[name], ground) >= 4.5, (name, ground, contrast(colours[name], ground))
        for name in ("good", "bad", "maybe"):
            assert contrast(colours[name], colours[f"{name}-soft"]) >= 4.5, name


def contrast(one: str, other: str) -> float:
    """The ratio of WCAG 2 between two colours."""
    bright, dim = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def test_markup_escapes_text_and_attributes() -> None:
    made = tag("p", "<b>", tag("i", "&"), ["x", None], title='"', hidden=True, lang=None, data_x=1)
    assert made == '<p title="&quot;" hidden data-x="1">&lt;b&gt;<i>&amp;</i>x</p>'
    assert isinstance(made, Html)
