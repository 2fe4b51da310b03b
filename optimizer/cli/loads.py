"""The options of ``lathe benchmark`` that put a model under load, and what they come to."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, TypeVar

import click

from optimizer.cli.boundary import emit
from optimizer.cli.common import Word, api, option, show
from optimizer.faults import Exit, usage

if TYPE_CHECKING:
    from collections.abc import Callable

    from optimizer.plan import Settings
    from optimizer.progress import Watcher

F = TypeVar("F", bound="Callable[..., Any]")

LOADS = "Under load (MLPerf's scenarios)"
SCENARIOS = ("single-stream", "multi-stream", "server", "offline", "streaming")
DEFAULT_SECONDS = 30.0
NAMES = ("scenario", "latency_bound", "driver", "samples_per_query", "state", "chunk")

_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


class Span(click.ParamType[float]):
    """A time like ``50ms``, in milliseconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(us|ms|s)\s*", str(value))
        if found is None or not float(found[1]):
            self.fail(f"'{value}' is not a time: write it as 50ms, 800us or 1.5s", param, ctx)
        return float(found[1]) * _UNITS[found[2]]


def load_options(function: F) -> F:
    """The options; :data:`NAMES` are their parameters."""
    for add in reversed(
        (
            option(
                "--scenario", section=LOADS, type=Word("scenario", SCENARIOS), multiple=True,
                help="Put the models under this load instead of timing single runs. Repeatable.",
            ),
            option(
                "--latency-bound", section=LOADS, type=Span(), metavar="TIME",
                help="server: what 99 % of the queries must keep, as in 50ms.",
            ),
            option(
                "--driver", section=LOADS, type=Word("driver", ("light", "loadgen")), multiple=True,
                default=("light",), show_default=True,
                help="Who makes the load: built in, or MLPerf's loadgen. Repeatable.",
            ),
            option(
                "--samples-per-query", section=LOADS, type=click.IntRange(min=1), default=8, show_default=True,
                metavar="N", help="multi-stream: samples of one query.",
            ),
            option(
                "--state", section=LOADS, multiple=True, metavar="INPUT=OUTPUT",
                help="streaming: the output is the next step's input; default: what names tell. Repeatable.",
            ),
            option(
                "--chunk", section=LOADS, type=Span(), metavar="TIME",
                help="streaming: real time that one step stands for, for the real-time factor.",
            ),
        )
    ):  # fmt: skip
        function = add(function)
    return function


def run_loads(models: tuple[str, ...], given: dict[str, Any], settings: Settings, watch: Watcher) -> Any:
    """The report of the scenarios that were asked for; ``None`` when none was.

    Raises a usage Fault for options that do not go together.
    """
    _check(given)
    if not given["scenario"]:
        return None
    from optimizer.measure.drivers import Load

    seconds = given["seconds"] if _said("seconds") else DEFAULT_SECONDS
    batches = given["batches"] if _said("batches") else (None,)
    loads = [
        Load(
            scenario, seconds, batch, given["samples_per_query"], given["latency_bound"] or 0.0, given["chunk"]
        )
        for scenario in dict.fromkeys(given["scenario"])
        for batch in (batches if scenario != "streaming" else (None,))
    ]  # fmt: skip
    return api().under_load(
        list(models),
        loads,
        drivers=tuple(dict.fromkeys(given["driver"])),
        states=given["state"],
        provider=given["provider_names"][0],
        threads=given["threads"][0],
        data=given["data"],
        settings=settings,
        watch=watch,
    )


def _said(name: str) -> bool:
    source = click.get_current_context().get_parameter_source(name)
    return source is not click.core.ParameterSource.DEFAULT


def _check(given: dict[str, Any]) -> None:
    asked = given["scenario"]
    if "server" in asked and given["latency_bound"] is None:
        raise usage("the scenario 'server' needs a bound", hint="Give --latency-bound, as in --latency-bound 50ms")
    for name, scenario in (("latency_bound", "server"), ("state", "streaming"), ("chunk", "streaming")):
        if given[name] and scenario not in asked:
            raise usage(f"--{name.replace('_', '-')} belongs to --scenario {scenario}")
    if not asked:
        alone = next((n for n in ("driver", "samples_per_query") if _said(n)), None)
        if alone is not None:
            raise usage(f"--{alone.replace('_', '-')} belongs to --scenario")
        return
    for name in ("provider_names", "threads"):
        if len(given[name]) > 1:
            kind = "provider" if name == "provider_names" else "number of threads"
            raise usage(f"a load takes one {kind} at a time", hint="Run it once for each")
    if given["metric"]:
        raise usage("a load measures no quality", hint="Leave out --metric, or leave out --scenario")


def show_loads(report: Any, *, as_json: bool) -> None:
    """Print the report and leave with its exit code: 0 when anything has a result."""
    if as_json:
        from optimizer.report.json_ import dump

        emit(dump(report, "lathe.scenarios/1"))
    else:
        from optimizer.report.scenarios import scenarios

        show(scenarios(report.rows))
        for warning in report.warnings:
            click.echo(f"warning: {warning}", err=True)
    if not any(row.result for row in report.rows):
        missed = all(row.code == "limit-not-met" for row in report.rows)
        click.get_current_context().exit(int(Exit.DOES_NOT_HOLD if missed else Exit.UNDECIDED))
