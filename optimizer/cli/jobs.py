"""The options of ``lathe benchmark`` that measure on another machine, and what they come to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from optimizer.cli.boundary import emit
from optimizer.cli.common import api, option, show
from optimizer.faults import Exit, usage

if TYPE_CHECKING:
    from collections.abc import Callable

    from optimizer.plan import Settings
    from optimizer.progress import Watcher

F = TypeVar("F", bound="Callable[..., Any]")

ELSEWHERE = "On another machine"
NAMES = ("export_job", "import_result", "job")
FILE = click.Path(path_type=Path, dir_okay=False)


def job_options(function: F) -> F:
    """The options; :data:`NAMES` are their parameters."""
    for add in reversed(
        (
            option(
                "--export-job", section=ELSEWHERE, type=FILE, metavar="FILE.zip",
                help="Write models, inputs and a runner that needs only numpy and onnxruntime: python FILE.zip.",
            ),
            option(
                "--import-result", section=ELSEWHERE, type=FILE, multiple=True, metavar="FILE.json",
                help="Read what the runner wrote there. Repeatable; machines are never compared.",
            ),
            option(
                "--job", section=ELSEWHERE, type=FILE, metavar="FILE.zip",
                help="With --import-result: the job that the result must belong to.",
            ),
        )
    ):  # fmt: skip
        function = add(function)
    return function


def write_job(models: tuple[str, ...], given: dict[str, Any], settings: Settings, watch: Watcher) -> None:
    """Write a job. Raises a usage Fault for options that do not go together."""
    _times_only(given)
    if not given["export_job"]:
        raise usage("--job goes with --import-result", hint="--export-job writes a job")
    if given["metric"]:
        raise usage("a job measures no quality", hint="Leave out --metric; measure it here, where the labels are")
    place = given["export_job"]
    size = api().export_job(
        list(models), place, provider_names=given["provider_names"], batches=given["batches"],
        threads=given["threads"], data=given["data"], seconds=given["seconds"], settings=settings, watch=watch,
    )  # fmt: skip
    if given["as_json"]:
        from optimizer.report.json_ import dump

        emit(dump({"schema": "lathe.job/1", "job": str(place), "size_bytes": size}))
        return
    from optimizer.report.words import size as in_words

    click.echo(f"wrote {place} ({in_words(size)}): run 'python {place.name}' there, then "
               f"'lathe benchmark --import-result result.json --job {place}' here", err=True)  # fmt: skip


def read_results(models: tuple[str, ...], given: dict[str, Any]) -> None:
    """Read results and print them. Raises a usage Fault for options that do not go together."""
    _times_only(given)
    if models or given["export_job"]:
        hint = "Put the models into the job (--export-job) to have them measured there too"
        raise usage("latencies of two machines are not compared", hint=hint)
    found = api().import_results(given["import_result"], given["job"])
    if given["as_json"]:
        from optimizer.report.json_ import dump

        emit(dump(list(found), "lathe.imported/1"))
    else:
        from optimizer.report.tables import elsewhere

        show(elsewhere(found))
    if not any(row.latency for report in found for row in report.rows):
        click.get_current_context().exit(int(Exit.UNDECIDED))


def _times_only(given: dict[str, Any]) -> None:
    if given["scenario"]:
        raise usage("a job times single runs", hint="Leave out --scenario")
