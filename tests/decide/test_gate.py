"""Rulings: what passes, what fails, and that what is not shown is undecided and says what is missing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats as sp

from optimizer.data.metrics import METRICS
from optimizer.decide import gate
from optimizer.decide.gate import Facts, Node
from optimizer.decide.policy import Policy
from optimizer.faults import Fault
from optimizer.measure.duel import Reading
from optimizer.measure.exact import drop_upper
from optimizer.measure.paired import bounded
from optimizer.measure.scales import QualityReading
from optimizer.measure.stats import DropEstimate, exact_drop
from optimizer.records import Latency, Quality, Ruled, Ruling, to_plain

PASS, FAIL, UNDECIDED = Ruling.PASS, Ruling.FAIL, Ruling.UNDECIDED
TOP1 = METRICS["top1"]
NODES = (Node("conv1", "Conv"), Node("gelu", "com.microsoft.Gelu"), Node("conv2", "Conv"))
FACTS = Facts(1000, {"inputs": [1], "outputs": [2]}, {"ai.onnx": 17, "com.microsoft": 1, "ai.onnx.ml": 5}, 8, NODES)


def policy(**sections: dict[str, Any]) -> Policy:
    return Policy.from_toml(sections)


def one(found: list[Ruled]) -> Ruled:
    assert len(found) == 1
    return found[0]


def with_needs(*needs: str) -> Facts:
    return Facts(FACTS.size_bytes, FACTS.signature, FACTS.opsets, FACTS.ir, FACTS.nodes, needs)


# -- the file and the graph ------------------------------------------------------------------------------------------
def test_size_and_memory_alone_and_over_the_baselines() -> None:
    rules = policy(size={"max": "1kB", "max_ratio": 1.1})
    assert [r.ruling for r in gate.size(rules, 1000, 910)] == [PASS, PASS]
    assert [r.ruling for r in gate.size(rules, 1002, 910)] == [FAIL, FAIL]
    assert one(gate.size(rules, 900, None)).rule == "size.max", "without a baseline there is nothing to compare"
    assert one(gate.memory(policy(memory={"max": "1kB"}), 1001, None)).ruling is FAIL


def test_a_changed_signature_says_which_side() -> None:
    found = gate.signature({"inputs": [1], "outputs": [3]}, {"inputs": [1], "outputs": [2]})
    assert found.ruling is FAIL and "outputs differ" in found.found and "inputs" not in found.found
    assert gate.signature(FACTS.signature, FACTS.signature).ruling is PASS


def test_operators_name_every_node_that_breaks_the_rule() -> None:
    found = one(gate.operators(policy(operators={"allow": ["com.microsoft.Gelu"]}), FACTS))
    assert found.ruling is FAIL and [n.node for n in found.nodes] == ["conv1", "conv2"]
    assert one(gate.operators(policy(operators={"allow": ["Conv", "com.microsoft.Gelu"]}), FACTS)).ruling is PASS
    assert one(gate.operators(policy(operators={"allow": []}), FACTS)).ruling is FAIL
    denied = one(gate.operators(policy(operators={"deny": ["com.microsoft.Gelu"]}), FACTS))
    assert denied.ruling is FAIL and [n.op for n in denied.nodes] == ["com.microsoft.Gelu"]


@pytest.mark.parametrize(
    ("highest", "ruling"),
    [
        ({"ai.onnx": 17, "com.microsoft": 1}, PASS),
        ({"ai.onnx": 16, "com.microsoft": 1}, FAIL),
        ({"ai.onnx": 21}, FAIL),
    ],
)
def test_opsets_of_the_domains_that_are_used(highest: dict[str, int], ruling: Ruling) -> None:
    assert one(gate.operators(policy(operators={"opsets": highest}), FACTS)).ruling is ruling
    assert one(gate.operators(policy(operators={"max_ir": 7}), FACTS)).ruling is FAIL


def test_coverage_names_the_nodes_that_ran_elsewhere() -> None:
    ran = {"CUDAExecutionProvider": NODES[:2], "CPUExecutionProvider": NODES[2:]}
    found = gate.coverage(policy(coverage={"min_nodes": 0.7}), "CUDAExecutionProvider", ran)
    assert found.ruling is FAIL and "66.7%" in found.found and found.nodes[0].node == "conv2"
    assert gate.coverage(policy(coverage={"min_nodes": 0.6}), "CUDAExecutionProvider", ran).ruling is PASS
    assert gate.coverage(policy(coverage={"min_nodes": 0.1}), "CUDAExecutionProvider", {}).ruling is FAIL


def test_instructions() -> None:
    fleet = policy(instructions={"deployed_on": ["avx2", "avx_vnni"]})
    assert one(gate.instructions(fleet, with_needs("avx512_vnni", "avx_vnni"), ())).ruling is PASS
    assert one(gate.instructions(fleet, with_needs("amx_int8"), ())).ruling is FAIL
    assert one(gate.instructions(fleet, with_needs(), ())).ruling is PASS
    assert one(gate.instructions(fleet, FACTS, ())).ruling is UNDECIDED, "a bare model says nothing"
    here = policy(instructions={"here": ["avx_vnni"]})
    assert one(gate.instructions(here, FACTS, {"avx2"})).ruling is UNDECIDED
    assert one(gate.instructions(here, FACTS, {"avx_vnni"})).ruling is PASS


def test_skipped_rules_are_no_pass() -> None:
    found = gate.skipped(policy(size={"max": "1kB"}, artifact={"verify": True}), ("size.max",))
    assert one(found).ruling is Ruling.SKIPPED and gate.verified(["files: x"], 8).ruling is FAIL


# -- quality ----------------------------------------------------------------------------------------------------------
def dropped(lost: int, won: int, n: int, rule: Any = 0.02) -> Ruled:
    base, mine = 0.9, 0.9 - (lost - won) / n
    pair = [Quality("top1", v, v - 0.01, v + 0.01, True, n) for v in (base, mine)]
    return drop_ruling(exact_drop(lost, won, n), *pair, rule)


def drop_ruling(drop: DropEstimate, base: Quality, mine: Quality, rule: Any) -> Ruled:
    rules = policy(quality={"max_drop": rule})
    return gate.quality_drop(rules, QualityReading(base, mine, drop), gate.margin_of(rules, TOP1))


def test_a_drop_passes_fails_or_needs_more_samples() -> None:
    assert dropped(2, 1, 1000).ruling is PASS
    assert dropped(60, 5, 1000).ruling is FAIL
    found = dropped(3, 1, 100)
    assert found.ruling is UNDECIDED and "more samples" in found.need and found.measured is not None
    assert dropped(0, 0, 20).ruling is UNDECIDED, "twenty samples without a difference prove no two points"
    assert dropped(0, 0, 20, "90%").ruling is PASS and dropped(60, 5, 1000, "0.1x").ruling is PASS
    with pytest.raises(Fault, match=r"quality\.max_drop"):
        gate.margin_of(policy(quality={"max_drop": 0.1}), None)


def passes(lost: int, won: int, n: int, margin: float) -> bool:
    """Whether these counts pass; only the bound that decides it is worked out."""
    upper = drop_upper(lost, won, n, 0.05)
    drop = DropEstimate((lost - won) / n, -1.0, 1.0, upper, -1.0, n, "", False, (lost, won))
    base, mine = (Quality("top1", v, v, v, True, n) for v in (0.9, 0.9 - drop.value))
    return drop_ruling(drop, base, mine, margin).ruling is PASS


def test_a_drop_of_just_the_margin_passes_at_most_one_time_in_twenty() -> None:
    """Summed over all counts: how many samples differ is binomial, and so is how many of them are lost. For each number
    that differ there is a largest number lost that passes."""
    n, margin, share, chance, most = 40, 0.08, 0.1, 0.0, 0
    for differ in range(n + 1):
        weight = sp.binom.pmf(differ, n, share)
        if weight < 1e-4:
            continue
        while most <= differ and passes(most, differ - most, n, margin):  # one more that is won only helps
            most += 1
        chance += weight * sp.binom.cdf(most - 1, differ, (1 + margin / share) / 2)
    assert 0.0 < chance <= 0.05, "and it does pass sometimes, so the rule is not empty"


def test_a_bound_on_the_value_itself() -> None:
    up = Quality("top1", 0.9, 0.88, 0.92, True, 500)
    down = Quality("mse", 0.9, 0.88, 0.92, False, 500)
    for quality, bounds in ((up, (0.88, 0.93, 0.9)), (down, (0.92, 0.87, 0.9))):
        found = [gate.quality_worst(policy(quality={"worst": b}), quality).ruling for b in bounds]
        assert found == [PASS, FAIL, UNDECIDED]


# -- speed ------------------------------------------------------------------------------------------------------------
def test_a_ratio_is_told_with_what_would_decide_it() -> None:
    rules = policy(latency={"max_ratio": 1.025}, throughput={"min_ratio": 0.975})
    reading = Reading(UNDECIDED, 1.02, 1.01, 1.03, 20, 12.0, 1.5)
    found = gate.latency_ratio(rules, reading)
    assert found.ruling is UNDECIDED and "1.5 more minutes" in found.need and "1.020x" in found.found
    mirrored = gate.throughput_ratio(rules, reading)
    assert mirrored.measured is not None and mirrored.measured.low == pytest.approx(1 / 1.03)
    never = gate.latency_ratio(rules, Reading(UNDECIDED, 1.025, 0.0, math.inf, 20, 12.0, None))
    assert "lies on the margin" in never.need


def test_too_few_restarts_have_no_bound_instead_of_one_of_zero() -> None:
    rules = policy(latency={"max_ratio": 1.025}, throughput={"min_ratio": 0.975})
    none, upper = Reading(UNDECIDED, 1.01, 0.0, math.inf, 3, 1.0, 1.0), Reading(UNDECIDED, 1.01, 0.0, 1.05, 6, 1.0, 1.0)
    for reading, told in (
        (none, "1.010x over 3 restarts, too few for a bound (7 are needed)"),
        (upper, "1.010x [at most 1.050] over 6 restarts, too few for the other bound (7 are needed)"),
    ):
        found = gate.latency_ratio(rules, reading)
        assert found.found == told and found.measured is not None
        assert to_plain(found.measured)["low"] is None
    mirrored = gate.throughput_ratio(rules, upper)
    assert mirrored.found.startswith("0.990x [at least 0.952] over 6") and to_plain(mirrored.measured)["high"] is None
    assert to_plain(gate.throughput_ratio(rules, none).measured) == {"value": 1 / 1.01, "low": None, "high": None}


def test_bounds_on_this_machine() -> None:
    found = Latency(4.0, 3.9, 4.1, "cpu", 100)
    for most, ruling in (("5ms", PASS), ("3ms", FAIL), ("4ms", UNDECIDED)):
        assert gate.latency_bound(policy(latency={"max": most}), found).ruling is ruling
    for least, ruling in ((1900.0, PASS), (2100.0, FAIL), (2000.0, UNDECIDED)):
        assert gate.throughput_bound(policy(throughput={"min": least}), found, 8).ruling is ruling


def sliced(*counts: tuple[int, int, int], margin: float = 0.05) -> Ruled:
    """Slices by (lost, won, samples) of a 0/1 metric."""
    parts = [
        (np.repeat([1, 0, 1], [lost, won, n - lost - won]), np.repeat([0, 1, 1], [lost, won, n - lost - won]))
        for lost, won, n in counts
    ]
    base, rows = (np.concatenate([p[i] for p in parts])[:, None].astype(float) for i in (0, 1))
    cut = np.repeat([f"s{i}" for i in range(len(counts))], [n for *_, n in counts])
    return gate.slice_drop("region", bounded(TOP1, base, rows, cut, margin, 0), margin)


def test_every_slice_must_keep_the_margin() -> None:
    assert sliced((1, 1, 300), (0, 0, 200)).ruling is PASS
    failed = sliced((2, 2, 800), (30, 0, 100))
    assert failed.ruling is FAIL and "region s1: drop 0.3" in failed.found and "1 of them is worse" in failed.found
    small = sliced((0, 0, 500), (0, 0, 10))
    assert small.ruling is UNDECIDED and small.need.endswith("more samples with region s1"), "ten samples show little"


def test_one_slice_of_many_fails_only_beyond_what_so_many_looks_give_by_chance() -> None:
    alone, among = (11, 0, 100), [(0, 0, 100)] * 49
    assert sliced(alone).ruling is FAIL and sliced(alone, *among).ruling is UNDECIDED
    assert sliced((30, 0, 100), *among).ruling is FAIL
