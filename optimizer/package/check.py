"""The receiver's check: is this artifact whole, is it what its manifest says, does it still give the same answers?"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from optimizer.faults import Exit, Fault, bad_input
from optimizer.package import golden
from optimizer.package.artifact import EVIDENCE, GOLDEN, MANIFEST, MODEL, SUMS, WEIGHTS, describe_file
from optimizer.package.manifest import SCHEMA, SCHEMA_FAMILY
from optimizer.plan import Caps
from optimizer.runtime import sessions
from optimizer.runtime.hardware import host
from optimizer.runtime.providers import named
from optimizer.runtime.sessions import Site
from optimizer.source.onnx_file import look, probe
from optimizer.workers.pool import CallFailed, Worker, WorkerDied

REPLAY_SECONDS = 600.0
RUN_MODEL = "optimizer.runtime.jobs:run_model"
DESCRIBE = "optimizer.package.jobs:describe"

Feeds = Mapping[str, Any]
Replay = Callable[[Path, Sequence[Feeds], str, int], list[dict[str, Any]]]
"""path of a model, feeds, provider, threads -> one dict of outputs per feed, run in a fresh process."""

Probe = Callable[[Path, Feeds, str, int], float]
"""path of a model, one feed, provider, threads -> median milliseconds of one run on this machine."""


@dataclass(frozen=True)
class Finding:
    """One thing that was checked. A ``warning`` is worth reading but does not make the artifact wrong."""

    check: str
    ok: bool
    detail: str
    warning: bool = False


@dataclass(frozen=True)
class VerifyReport:
    """What came out. ``ok`` is false as soon as one finding is."""

    ok: bool
    findings: tuple[Finding, ...]
    folder: str = ""


def verify(
    folder: Path | str,
    *,
    latency: bool = False,
    custom_ops: Sequence[Path] = (),
    features: Collection[str] | None = None,
    replay: Replay | None = None,
    probe: Probe | None = None,
) -> VerifyReport:
    """Check the artifact in ``folder``: its files, its graph, its golden pairs, and whether this host suits it.

    ``latency`` also measures the speed here; ``custom_ops`` are libraries that the artifact says it needs, which are
    loaded only when they are the ones that it was made with. The rest is for tests: ``features`` of the CPU, as Linux
    names them, ``replay`` runs the model and ``probe`` times it, each in processes of their own. A model whose digest
    is wrong is not loaded. Raises :class:`~optimizer.faults.Fault`: bad input when there is no artifact, the runtime's
    own fault when the provider is missing.
    """
    root = Path(folder)
    manifest, findings = _read_manifest(root)
    if manifest is not None:
        findings += [*_check_files(root, manifest), *_check_custom_ops(manifest, custom_ops)]
        if all(f.ok for f in findings):
            findings += _check_graph(root, manifest)
        if all(f.ok for f in findings):
            findings += _check_answers(root, manifest, replay or partial(replay_in_worker, custom_ops=custom_ops))
        findings += _check_host(manifest, host().features if features is None else features)
        if latency and all(f.ok for f in findings):
            findings += _check_speed(root, manifest, probe or partial(time_in_worker, custom_ops=custom_ops))
    return VerifyReport(all(f.ok for f in findings), tuple(findings), str(folder))


def replay_in_worker(
    path: Path, feeds: Sequence[Feeds], provider: str, threads: int, custom_ops: Sequence[Path] = ()
) -> list[dict[str, Any]]:
    """Run a model in a fresh worker process: the one place that names the operation."""
    with Worker.ours() as worker:
        sessions.prepare(worker, _site(provider, threads, custom_ops))
        arguments = {"path": str(path), "feeds": [dict(f) for f in feeds], "provider": named(provider)}
        answer: list[dict[str, Any]] = worker.call(RUN_MODEL, timeout=REPLAY_SECONDS, threads=threads, **arguments)
        return answer


def time_in_worker(path: Path, feeds: Feeds, provider: str, threads: int, custom_ops: Sequence[Path] = ()) -> float:
    """Median milliseconds of one run, with the same care as a benchmark."""
    from optimizer.measure import latency

    site = _site(provider, threads, custom_ops)
    return latency.compare([path], [dict(feeds)], site, latency.quick())[0].latency().p50


def _site(provider: str, threads: int, custom_ops: Sequence[Path]) -> Site:
    return Site(named(provider), threads, "", tuple(str(path.resolve()) for path in custom_ops))


# -- manifest ----------------------------------------------------------------------------------------------------------
def _read_manifest(root: Path) -> tuple[dict[str, Any] | None, list[Finding]]:
    if not root.exists():
        raise bad_input("no such folder", where=str(root), code="missing")
    if not root.is_dir() or not (root / MANIFEST).is_file():
        raise bad_input(f"this is not a Lathe artifact: it has no {MANIFEST}", where=str(root), code="not-an-artifact")
    try:
        tree = json.loads((root / MANIFEST).read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        return None, [Finding("manifest", False, f"{MANIFEST} is not readable JSON: {error}")]
    schema = str(tree.get("schema", "")) if isinstance(tree, dict) else ""
    if not schema.startswith(SCHEMA_FAMILY):
        message = f"this is not a Lathe artifact: {MANIFEST} has no known schema"
        raise bad_input(message, where=str(root), code="not-an-artifact")
    if schema != SCHEMA:
        raise bad_input(
            f"the manifest has schema '{schema}', this Lathe reads '{SCHEMA}'",
            where=str(root),
            hint="Use the Lathe that made it, or a newer one.",
            code="unknown-schema",
        )
    wrong = _shape_of(tree)
    return (None if wrong else tree), [Finding("manifest", not wrong, wrong or f"{schema}, made by {_tool(tree)}")]


def _shape_of(tree: dict[str, Any]) -> str:
    """What the rest of this file would stumble over, as text."""
    kinds: dict[str, type] = dict.fromkeys(("files", "golden", "model", "requires", "signature"), dict) | {
        "provider": str
    }
    wrong = sorted(k for k, kind in kinds.items() if not isinstance(tree.get(k), kind))
    if wrong:
        return f"{MANIFEST} misses or garbles: {', '.join(wrong)}"
    if MODEL not in tree["files"]:
        return f"{MANIFEST} lists no {MODEL}"
    bad = sorted(n for n, d in tree["files"].items() if not (isinstance(d, dict) and {"sha256", "size"} <= d.keys()))
    return f"{MANIFEST} says nothing of {bad[0]}" if bad else ""


def _tool(tree: Mapping[str, Any]) -> str:
    tool = tree.get("tool")
    return f"{tool.get('name')} {tool.get('version')}" if isinstance(tool, dict) else "an unnamed tool"


# -- files -------------------------------------------------------------------------------------------------------------
def _check_files(root: Path, manifest: Mapping[str, Any]) -> list[Finding]:
    found, odd = _walk(root)
    sums = _read_sums(root)
    expected = {*manifest["files"], *(sums or {}), MANIFEST, SUMS}
    problems = [f"{n} is not a regular file" for n in odd]
    problems += [f"{n} is missing" for n in sorted(expected - found - set(odd))]
    problems += [f"{n} does not belong here" for n in sorted(found - expected)]
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


def _walk(root: Path) -> tuple[set[str], list[str]]:
    """Regular files, and whatever else lies there (links, sockets), by POSIX path below ``root``."""
    files, odd = set(), []
    for folder, inner, names in os.walk(root, followlinks=False):
        for name in (*inner, *names):
            path = Path(folder) / name
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode):
                files.add(path.relative_to(root).as_posix())
            elif not stat.S_ISDIR(mode):
                odd.append(path.relative_to(root).as_posix())
    return files, odd


def _read_sums(root: Path) -> dict[str, str] | None:
    try:
        lines = (root / SUMS).read_text("utf-8").splitlines()
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


def _check_custom_ops(manifest: Mapping[str, Any], given: Sequence[Path]) -> list[Finding]:
    """The libraries that the artifact needs are here, and are those that it was made with."""
    wanted = manifest["requires"].get("custom_ops", {})
    have = {path.name: describe_file(path)["sha256"] for path in given}
    problems = [f"{name} is needed: give it with --custom-ops" for name in sorted(set(wanted) - set(have))]
    problems += [f"{name} is not needed" for name in sorted(set(have) - set(wanted))]
    problems += [
        f"{name} is another one than at the making" for name in wanted if have.get(name, wanted[name]) != wanted[name]
    ]
    return (
        [Finding("custom operators", not problems, "; ".join(problems) or ", ".join(wanted))] if wanted or have else []
    )


# -- graph and answers -------------------------------------------------------------------------------------------------
def _check_graph(root: Path, manifest: Mapping[str, Any]) -> list[Finding]:
    try:
        probe(root / MODEL, look(root / MODEL), Caps())
        with Worker.ours() as worker:
            seen = worker.call(DESCRIBE, timeout=REPLAY_SECONDS, path=str(root / MODEL))
    except Fault as fault:
        return [Finding("graph", False, str(fault))]
    except (WorkerDied, CallFailed) as error:
        return [Finding("graph", False, f"{MODEL} cannot be read: {error}")]
    if strange := sorted(set(seen["external"]) - ({WEIGHTS} & set(manifest["files"]))):
        detail = f"{MODEL} takes weights from '{strange[0]}', which is not part of the artifact"
        return [Finding("graph", False, detail)]
    if seen["signature"] != manifest["signature"]:
        return [Finding("graph", False, "inputs and outputs are not those in the manifest: it describes another model")]
    opset = seen["opsets"].get("ai.onnx", "none")
    return [Finding("graph", True, f"inputs and outputs as in the manifest, opset {opset}, IR {seen['ir']}")]


def _check_answers(root: Path, manifest: Mapping[str, Any], replay: Replay) -> list[Finding]:
    count = int(manifest["golden"].get("pairs", 0))
    try:
        pairs = [_read_pair(root, i) for i in range(count)]
    except (OSError, ValueError) as error:
        return [Finding("golden pairs", False, f"cannot be read: {error}")]
    try:
        given = replay(root / MODEL, [p.feeds for p in pairs], manifest["provider"], _threads(manifest))
    except Fault as fault:
        if fault.exit is Exit.UNDECIDED:
            raise
        return [Finding("load", False, str(fault))]
    except (WorkerDied, CallFailed) as error:
        return [Finding("load", False, str(error))]
    loaded = Finding("load", True, f"loads in a fresh process on {manifest['provider']}")
    return [loaded, _compare_answers(pairs, given, manifest["golden"].get("tolerance", {}))]


def _compare_answers(
    pairs: Sequence[golden.GoldenPair], given: Sequence[Mapping[str, Any]], allowed: Mapping[str, Mapping[str, float]]
) -> Finding:
    if not pairs:
        return Finding("golden pairs", True, "there are none to replay", warning=True)
    for i, (pair, outputs) in enumerate(zip(pairs, given, strict=True)):
        for name, expected in pair.outputs.items():
            if name not in outputs or name not in allowed:
                return Finding("golden pairs", False, f"pair {i}: there is no output '{name}'")
            if why := golden.difference(expected, outputs[name], golden.Tolerance(**allowed[name])):
                return Finding("golden pairs", False, f"pair {i}, output '{name}': {why}")
    return Finding("golden pairs", True, f"{len(pairs)} replayed within tolerance")


def _read_pair(root: Path, index: int) -> golden.GoldenPair:
    stem = root / GOLDEN / f"{index:04d}"
    with stem.with_name(f"{stem.name}_input.npz").open("rb") as stream:
        feeds = golden.read(stream)
    with stem.with_name(f"{stem.name}_output.npz").open("rb") as stream:
        return golden.GoldenPair(feeds, golden.read(stream))


def _threads(manifest: Mapping[str, Any]) -> int:
    return int(manifest.get("runs_at", {}).get("threads", 1))


# -- host --------------------------------------------------------------------------------------------------------------
def _check_host(manifest: Mapping[str, Any], features: Collection[str]) -> list[Finding]:
    wanted = list(manifest["requires"].get("cpu_features_any", []))
    if not wanted:
        return []
    have = sorted(set(wanted) & set(features))
    if have:
        return [Finding("host", True, f"this CPU has {have[0]}")]
    detail = f"this CPU has none of {', '.join(wanted)}: answers and speed may be worse than in the report"
    return [Finding("host", True, detail, warning=True)]


def _check_speed(root: Path, manifest: Mapping[str, Any], probe: Probe) -> list[Finding]:
    if not int(manifest["golden"].get("pairs", 0)):
        return [Finding("speed", True, "not measured: there are no golden inputs to run", warning=True)]
    here = probe(root / MODEL, _read_pair(root, 0).feeds, manifest["provider"], _threads(manifest))
    then = _recorded_latency(root)
    said = f", {then:.3g} ms where it was made" if then is not None else ""
    return [Finding("speed", True, f"{here:.3g} ms here{said}")]


def _recorded_latency(root: Path) -> float | None:
    try:
        return float(json.loads((root / EVIDENCE).read_text("utf-8"))["final"]["latency_ms"]["p50"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
