"""``lathe benchmark``: models side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from optimizer.cli.boundary import emit
from optimizer.cli.common import OUTPUT, Provider, api, option, show, source_options, source_request, verb
from optimizer.cli.jobs import NAMES as JOB_NAMES
from optimizer.cli.jobs import job_options, read_results, write_job
from optimizer.cli.loads import NAMES as LOAD_NAMES
from optimizer.cli.loads import load_options, run_loads, show_loads
from optimizer.faults import Exit

WHAT = "What to measure"
BESIDE = "What to tell beside speed"
POSITIVE = click.IntRange(min=1)


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
    metavar="NAME",
    help="Execution provider. Repeatable.",
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
    help="Seconds of timed runs for each model and setting; 30 for each --scenario unless given.",
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

    A MODEL is whatever `lathe optimize` takes, or the folder of an artifact.
    """
    from optimizer.cli.watching import watching
    from optimizer.plan import Settings

    loads, jobs = ({name: given.pop(name) for name in names} for names in (LOAD_NAMES, JOB_NAMES))
    asked = {"provider_names": provider_names, "batches": batches, "threads": threads, "data": data,
             "metric": metric, "seconds": seconds, "as_json": as_json}  # fmt: skip
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
            profile=profile,
            price_per_hour=price_per_hour,
            watts=watts,
            slice_by=slice_by,
            settings=settings,
            watch=watch,
        )
    if as_json:
        from optimizer.report.json_ import dump

        emit(dump(report, "lathe.benchmark/1"))
    else:
        from optimizer.report.costs import beside
        from optimizer.report.paired import paired
        from optimizer.report.tables import benchmark

        show(benchmark(report.rows))
        show(beside(report.rows, profiled=profile))
        if report.paired:
            show(paired(report.paired))
        for warning in report.warnings:
            click.echo(f"warning: {warning}", err=True)
    if not any(row.latency for row in report.rows):
        click.get_current_context().exit(int(Exit.UNDECIDED))
