"""The frontier in tables and as a drawing."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace

from optimizer.records import FrontierPoint, Interval, Record, Sensitivity
from optimizer.report import console, frontier, markdown
from tests.report import records

POINTS = (
    FrontierPoint(
        "int8 static", records.RECIPE, Interval(2.31, 2.2, 2.4), 0.52, Interval(0.002, 0, 0.004), 1_210_000, True
    ),
    FrontierPoint(
        "int8 <all> & more", "tidy", Interval(2.8, 2.7, 2.9), 0.4, Interval(0.03, 0.02, 0.04), 1_200_000, False
    ),
    FrontierPoint("source", "", Interval(1, 1, 1), 1.2, None, 4_700_000, True),
)
EVIDENCE = Sensitivity("each alone", {"/a|b": 1e-3, "/c": 0.1, "/d": 0.0}, {"/c": -0.013, "/a|b": 0.02}, 1.0)
RECORD: Record = replace(records.OPTIMIZED, frontier=POINTS, sensitivity=EVIDENCE)


def test_rows_say_what_ships_and_what_held() -> None:
    found = frontier.rows(RECORD)
    assert [r[-1] for r in found] == ["ships", "not met", "met"]
    assert found[0][1:4] == ("2.31x [2.20, 2.40]", "-0.2 points", "1.21 MB")
    assert frontier.rows(replace(RECORD, frontier=POINTS[:2])) == []


def test_layers_are_ranked_by_damage() -> None:
    assert frontier.layer_rows(EVIDENCE) == [
        ("/c", "10.0 dB", "-13 us"),
        ("/a|b", "30.0 dB", "+20 us"),
        ("/d", "none", "-"),
    ]
    assert frontier.layer_rows(None) == []


def test_the_drawing_is_valid_and_puts_every_point_in_its_place() -> None:
    root = ET.fromstring(frontier.svg(RECORD))
    space = "{http://www.w3.org/2000/svg}"
    dots = {d.findtext(f"{space}title"): d for d in root.iter(f"{space}circle")}
    assert set(dots) == {"int8 static, 1.21 MB (ships)", "int8 <all> & more, 1.20 MB", "source, 4.70 MB"}
    x = {name: float(d.get("cx", "")) for name, d in dots.items()}
    y = {name: float(d.get("cy", "")) for name, d in dots.items()}
    ship, fast, source = dots
    ship, fast, source = (next(n for n in dots if n.startswith(w)) for w in ("int8 static", "int8 <", "source"))
    assert x[source] < x[ship] < x[fast] and y[source] > y[ship] > y[fast], "faster to the right, lost upwards"
    assert float(dots[source].get("r", "")) > float(dots[ship].get("r", ""))
    assert all(0 < x[n] < frontier.WIDTH and 0 < y[n] < frontier.HEIGHT for n in dots)
    assert frontier.svg(replace(RECORD, frontier=POINTS[:2])) == ""


def test_points_in_one_place_can_be_drawn() -> None:
    same = tuple(replace(POINTS[2], label=str(i)) for i in range(3))
    ET.fromstring(frontier.svg(replace(RECORD, frontier=same)))


def test_both_reports_show_them() -> None:
    text = console.to_text(console.closing(RECORD))
    assert max(map(len, text.splitlines())) <= 80
    assert "what nothing else beats" in text and "the most sensitive of 3 layers" in text and "10.0 dB" in text
    page = markdown.report(RECORD)
    assert "![frontier](frontier.svg)" in page and "| /a\\|b | 30.0 dB | +20 us |" in page
