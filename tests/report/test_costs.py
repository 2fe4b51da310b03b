"""What a benchmark tells beside speed, at 80 columns."""

from __future__ import annotations

from dataclasses import replace

from optimizer.records import Energy, Interval, NodeCost, OpCost
from optimizer.report import console, costs
from tests.report.pages import near, profile, roofline
from tests.report.test_benchmark import ROW


def lines(shown: object) -> str:
    text = console.to_text(shown)
    assert max(map(len, text.splitlines())) <= 80
    return text


def test_bounds_and_what_would_help() -> None:
    text = " ".join(lines(costs.beside([replace(ROW, roofline=roofline())])).split())
    assert "compute-bound" in text and "Would help: 8-bit integers" in text and "2026-11-26" in text
    assert "lathe doctor" not in text and "batch" not in text
    both = lines(costs.beside([replace(ROW, roofline=roofline(), batch=b) for b in (1, 8)]))
    assert "model.onnx, batch 8, 1 thread" in both


def test_without_ceilings_there_is_a_hint_and_no_guess() -> None:
    assert "lathe doctor --measure" in lines(costs.beside([ROW])) and "bound:" not in lines(costs.beside([ROW]))
    assert lines(costs.beside([replace(ROW, latency=None)])).strip() == ""


def test_price_and_energy() -> None:
    energy = Energy(Interval(0.002, 0.0018, 0.0025), "an estimate from 65 W", False)
    text = lines(costs.beside([replace(ROW, per_million=Interval(0.11, 0.1, 0.125), energy=energy), ROW]))
    assert "0.11 [0.1, 0.125]" in text and "2.00 [1.80, 2.50]" in text and "an estimate from 65 W" in text
    assert text.count("model.onnx") == 1, "a row that has neither is not listed"


def test_a_profile_is_shown_when_it_was_asked_for() -> None:
    many = tuple(OpCost(f"Op{i}", 2, near(0.1)) for i in range(12))
    row = replace(ROW, profile=replace(profile(), ops=many, nodes=(NodeCost("[/a b]" * 20, "Conv", near(0.2)),)))
    text = lines(costs.beside([row], profiled=True))
    assert "4 others" in text and "8%" in text and "outside of kernels" in text and "[/a b]" in text
    assert "Op0" not in lines(costs.beside([row]))
