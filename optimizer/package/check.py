"""``lathe verify``: the receiver's check with our workers, which know providers, limits and custom operators.

What is checked, and how, stands in :mod:`optimizer.package.receiver`; here the graph is looked at as well.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from optimizer.faults import Exit, Fault
from optimizer.package.receiver import main as receiver
from optimizer.package.receiver.session import answer
from optimizer.package.receiver.words import MODEL, WEIGHTS, Feeds, Finding, Refusal, Run, Timer, Trust, VerifyReport
from optimizer.plan import Caps
from optimizer.runtime import sessions
from optimizer.runtime.hardware import host
from optimizer.runtime.providers import named
from optimizer.runtime.sessions import Site
from optimizer.source.onnx_file import look
from optimizer.source.onnx_file import probe as probe_file
from optimizer.workers.pool import CallFailed, Worker, WorkerDied

__all__ = ["Finding", "Trust", "VerifyReport", "replay_in_worker", "time_in_worker", "verify"]

REPLAY_SECONDS = 600.0
RUN_MODEL = "optimizer.runtime.jobs:run_model"
DESCRIBE = "optimizer.package.jobs:describe"


def verify(
    folder: Path | str,
    *,
    latency: bool = False,
    custom_ops: Sequence[Path] = (),
    trust: Trust | None = None,
    features: Collection[str] | None = None,
    replay: Run | None = None,
    probe: Timer | None = None,
) -> VerifyReport:
    """Check the artifact in ``folder``: its files, its signature, its graph, its golden pairs, and whether this host
    suits it.

    ``latency`` also measures the speed here; ``custom_ops`` are libraries that the artifact says it needs, which are
    loaded only when they are the ones that it was made with; ``trust`` says which signature it must bear. The rest is
    for tests: ``features`` of the CPU, as Linux names them, ``replay`` runs the model and ``probe`` times it, each in
    processes of their own. A model whose digest is wrong is not loaded. Raises :class:`~optimizer.faults.Fault`: bad
    input when there is no artifact or a key is none, the runtime's own fault when the provider is missing.
    """
    root = Path(folder).absolute()  # workers have a current folder of their own
    run = replay or partial(replay_in_worker, custom_ops=custom_ops)
    timer = (probe or partial(time_in_worker, custom_ops=custom_ops)) if latency else None

    def answers(root: Path, manifest: Mapping[str, Any]) -> list[Finding]:
        return answer(root, manifest, run, timer)

    flags = host().features if features is None else features
    try:
        found = receiver.verify(
            root, answers=answers, examine=_examine, features=flags, trust=trust, custom_ops=custom_ops
        )
    except Refusal as refusal:
        raise as_fault(refusal) from refusal
    return VerifyReport(found.ok, found.findings, str(folder))


def as_fault(refusal: Refusal) -> Fault:
    """What the receiver's script says, in the words of the rest of the house."""
    return Fault(refusal.code, refusal.message, Exit(refusal.exit), refusal.where, refusal.hint)


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


def _examine(root: Path, manifest: Mapping[str, Any]) -> list[Finding]:
    """The graph is within bounds, names no weights from elsewhere and has the inputs and outputs of the manifest."""
    try:
        probe_file(root / MODEL, look(root / MODEL), Caps())
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
