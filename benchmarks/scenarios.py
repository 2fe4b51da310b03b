"""MLPerf's loadgen and the built-in driver on the same models, in turns: do they agree, and does loadgen say VALID?

    .venv/bin/python benchmarks/scenarios.py                # under 4 minutes; needs pip install 'lathe[loadgen]'
    .venv/bin/python benchmarks/scenarios.py --write        # and puts the table into docs/scenarios-measured.md
    .venv/bin/python benchmarks/scenarios.py --scenario server --seconds 60 MODEL ...

Every row is a whole `lathe benchmark --scenario` with both drivers: restarts take turns, so that the machine does to
both what it does to one. They agree when the interval of their ratio holds 1. Server is run under a latency bound of
50 ms. Run it on idle cores: the last column says how many cores other processes kept busy.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from datetime import date
from pathlib import Path

from optimizer import api
from optimizer.faults import Fault
from optimizer.measure.drivers import Load
from optimizer.records import ScenarioRow
from optimizer.runtime import hardware

SECONDS = {"server": 30.0, "single-stream": 6.0, "multi-stream": 9.0, "offline": 6.0}
"""Seconds of load for each driver, enough for five restarts of the small transformer: a server needs the most."""

PLAN = {"sample:transformer": tuple(SECONDS), "sample:residual-cnn": ("single-stream", "offline")}
BOUND_MS = 50.0
PAGE = Path(__file__).parents[1] / "docs" / "scenarios-measured.md"
TABLE = re.compile(r"(?<=<!-- measured -->\n).*?(?=<!-- end -->)", re.DOTALL)
HEAD = ("model", "scenario", "built in", "loadgen", "its verdict", "loadgen against built in", "agree", "others' cores")


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
    others = [r.others_cores for r in (ours, theirs) if r.others_cores is not None]
    cells = (model, f"{load.scenario}: {ours.judged_by}, {ours.unit}{bound}", shown(ours), shown(theirs),
             theirs.verdict, told, agree, f"{max(others):.2f}" if others else "")  # fmt: skip
    return f"| {' | '.join(cells)} |"


def table(models: list[str], scenarios: list[str], seconds: float | None, bound: float) -> Iterator[str]:
    """Line by line, as they are measured."""
    yield f"| {' | '.join(HEAD)} |"
    yield "|" + " --- |" * len(HEAD)
    for model in models or PLAN:
        for scenario in scenarios or PLAN.get(model, tuple(SECONDS)):
            load = Load(scenario, seconds or SECONDS[scenario], bound_ms=bound if scenario == "server" else 0.0)
            ours, theirs = pair(model, load)
            yield line(model, load, ours, theirs)
    machine = hardware.host()
    yield f"\n{date.today()}, {machine.cpu}, {machine.cores} cores."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--scenario", action="append", choices=tuple(SECONDS), help="only this one; repeatable")
    parser.add_argument("--seconds", type=float, help="seconds of load for each driver and scenario")
    parser.add_argument("--bound", type=float, default=BOUND_MS, help="what p99 of server must keep, milliseconds")
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.name}")
    chosen = parser.parse_args()
    lines = []
    try:
        for text in table(chosen.models, chosen.scenario or [], chosen.seconds, chosen.bound):
            print(text, flush=True)
            lines.append(text)
    except Fault as fault:
        raise SystemExit(f"{fault.message}. {fault.hint}") from None
    if chosen.write:
        told = "\n".join(lines) + "\n"
        PAGE.write_text(TABLE.sub(lambda _: told, PAGE.read_text("utf-8"), count=1), "utf-8")


if __name__ == "__main__":
    main()
