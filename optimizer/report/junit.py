"""A gate's record as JUnit XML: one test case for each rule."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from optimizer.records import GateRecord, Ruled, Ruling
from optimizer.report import gate

NODES_SHOWN = 100


def junit(record: GateRecord) -> str:
    """A rule that fails is a failure; one that is undecided is an error, so that nothing takes it for a pass."""
    counts = {r: sum(x.ruling is r for x in record.rules) for r in Ruling}
    totals = {
        "tests": str(len(record.rules)),
        "failures": str(counts[Ruling.FAIL]),
        "errors": str(counts[Ruling.UNDECIDED]),
        "skipped": str(counts[Ruling.SKIPPED]),
        "time": f"{record.seconds:.3f}",
    }
    suites = ET.Element("testsuites", {"name": "lathe gate", **totals})
    suite = ET.SubElement(suites, "testsuite", {"name": _clean(record.artifact), **totals})
    properties = ET.SubElement(suite, "properties")
    for name in ("artifact", "baseline", "policy"):
        ET.SubElement(properties, "property", {"name": name, "value": _clean(getattr(record, name))})
    for ruled in record.rules:
        _case(suite, ruled)
    ET.indent(suites)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(suites, encoding="unicode") + "\n"


def _case(suite: ET.Element, ruled: Ruled) -> None:
    section, _, word = ruled.rule.partition(".")
    case = ET.SubElement(suite, "testcase", {"classname": f"gate.{section}", "name": word, "time": "0"})
    told = _clean(gate.told(ruled))
    kinds = {Ruling.FAIL: "failure", Ruling.UNDECIDED: "error", Ruling.SKIPPED: "skipped"}
    kind = kinds.get(ruled.ruling)
    if kind is None:
        ET.SubElement(case, "system-out").text = told
        return
    attributes = {"message": told} if kind == "skipped" else {"message": told, "type": ruled.ruling.value}
    problem = ET.SubElement(case, kind, attributes)
    lines = [_clean(f"{n.node} ({n.op}): {n.detail}") for n in ruled.nodes[:NODES_SHOWN]]
    if len(ruled.nodes) > NODES_SHOWN:
        lines.append(f"and {len(ruled.nodes) - NODES_SHOWN} more")
    problem.text = "\n".join(lines) or None


def _clean(text: str) -> str:
    """Without the characters that XML 1.0 cannot hold."""
    return "".join(
        c if c in "\t\n\r" or " " <= c <= "\ud7ff" or "\ue000" <= c <= "\ufffd" or c > "\uffff" else "?" for c in text
    )
