"""Made twice an artifact is the same, it is made again from its manifest, and differences are told."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import optimizer
from optimizer import comparing
from optimizer.cli.main import cli
from optimizer.faults import Exit, Fault
from optimizer.plan import DataRequest, Settings, SourceRequest
from tests.support import models

RECIPE = "tidy, fold-batchnorm, quantize-static{observer=percentile}"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, data, and an artifact of a lossy recipe."""
    home = tmp_path_factory.mktemp("home")
    model = models.cnn(home / "cnn.onnx")
    models.images(home / "data.npz", model)
    record = optimizer.compile(
        str(model), data=str(home / "data.npz"), output=home / "a.lathe", cache_dir=home / "cache", seconds=0.2,
        budget=["none"], recipe=RECIPE, license="MIT",
    )  # fmt: skip
    assert record.artifact is not None and record.recipe.startswith("tidy")
    return home


def lathe(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def test_the_manifest_says_where_it_came_from(home: Path) -> None:
    tree = json.loads((home / "a.lathe" / "manifest.json").read_text())
    assert tree["source"]["name"] == "cnn.onnx" and tree["licence"]["license"] == "MIT"
    assert set(tree["data"]) == {"calibrate", "select", "confirm"} and tree["target"]["definition"]["provider"]
    evidence = json.loads((home / "a.lathe" / "evidence.json").read_text())
    assert evidence["rewrites"]["changes"] > 0 and evidence["runtime"]["provider"] == "CPUExecutionProvider"


def test_another_process_in_another_folder_makes_the_same_bytes(home: Path, tmp_path: Path) -> None:
    for name in ("cnn.onnx", "data.npz"):
        shutil.copy(home / name, tmp_path / name)
    asked = ["optimize", "cnn.onnx", "--data", "data.npz", "-o", "b.lathe"]
    command = [sys.executable, "-c", "from lathe_start import main; main()", *asked]
    flags = ["--budget", "none", "--recipe", RECIPE, "--license", "MIT", "--seconds", "0.2", "-q"]
    root = str(Path(optimizer.__file__).parents[1])
    where = {**os.environ, "PYTHONPATH": root, "LATHE_CACHE_DIR": str(tmp_path / "cache"), "PYTHONHASHSEED": "7"}
    subprocess.run([*command, *flags], cwd=tmp_path, env=where, check=True, capture_output=True)
    for name in ("manifest.json", "model.onnx", "verify.py", "golden/0000_input.npz"):
        assert (home / "a.lathe" / name).read_bytes() == (tmp_path / "b.lathe" / name).read_bytes(), name


def test_replay_makes_it_again_from_a_cold_cache(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    done = lathe("replay", "a.lathe", "--data", "data.npz", "--cache-dir", tmp_path / "cache", "-o", tmp_path / "again")
    assert done.exit_code == 0, done.output
    assert "bit for bit" in done.stdout
    assert optimizer.verify(tmp_path / "again").ok
    assert (tmp_path / "again" / "manifest.json").read_bytes() == (home / "a.lathe" / "manifest.json").read_bytes()


def test_replay_names_what_it_needs(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = json.loads((home / "a.lathe" / "manifest.json").read_text())
    monkeypatch.chdir(home)
    cache = ("--cache-dir", tmp_path / "cache")
    bare = lathe("replay", "a.lathe", *cache)
    assert bare.exit_code == 4 and any(digest in bare.stderr for digest in tree["data"].values()), bare.output
    models.images(tmp_path / "other.npz", home / "cnn.onnx", 120)
    other = lathe("replay", "a.lathe", "--data", tmp_path / "other.npz", *cache)
    assert other.exit_code == 4 and "what was given has" in other.stderr
    monkeypatch.chdir(tmp_path)
    gone = lathe("replay", home / "a.lathe", "--data", home / "data.npz", *cache)
    assert gone.exit_code == 4 and tree["source"]["digest"] in gone.stderr, gone.output
    wrong = models.cnn(tmp_path / "wrong.onnx", width=32)
    wrong_model = lathe("replay", home / "a.lathe", "--model", wrong, "--data", home / "data.npz", *cache)
    assert wrong_model.exit_code == 3 and "another model" in wrong_model.stderr


def test_replay_tells_what_came_out_otherwise(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from optimizer import replaying

    real = replaying.manifest.build
    monkeypatch.setattr(replaying.manifest, "build", lambda **given: {**real(**given), "packages": {"onnx": "9.9"}})
    settings = Settings(
        SourceRequest(str(home / "cnn.onnx")), DataRequest(str(home / "data.npz")), cache_dir=home / "cache"
    )
    found = optimizer.replay(home / "a.lathe", settings=settings)
    assert found.ok and not found.identical
    assert any(d.what == "packages.onnx" and d.right == "9.9" for d in found.notes)


@pytest.mark.parametrize(
    ("step", "words"), [("distill", "its weights were trained"), ("shrink", "no pass that is here")]
)
def test_a_step_that_is_no_pass_cannot_be_made_again(home: Path, tmp_path: Path, step: str, words: str) -> None:
    copy = shutil.copytree(home / "a.lathe", tmp_path / "a.lathe")
    tree = json.loads((copy / "manifest.json").read_text())
    tree["recipe"]["steps"].append({"name": step, "options": {}})
    (copy / "manifest.json").write_text(json.dumps(tree))
    sums = (copy / "SHA256SUMS").read_text().splitlines()
    digest = hashlib.sha256((copy / "manifest.json").read_bytes()).hexdigest()
    lines = [f"{digest}  manifest.json" if line.endswith("  manifest.json") else line for line in sums]
    (copy / "SHA256SUMS").write_text("\n".join(lines) + "\n")
    with pytest.raises(Fault, match=words) as caught:
        optimizer.replay(copy)
    assert caught.value.exit is Exit.UNDECIDED


def test_a_changed_artifact_is_not_replayed(home: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(home / "a.lathe", tmp_path / "a.lathe")
    (copy / "report.md").write_text("better than it is")
    with pytest.raises(Fault, match=r"report\.md"):
        optimizer.replay(copy)


def test_diff_explains(home: Path, tmp_path: Path) -> None:
    done = lathe("diff", home / "cnn.onnx", home / "a.lathe", "--json", "--cache-dir", home / "cache")
    assert done.exit_code == 0, done.output
    tree = json.loads(done.stdout)
    operators = {d["what"]: (d["left"], d["right"]) for d in tree["operators"]}
    assert tree["schema"] == "lathe.diff/1" and not tree["same"]
    assert operators["BatchNormalization"][1] == "0" and operators["QuantizeLinear"][0] == "0"
    assert {"size, bytes"} <= {d["what"] for d in tree["measured"]} and tree["weights"]
    same = lathe("diff", home / "a.lathe", home / "a.lathe" / "model.onnx", "--cache-dir", home / "cache")
    assert "the models are equal" in " ".join(same.stdout.split())


def test_what_two_artifacts_were_made_for_is_compared() -> None:
    left = {"seed": 1, "target": {"name": "x86-vnni"}, "data": {"select": "ab"}}
    rows = comparing._made(left, {**left, "seed": 2, "data": {}})
    assert [(d.what, d.left, d.right) for d in rows] == [("data.select", "ab", "absent"), ("seed", "1", "2")]
    assert comparing._made(left, {}) == ()


def test_recipes_are_compared_step_by_step() -> None:
    def tree(text: str) -> dict[str, object]:
        from passes.kit.recipe import Recipe

        steps = [{"name": s.name, "options": dict(s.options)} for s in Recipe.parse(text).steps]
        return {"recipe": {"text": text, "steps": steps}}

    def rows(left: str, right: str) -> list[tuple[str, str, str]]:
        return [(d.what, d.left, d.right) for d in comparing._recipe(tree(left), tree(right))]

    assert rows("tidy, fold-batchnorm", "tidy") == [("fold-batchnorm", "present", "absent")]
    assert rows("tidy", "tidy{most=3}") == [("tidy", "present", '{"most": 3}')]
    assert rows("tidy, simplify", "simplify, tidy") == [("order", "tidy, simplify", "simplify, tidy")]
    assert rows("tidy", "tidy") == []
