"""JSON for machines: exactly one object, on failure too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from optimizer.faults import Fault
from optimizer.records import Confidence, Outcome, Record, to_plain


def dump(thing: Any, schema: str = "") -> str:
    """One JSON object. A thing with ``as_json`` speaks for itself; other records go as their fields."""
    tree = thing.as_json() if hasattr(thing, "as_json") else to_plain(thing)
    if isinstance(tree, list):
        tree = {"items": tree}
    if schema and "schema" not in tree:
        tree = {"schema": schema, **tree}
    return json.dumps(to_plain(tree), indent=2, ensure_ascii=False, allow_nan=False, default=_other)


def failed_compile(fault: Fault, source: str) -> Record:
    """The record of a compile that ended with a fault."""
    return Record(
        outcome=Outcome.NONE,
        source=source,
        artifact=None,
        recipe="",
        baseline=None,
        final=None,
        speedup=None,
        quality_drop=None,
        confidence=Confidence.UNPROVEN,
        budget=(),
        target="",
        provider="",
        error=fault.as_json(),
    )


def failure(fault: Fault, verb: str, source: str = "") -> str:
    """What ``--json`` prints when a verb fails: a whole record for optimize, else an object with ``error``."""
    if verb == "optimize":
        return dump(failed_compile(fault, source))
    return dump({"schema": f"lathe.{verb or 'cli'}/1", "error": fault.as_json()})


def _other(thing: Any) -> Any:
    if isinstance(thing, (set, frozenset)):
        return sorted(thing, key=str)
    if isinstance(thing, Mapping):
        return dict(thing)
    return str(thing)  # paths, numbers of foreign libraries
