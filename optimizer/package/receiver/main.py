"""The whole check, and the command line of the script that lies in every artifact."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from optimizer.package.receiver.files import check_custom_ops, check_files, check_host, cpu_features, read_manifest
from optimizer.package.receiver.session import Here, answer
from optimizer.package.receiver.signature import check_signature
from optimizer.package.receiver.words import (
    CANNOT,
    DOES_NOT_HOLD,
    FAULT,
    RUN_SECONDS,
    Finding,
    Refusal,
    Trust,
    VerifyReport,
)

Look = Callable[[Path, Mapping[str, Any]], list[Finding]]
"""folder, manifest -> what was found."""


def verify(
    root: Path,
    *,
    answers: Look,
    examine: Look | None = None,
    features: Collection[str] | None = None,
    trust: Trust | None = None,
    custom_ops: Sequence[Path] = (),
) -> VerifyReport:
    """Everything about the artifact in ``root``; a model whose digest is wrong is not loaded.

    ``answers`` loads the model in a process of its own and compares (see :func:`answer`), ``examine`` may look at the
    graph before that. Raises :class:`Refusal` when there is no artifact, or the environment cannot do it.
    """
    manifest, findings = read_manifest(root)
    if manifest is not None:
        findings += check_files(root, manifest)
        findings += [*check_signature(root, trust or Trust()), *check_custom_ops(manifest, custom_ops)]
        for look in filter(None, (examine, answers)):
            if all(f.ok for f in findings):
                findings += look(root, manifest)
        findings += check_host(manifest, cpu_features() if features is None else features)
    return VerifyReport(all(f.ok for f in findings), tuple(findings), str(root))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Check a Lathe artifact where it arrived.", epilog=EXITS)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).resolve().parent, metavar="FOLDER")
    parser.add_argument("--key", type=Path, metavar="PEM", help="public key that the artifact must be signed with")
    parser.add_argument(
        "--certificate", type=Path, action="append", default=[], metavar="PEM", help="authority of the signer (or more)"
    )
    parser.add_argument("--require-signature", action="store_true", help="an unsigned artifact does not hold")
    parser.add_argument("--custom-ops", type=Path, action="append", default=[], metavar="FILE", help="library it needs")
    parser.add_argument("--no-latency", action="store_true", help="do not measure how fast it is here")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--answer", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    try:
        report = _report(given)
    except Refusal as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        if given.json or given.answer:
            print(json.dumps({"ok": False, "error": {**asdict(refusal)}}))
        return refusal.exit
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAULT
    if given.json or given.answer:
        print(json.dumps(asdict(report)))
    else:
        for f in report.findings:
            print(f"{'note ' if f.ok and f.warning else 'ok   ' if f.ok else 'WRONG'}  {f.check:<16}  {f.detail}")
        print(f"{report.folder} {'holds' if report.ok else 'does not hold'}")
    return 0 if report.ok else DOES_NOT_HOLD


EXITS = (
    "Exit codes: 0 it holds, 1 it does not, 2 usage, 3 no artifact, a schema that this script does not know or a key "
    "that is none, 4 not possible here, 5 a fault of the machine."
)


def _report(given: argparse.Namespace) -> VerifyReport:
    root = given.folder.resolve()
    libraries = [path.resolve() for path in given.custom_ops]
    if given.answer:
        manifest, _ = read_manifest(root)
        here = Here(libraries)
        findings = answer(root, manifest or {}, here.run, None if given.no_latency else here.time)
        return VerifyReport(all(f.ok for f in findings), tuple(findings), str(root))

    def answers(root: Path, manifest: Mapping[str, Any]) -> list[Finding]:
        flags = [*(["--no-latency"] if given.no_latency else []), *(f"--custom-ops={path}" for path in libraries)]
        return _in_a_fresh_process(root, flags)

    trust = Trust(given.require_signature, given.key, tuple(given.certificate))
    return verify(root, answers=answers, trust=trust, custom_ops=libraries)


def _in_a_fresh_process(root: Path, flags: Sequence[str]) -> list[Finding]:
    """What this file finds when it is started anew to load the model, which may take its process down."""
    command = [sys.executable, __file__, "--answer", *flags, str(root)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return [Finding("load", False, f"it did not finish in {RUN_SECONDS:g} s")]
    try:
        told = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        said = done.stderr.strip().splitlines()
        why = f"the process ended with code {done.returncode}{f': {said[-1][:300]}' if said else ''}"
        return [Finding("load", False, f"{why} while the model was loaded")]
    if "error" in told:
        raise Refusal(**{**told["error"], "exit": int(told["error"].get("exit", CANNOT))})
    return [Finding(**f) for f in told["findings"]]
