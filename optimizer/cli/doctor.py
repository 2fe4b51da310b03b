"""``lathe doctor``: what this machine can run."""

from __future__ import annotations

from pathlib import Path

import click

from optimizer.cli.boundary import emit
from optimizer.cli.common import OUTPUT, api, option, show, verb
from optimizer.faults import Exit


@verb("doctor", short_help="Say what this machine can run.")
@option(
    "--measure",
    section="What to find out",
    is_flag=True,
    help="Measure what it can do at most (half a minute), for benchmarks and reports to say what bounds a model.",
)
@option(
    "--cache-dir",
    section=OUTPUT,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Cache folder, where the answer is kept; default: LATHE_CACHE_DIR, else the user's.",
)
def command(measure: bool, cache_dir: Path | None, as_json: bool) -> None:
    """Show CPU, memory, packages, providers and the target that fits, and how to mend what is missing.

    Exit code 4 when something that Lathe needs is not there.
    """
    from optimizer.cli.watching import watching

    with watching(quiet=not measure) as watch:
        found = api().doctor(measure=measure, cache_dir=cache_dir, watch=watch)
    if as_json:
        from optimizer.report.json_ import dump

        emit(dump(found, "lathe.doctor/1"))
    else:
        from optimizer.report.tables import doctor

        show(doctor(found))
    if found.problems:
        click.get_current_context().exit(int(Exit.UNDECIDED))
