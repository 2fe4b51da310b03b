"""A gate's record as SARIF 2.1.0: a result for every rule that does not hold, one for each node where there are any."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from optimizer import __version__
from optimizer.records import GateRecord, NodeFinding, Ruled, Ruling
from optimizer.report import gate

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
LEVELS = {Ruling.FAIL: "error", Ruling.UNDECIDED: "warning"}


def sarif(record: GateRecord) -> str:
    """One run. The model is the physical location, a node the logical one; fingerprints stay the same from run to
    run, so that a code-scanning page can tell old findings from new ones."""
    rules = [{"id": r.rule, "shortDescription": {"text": f"{r.rule} {r.allowed}".strip()}} for r in record.rules]
    tree = {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": {"name": "lathe", "version": __version__, "rules": rules}},
                "invocations": [{"executionSuccessful": True}],
                "results": list(_results(record)),
            }
        ],
    }
    return json.dumps(tree, indent=2, ensure_ascii=False) + "\n"


def _results(record: GateRecord) -> Iterator[dict[str, Any]]:
    for index, ruled in enumerate(record.rules):
        if ruled.ruling not in LEVELS:
            continue
        nodes: tuple[NodeFinding | None, ...] = ruled.nodes or (None,)
        for node in nodes:
            yield _result(record, index, ruled, node)


def _result(record: GateRecord, index: int, ruled: Ruled, node: NodeFinding | None) -> dict[str, Any]:
    place: dict[str, Any] = {
        "physicalLocation": {
            "artifactLocation": {"uri": quote(record.file.replace("\\", "/"))},
            "region": {"startLine": 1},
        }
    }
    if node is not None:
        place["logicalLocations"] = [{"name": node.node, "fullyQualifiedName": node.node, "kind": "object"}]
    told = f"{node.node}: {node.detail}" if node is not None else gate.told(ruled)
    known = hashlib.sha256(f"{ruled.rule}\0{node.node if node else ''}".encode(errors="replace")).hexdigest()
    return {
        "ruleId": ruled.rule,
        "ruleIndex": index,
        "level": LEVELS[ruled.ruling],
        "message": {"text": told},
        "locations": [place],
        "partialFingerprints": {"lathe/v1": known},
    }
