"""Is the artifact whole, and is it what its manifest says? Nothing is loaded."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from optimizer.package.receiver.words import (
    MANIFEST,
    MODEL,
    MOST_TEXT_BYTES,
    SCHEMA,
    SCHEMA_FAMILY,
    SIGNATURE,
    SUMS,
    Finding,
    Refusal,
)

LOOSEST = 0.5
"""A tolerance beyond this compares nothing."""


# -- manifest ----------------------------------------------------------------------------------------------------------
def read_manifest(root: Path) -> tuple[dict[str, Any] | None, list[Finding]]:
    """The manifest with what was found of it; ``None`` when it cannot be used. Raises :class:`Refusal`."""
    if not root.exists():
        raise Refusal("no such folder", where=str(root), code="missing")
    if not (root / MANIFEST).is_file() and (root / SUMS).is_file():
        return None, [
            Finding("manifest", False, f"{MANIFEST} is missing or no file: it was taken out of this artifact")
        ]
    if not (root / MANIFEST).is_file():
        raise Refusal(f"this is not a Lathe artifact: it has no {MANIFEST}", where=str(root), code="not-an-artifact")
    try:
        tree = json.loads(text_of(root / MANIFEST))
    except (ValueError, RecursionError) as error:
        return None, [Finding("manifest", False, f"{MANIFEST} is not readable JSON: {error}")]
    schema = str(tree.get("schema", "")) if isinstance(tree, dict) else ""
    if not schema.startswith(SCHEMA_FAMILY):
        message = f"this is not a Lathe artifact: {MANIFEST} has no known schema"
        raise Refusal(message, where=str(root), code="not-an-artifact")
    if schema != SCHEMA:
        hint = "Use the Lathe that made it, or a newer one."
        said = f"the manifest has schema '{schema}', this one reads '{SCHEMA}'"
        raise Refusal(said, where=str(root), hint=hint, code="unknown-schema")
    wrong = _shape_of(tree)
    return (None if wrong else tree), [Finding("manifest", not wrong, wrong or f"{schema}, made by {_tool(tree)}")]


def _shape_of(tree: dict[str, Any]) -> str:
    """What the rest of this file would stumble over, as text."""
    kinds: dict[str, type] = dict.fromkeys(("files", "golden", "model", "requires", "signature"), dict)
    wrong = sorted(k for k, kind in {**kinds, "provider": str}.items() if not isinstance(tree.get(k), kind))
    if wrong:
        return f"{MANIFEST} misses or garbles: {', '.join(wrong)}"
    if MODEL not in tree["files"]:
        return f"{MANIFEST} lists no {MODEL}"
    bad = sorted(n for n, d in tree["files"].items() if not (isinstance(d, dict) and {"sha256", "size"} <= d.keys()))
    if bad:
        return f"{MANIFEST} says nothing of {bad[0]}"
    garbled = [
        key
        for key, good in (
            ("golden", _is_golden(tree["golden"])),
            ("runs_at", isinstance(threads(tree), int)),
            ("requires.custom_ops", isinstance(tree["requires"].get("custom_ops", {}), dict)),
            ("requires.cpu_features_any", isinstance(tree["requires"].get("cpu_features_any", []), list)),
        )
        if not good
    ]
    return f"{MANIFEST} garbles: {', '.join(garbled)}" if garbled else ""


def _is_golden(said: Mapping[str, Any]) -> bool:
    """Whether pairs are counted and tolerances are such that a comparison means something."""
    count, allowed = said.get("pairs", 0), said.get("tolerance", {})
    if not isinstance(count, int) or not 0 <= count < 10_000 or not isinstance(allowed, dict):
        return False
    return all(
        isinstance(t, dict)
        and set(t) == {"of_largest", "may_differ"}
        and all(isinstance(v, (int, float)) and 0 <= v <= LOOSEST for v in t.values())
        for t in allowed.values()
    )


def _tool(tree: Mapping[str, Any]) -> str:
    tool = tree.get("tool")
    return f"{tool.get('name')} {tool.get('version')}" if isinstance(tool, dict) else "an unnamed tool"


def threads(manifest: Mapping[str, Any]) -> Any:
    """Threads that the artifact was measured with."""
    runs_at = manifest.get("runs_at", {})
    return runs_at.get("threads", 1) if isinstance(runs_at, dict) else None


# -- files -------------------------------------------------------------------------------------------------------------
def check_files(root: Path, manifest: Mapping[str, Any]) -> list[Finding]:
    """Only files that are listed, each a regular file with one name, with the digests of the manifest and the sums."""
    found, odd = walk(root)
    sums = _read_sums(root)
    expected = {*manifest["files"], *(sums or {}), MANIFEST, SUMS}
    problems = [f"{n} {why}" for n, why in sorted(odd.items())]
    problems += [f"{n} is missing" for n in sorted(expected - found - set(odd))]
    problems += [f"{n} does not belong here" for n in sorted(found - expected - {SIGNATURE})]
    listing = Finding("files", not problems, "; ".join(problems) or f"{len(found)} files, none missing, none extra")
    present = found & expected
    wrong = [p for n in sorted(present & set(manifest["files"])) if (p := _compare(root, n, manifest["files"][n]))]
    digests = Finding("manifest digests", not wrong, "; ".join(wrong) or f"{len(manifest['files'])} files match")
    return [listing, digests, _check_sums(root, sums, present, bool(wrong))]


def _check_sums(root: Path, sums: Mapping[str, str] | None, present: set[str], wrong_manifest: bool) -> Finding:
    if sums is None:
        return Finding("checksums", False, f"{SUMS} is missing or not readable")
    changed = [n for n in sorted(present & set(sums)) if describe_file(root / n)["sha256"] != sums[n]]
    if changed:
        return Finding("checksums", False, "changed since it was written: " + ", ".join(changed))
    if wrong_manifest:
        detail = f"{SUMS} agrees with the files but {MANIFEST} does not: it describes another model"
        return Finding("checksums", False, detail)
    return Finding("checksums", True, f"{len(sums)} files match {SUMS}")


def walk(root: Path) -> tuple[set[str], dict[str, str]]:
    """Files by POSIX path below ``root``, and why something that lies there cannot be one of an artifact's."""
    files: set[str] = set()
    odd: dict[str, str] = {}
    for folder, inner, names in os.walk(root, followlinks=False):
        for name in (*inner, *names):
            path = Path(folder) / name
            held, place = path.lstat(), path.relative_to(root).as_posix()
            if stat.S_ISREG(held.st_mode) and held.st_nlink > 1:
                odd[place] = "has another name elsewhere (a hard link)"
            elif stat.S_ISREG(held.st_mode):
                files.add(place)
            elif not stat.S_ISDIR(held.st_mode):
                odd[place] = "is not a regular file"
    return files, odd


