"""What every hand-off format is given and what it promises."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from optimizer.faults import Fault, bad_input, cannot
from optimizer.package.check import as_fault
from optimizer.package.receiver.files import check_files, read_manifest, threads
from optimizer.package.receiver.pairs import GoldenPair, read_pair
from optimizer.package.receiver.session import named
from optimizer.package.receiver.words import MANIFEST, MODEL, WEIGHTS, Refusal
from optimizer.package.schema import objection


@dataclass(frozen=True)
class Artifact:
    """An artifact whose files were checked: ``manifest`` is what it says, ``pairs`` its golden pairs."""

    folder: Path
    name: str
    manifest: Mapping[str, Any]
    pairs: tuple[GoldenPair, ...]

    @property
    def model(self) -> Path:
        return self.folder / MODEL

    @property
    def threads(self) -> int:
        """Threads that speed was measured with."""
        return int(threads(self.manifest))

    @property
    def provider(self) -> str:
        """Full name of the execution provider that it was made for."""
        return named(self.manifest)

    @property
    def runtime_version(self) -> str:
        """Version of onnxruntime that it was made with, empty when the manifest does not say."""
        packages = self.manifest.get("packages", {})
        found = [v for k, v in packages.items() if k in ("onnxruntime", "onnxruntime-gpu")]
        return str(found[0]) if found else ""

    def ports(self, kind: str) -> list[Mapping[str, Any]]:
        """``inputs`` or ``outputs``: name, type, dims."""
        found: list[Mapping[str, Any]] = self.manifest["signature"][kind]
        return found

    def copy_model(self, folder: Path) -> None:
        """The model, with its weights beside it where it has any, under the names that it knows them by."""
        for name in (MODEL, WEIGHTS):
            if name in self.manifest["files"]:
                shutil.copyfile(self.folder / name, folder / name)


class Format(Protocol):
    """One way to hand an artifact over. ``needs`` are packages that writing takes, ``extra`` the extra with them."""

    name: ClassVar[str]
    summary: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]
    extra: ClassVar[str]

    def write(self, artifact: Artifact, folder: Path) -> tuple[str, ...]:
        """Fill the empty ``folder``; returns what people should know, a line each. Raises
        :class:`~optimizer.faults.Fault` when this artifact has no such form."""
        ...


def open_artifact(folder: Path) -> Artifact:
    """The artifact in ``folder``, with every digest checked. Raises a bad-input :class:`~optimizer.faults.Fault`."""
    root = folder.absolute()
    try:
        manifest, findings = read_manifest(root)
        findings += check_files(root, manifest) if manifest is not None else []
    except Refusal as refusal:
        raise as_fault(refusal) from refusal
    wrong = next((f.detail for f in findings if not f.ok), None)
    if manifest is None or wrong is not None:
        hint = f"See 'lathe verify {folder}'."
        raise bad_input(
            f"this artifact is not as it was shipped: {wrong}", where=str(folder), hint=hint, code="changed"
        )
    if said := objection(manifest):
        raise bad_input(f"{MANIFEST} is not what its schema says: {said}", where=str(folder), code="bad-manifest")
    try:
        pairs = tuple(read_pair(root, i) for i in range(int(manifest["golden"]["pairs"])))
    except (OSError, ValueError, KeyError) as error:
        raise bad_input(f"its golden pairs cannot be read: {error}", where=str(folder), code="changed") from error
    return Artifact(root, safe_name(root.name.removesuffix(".lathe")), manifest, pairs)


def safe_name(text: str) -> str:
    """``text`` as a name that every consumer takes: lower-case letters, digits, dashes."""
    found = "".join(c if c.isascii() and c.isalnum() else "-" for c in text.lower())
    return found.strip("-") or "model"


def require(form: Format) -> None:
    """Raises a Fault (exit 4) that says how to install what ``form`` needs."""
    missing = [package for package in form.needs if importlib.util.find_spec(package) is None]
    if missing:
        hint = f"pip install 'lathe[{form.extra}]'"
        raise cannot(f"--to {form.name} needs {missing[0]}, which is not installed", hint=hint, code="missing-package")


def no_such_form(form: str, why: str) -> Fault:
    """This artifact cannot be handed over that way."""
    return bad_input(f"this model has no {form} form: {why}", code="not-supported")
