"""Evidence written from a record and read back, and evidence that somebody tampered with."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from optimizer.faults import Fault
from optimizer.package import evidence
from optimizer.plain import from_plain
from optimizer.records import Interval, Record
from tests.report import pages, records


@pytest.mark.parametrize("record", [*records.ALL.values(), pages.full()], ids=[*records.ALL, "full"])
def test_a_record_comes_back_as_it_was(record: Record) -> None:
    tree = json.loads(json.dumps(evidence.of(record, "x")))
    assert evidence.record(tree) == record


def test_the_ends_of_intervals_may_be_infinite() -> None:
    record = replace(records.OPTIMIZED, quality_drop=Interval(0.1, -math.inf, math.inf))
    assert evidence.record(json.loads(json.dumps(evidence.of(record, "x")))) == record


def changed(**changes: Any) -> dict[str, Any]:
    return {**json.loads(json.dumps(evidence.of(records.OPTIMIZED, "x"))), **changes}


WRONG = {
    "no steps": (changed(steps=None), "steps"),
    "a step that is none": (changed(steps=[3]), "steps"),
    "an unknown outcome": (changed(outcome="brilliant"), "outcome"),
    "a number for a text": (changed(source=3), "source"),
    "a text for a number": (changed(seconds="long"), "seconds"),
    "a text for a list": (changed(budget="none"), "budget"),
    "a list for an object": (changed(final=[]), "final"),
    "true for a number": (changed(speedup={"value": True, "low": 1, "high": 2}), "speedup.value"),
    "half an interval": (changed(speedup={"value": 1.0}), "speedup.low"),
}


@pytest.mark.parametrize(("tree", "where"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_refused_by_name(tree: dict[str, Any], where: str, tmp_path: Path) -> None:
    (tmp_path / "evidence.json").write_text(json.dumps(tree))
    with pytest.raises(Fault, match=rf"the evidence cannot be read: '{where}'"):
        evidence.read(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", "[" * 100_000, '{"schema": "lathe.evidence/9"}'])
def test_what_is_no_evidence_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(Fault, match="not a Lathe artifact"):
        evidence.read(tmp_path)
    (tmp_path / "evidence.json").write_text(text)
    with pytest.raises(Fault, match="the evidence cannot be read"):
        evidence.read(tmp_path)


def test_a_newer_lathe_may_have_said_more() -> None:
    assert from_plain(Interval, {"value": 1, "low": 0, "high": 2, "method": "new"}) == Interval(1.0, 0.0, 2.0)