def _read_sums(root: Path) -> dict[str, str] | None:
    try:
        lines = text_of(root / SUMS).splitlines()
    except (OSError, ValueError):
        return None
    entries = [line.split("  ", 1) for line in lines]
    if not entries or any(len(e) != 2 or not _is_inside(e[1]) for e in entries):
        return None
    return {name: digest for digest, name in entries}


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name


def _compare(root: Path, name: str, wanted: Mapping[str, Any]) -> str:
    got = describe_file(root / name)
    if got["size"] != wanted["size"]:
        return f"{name} has {got['size']:,} bytes instead of {wanted['size']:,}"
    return "" if got["sha256"] == wanted["sha256"] else f"{name} has another content than the manifest says"


def describe_file(path: Path) -> dict[str, Any]:
    """``sha256`` and ``size`` of a file."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
            size += len(chunk)
    return {"sha256": digest.hexdigest(), "size": size}


def text_of(path: Path) -> str:
    """The file as text. Raises ``OSError``, and ``ValueError`` when it is none or too large."""
    with path.open("rb") as stream:
        data = stream.read(MOST_TEXT_BYTES + 1)
    if len(data) > MOST_TEXT_BYTES:
        raise ValueError("it is too large")
    return data.decode("utf-8")


def check_custom_ops(manifest: Mapping[str, Any], given: Sequence[Path]) -> list[Finding]:
    """The libraries that the artifact needs are here, and are those that it was made with."""
    wanted = manifest["requires"].get("custom_ops", {})
    have = {path.name: describe_file(path)["sha256"] for path in given}
    problems = [f"{name} is needed: give it with --custom-ops" for name in sorted(set(wanted) - set(have))]
    problems += [f"{name} is not needed" for name in sorted(set(have) - set(wanted))]
    changed = [name for name in wanted if have.get(name, wanted[name]) != wanted[name]]
    problems += [f"{name} is another one than at the making" for name in changed]
    if not wanted and not have:
        return []
    return [Finding("custom operators", not problems, "; ".join(problems) or ", ".join(wanted))]


# -- host --------------------------------------------------------------------------------------------------------------
def cpu_features() -> frozenset[str]:
    """Flags of this CPU as Linux names them; empty where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return next((frozenset(x.partition(":")[2].split()) for x in lines if x[:5] in ("flags", "Featu")), frozenset())


def check_host(manifest: Mapping[str, Any], features: Collection[str]) -> list[Finding]:
    """Whether this CPU has an instruction set that answers and speed rest on."""
    wanted = list(manifest["requires"].get("cpu_features_any", []))
    if not wanted:
        return []
    have = sorted(set(wanted) & set(features))
    if have:
        return [Finding("host", True, f"this CPU has {have[0]}")]
    detail = f"this CPU has none of {', '.join(wanted)}: answers and speed may be worse than in the report"
    return [Finding("host", True, detail, warning=True)]
