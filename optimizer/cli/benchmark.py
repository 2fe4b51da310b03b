"""``lathe benchmark``: models side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from optimizer.cli.boundary import emit
from optimizer.cli.common import OUTPUT, Provider, api, option, show, source_options, source_request, verb
from optimizer.cli.jobs import NAMES as JOB_NAMES
from optimizer.cli.jobs import job_options, read_results, write_job
from optimizer.cli.loads import NAMES as LOAD_NAMES
from optimizer.cli.loads import load_options, run_loads, show_loads
from optimizer.faults import Exit, usage

if TYPE_CHECKING:
    from optimizer.benchmarking import BenchmarkReport

WHAT = "What to measure"
SWEEPS = "Sweeps"
BESIDE = "What to tell beside speed"
POSITIVE = click.IntRange(min=1)


class Share(click.ParamType[float]):
    """A share like ``1%`` or ``0.01``. Returns a number above 0 and below 1."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        text = str(value).strip()
        try:
            share = float(text.rstrip("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            share = -1.0
        if not 0 < share < 1:
            self.fail(f"'{value}' is not a share: write it as 1% or 0.01", param, ctx)
        return share


class Lengths(click.ParamType[tuple[str, tuple[int, ...]]]):
    """An open dimension and the sizes that it takes: ``sequence=64,128``, or ``input_ids:1=64,128``."""

    name = "lengths"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, tuple[int, ...]]:
        if isinstance(value, tuple):
            return value
        axis, equals, sizes = str(value).rpartition("=")
        parts = [part.strip() for part in sizes.split(",")]
        if not (axis.strip() and equals and all(p.isdecimal() and int(p) > 0 for p in parts)):
            self.fail(f"cannot read '{value}': write AXIS=64,128,...", param, ctx)
        return axis.strip(), tuple(dict.fromkeys(int(p) for p in parts))


@verb("benchmark", short_help="Time models side by side.")
@click.argument("models", nargs=-1, metavar="MODEL...")
@option(
    "--provider",
    "provider_names",
    section=WHAT,
    type=Provider(),
    multiple=True,
    default=("cpu",),
    show_default=True,
    metavar="NAME[:KEY=VALUE,...]",
    help="Provider, with options of its own: cuda:device_id=1. Repeatable.",
)
@option(
    "--batch",
    "batches",
    section=WHAT,
    type=POSITIVE,
    metavar="N",
    multiple=True,
    default=(1,),
    show_default=True,
    help="Batch size. Repeatable.",
)
@option(
    "--threads",
    section=WHAT,
    type=POSITIVE,
    metavar="N",
    multiple=True,
    default=(1,),
    show_default=True,
    help="Number of threads. Repeatable.",
)
@option(
    "--data", section=WHAT, metavar="SOURCE", help="Samples to run, and to measure quality on; default: random inputs."
)
@option("--metric", section=WHAT, metavar="NAME", help="Metric, or module:function.")
@option(
    "--slice-by",
    section=WHAT,
    metavar="ARRAY",
    help="Array of the data that names each sample's slice, to look for the worst; default: the classes.",
)
@option(
    "--seconds",
    section=WHAT,
    type=click.FloatRange(min=0, min_open=True),
    default=3.0,
    show_default=True,
    help="Seconds of timed runs for each model and setting, at most; 30 for each --scenario unless given.",
)
@option(
    "--precision",
    section=WHAT,
    type=Share(),
    default="1%",
    show_default=True,
    metavar="SHARE",
    help="Stop once every ratio is known that well.",
)
@option(
    "--allow-fallback",
    section=WHAT,
    is_flag=True,
    help="Where a provider cannot run a model, measure the CPU and say so.",
)
@option("--batch-sweep", section=SWEEPS, is_flag=True, help="Double the batch until throughput stops growing.")
@option("--threads-sweep", section=SWEEPS, is_flag=True, help="One thread, two, four, ... all cores.")
@option(
    "--length-sweep",
    "lengths",
    section=SWEEPS,
    type=Lengths(),
    multiple=True,
    metavar="AXIS=N,N,...",
    help="Sizes of an open dimension, by its name or as input:axis, as in sequence=64,128. Repeatable.",
)
@option(
    "--sweep-seconds",
    section=SWEEPS,
    type=click.FloatRange(min=0, min_open=True),
    default=120.0,
    show_default=True,
    help="How long the batch sweep of one model on one provider may take.",
)
@option("--profile", section=BESIDE, is_flag=True, help="Show where the time goes, by operator and node.")
@option(
    "--price-per-hour",
    section=BESIDE,
    type=click.FloatRange(min=0, min_open=True),
    metavar="PRICE",
    help="What the machine costs, for the price of a million inferences.",
)
@option(
    "--watts",
    section=BESIDE,
    type=click.FloatRange(min=0, min_open=True),
    metavar="W",
    help="What the machine draws, to estimate energy where no counter tells it.",
)
@load_options
@job_options
@source_options
@option("-v", "--verbose", section=OUTPUT, is_flag=True, help="Say more.")
@option("-q", "--quiet", section=OUTPUT, is_flag=True, help="Say nothing but warnings.")
@option(
    "--log-file",
    section=OUTPUT,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Append everything, with times, to this file.",
)
def command(
    models: tuple[str, ...],
    provider_names: tuple[str, ...],
    batches: tuple[int, ...],
    threads: tuple[int, ...],
    data: str | None,
    metric: str | None,
    slice_by: str | None,
    seconds: float,
    precision: float,
    allow_fallback: bool,
    batch_sweep: bool,
    threads_sweep: bool,
    lengths: tuple[tuple[str, tuple[int, ...]], ...],
    sweep_seconds: float,
    profile: bool,
    price_per_hour: float | None,
    watts: float | None,
    as_json: bool,
    verbose: bool,
    quiet: bool,
    log_file: Path | None,
    **given: Any,
) -> None:
    """Time each MODEL in a process of its own, taking turns; speed-ups are against the first one.

    A MODEL is whatever `lathe optimize` takes, or the folder of an artifact. What the options mean and how numbers are
    made: docs/benchmarking.md.
    """
    from optimizer.cli.watching import watching
    from optimizer.measure.scaling import Sweeps
    from optimizer.plan import Settings

    loads, jobs = ({name: given.pop(name) for name in names} for names in (LOAD_NAMES, JOB_NAMES))
    asked = {"provider_names": provider_names, "batches": batches, "threads": threads, "data": data,
             "metric": metric, "seconds": seconds, "as_json": as_json}  # fmt: skip
    sweeps = Sweeps(batch_sweep, threads_sweep, dict(lengths), sweep_seconds)
    if (sweeps or allow_fallback) and (loads["scenario"] or any(jobs.values())):
        raise usage("sweeps and --allow-fallback go with plain timing", hint="Leave out the scenario, or the job")
    if jobs["import_result"]:
        read_results(models, jobs | loads | asked)
        return
    settings = Settings(source_request(next(iter(models), None), given))
    with watching(verbose=verbose, quiet=quiet, log_file=log_file) as watch:
        if jobs["export_job"] or jobs["job"]:
            write_job(models, jobs | loads | asked, settings, watch)
            return
        loaded = run_loads(models, loads | asked, settings, watch)
    if loaded is not None:
        show_loads(loaded, as_json=as_json)
        return
    with watching(verbose=verbose, quiet=quiet, log_file=log_file) as watch:
        report = api().benchmark(
            list(models),
            provider_names=provider_names,
            batches=batches,
            threads=threads,
            data=data,
            metric=metric,
            seconds=seconds,
            precision=precision,
            allow_fallback=allow_fallback,
            sweeps=sweeps,
            profile=profile,
            price_per_hour=price_per_hour,
            watts=watts,
            slice_by=slice_by,
            settings=settings,
            watch=watch,
        )
    _show(report, as_json, profile)
    if not any(row.latency for row in report.rows):
        click.get_current_context().exit(int(Exit.UNDECIDED))


def _show(report: BenchmarkReport, as_json: bool, profiled: bool) -> None:
    if as_json:
        from optimizer.report.json_ import dump

        emit(dump(report, "lathe.benchmark/1"))
        return
    from optimizer.report.benchmark import benchmark
    from optimizer.report.costs import beside
    from optimizer.report.paired import paired

    show(benchmark(report.rows, report.noise, report.sweeps))
    show(beside(report.rows, profiled=profiled))
    if report.paired:
        show(paired(report.paired))
    for warning in report.warnings:
        click.echo(f"warning: {warning}", err=True)
