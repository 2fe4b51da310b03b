"""``lathe doctor``: what this machine can run."""

from __future__ import annotations

import click

from optimizer.cli.boundary import emit
from optimizer.cli.common import api, show, verb
from optimizer.faults import Exit


@verb("doctor", short_help="Say what this machine can run.")
def command(as_json: bool) -> None:
    """Show CPU, memory, packages, providers and the target that fits, and how to mend what is missing.

    Exit code 4 when something that Lathe needs is not there.
    """
    found = api().doctor()
    if as_json:
        from optimizer.report.json_ import dump

        emit(dump(found, "lathe.doctor/1"))
    else:
        from optimizer.report.tables import doctor

        show(doctor(found))
    if found.problems:
        click.get_current_context().exit(int(Exit.UNDECIDED))
