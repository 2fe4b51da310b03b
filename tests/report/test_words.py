"""Numbers as people read them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from optimizer.records import CheckedOn, Interval, Quality
from optimizer.report import words
from tests.report import pages, records


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (words.milliseconds(0.04531), "0.0453 ms"),
        (words.milliseconds(12.345), "12.3 ms"),
        (words.milliseconds(1234.5), "1.23 s"),
        (words.milliseconds(None), "-"),
        (words.size(512), "512 B"),
        (words.size(1_210_000), "1.21 MB"),
        (words.size(13_200_000_000), "13.2 GB"),
        (words.count(64), "64"),
        (words.count(1_530), "1.53 k"),
        (words.count(4.56e9), "4.56 G"),
        (words.duration(4.21), "4.2 s"),
        (words.duration(200), "3 min 20 s"),
        (words.duration(3600), "1 h"),
        (words.significant(0), "0"),
        (words.significant(-0.00123456), "-0.00123"),
        (words.significant(123456.7), "123457"),
        (words.faster(Interval(0.91, 0.9, 0.92)), "slower, at 0.91x the speed [0.90, 0.92]"),
        (words.faster(Interval(1.001, 0.98, 1.02)), "as fast as the source [0.98, 1.02]"),
    ],
)
def test_units(found: str, wanted: str) -> None:
    assert found == wanted


def quality(metric: str, higher: bool) -> Quality:
    return Quality(metric, 0.5, 0.4, 0.6, higher, 100)


@pytest.mark.parametrize(
    ("drop", "metric", "wanted"),
    [
        (Interval(0.002, -0.001, 0.005), quality("top1", True), "-0.2 points [-0.5, +0.1]"),
        (Interval(-0.002, -0.005, 0.0), quality("f1", True), "+0.2 points [0.0, +0.5]"),
        (Interval(-0.00001, -0.00001, 0.00001), quality("top1", True), "0.0 points [0.0, 0.0]"),
        (Interval(0.0312, 0.01, 0.05), quality("perplexity", False), "+0.0312 [+0.01, +0.05]"),
        (Interval(0.0012, 0.001, 0.002), quality("cosine", True), "-0.0012 [-0.002, -0.001]"),
        (None, None, "-"),
    ],
)
def test_a_drop_is_told_in_the_metrics_own_direction(drop: Interval, metric: Quality, wanted: str) -> None:
    assert words.change(drop, metric) == wanted


@pytest.mark.parametrize(
    ("name", "headline", "step"),
    [
        ("optimized", "2.31x faster [2.25, 2.38] at -0.2 points [-0.5, +0.1] top1 (proven)", "lathe verify /home"),
        (
            "undecided",
            "2.31x faster [2.25, 2.38] at -0.2 points [-0.5, +0.1] top1 (undecided)",
            "give 812 more samples",
        ),
        ("unproven", "2.31x faster [2.25, 2.38], quality not measured (unproven)", "give --data"),
        ("lossless", "1.12x faster [1.10, 1.14], nothing spent: only lossless passes were kept", "lathe verify"),
        ("unchanged", "unchanged: nothing that was tried is better than the source", "lathe verify"),
        ("none", "no artifact: no recipe reaches latency<=0.1ms", "loosen it"),
    ],
)
def test_headlines(name: str, headline: str, step: str) -> None:
    assert words.headline(records.ALL[name]).startswith(headline)
    assert words.next_step(records.ALL[name]).startswith(step)


def test_the_next_step_can_be_pasted_into_a_shell() -> None:
    spaced = replace(records.OPTIMIZED, artifact="/my models/net.lathe")
    assert words.next_step(spaced) == "lathe verify '/my models/net.lathe'"
    assert words.next_step(replace(spaced, libraries=("a b.so",))).endswith("net.lathe' --custom-ops 'a b.so'")


def test_how_rewrites_are_known_to_be_right() -> None:
    record = replace(records.OPTIMIZED, checked_on=CheckedOn(2, ("NaN", "zeros"), ("signs",)))
    assert words.checks(record) == (
        "12 lossless rewrites: 3 proved, 9 tested on 2 ordinary and 2 adversarial inputs; "
        "the source does not run on: signs"
    )
    assert words.checks(records.OPTIMIZED) == "", "nothing is known of the inputs"


def test_what_stands_around_the_network_is_told_with_what_it_costs() -> None:
    told = words.edges(pages.full("out"))
    assert told[:2] == ["takes pixels: UINT8[n, height, width, 3]", "gives out: FLOAT[n, 5]"]
    assert "before: resize=256, normalize=imagenet" in told and "after: softmax" in told
    assert any("ms are theirs" in line for line in told) and "on 11 images" in told[-1]
    assert words.edges(records.OPTIMIZED) == []
