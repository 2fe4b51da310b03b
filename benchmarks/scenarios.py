"""MLPerf's loadgen and the built-in driver on the same models, in turns: do they agree, and does loadgen say VALID?

    .venv/bin/python benchmarks/scenarios.py [--seconds 40] [MODEL ...]      # needs pip install 'lathe[loadgen]'

Every row is a whole `lathe benchmark --scenario` with both drivers: restarts take turns, so that the machine does to
both what it does to one. They agree when the interval of their ratio holds 1. Server is run under a latency bound of
50 ms: the processors of a machine that others use are away for some of them now and then.
"""

from __future__ import annotations

import argparse
from datetime import date

from optimizer import api
from optimizer.measure.drivers import Load
from optimizer.records import ScenarioRow
from optimizer.runtime import hardware

MODELS = ("sample:residual-cnn", "sample:transformer")
SCENARIOS = ("single-stream", "multi-stream", "offline", "server")
BOUND_MS = 50.0


def pair(model: str, load: Load) -> tuple[ScenarioRow, ScenarioRow]:
    """The rows of the built-in driver and of loadgen."""
    ours, theirs = api.under_load([model], [load], drivers=("light", "loadgen")).rows
    return ours, theirs


def shown(row: ScenarioRow) -> str:
    found = row.result
    return f"{found.value:.4g} [{found.low:.4g}, {found.high:.4g}]" if found is not None else row.reason


def line(model: str, load: Load, ours: ScenarioRow, theirs: ScenarioRow) -> str:
    ratio = theirs.against
    agree = "" if ratio is None else "yes" if ratio.low <= 1 <= ratio.high else "no"
    told = "" if ratio is None else f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
    bound = f", p99 within {load.bound_ms:.3g} ms" if load.bound_ms else ""
    cells = (model, f"{load.scenario}: {ours.judged_by}, {ours.unit}{bound}", shown(ours), shown(theirs),
             theirs.verdict, told, agree)  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL")
    parser.add_argument("--seconds", type=float, default=40.0, help="seconds of load for each driver and scenario")
    parser.add_argument("--bound", type=float, default=BOUND_MS, help="what p99 of server must keep, milliseconds")
    chosen = parser.parse_args()
    print("| model | scenario | built in | loadgen | its verdict | loadgen against built in | agree |", flush=True)
    print("|" + " --- |" * 7, flush=True)
    for model in chosen.models:
        for scenario in SCENARIOS:
            load = Load(scenario, chosen.seconds, bound_ms=chosen.bound if scenario == "server" else 0.0)
            ours, theirs = pair(model, load)
            print(line(model, load, ours, theirs), flush=True)
    machine = hardware.host()
    print(f"\n{date.today()}, {machine.cpu}, {machine.cores} cores; {chosen.seconds:g} s of load for each driver.")


if __name__ == "__main__":
    main()
