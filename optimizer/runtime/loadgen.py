"""MLPerf's own load generator in front of a model, in a worker that :func:`optimizer.runtime.load.begin` prepared.

The package is ``mlcommons-loadgen`` (an extra). It decides when queries come, takes the times and gives the verdict;
ours is the system under test: one thread that answers, up to the batch together. Its settings are short here, so a
verdict of VALID says that the run keeps MLPerf's rules for these settings, not that it is a submission.
"""

from __future__ import annotations

import importlib.util
import queue
import re
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optimizer.faults import cannot
from optimizer.runtime.load import System, system

KINDS = {"single-stream": "SingleStream", "multi-stream": "MultiStream", "server": "Server", "offline": "Offline"}
MISSING = "pip install 'lathe[loadgen]', or leave out --driver for the built-in one"


def drive(
    scenario: str, seconds: float, least: int, seed: int, *, expected: float = 1.0, samples: int = 1,
    bound_ms: float = 0.0, percentile: float = 0.99,
) -> dict[str, Any]:  # fmt: skip
    """One run of ``scenario`` for at least ``seconds`` and ``least`` queries. Returns
    :func:`read_summary`'s answer and ``queries``, how many samples were answered.

    ``expected`` is the rate asked for in Server (queries a second), and elsewhere the pace by which loadgen makes
    queries beforehand (queries a second; samples a second in Offline). ``samples`` go into a query of MultiStream.
    Raises a Fault (exit 4) when the package is not installed.
    """
    require()
    import mlperf_loadgen as loadgen

    settings = loadgen.TestSettings()
    settings.scenario = getattr(loadgen.TestScenario, KINDS[scenario])
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms, settings.min_query_count = max(1, round(seconds * 1e3)), least
    settings.schedule_rng_seed = settings.sample_index_rng_seed = settings.qsl_rng_seed = seed
    settings.single_stream_expected_latency_ns = settings.multi_stream_expected_latency_ns = round(1e9 / expected)
    settings.single_stream_target_latency_percentile = settings.multi_stream_target_latency_percentile = percentile
    settings.multi_stream_samples_per_query = samples
    settings.server_target_qps, settings.offline_expected_qps = expected, expected
    settings.server_target_latency_ns, settings.server_target_latency_percentile = round(bound_ms * 1e6), percentile
    with tempfile.TemporaryDirectory(prefix="loadgen-") as folder:
        logs = loadgen.LogSettings()
        logs.log_output.outdir, logs.enable_trace = folder, False
        # An audit.config in the user's folder would change the settings: only a file that is not there is asked for.
        answered = _start(
            loadgen, settings, logs, system(), str(Path(folder) / "no-audit"), threaded=scenario == "server"
        )
        return {**read_summary((Path(folder) / "mlperf_log_summary.txt").read_text("utf-8")), "queries": answered}


def require() -> None:
    """Raises a Fault (exit 4) when the package is not installed. Loads nothing."""
    if importlib.util.find_spec("mlperf_loadgen") is None:
        raise cannot("MLPerf's loadgen is not installed", hint=MISSING, code="missing-package")


def _start(loadgen: Any, settings: Any, logs: Any, opened: System, audit: str, *, threaded: bool) -> int:
    """One test; returns how many samples were answered."""
    failed: list[BaseException] = []
    answered = 0

    def answer(queries: Sequence[Any]) -> None:
        """Run what was asked and say so; after a failure only say so, because loadgen waits for every answer."""
        nonlocal answered
        answered += len(queries)
        try:
            if not failed:
                opened.run([q.index for q in queries])
        except BaseException as error:
            failed.append(error)
        loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(q.id, 0, 0) for q in queries])

    waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
    thread = threading.Thread(target=_serve, args=(waiting, answer, opened.batch), daemon=True)
    if threaded:
        thread.start()

    def issue(queries: Sequence[Any]) -> None:
        if threaded:
            for query in queries:
                waiting.put(query)
        else:
            for start in range(0, len(queries), opened.batch):
                answer(queries[start : start + opened.batch])

    count = len(opened.feeds)
    subject = loadgen.ConstructSUT(issue, lambda: None)
    library = loadgen.ConstructQSL(count, count, lambda _: None, lambda _: None)
    try:
        loadgen.StartTestWithLogSettings(subject, library, settings, logs, audit)
    finally:
        waiting.put(None)
        if threaded:
            thread.join()
        loadgen.DestroyQSL(library)
        loadgen.DestroySUT(subject)
    if failed:
        raise failed[0]
    return answered


def _serve(waiting: queue.SimpleQueue[Any], answer: Any, batch: int) -> None:
    """Answer what waits, oldest first, up to ``batch`` queries together, until ``None`` comes."""
    while (first := waiting.get()) is not None:
        found = [first]
        while len(found) < batch and not waiting.empty():
            more = waiting.get()
            if more is None:
                answer(found)
                return
            found.append(more)
        answer(found)


_RESULT = re.compile(r"^Result is\s*:\s*(\w+)", re.MULTILINE)
_CHECK = re.compile(r"^\s*([A-Z][\w ]+?) satisfied\s*:\s*(Yes|NO)", re.MULTILINE)
_PERCENTILE = re.compile(r"^(\d+\.\d+) percentile latency \(ns\)\s*:\s*(\d+)", re.MULTILINE)
_RATE = re.compile(r"^(?:Completed s|S)amples per second\s*:\s*([\d.eE+-]+)", re.MULTILINE)
_JUDGED = re.compile(r"^[\d.]+th percentile latency \(ns\)\s*:\s*(\d+)", re.MULTILINE)


def read_summary(text: str) -> dict[str, Any]:
    """What loadgen's summary says: ``verdict`` (VALID or INVALID), ``checks`` by name (whether satisfied),
    ``percentiles`` (milliseconds by percent), ``judged_ms`` (the percentile that the scenario is judged by) and
    ``rate`` (samples a second), each ``None`` where the scenario has none. Raises ValueError without a verdict."""
    verdict = _RESULT.search(text)
    if verdict is None:
        raise ValueError("loadgen's summary holds no result")
    judged, rate = _JUDGED.search(text), _RATE.search(text)
    return {
        "verdict": verdict[1],
        "checks": {name: word == "Yes" for name, word in _CHECK.findall(text)},
        "percentiles": {f"{float(p):g}": int(ns) / 1e6 for p, ns in _PERCENTILE.findall(text)},
        "judged_ms": int(judged[1]) / 1e6 if judged else None,
        "rate": float(rate[1]) if rate else None,
    }
