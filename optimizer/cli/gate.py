"""``lathe gate``: yes, no, or not decided yet, for CI."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from optimizer.cli.boundary import emit
from optimizer.cli.common import OUTPUT, api, option, show, verb
from optimizer.faults import Exit, usage

if TYPE_CHECKING:
    from optimizer.plan import Settings
    from optimizer.records import GateRecord

WHAT = "What to hold it to"
REPORTS = "Reports"
FILE = click.Path(path_type=Path, dir_okay=False)
EXITS = {"pass": Exit.DONE, "fail": Exit.DOES_NOT_HOLD, "undecided": Exit.UNDECIDED}


@verb("gate", short_help="Hold an artifact to a policy.")
@click.argument("artifact", metavar="ARTIFACT")
@option(
    "--policy", section=WHAT, type=FILE, default=Path("gate.toml"), show_default=True, metavar="FILE",
    help="Rules, in TOML.",
)  # fmt: skip
@option(
    "--baseline", section=WHAT, metavar="ARTIFACT|FILE.json",
    help="What to compare with: an artifact or model, measured now, or a results file.",
)  # fmt: skip
@option("--data", section=WHAT, metavar="SOURCE", help="Samples for quality and timing; default: the policy's.")
@option(
    "--seconds", section=WHAT, type=click.FloatRange(min=0, min_open=True), default=12.0, show_default=True,
    help="Seconds of timing, at most; it stops as soon as the answer is clear.",
)  # fmt: skip
@option("--seed", section=WHAT, type=click.IntRange(min=0), default=0, show_default=True, help="Seed of resampling.")
@option("--init", section=WHAT, is_flag=True, help="Write a commented policy that ARTIFACT holds today, and stop.")
@option("--overwrite", section=WHAT, is_flag=True, help="With --init: replace the policy that is there.")
@option("--junit", section=REPORTS, type=FILE, metavar="FILE", help="Write JUnit XML, one test case a rule.")
@option(
    "--sarif", section=REPORTS, type=FILE, metavar="FILE", help="Write SARIF 2.1.0, with the nodes that break a rule."
)
@option(
    "--summary", section=REPORTS, type=FILE, metavar="FILE", help="Write Markdown; GITHUB_STEP_SUMMARY gets it too."
)
@option(
    "--write-baseline", section=REPORTS, type=FILE, metavar="FILE.json",
    help="Write this artifact's results, to commit and to compare later ones with. Not when it fails.",
)  # fmt: skip
@option("--cache-dir", section=OUTPUT, type=click.Path(path_type=Path), metavar="DIR", help="Cache folder.")
@option("-v", "--verbose", section=OUTPUT, is_flag=True, help="Say more.")
@option("-q", "--quiet", section=OUTPUT, is_flag=True, help="Say nothing but warnings.")
@option("--log-file", section=OUTPUT, type=click.Path(path_type=Path), metavar="FILE", help="Append everything to it.")
def command(
    artifact: str,
    policy: Path,
    baseline: str | None,
    data: str | None,
    seconds: float,
    seed: int,
    init: bool,
    overwrite: bool,
    junit: Path | None,
    sarif: Path | None,
    summary: Path | None,
    write_baseline: Path | None,
    cache_dir: Path | None,
    as_json: bool,
    verbose: bool,
    quiet: bool,
    log_file: Path | None,
) -> None:
    """Hold ARTIFACT to the rules of a policy, always strictly.

    Exit code 0 when every rule holds, 1 when one does not, 4 when one is undecided: the report says how many samples
    or minutes would decide it.
    """
    from optimizer.cli.watching import watching
    from optimizer.plan import Settings, SourceRequest

    _check_places(junit, sarif, summary, write_baseline)
    settings = Settings(SourceRequest(artifact, folder=Path.cwd()), seed=seed)
    if cache_dir is not None:
        settings = settings.but(cache_dir=cache_dir)
    with watching(verbose=verbose, quiet=quiet, log_file=log_file) as watch:
        if init:
            _init(artifact, policy, overwrite, settings, as_json)
            return
        gated = api().gate(
            artifact, policy, baseline=baseline, data=data, seconds=seconds, settings=settings, watch=watch,
            recording=write_baseline is not None,
        )  # fmt: skip
        record = gated.record
        if write_baseline is not None and gated.results is None:
            watch.warn(f"{write_baseline} was not written: the gate failed")
    _report(record, junit, sarif, summary)
    if write_baseline is not None and gated.results is not None:
        _put(write_baseline, gated.results.text())
    if as_json:
        from optimizer.report.json_ import dump

        emit(dump(record))
    else:
        from optimizer.report.gate import console

        show(console(record))
    click.get_current_context().exit(int(EXITS[record.ruling.value]))


def _check_places(junit: Path | None, sarif: Path | None, summary: Path | None, baseline: Path | None) -> None:
    """Refuse before anything is measured what could not be written afterwards."""
    from optimizer.package.artifact import check_parent
    from optimizer.package.baseline import SUFFIX

    for path in (junit, sarif, summary, baseline):
        if path is not None:
            check_parent(path)
            if not path.absolute().parent.is_dir():
                raise usage("there is no such folder", where=str(path.parent))
    if baseline is not None and baseline.suffix != SUFFIX:
        raise usage(f"a results file ends in {SUFFIX}: --baseline knows it by that", where=str(baseline))


def _init(artifact: str, policy: Path, overwrite: bool, settings: Settings, as_json: bool) -> None:
    if policy.exists() and not overwrite:
        raise usage("the policy exists already", where=str(policy), hint="Name another --policy or add --overwrite.")
    text = api().gate_policy(artifact, settings=settings)
    _put(policy, text)
    if as_json:
        from optimizer.report.json_ import dump

        emit(dump({"schema": "lathe.gate/1", "policy": str(policy)}))
    else:
        click.echo(f"wrote {policy}: loosen or tighten it, then 'lathe gate {artifact} --policy {policy}'", err=True)


def _report(record: GateRecord, junit: Path | None, sarif: Path | None, summary: Path | None) -> None:
    """Every file asked for; on GitHub also the step summary and annotations (on stderr, which the runner reads too)."""
    from optimizer.report import gate as text
    from optimizer.report.junit import junit as junit_text
    from optimizer.report.sarif import sarif as sarif_text

    for path, write in ((junit, junit_text), (sarif, sarif_text), (summary, text.summary)):
        if path is not None:
            _put(path, write(record))
    if step := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(step).open("a", encoding="utf-8", errors="replace") as stream:
            stream.write(text.summary(record))
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for annotation in text.workflow_commands(record):
            click.echo(annotation, err=True)


def _put(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    from optimizer.package.artifact import disk_fault

    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, "utf-8", errors="replace")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise disk_fault(error, path) from error
