"""The script in the artifact, run where there is nothing but numpy and onnxruntime: it accepts what was shipped and
refuses what was tampered with."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import onnxruntime
import pytest

from optimizer import __version__
from optimizer.package import artifact
from optimizer.package.receiver import script
from tests.package import parts
from tests.support.signing import Pair

OURS, THEIRS = Pair(7), Pair(8)


@dataclass(frozen=True)
class Receiver:
    """A machine that has numpy and onnxruntime, a copy of the script and the maker's key."""

    script: Path
    key: Path
    packages: Path

    def __call__(self, folder: Path | str, *flags: str, own_copy: bool = False) -> subprocess.CompletedProcess[str]:
        run = [sys.executable, "-S", str(Path(folder) / "verify.py" if own_copy else self.script)]
        where = {"PATH": os.environ["PATH"], "PYTHONPATH": str(self.packages), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [*run, *flags, "--no-latency", str(folder)]
        return subprocess.run(command, capture_output=True, text=True, env=where, check=False, timeout=120)


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Receiver:
    home = tmp_path_factory.mktemp("receiver")
    packages = home / "packages"
    packages.mkdir()
    for module in (numpy, onnxruntime):
        folder = Path(str(module.__file__)).parent
        for piece in folder.parent.glob(f"{folder.name}*"):
            if piece.is_dir() and not piece.name.endswith(".dist-info"):
                (packages / piece.name).symlink_to(piece)
    (home / "check.py").write_text(script(__version__))
    return Receiver(home / "check.py", OURS.write_public(home / "maker.pem"), packages)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = artifact.write(tmp_path_factory.mktemp("shipped") / "a.lathe", parts.contents(), external_above=1024)
    OURS.sign(place)
    return place


@pytest.fixture
def copy(shipped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shipped, tmp_path / "a.lathe"))


def reseal(folder: Path) -> None:
    """Checksums as a careful forger would leave them; only the signature tells."""
    names = sorted(
        p.relative_to(folder).as_posix()
        for p in folder.rglob("*")
        if p.is_file() and p.name not in ("SHA256SUMS", "model.sig")
    )
    lines = [f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in names]
    (folder / "SHA256SUMS").write_text("".join(lines))


def flip(name: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)

    return change


def linked(make: Callable[[Path, Path], object]) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        elsewhere = folder.parent / "elsewhere.onnx"
        (folder / "model.onnx").rename(elsewhere)
        make(folder / "model.onnx", elsewhere)

    return change


def other_manifest(folder: Path) -> None:
    other = artifact.write(folder.parent / "other", parts.contents(parts.model(2.0)), external_above=1024)
    shutil.copy(other / "manifest.json", folder / "manifest.json")


def older_manifest(folder: Path) -> None:
    tree = json.loads((folder / "manifest.json").read_text())
    tree["tool"]["version"] = "0.0.9"
    (folder / "manifest.json").write_text(json.dumps(tree))
    reseal(folder)


TAMPERINGS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a byte of the model": (flip("model.onnx"), "model.onnx"),
    "a byte of external data": (flip("model.onnx.data"), "model.onnx.data"),
    "a byte of the manifest": (flip("manifest.json"), "manifest.json"),
    "a byte of a golden pair": (flip("golden/0001_output.npz"), "golden/0001_output.npz"),
    "a file added": (lambda f: (f / "golden" / "more.npz").write_bytes(b"x"), "golden/more.npz does not belong here"),
    "a file removed": (lambda f: (f / "report.md").unlink(), "report.md is missing"),
    "a file renamed": (lambda f: (f / "report.md").rename(f / "readme.md"), "readme.md does not belong here"),
    "a symbolic link": (linked(lambda here, there: here.symlink_to(there)), "model.onnx is not a regular file"),
    "a hard link": (linked(lambda here, there: here.hardlink_to(there)), "model.onnx has another name elsewhere"),
    "another artifact's manifest": (other_manifest, "manifest.json"),
    "another key": (THEIRS.sign, "another key"),
    "an older manifest": (older_manifest, "changed since it was signed: "),
}


def test_what_was_shipped_holds(receiver: Receiver, copy: Path) -> None:
    done = receiver(copy, "--key", str(receiver.key))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 replayed within tolerance" in done.stdout and "it covers every file" in done.stdout
    own = receiver(copy, own_copy=True)
    assert own.returncode == 0 and "was not checked" in own.stdout


