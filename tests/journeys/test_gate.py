"""The gate from end to end: a real artifact, a baseline, a results file, damage, and the CI examples as they stand."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from click.testing import CliRunner, Result

import optimizer
from optimizer.cli.main import cli
from optimizer.decide.policy import Policy
from optimizer.faults import Exit, Fault
from optimizer.gating import Gated
from optimizer.package import artifact, baseline, golden, manifest
from optimizer.plan import OPENVINO_RUNTIME, Settings, SourceRequest
from optimizer.records import Ruled, Ruling
from optimizer.runtime import providers
from passes.kit.model import Model
from passes.kit.recipe import Recipe
from tests.support import models, runtime, schemas

CI = Path(__file__).parents[2] / "docs" / "ci"
SCHEMAS = {
    "github-actions.yml": "https://json.schemastore.org/github-workflow.json",
    "gitlab-ci.yml": "https://gitlab.com/gitlab-org/gitlab/-/raw/master/app/assets/javascripts/editor/schema/ci.json",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, an artifact of it, and labelled samples."""
    found = tmp_path_factory.mktemp("gate")
    source = models.cnn(found / "cnn.onnx", width=16)
    models.images(found / "gate.npz", source, count=160)
    model = Model.from_proto(onnx.load(source))
    feed = {"x": np.ones((1, 3, 16, 16), np.float32)}
    pairs = golden.pairs([feed], [runtime.run(model, feed, optimize=True)])
    tree = manifest.build(
        model=model, source=manifest.SourceIdentity("cnn.onnx", "onnx", model.digest()), recipe=Recipe(),
        target=runtime.target(), provider="CPUExecutionProvider", seed=0, packages={}, metric="top1",
        budget=("top1.drop<=0.05",), golden=pairs,
    )  # fmt: skip
    artifact.write(found / "model.lathe", artifact.Contents(model, tree, {}, "", pairs))
    return found


def gate(place: Path, subject: str, against: str | None, seconds: float = 0.2, **rules: Any) -> Gated:
    policy = Policy.from_toml(rules, str(place / "gate.toml"))
    settings = Settings(SourceRequest(""), cache_dir=place / "cache")
    data = str(place / "gate.npz") if "quality" in rules else None
    held = str(place / against) if against else None
    return optimizer.gate(place / subject, policy, baseline=held, data=data, seconds=seconds, settings=settings)


def by_rule(gated: Gated) -> dict[str, Ruled]:
    return {r.rule: r for r in gated.record.rules}


def test_an_artifact_is_held_to_everything_at_once(place: Path) -> None:
    gated = gate(
        place, "model.lathe", "cnn.onnx", artifact={"verify": True, "signature": True}, quality={"max_drop": "5%"},
        size={"max_ratio": 1.1, "max": "1MB"}, memory={"max": "2GB", "max_ratio": 3.0}, coverage={"min_nodes": 1.0},
        operators={"deny": ["Loop"], "opsets": {"ai.onnx": 17}, "max_ir": 13},
        latency={"max": "1s"}, throughput={"min": 0.1}, instructions={"deployed_on": ["avx2"]},
    )  # fmt: skip
    assert gated.record.ruling is Ruling.PASS, gated.record.rules
    assert len(gated.record.rules) == 14 and gated.record.quality is not None and gated.record.latency_ms is not None
    assert gated.record.file.endswith("model.lathe/model.onnx")
    json.dumps(gated.record.as_json())


def test_every_class_is_held_to_a_margin(place: Path) -> None:
    found = by_rule(gate(place, "cnn.onnx", "cnn.onnx", quality={"max_slice_drop": "90%"}))["quality.max_slice_drop"]
    assert found.ruling is Ruling.PASS and "labels " in found.found and "the worst of" in found.found
    with pytest.raises(Fault, match="no array 'regoin'") as caught:
        gate(place, "cnn.onnx", "cnn.onnx", quality={"max_slice_drop": "90%", "slice_by": "regoin"})
    assert caught.value.where.endswith("quality.slice_by")


