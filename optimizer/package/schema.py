"""Holding a manifest to its published schema, with the part of JSON Schema 2020-12 that the schema uses."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

_KINDS: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


@cache
def published() -> Mapping[str, Any]:
    """The schema of ``manifest.json``, version 1."""
    text = (Path(__file__).parent / "manifest-1.schema.json").read_text("utf-8")
    found: Mapping[str, Any] = json.loads(text)
    return found


def objection(tree: Any, schema: Mapping[str, Any] | None = None, where: str = "") -> str:
    """The first thing in which ``tree`` is not what the schema (a part of the published one) says, as text; empty when
    there is none."""
    schema = published() if schema is None else schema
    if "$ref" in schema:
        schema = published()["$defs"][schema["$ref"].rpartition("/")[2]]
    at = where or "the manifest"
    if "const" in schema and tree != schema["const"]:
        return f"{at} is not '{schema['const']}'"
    if "enum" in schema and tree not in schema["enum"]:
        return f"{at} is none of {', '.join(schema['enum'])}"
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(_is(tree, kind) for kind in kinds):
        return f"{at} is no {' or '.join(kinds)}"
    if isinstance(tree, str) and not re.search(schema.get("pattern", ""), tree):
        return f"{at} does not look as it must"
    if _is(tree, "number") and not schema.get("minimum", tree) <= tree <= schema.get("maximum", tree):
        return f"{at} is out of range"
    return _inside(tree, schema, where)


def _is(tree: Any, kind: str) -> bool:
    return isinstance(tree, _KINDS[kind]) and (not isinstance(tree, bool) or kind == "boolean")


def _inside(tree: Any, schema: Mapping[str, Any], where: str) -> str:
    if isinstance(tree, list) and "items" in schema:
        parts = ((f"{where}[{i}]", item, schema["items"]) for i, item in enumerate(tree))
    elif isinstance(tree, dict):
        if missing := [key for key in schema.get("required", ()) if key not in tree]:
            return f"{where + '.' if where else ''}{missing[0]} is missing"
        known, other = schema.get("properties", {}), schema.get("additionalProperties", True)
        if other is False and (odd := sorted(tree.keys() - known.keys())):
            return f"{where}.{odd[0]} is not known"
        other = {} if isinstance(other, bool) else other
        parts = ((f"{where}.{k}" if where else k, v, known.get(k, other)) for k, v in tree.items())
    else:
        return ""
    return next((said for place, item, rule in parts if (said := objection(item, rule, place))), "")