@pytest.mark.parametrize("what", TAMPERINGS)
def test_what_was_tampered_with_does_not(receiver: Receiver, copy: Path, what: str) -> None:
    change, told = TAMPERINGS[what]
    change(copy)
    done = receiver(copy, "--key", str(receiver.key))
    assert done.returncode == 1, done.stdout + done.stderr
    wrong = [line for line in done.stdout.splitlines() if line.startswith("WRONG")]
    assert any(told in line for line in wrong), done.stdout


def test_other_answers_do_not_hold(receiver: Receiver, copy: Path) -> None:
    other = artifact.write(copy.parent / "other", parts.contents(parts.model(1.5)), external_above=1024)
    for name in ("model.onnx", "model.onnx.data"):
        shutil.copy(other / name, copy / name)
    tree = json.loads((copy / "manifest.json").read_text())
    theirs = json.loads((other / "manifest.json").read_text())
    tree["files"].update({n: theirs["files"][n] for n in ("model.onnx", "model.onnx.data")})
    (copy / "manifest.json").write_text(json.dumps(tree))
    reseal(copy)
    done = receiver(copy, "--json")
    wrong = [f for f in json.loads(done.stdout)["findings"] if not f["ok"]]
    assert done.returncode == 1 and [f["check"] for f in wrong] == ["golden pairs"] and "off by" in wrong[0]["detail"]


def test_a_file_beside_the_script_is_not_taken_for_a_module(receiver: Receiver, copy: Path) -> None:
    for name in ("numpy", "json", "onnxruntime"):
        (copy / f"{name}.py").write_text("open('ran.txt', 'w'); raise SystemExit(0)")
    done = receiver(copy, own_copy=True)
    assert done.returncode == 1 and "numpy.py does not belong here" in done.stdout


@pytest.mark.parametrize(
    ("change", "flags", "code", "told"),
    [
        (lambda f: shutil.rmtree(f), (), 3, "no such folder"),
        (lambda f: (f / "manifest.json").unlink(), (), 1, "manifest.json is missing"),
        (lambda f: [(f / n).unlink() for n in ("manifest.json", "SHA256SUMS")], (), 3, "not a Lathe artifact"),
        (lambda f: (f / "manifest.json").write_text('{"schema": "lathe.manifest/2"}'), (), 3, "lathe.manifest/2"),
        (lambda f: (f / "manifest.json").write_text('{"schema": "x/1"}'), (), 3, "no known schema"),
        (lambda f: None, ("--require-signature",), 2, "--key"),
        (lambda f: (f / "model.sig").unlink(), ("--key", "KEY"), 1, "it is not signed"),
        (lambda f: (f / "model.sig").write_text("[]"), ("--key", "KEY"), 1, "no signature of an artifact"),
        (lambda f: None, ("--key", "nowhere.pem"), 3, "the key cannot be read"),
        (lambda f: None, ("--certificate", "KEY", "--require-signature"), 4, "model-signing"),
        (lambda f: None, ("--bogus",), 2, "usage"),
    ],
)
def test_one_line_and_the_documented_code(
    receiver: Receiver, copy: Path, change: Callable[[Path], Any], flags: tuple[str, ...], code: int, told: str
) -> None:
    change(copy)
    done = receiver(copy, *(str(receiver.key) if flag == "KEY" else flag for flag in flags))
    assert done.returncode == code and told in done.stdout + done.stderr, done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "private key, not a public key"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "certificate, not a public key"),
        ("ssh-rsa AAAA me", "not a PEM public key"),
        ("-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAAAAA\n-----END PUBLIC KEY-----\n", "cannot be used"),
    ],
)
def test_keys_of_the_wrong_kind(receiver: Receiver, copy: Path, tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "key.pem").write_text(text)
    done = receiver(copy, "--key", str(tmp_path / "key.pem"))
    assert done.returncode == 3 and told in done.stderr and len(done.stderr.splitlines()) == 1


def test_the_script_is_one_file_whose_names_are_its_own() -> None:
    tree = ast.parse(script("1"))
    names = [n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    names += [t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)]
    assert len(names) == len(set(names)), "a part hides a name of another"
    taken = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    taken |= {str(n.module) for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    beyond = {m.split(".")[0] for m in taken} - set(sys.stdlib_module_names)
    assert beyond == {"numpy", "onnxruntime", "ml_dtypes", "model_signing"}
