"""Budgets: what can be typed, what it means, and what is said when it cannot be read."""

from __future__ import annotations

import dataclasses

import pytest

from optimizer.data.metrics import METRICS, Metric, user_metric
from optimizer.decide.budget import Budget, Limit
from optimizer.faults import Exit, Fault

TOP1, PERPLEXITY = METRICS["top1"], METRICS["perplexity"]
MINE = user_metric("my.metrics:score", lambda outputs, labels: 0.0)


@pytest.mark.parametrize(
    ("texts", "metric", "baseline", "margin"),
    [
        ([], TOP1, 0.8, 0.008),
        ([], PERPLEXITY, 9.0, 0.09),
        (["top1.drop<=0.005"], TOP1, 0.8, 0.005),
        (["top1.drop<=1%"], TOP1, 0.8, 0.01),
        (["drop<=1%"], TOP1, 0.8, 0.01),
        (["perplexity.drop<=1%"], PERPLEXITY, 9.0, 0.09),
        (["top1.drop<=0.02x"], TOP1, 0.5, 0.01),
        (["top1.drop <= .005", "drop<=1%"], TOP1, 0.8, 0.005),
        (["top1.drop<=0"], TOP1, 0.8, 0),
        (["latency<=8ms"], TOP1, 0.8, 0.008),
        (["none"], TOP1, 0.8, None),
        (["none", "latency<=8ms"], TOP1, 0.8, None),
        (["my.metrics:score.drop<=2%"], MINE, -3.0, 0.06),
        ([], METRICS["spearman"], -0.5, 0.005),
        ([], None, 0.8, None),
    ],
)
def test_quality_margin(texts: list[str], metric: Metric | None, baseline: float, margin: float | None) -> None:
    budget = Budget.parse(texts, metric)
    found = budget.quality_margin(baseline)
    assert found == (None if margin is None else pytest.approx(margin))
    assert budget.unlimited == (margin is None)
    assert budget.explicit == bool(texts)


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("latency<=0.5x", Limit("latency", 0.5, True)),
        ("latency<=50%", Limit("latency", 0.5, True)),
        ("latency<=8ms", Limit("latency", 8, False)),
        ("latency<=0.2s", Limit("latency", 200, False)),
        ("latency<=500us", Limit("latency", 0.5, False)),
        ("size<=4MB", Limit("size", 4e6, False)),
        ("size <= 4 MiB", Limit("size", 4 * 2**20, False)),
        ("memory<=1GB", Limit("memory", 1e9, False)),
    ],
)
def test_limits(text: str, limit: Limit) -> None:
    assert Budget.parse([text], TOP1).limits() == (limit,)


def test_a_limit_says_why_it_does_not_hold() -> None:
    limit = Limit("latency", 0.5, True)
    assert limit.unmet(4.9, 10) == ""
    assert limit.unmet(5.5, 10) == "latency<=0.5x: latency is 5.5 ms, allowed 5 ms"
    assert "was not measured" in limit.unmet(None, 10)
    assert "was not measured" in limit.unmet(4.0, None)
    assert Limit("size", 4e6, False).unmet(4_000_001, None).endswith("size is 4 MB, allowed 4 MB")
    assert Limit("size", 4e6, False).unmet(4_000_000, None) == ""


@pytest.mark.parametrize(
    "texts",
    [
        [],
        ["none"],
        ["top1.drop<=0.005", "size<=4MB", "latency<=0.5x"],
        ["drop<=0.1%", "memory<=1.5GiB"],
        ["latency<=0.1ms"],
    ],
)
def test_text_round_trips(texts: list[str]) -> None:
    for metric in (TOP1, dataclasses.replace(TOP1, name="top1:logits")):
        budget = Budget.parse(texts, metric)
        assert Budget.parse(budget.texts(), metric).terms == budget.terms
        assert budget.text() == ", ".join(budget.texts())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("latncy<=8ms", "Did you mean 'latency'?"),
        ("top1.dorp<=0.5%", "Did you mean 'top1.drop'?"),
        ("top1<=0.5", "Write top1.drop<=..."),
        ("top5.drop<=1%", "give --metric top5"),
        ("topp1.drop<=1%", "Did you mean 'top1'?"),
        ("latency<8ms", "Write latency<=8ms"),
        ("latency>=8ms", "'>=' is not understood"),
        ("latency<=8", "needs a unit"),
        ("latency<=8MB", "'MB' is not a unit of latency"),
        ("latency<=0ms", "must be above 0"),
        ("size<=fast", "'fast' is not an amount"),
        ("top1.drop<=-1%", "'-1%' is not an amount"),
        ("top1.drop<=1ms", "'ms' is not a unit of a drop"),
        ("top1.drop<=1e999", "is not an amount"),
        ("nothing", "Examples: top1.drop<=0.005"),
        ("non", "Did you mean 'none'?"),
        ("", "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_a_usage_fault_with_the_right_spelling(text: str, words: str) -> None:
    with pytest.raises(Fault) as caught:
        Budget.parse([text], TOP1)
    assert words in str(caught.value)
    assert caught.value.exit is Exit.USAGE
    assert caught.value.hint


def test_contradictions_and_drops_without_a_metric_are_refused() -> None:
    with pytest.raises(Fault, match="contradict"):
        Budget.parse(["none", "drop<=1%"], TOP1)
    with pytest.raises(Fault, match="no quality is measured"):
        Budget.parse(["top1.drop<=1%"], None)