def test_the_openvino_package_can_be_held_to_rules_but_names_no_nodes(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(providers, "everywhere", lambda: ("CPUExecutionProvider", OPENVINO_RUNTIME))
    monkeypatch.setattr(providers, "version_of", lambda name: "1")
    rules: Any = {"run": {"provider": "openvino"}, "coverage": {"min_nodes": 1.0}}
    found = by_rule(gate(place, "cnn.onnx", None, **rules))["coverage.min_nodes"]
    assert found.ruling is Ruling.UNDECIDED and "a graph of its own" in found.found


def test_a_changed_artifact_fails_and_nothing_of_it_is_loaded(place: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(place / "model.lathe", tmp_path / "model.lathe"))
    (copy / "model.onnx").write_bytes((copy / "model.onnx").read_bytes() + b"\0")
    gated = gate(place, str(copy), None, artifact={"verify": True}, size={"max": "1MB"}, latency={"max": "1s"})
    found = by_rule(gated)
    assert found["artifact.verify"].ruling is Ruling.FAIL and "model.onnx" in found["artifact.verify"].found
    assert found["size.max"].ruling is found["latency.max"].ruling is Ruling.SKIPPED and gated.results is None


def test_a_node_that_is_not_allowed_is_named(place: Path) -> None:
    found = by_rule(gate(place, "cnn.onnx", None, operators={"deny": ["BatchNormalization"]}))
    assert [n.node for n in found["operators.deny"].nodes] == ["bn0", "bn1", "bn2"]


def test_a_ratio_needs_a_baseline_that_is_here(place: Path, tmp_path: Path) -> None:
    with pytest.raises(Fault) as caught:
        gate(place, "cnn.onnx", None, latency={"max_ratio": 1.1})
    assert caught.value.exit is Exit.USAGE and "latency.max_ratio" in caught.value.message
    few = by_rule(gate(place, "cnn.onnx", "cnn.onnx", latency={"max_ratio": 1.1}, throughput={"min_ratio": 0.9}))
    for found in few.values():
        assert found.ruling is Ruling.UNDECIDED and "more minutes" in found.need, "a fifth of a second proves nothing"


def test_results_answer_for_quality_and_size_but_never_for_latency(place: Path, tmp_path: Path) -> None:
    first = gate(place, "model.lathe", "cnn.onnx", quality={"max_drop": "5%"}, size={"max_ratio": 2.0})
    assert first.results is not None and first.results.rows is not None and len(first.results.rows.values) == 160
    (place / "base.json").write_text(first.results.text())
    rules: Any = {"quality": {"max_drop": "5%"}, "size": {"max_ratio": 1.0}, "artifact": {"signature": True}}
    found = by_rule(gate(place, "model.lathe", "base.json", latency={"max_ratio": 9.0}, **rules))
    late = found.pop("latency.max_ratio")
    assert late.ruling is Ruling.UNDECIDED and "artifact itself" in late.need
    assert {r.ruling for r in found.values()} == {Ruling.PASS}, found
    worse = tmp_path / "worse.onnx"
    proto = onnx.load(place / "cnn.onnx")
    head = next(t for t in proto.graph.initializer if t.name == "fw")
    head.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(head), "fw"))
    onnx.save(proto, worse)
    found = by_rule(gate(place, str(worse), "base.json", **rules))
    assert found["quality.max_drop"].ruling is Ruling.FAIL and found["artifact.signature"].ruling is Ruling.PASS
    kept = baseline.read(place / "base.json")
    assert kept.digest == first.results.digest


@pytest.mark.parametrize(
    ("quality", "why"),
    [({"metric": "agreement", "max_drop": "5%"}, "own outputs"), ({"metric": "f1", "max_drop": "5%"}, "keeps top1")],
)
def test_results_of_another_kind_are_undecided(place: Path, quality: Any, why: str) -> None:
    first = gate(place, "model.lathe", "cnn.onnx", quality={"max_drop": "5%"})
    assert first.results is not None
    (place / "kept.json").write_text(first.results.text())
    found = by_rule(gate(place, "model.lathe", "kept.json", quality=quality))["quality.max_drop"]
    assert found.ruling is Ruling.UNDECIDED and why in found.found


