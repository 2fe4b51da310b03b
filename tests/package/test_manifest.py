"""The manifest is what its published schema says, and says everything that the schema names."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.package import artifact, manifest, schema
from optimizer.package.receiver.words import SCHEMA
from passes.kit.model import Model
from tests.package import parts

TOP = Path(manifest.__file__).parents[2]
PUBLISHED = json.loads((TOP / "optimizer/package/manifest-1.schema.json").read_text("utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(PUBLISHED)
GOOD = {
    **parts.contents(custom_ops={"my.so": "ab" * 32}).manifest,
    "files": {"model.onnx": {"sha256": "ab" * 32, "size": 3}},
}


def written(place: Path, **changes: Any) -> dict[str, Any]:
    tree = json.loads((artifact.write(place, parts.contents(**changes)) / "manifest.json").read_text())
    assert isinstance(tree, dict)
    return tree


def test_what_is_written_is_what_is_published(tmp_path: Path) -> None:
    jsonschema.Draft202012Validator.check_schema(PUBLISHED)
    assert PUBLISHED["properties"]["schema"]["const"] == SCHEMA
    for i, changes in enumerate(
        ({}, {"golden": (), "metric": None, "data": None}, {"custom_ops": {"my.so": "ab" * 32}})
    ):
        tree = written(tmp_path / str(i), **changes)
        VALIDATOR.validate(tree)
        assert set(tree) == set(PUBLISHED["properties"]), "every member is described, and every description is meant"


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("files"),
        lambda m: m.update(schema="lathe.manifest/2"),
        lambda m: m["files"]["model.onnx"].update(sha256="short"),
        lambda m: m["golden"]["tolerance"]["y"].update(of_largest=7),
        lambda m: m["requires"].pop("opsets"),
        lambda m: m["signature"]["inputs"][0].pop("dims"),
        lambda m: m["source"].update(kind="rumour"),
    ],
)
def test_the_schema_notices(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tree = written(tmp_path / "a")
    change(tree)
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(tree)
    assert schema.objection(tree)


JUNK: tuple[Any, ...] = (None, True, -1, 0.7, 10**6, "x", "ab" * 32, [], [1], {}, {"x": 1})


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_our_validator_is_the_librarys(data: st.DataObject) -> None:
    tree = copy.deepcopy(GOOD)
    here: Any = tree
    while True:  # walk in and spoil something
        key = data.draw(st.sampled_from(sorted(here) if isinstance(here, dict) else list(range(len(here)))))
        if not isinstance(here[key], (dict, list)) or not here[key] or data.draw(st.booleans()):
            break
        here = here[key]
    if isinstance(here, dict) and data.draw(st.booleans()):
        del here[key]
    else:
        here[key] = data.draw(st.sampled_from(JUNK))
    assert bool(schema.objection(tree)) is not VALIDATOR.is_valid(tree), schema.objection(tree)


def test_members_of_tomorrow_are_no_error(tmp_path: Path) -> None:
    tree = written(tmp_path / "a")
    assert VALIDATOR.is_valid({**tree, "colour": "blue", "tool": {**tree["tool"], "mood": "good"}})


def test_the_page_names_every_member() -> None:
    page = (TOP / "docs/manifest.md").read_text("utf-8")
    missing = [name for name in PUBLISHED["properties"] if f"`{name}`" not in page]
    assert not missing


def test_the_terms_of_the_source_are_carried_over() -> None:
    proto = parts.model().to_proto()
    onnx.helper.set_model_props(proto, {"License": "MIT", "copyright": "someone", "stage": "3"})
    found = manifest.licence_of(Model.from_proto(proto), "Apache-2.0")
    assert found == {"License": "MIT", "copyright": "someone", "license": "Apache-2.0"}


def test_an_artifact_as_the_source_is_the_parent(tmp_path: Path) -> None:
    place = artifact.write(tmp_path / "a.lathe", parts.contents())
    data = (place / "manifest.json").read_bytes()
    wanted = {
        "name": "a.lathe",
        "manifest": hashlib.sha256(data).hexdigest(),
        "model": json.loads(data)["model"]["digest"],
    }
    assert manifest.parents_of(place) == manifest.parents_of(place / "model.onnx") == (wanted,)
    assert manifest.parents_of(place / "report.md") == manifest.parents_of(tmp_path) == ()
    (place / "manifest.json").write_text("[")
    assert manifest.parents_of(place) == ()
