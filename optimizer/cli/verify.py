"""``lathe verify``: the receiver's check."""

from __future__ import annotations

from pathlib import Path

import click

from optimizer.cli.boundary import emit
from optimizer.cli.common import api, option, show, verb
from optimizer.faults import Exit


@verb("verify", short_help="Check an artifact.")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@option("--latency", section="What to check", is_flag=True, help="Also measure how fast it is on this machine.")
@option(
    "--custom-ops",
    section="What to check",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    multiple=True,
    help="Library of custom operators that the artifact needs; its code runs in the workers. Repeatable.",
)
@option("--require-signature", section="Signature", is_flag=True, help="An unsigned artifact does not hold.")
@option(
    "--key",
    section="Signature",
    type=click.Path(path_type=Path),
    metavar="PEM",
    help="Public key it must be signed with.",
)
@option(
    "--certificate",
    "roots",
    section="Signature",
    type=click.Path(path_type=Path),
    metavar="PEM",
    multiple=True,
    help="Authority that the signer's certificate must come from. Repeatable.",
)
def command(
    folder: Path,
    latency: bool,
    custom_ops: tuple[Path, ...],
    require_signature: bool,
    key: Path | None,
    roots: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Check the artifact in DIR: every file's digest, its signature, that it loads in a fresh process, and its golden
    pairs. The script verify.py in the artifact makes the same checks without Lathe.

    Exit code 1 when something is not as it was shipped.
    """
    from optimizer.package.receiver.words import Trust

    trust = Trust(require_signature, key, roots)
    report = api().verify(folder, latency=latency, custom_ops=custom_ops, trust=trust)
    if as_json:
        from optimizer.report.json_ import dump

        emit(dump(report, "lathe.verify/1"))
    else:
        from optimizer.report.tables import checked

        show(checked(report))
    if not report.ok:
        click.get_current_context().exit(int(Exit.DOES_NOT_HOLD))
