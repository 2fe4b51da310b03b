"""Pairs in words."""

from __future__ import annotations

from optimizer.records import Interval, PairedQuality, ScenarioRow, SliceDrop
from optimizer.report import words
from optimizer.report.console import to_text
from optimizer.report.paired import lines
from optimizer.report.scenarios import scenarios

SLICE = SliceDrop("cat", 50, Interval(0.04, -0.02, 0.1), 0.31, 3, 1)
PAIR = PairedQuality(
    "b.onnx", "cpu", "top1", True, 500, Interval(0.004, -0.01, 0.012), 6, 4, 0.754, 0.0157, "labels", 10, (SLICE,)
)


def test_a_pair_in_words() -> None:
    assert lines(PAIR) == [
        "top1 -0.4 points [-1.2, +1.0] on 500 samples (cpu)",
        "6 lost, 4 won: 2.00% of outcomes flipped; McNemar's exact p = 0.75",
        "500 samples can show a drop of 1.6 points or more",
        "worst of 10 slices by 'labels': cat -4.0 points [-10.0, +2.0] on 50 samples, 3 lost and 1 won; it is not "
        "shown to be worse (p = 0.31, corrected for 10 looks)",
    ]


def test_what_can_be_shown_in_words() -> None:
    assert words.can_show(1500, "mse", 0.0123) == "1,500 samples can show a drop of 0.012 or more"
    assert words.can_show(500, "top1", 0.0157, 0.02).endswith("1.6 points or more, if 2% of them come out differently")


def test_a_scenario_fits_a_terminal() -> None:
    server = ScenarioRow(
        "a.onnx", "server", "loadgen", "CPUExecutionProvider", 1, 1, "highest rate", Interval(845.2, 812.0, 880.0),
        "queries/s", 5, 3000, {"50": 0.3, "90": 1.5, "99": 7.9}, Interval(2.4, 1.4, 4.3), 10.0, 812.0, None, "INVALID",
        {"Min duration": True, "Early stopping": False},
    )  # fmt: skip
    stream = ScenarioRow(
        "b.onnx", "streaming", "light", "CPUExecutionProvider", 1, 1, "p99", Interval(2.0, 1.9, 2.2), "ms", 3, 900,
        {"50": 1.0}, real_time_factor=Interval(0.06, 0.05, 0.07),
    )  # fmt: skip
    failed = ScenarioRow("c.onnx", "streaming", "light", "CPUExecutionProvider", 1, 1, reason="it cannot run")
    text = to_text(scenarios([server, stream, failed]))
    assert all(len(row) <= 80 for row in text.splitlines())
    for said in ("845 [812, 880]", "0.3/1.50/7.90", "2.40x [1.40, 4.30]", "p99 within 10.0 ms", "it keeps up",
                 "loadgen says INVALID: not satisfied: early stopping", "812 queries/s were held in each of 5 restarts",
                 "it cannot run"):  # fmt: skip
        assert said in text, text
