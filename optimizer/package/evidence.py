"""``evidence.json``: everything that a compile measured. Written from the record, and read back into one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optimizer.faults import bad_input
from optimizer.package.receiver.words import EVIDENCE
from optimizer.plain import from_plain
from optimizer.records import Record, to_plain

SCHEMA = "lathe.evidence/1"


def of(record: Record, shipped: str) -> dict[str, Any]:
    """What stands in the file; ``shipped`` is the label of the recipe that ships."""
    plain: dict[str, Any] = to_plain(record.as_json())
    return {**plain, "schema": SCHEMA, "shipped": shipped}


def record(tree: Mapping[str, Any]) -> Record:
    """The record that evidence was written from. Raises ``ValueError`` that names what does not fit."""
    steps = tree.get("steps")
    if not isinstance(steps, list) or not all(isinstance(step, Mapping) for step in steps):
        raise ValueError("'steps' is not a list of objects")
    whole = [
        {
            **step,
            "verdict": {
                "judgement": step.get("verdict"),
                "reason": step.get("reason", ""),
                "need": step.get("need", ""),
            },
        }
        for step in steps
    ]
    return from_plain(Record, {**tree, "steps": whole})


def read(folder: Path) -> Record:
    """The record of the artifact in ``folder``. Raises a Fault (exit 3) when there is none that can be read."""
    path = folder / EVIDENCE
    if not path.is_file():
        message = f"this is not a Lathe artifact: it has no {EVIDENCE}"
        raise bad_input(message, where=str(folder), code="not-an-artifact")
    try:
        tree = json.loads(path.read_text("utf-8"))
        if not isinstance(tree, dict) or tree.get("schema") != SCHEMA:
            raise ValueError(f"its schema is not '{SCHEMA}'")
        return record(tree)
    except (OSError, ValueError, RecursionError) as error:
        raise bad_input(f"the evidence cannot be read: {error}", where=str(path), code="bad-evidence") from error
