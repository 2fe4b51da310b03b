"""Does the model load in a fresh process, and does it still give the same answers?"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.package.receiver.files import text_of, threads
from optimizer.package.receiver.pairs import GoldenPair, Tolerance, difference, read_pair
from optimizer.package.receiver.words import CANNOT, EVIDENCE, MODEL, Feeds, Finding, Refusal, Run, Timer

CPU = "CPUExecutionProvider"
TIMED_SECONDS, WARM_UP_RUNS, MOST_RUNS = 1.0, 3, 1000


def answer(root: Path, manifest: Mapping[str, Any], run: Run, timer: Timer | None) -> list[Finding]:
    """The model loads, its golden pairs come out within tolerance, and, with ``timer``, how fast it is here."""
    provider, count = named(manifest), int(manifest["golden"].get("pairs", 0))
    try:
        pairs = [read_pair(root, i) for i in range(count)]
    except (OSError, ValueError) as error:
        return [Finding("golden pairs", False, f"cannot be read: {error}")]
    try:
        given = run(root / MODEL, [p.feeds for p in pairs], provider, threads(manifest))
    except Exception as error:
        if getattr(error, "exit", None) == CANNOT:
            raise
        return [Finding("load", False, " ".join(str(error).split())[:400])]
    findings = [Finding("load", True, f"loads in a fresh process on {provider}")]
    findings.append(_compare_answers(pairs, given, manifest["golden"].get("tolerance", {})))
    if timer is not None and findings[-1].ok:
        findings.append(_check_speed(root, manifest, pairs, timer))
    return findings


def named(manifest: Mapping[str, Any]) -> str:
    """The provider's name alone: options, which a stranger wrote, can name files and libraries to load."""
    return str(manifest["provider"]).partition(":")[0].strip()


def _compare_answers(
    pairs: Sequence[GoldenPair], given: Sequence[Feeds], allowed: Mapping[str, Mapping[str, float]]
) -> Finding:
    if not pairs:
        return Finding("golden pairs", True, "there are none to replay", warning=True)
    for i, (pair, outputs) in enumerate(zip(pairs, given, strict=True)):
        for name, expected in pair.outputs.items():
            if name not in outputs or name not in allowed:
                return Finding("golden pairs", False, f"pair {i}: there is no output '{name}'")
            if why := difference(expected, outputs[name], Tolerance(**allowed[name])):
                return Finding("golden pairs", False, f"pair {i}, output '{name}': {why}")
    return Finding("golden pairs", True, f"{len(pairs)} replayed within tolerance")


def _check_speed(root: Path, manifest: Mapping[str, Any], pairs: Sequence[GoldenPair], timer: Timer) -> Finding:
    if not pairs:
        return Finding("speed", True, "not measured: there are no golden inputs to run", warning=True)
    here = timer(root / MODEL, pairs[0].feeds, named(manifest), threads(manifest))
    try:
        then = float(json.loads(text_of(root / EVIDENCE))["final"]["latency_ms"]["p50"])
    except (OSError, ValueError, KeyError, TypeError):
        return Finding("speed", True, f"{here:.3g} ms here")
    return Finding("speed", True, f"{here:.3g} ms here, {then:.3g} ms where it was made")


# -- onnxruntime in this process ---------------------------------------------------------------------------------------
class Here:
    """The model in a session of this process, which is a fresh one; ``libraries`` hold custom operators."""

    def __init__(self, libraries: Sequence[Path] = ()) -> None:
        self._libraries = libraries
        self._session: Any = None

    def run(self, model: Path, feeds: Sequence[Feeds], provider: str, count: int) -> list[dict[str, Any]]:
        """Outputs by name for each feed. Raises :class:`Refusal` when it cannot be done here."""
        session = self._open(model, provider, count)
        names = [o.name for o in session.get_outputs()]
        for fed in feeds:
            if odd := next((x for x in fed.values() if isinstance(x, np.ndarray) and x.dtype.isbuiltin == 2), None):
                hint = "Check it with 'lathe verify'."
                raise Refusal(f"{odd.dtype} inputs cannot be fed from here", CANNOT, hint=hint, code="not-supported")
        return [dict(zip(names, session.run(None, dict(fed)), strict=True)) for fed in feeds]

    def time(self, model: Path, fed: Feeds, provider: str, count: int) -> float:
        """Median milliseconds of one run, for about a second."""
        session = self._open(model, provider, count)
        taken: list[float] = []
        for _ in range(WARM_UP_RUNS):
            session.run(None, dict(fed))
        until = time.perf_counter() + TIMED_SECONDS
        while not taken or (len(taken) < MOST_RUNS and time.perf_counter() < until):
            start = time.perf_counter()
            session.run(None, dict(fed))
            taken.append((time.perf_counter() - start) * 1e3)
        return statistics.median(taken)

    def _open(self, model: Path, provider: str, count: int) -> Any:
        if self._session is None:
            try:
                import onnxruntime
            except ImportError:
                hint = "pip install onnxruntime"
                raise Refusal("onnxruntime is not installed", CANNOT, hint=hint, code="missing-package") from None
            if provider not in onnxruntime.get_available_providers():
                message = f"the provider {provider} is not available here"
                raise Refusal(message, CANNOT, code="missing-provider")
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = count, 1, 4
            for library in self._libraries:
                options.register_custom_ops_library(str(library))
            wanted = [provider] if provider == CPU else [provider, CPU]
            self._session = onnxruntime.InferenceSession(str(model), options, providers=wanted)
            if provider not in self._session.get_providers():
                raise Refusal(f"{provider} did not start", CANNOT, code="missing-provider")
        return self._session