def test_results_of_other_samples_are_undecided(place: Path, tmp_path: Path) -> None:
    first = gate(place, "model.lathe", "cnn.onnx", quality={"max_drop": "5%"})
    assert first.results is not None and first.results.rows is not None
    other = replace(first.results, rows=replace(first.results.rows, data="of others"))
    (tmp_path / "other.json").write_text(other.text())
    found = by_rule(gate(place, "model.lathe", str(tmp_path / "other.json"), quality={"max_drop": "5%"}))
    assert found["quality.max_drop"].ruling is Ruling.UNDECIDED
    assert "other samples" in found["quality.max_drop"].found


def test_quality_without_samples_is_undecided(place: Path) -> None:
    settings = Settings(SourceRequest(""), cache_dir=place / "cache")
    policy = Policy.from_toml({"quality": {"max_drop": "5%"}})
    gated = optimizer.gate(place / "model.lathe", policy, baseline=place / "cnn.onnx", settings=settings)
    assert gated.record.ruling is Ruling.UNDECIDED and "--data" in gated.record.rules[0].need


# -- the command line and the CI examples ------------------------------------------------------------------------------
@pytest.fixture
def lathe(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Result]:
    """Run a line of a CI file in a folder that looks like a checkout."""
    for name in ("GITHUB_STEP_SUMMARY", "GITHUB_ACTIONS"):
        monkeypatch.delenv(name, raising=False)
    shutil.copytree(place / "model.lathe", tmp_path / "model.lathe")
    shutil.copytree(place / "model.lathe", tmp_path / "main" / "model.lathe")
    for file in (place / "gate.npz", CI / "gate.toml", CI / "latency.toml"):
        shutil.copy(file, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LATHE_CACHE_DIR", str(place / "cache"))

    def run(line: str) -> Result:
        program, *arguments = shlex.split(line)
        assert program == "lathe"
        return CliRunner().invoke(cli, arguments)

    return run


def lines_of(name: str) -> list[str]:
    """Every `lathe` command of a CI file, in order."""
    tree = yaml.safe_load((CI / name).read_text("utf-8"))
    if name.startswith("github"):
        steps = [str(s.get("run", "")) for s in tree["jobs"]["gate"]["steps"]]
    else:
        steps = [*tree["gate"]["before_script"], *tree["gate"]["script"]]
    return [line for step in steps for line in step.splitlines() if line.startswith("lathe ")]


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_the_ci_examples_are_what_their_systems_read(name: str) -> None:
    tree = yaml.safe_load((CI / name).read_text("utf-8"))
    plain = {"on" if key is True else key: value for key, value in tree.items()}  # YAML 1.1 reads on as true
    schemas.published(SCHEMAS[name]).validate(plain)


def test_the_commands_of_the_ci_examples_run(lathe: Callable[[str], Result]) -> None:
    documented = [w for w in (CI / "README.md").read_text("utf-8").split("`") if w.startswith("lathe gate ")]
    init, record = documented
    assert lathe(f"{init} --policy fresh.toml").exit_code == 0 and Policy.from_toml(_toml("fresh.toml")).rules
    assert lathe(f"{record} --seconds 0.1").exit_code == 0 and baseline.read(Path("baseline.json")).rows is not None
    for name in SCHEMAS:
        quality, latency = lines_of(name)
        found = lathe(f"{quality} --json")
        assert found.exit_code == 0, found.output
        found = lathe(f"{latency} --seconds 0.1 --json")
        assert json.loads(found.stdout)["verdict"] in ("pass", "undecided"), "so short a look can hardly decide"
    assert {"gate.sarif", "gate.xml", "latency.xml"} <= {p.name for p in Path().iterdir()}


def _toml(name: str) -> dict[str, Any]:
    import tomllib

    return tomllib.loads(Path(name).read_text("utf-8"))


def test_a_fresh_policy_is_one_that_the_artifact_holds(place: Path, lathe: Callable[[str], Result]) -> None:
    assert lathe("lathe gate --init model.lathe --overwrite").exit_code == 0
    found = lathe("lathe gate model.lathe --baseline main/model.lathe --data gate.npz --seconds 0.1 --json")
    rules = {r["rule"]: r["ruling"] for r in json.loads(found.stdout)["rules"]}
    assert {k for k, v in rules.items() if v != "pass"} <= {"latency.max_ratio"}, found.output
    assert np.all(
        [
            k in rules
            for k in ("quality.max_drop", "size.max", "operators.allow", "artifact.verify", "artifact.signature")
        ]
    )
