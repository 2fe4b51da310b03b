"""``lathe check-data``: does new data still look like the data that an artifact was made for?"""

from __future__ import annotations

from pathlib import Path

import click

from optimizer.cli.boundary import emit
from optimizer.cli.common import OUTPUT, Provider, api, option, show, verb
from optimizer.faults import Exit

WHAT = "What to hold it against"
EXITS = {"ok": Exit.DONE, "drift": Exit.DOES_NOT_HOLD, "undecided": Exit.UNDECIDED}


@verb("check-data", short_help="Hold new data against an artifact.")
@click.argument("data", metavar="NEW")
@option("--artifact", section=WHAT, required=True, metavar="DIR", help="The artifact that the data goes to.")
@option(
    "--alpha", section=WHAT, type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.01,
    show_default=True, metavar="SHARE", help="How often, at most, data that did not change is called drift.",
)  # fmt: skip
@option(
    "--inputs-only", section=WHAT, is_flag=True,
    help="Do not run the model: leave out what it makes of the data and whether quantization is hurt.",
)  # fmt: skip
@option(
    "--provider", section=WHAT, type=Provider(), default="cpu", show_default=True, metavar="NAME",
    help="Execution provider to run the model on.",
)  # fmt: skip
@option(
    "--custom-ops", section=WHAT, type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE",
    multiple=True, help="Library of custom operators that the artifact needs. Repeatable.",
)  # fmt: skip
@option("--cache-dir", section=OUTPUT, type=click.Path(path_type=Path), metavar="DIR", help="Cache folder.")
@option("-v", "--verbose", section=OUTPUT, is_flag=True, help="Say more.")
@option("-q", "--quiet", section=OUTPUT, is_flag=True, help="Say nothing but warnings.")
def command(
    data: str,
    artifact: str,
    alpha: float,
    inputs_only: bool,
    provider: str,
    custom_ops: tuple[Path, ...],
    cache_dir: Path | None,
    as_json: bool,
    verbose: bool,
    quiet: bool,
) -> None:
    """Hold the samples in NEW (.npz, folder, or module:reader) against what the artifact in DIR remembers of its own.

    Exit code 0 when the data looks the same, 1 when it drifted, 4 when that is undecided: the answer says how many
    samples would decide it.
    """
    from optimizer.cli.watching import watching
    from optimizer.plan import DataRequest, Settings, SourceRequest, default_cache_dir

    settings = Settings(
        SourceRequest(artifact, folder=Path.cwd()),
        DataRequest(data),
        provider=provider,
        custom_ops=custom_ops,
        cache_dir=cache_dir or default_cache_dir(),
    )
    with watching(verbose=verbose, quiet=quiet) as watch:
        record = api().check_data_settings(settings, watch, alpha=alpha, inputs_only=inputs_only)
    if as_json:
        from optimizer.report.json_ import dump

        emit(dump(record))
    else:
        from optimizer.report.drift import checked

        show(checked(record))
    click.get_current_context().exit(int(EXITS[record.verdict.value]))
