"""How often the interval of a speed-up covers what a measurement ten times as long comes to.

    .venv/bin/python benchmarks/ratio_coverage.py                        # 50 repetitions: about a quarter of an hour
    .venv/bin/python benchmarks/ratio_coverage.py --repeats 10 --keep runs.json

Two chains of convolutions (40 and 44 of them: 10 % more of the same work) are timed as `lathe benchmark` times them,
with its stopping rule, then once with ten times the restarts and nothing to stop it. The reference is put in the middle
of the repetitions, half before and half after, so that it sees the same machine. With ``--keep`` every finished
measurement is written down, and a second run goes on from there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from gate_errors import CHANNELS, EDGE, LAYERS, chain

from optimizer.measure import latency
from optimizer.measure.latency import Effort, compare, speedup
from optimizer.runtime import hardware
from optimizer.runtime.sessions import Site

MORE = 4
LONGER = 10
PARTS = 10
"""The reference is measured in so many parts, spread over the repetitions."""

SECONDS = 1.0
SITE = Site("CPUExecutionProvider", 1, "benchmark")


def ratio(paths: list[Path], effort: Effort, seed: int) -> dict[str, Any]:
    """One measurement: the interval, the block medians of every restart, and how long it took."""
    start = time.monotonic()
    feed = {"x": np.random.default_rng(0).normal(size=(1, CHANNELS, EDGE, EDGE)).astype(np.float32)}
    slow, fast = compare(paths, [feed] * 2, SITE, effort)
    found = speedup(slow, fast, seed)
    logs = [
        float(np.median(np.log(np.array(a) / np.array(b)))) for a, b in zip(slow.medians(), fast.medians(), strict=True)
    ]
    return {"value": found.value, "low": found.low, "high": found.high, "restarts": logs,
            "seconds": time.monotonic() - start}  # fmt: skip


def plan(repeats: int) -> list[str]:
    """Names of the measurements in their order: parts of the reference stand evenly between the repetitions."""
    names: list[str] = []
    for i in range(PARTS):
        names.append(f"reference {i}")
        names += [f"repetition {j}" for j in range(repeats * i // PARTS, repeats * (i + 1) // PARTS)]
    return names


def measured(
    names: list[str], kept: Path | None, measure: Callable[[str], dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Every measurement by name; those that ``kept`` holds already are not made again."""
    found: dict[str, dict[str, Any]] = json.loads(kept.read_text()) if kept and kept.exists() else {}
    for name in names:
        if name not in found:
            found[name] = measure(name)
            print(f"{name}: {found[name]['value']:.4f} [{found[name]['low']:.4f}, {found[name]['high']:.4f}], "
                  f"{len(found[name]['restarts'])} restarts, {found[name]['seconds']:.0f} s", flush=True)  # fmt: skip
            if kept:
                kept.write_text(json.dumps(found))
    return {name: found[name] for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="timed seconds of one repetition, per model")
    parser.add_argument("--precision", type=float, default=0.01, help="where `lathe benchmark` stops")
    parser.add_argument("--keep", type=Path, help="file of finished measurements, to go on from")
    chosen = parser.parse_args()
    effort = latency.benchmark(chosen.seconds, chosen.precision)
    longer = replace(effort, restarts=effort.restarts * LONGER // PARTS, seconds=effort.seconds * LONGER / PARTS,
                     enough=None)  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        paths = [chain(Path(folder), LAYERS + MORE), chain(Path(folder), LAYERS)]

        def measure(name: str) -> dict[str, Any]:
            return ratio(paths, longer if name.startswith("reference") else effort, 0)

        found = measured(plan(chosen.repeats), chosen.keep, measure)
    parts = [v for name, v in found.items() if name.startswith("reference")]
    tried = [v for name, v in found.items() if name.startswith("repetition")]
    reference = float(np.exp(np.mean([r for part in parts for r in part["restarts"]])))
    covered = sum(t["low"] <= reference <= t["high"] for t in tried)
    widths = [(t["high"] - t["low"]) / 2 / t["value"] for t in tried]
    restarts = [len(t["restarts"]) for t in tried]
    print("\n| repetitions | reference | covered | wanted | half width | restarts | one takes |\n|" + " --- |" * 7)
    print(f"| {len(tried)} | {reference:.4f}x of {sum(len(p['restarts']) for p in parts)} restarts | "
          f"{covered} ({covered / max(1, len(tried)):.0%}) | >= 90 % | {np.median(widths):.1%} | "
          f"{np.median(restarts):.0f} | {np.median([t['seconds'] for t in tried]):.0f} s |")  # fmt: skip
    machine = hardware.host()
    print(f"\n{date.today()}, {machine.cpu}, {machine.cores} cores.")


if __name__ == "__main__":
    main()
