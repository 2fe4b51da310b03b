"""A gate's reports: the right words for people, and files that the readers of their formats accept."""

from __future__ import annotations

import json
from dataclasses import replace

import jsonschema
import pytest
from junitparser import JUnitXml

from optimizer.records import GateRecord, Interval, NodeFinding, Ruled, Ruling
from optimizer.report import gate
from optimizer.report.console import to_text
from optimizer.report.junit import junit
from optimizer.report.sarif import SCHEMA, sarif
from tests.support import schemas

NASTY = "a,b:%\n<script>|`x`\x07\ufffe"
NODES = (NodeFinding("conv1", "Conv", "Conv is not allowed"), NodeFinding(NASTY, "Conv", "Conv is not allowed"))
RECORD = GateRecord(
    "out/a b.lathe",
    "out/a b.lathe/model.onnx",
    "main.lathe",
    "gate.toml",
    (
        Ruled("artifact.verify", Ruling.PASS, "every check holds", "8 checks hold"),
        Ruled("quality.max_drop", Ruling.UNDECIDED, "<= 0.01", "drop 0.005 [0, 0.02]", "400 more samples",
              Interval(0.005, 0.0, 0.02)),
        Ruled("latency.max_ratio", Ruling.FAIL, "<= 1.025x", "1.051x [1.040, 1.060] over 12 restarts"),
        Ruled("operators.deny", Ruling.FAIL, "no Conv", f"Conv at conv1, {NASTY}", nodes=NODES),
        Ruled("size.max", Ruling.SKIPPED, "", "not judged"),
    ),
    warnings=("made-up inputs",),
    seconds=9.5,
)  # fmt: skip
PASSED = replace(RECORD, rules=RECORD.rules[:1], warnings=())


def test_the_verdict_is_that_of_the_worst_rule() -> None:
    assert RECORD.ruling is Ruling.FAIL and PASSED.ruling is Ruling.PASS
    assert replace(RECORD, rules=RECORD.rules[:2]).ruling is Ruling.UNDECIDED
    tree = RECORD.as_json()
    assert tree["schema"] == "lathe.gate/1" and tree["verdict"] == "fail" and tree["rules"][2]["ruling"] == "fail"
    json.dumps(tree)


def test_console() -> None:
    text = to_text(gate.console(RECORD))
    assert "latency.max_ratio" in text and "(allowed: <= 1.025x)" in text and "needs 400 more samples" in text
    assert "out/a b.lathe against main.lathe: fail: latency.max_ratio, operators.deny" in " ".join(text.split())
    assert "pass: the rule holds" in to_text(gate.console(PASSED))


def test_the_summary_shows_every_rule_and_runs_nothing_of_a_strangers_name() -> None:
    text = gate.summary(RECORD)
    assert "## ❌ lathe gate: fail" in text and "| quality.max\\_drop | ❔ undecided |" in text
    assert "<script>" not in text and "&lt;script&gt;" in text and "| `x`" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(len(line.replace("\\|", "").split("|")) == 6 for line in rows), rows
    assert "✅" in gate.summary(PASSED) and "nodes</summary>" not in gate.summary(PASSED)


def test_annotations_are_one_line_each_with_their_properties_escaped() -> None:
    found = gate.workflow_commands(RECORD)
    assert [line.split(" ")[0] for line in found] == ["::warning", "::error", "::error"]
    assert "title=lathe gate%3A latency.max_ratio::" in found[1] and "file=out/a b.lathe/model.onnx," in found[1]
    assert not any("\n" in line for line in found) and "%0A" in found[2] and "%25" in found[2]
    assert gate.workflow_commands(PASSED) == ()


def test_junit_is_read_by_a_library() -> None:
    suites = JUnitXml.fromstring(junit(RECORD).encode())
    assert (suites.tests, suites.failures, suites.errors, suites.skipped) == (5, 2, 1, 1)
    (suite,) = list(suites)
    cases = {f"{case.classname}.{case.name}": case for case in suite}
    assert cases["gate.artifact.verify"].is_passed and cases["gate.quality.max_drop"].is_error
    (problem,) = cases["gate.latency.max_ratio"].result
    assert problem.message.startswith("1.051x") and problem.type == "fail"
    assert cases["gate.size.max"].is_skipped
    (denied,) = cases["gate.operators.deny"].result
    assert "conv1 (Conv): Conv is not allowed" in str(denied.text) and "<script>" in str(denied.text)


@pytest.mark.parametrize("record", [RECORD, PASSED])
def test_sarif_validates_against_the_published_schema(record: GateRecord) -> None:
    schema, tree = schemas.published(SCHEMA), json.loads(sarif(record))
    schema.validate(tree)
    with pytest.raises(jsonschema.ValidationError):
        schema.validate({**tree, "version": "2.0.0"})


def test_sarif_has_a_result_for_every_node_that_breaks_a_rule() -> None:
    (run,) = json.loads(sarif(RECORD))["runs"]
    found = run["results"]
    assert [r["ruleId"] for r in found] == ["quality.max_drop", "latency.max_ratio", "operators.deny", "operators.deny"]
    assert [r["level"] for r in found] == ["warning", "error", "error", "error"]
    for result in found:
        assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
    (place,) = found[2]["locations"]
    assert place["physicalLocation"]["artifactLocation"]["uri"] == "out/a%20b.lathe/model.onnx"
    assert place["logicalLocations"][0]["name"] == "conv1"
    prints = {r["partialFingerprints"]["lathe/v1"] for r in found}
    assert len(prints) == len(found) and not json.loads(sarif(PASSED))["runs"][0]["results"]
