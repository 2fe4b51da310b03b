"""``lathe optimize``: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from optimizer.cli.boundary import emit
from optimizer.cli.common import (
    CONFIG_KEY,
    OUTPUT,
    Provider,
    Word,
    api,
    key_of,
    option,
    show,
    source_options,
    source_request,
    verb,
)
from optimizer.faults import Exit
from optimizer.plan import GOALS, GOLDEN, RECOVERIES, DataRequest, Settings, default_cache_dir
from optimizer.records import Confidence, Judgement, Outcome, Record

DATA = "Data and quality"
EDGES = "Before and after the network"
SEARCH = "What to try"
SITE = "Where it will run"
FILE = click.Path(path_type=Path)
POSITIVE = click.IntRange(min=1)


@verb("optimize", short_help="Turn a model into a faster one.")
@click.argument("model", required=False)
@option(
    "--data",
    section=DATA,
    metavar="SOURCE",
    help="Samples (.npz, folder, or module:reader), split into calibrate, select and confirm.",
)
@option("--calibrate", section=DATA, metavar="SOURCE", help="Samples that ranges are taken from.")
@option("--select", section=DATA, metavar="SOURCE", help="Samples that recipes are judged on.")
@option("--confirm", section=DATA, metavar="SOURCE", help="Samples that the choice is proven on.")
@option(
    "--metric", section=DATA, metavar="NAME", help="Metric, or module:function; default: what fits outputs and labels."
)
@option(
    "--evaluator",
    section=DATA,
    metavar="MODULE:FUNCTION",
    help="A whole evaluation of your own, given a function that runs the model.",
)
@option(
    "--budget",
    section=DATA,
    metavar="LIMIT",
    multiple=True,
    help="What must hold: top1.drop<=0.5%, latency<=8ms, size<=4MB, or none. Repeatable.",
)
@option(
    "--preprocess",
    section=EDGES,
    metavar="STEPS",
    help="Put these before the network, so that it takes pixels, and read image folders by them: "
    "resize=256, center-crop=224, normalize=imagenet.",
)
@option(
    "--postprocess",
    section=EDGES,
    metavar="STEPS",
    help="Put these after the network: softmax, argmax, topk=5 or nms{iou=0.5, score=0.25}.",
)
@option(
    "--allow-random-data",
    section=DATA,
    is_flag=True,
    help="Without data, let random inputs stand in; the result is marked unproven.",
)
@option(
    "-O",
    "--level",
    section=SEARCH,
    type=click.IntRange(0, 3),
    default=2,
    show_default=True,
    metavar="0..3",
    help="-O0 export and verify, -O1 lossless, -O2 ladder of recipes, -O3 search.",
)
@option(
    "--recipe",
    section=SEARCH,
    metavar="TEXT|FILE",
    once=True,
    help="Try this recipe: passes with options, or a .toml file.",
)
@option(
    "--pass",
    "passes",
    section=SEARCH,
    metavar="MODULE:CLASS",
    multiple=True,
    help="A pass of your own, for use in --recipe. Repeatable.",
)
@option(
    "--goal",
    section=SEARCH,
    type=Word("goal", GOALS),
    default="latency",
    show_default=True,
    help="What to make better.",
)
@option(
    "--time-limit",
    section=SEARCH,
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Try nothing new after this long.",
)
@option(
    "--recover",
    section=SEARCH,
    type=Word("recovery", RECOVERIES),
    default="none",
    show_default=True,
    help="distill: train what was pruned or quantized to do what MODEL does, on unlabelled samples.",
)
@option("--steps", section=SEARCH, type=POSITIVE, metavar="N", help="Steps of training; default: 600.")
@option(
    "--minutes",
    section=SEARCH,
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    help="Train as many steps as fit into N minutes.",
)
@option(
    "--student",
    section=SEARCH,
    metavar="MODULE:FACTORY",
    help="A smaller PyTorch module with the same inputs and outputs, to be distilled in place of pruning.",
)
@option(
    "--seed",
    section=SEARCH,
    type=click.IntRange(min=0),
    metavar="N",
    default=0,
    show_default=True,
    help="Seed of everything drawn at random.",
)
@option(
    "--strict", section=SEARCH, is_flag=True, help="Ship nothing undecided: the lossless model instead, exit code 4."
)
@option(
    "--provider",
    section=SITE,
    type=Provider(),
    default="cpu",
    show_default=True,
    metavar="NAME",
    help="Execution provider, as in cpu, cuda or its full name.",
)
@option(
    "--target", section=SITE, metavar="NAME|FILE", help="Deployment site by name or .toml file; default: this machine."
)
@option(
    "--runtime",
    section=SITE,
    metavar="ONNXRUNTIME==X.Y",
    help="Oldest onnxruntime that must be able to load the result.",
)
@option(
    "--batch",
    section=SITE,
    type=POSITIVE,
    metavar="N",
    default=1,
    show_default=True,
    help="Batch size that speed is measured at.",
)
@option(
    "--threads",
    section=SITE,
    type=POSITIVE,
    metavar="N",
    default=1,
    show_default=True,
    help="Threads that speed is measured with.",
)
@option(
    "--seconds",
    section=SITE,
    type=click.FloatRange(min=0, min_open=True),
    default=3.0,
    show_default=True,
    help="Seconds of timed runs for the model that ships; a third of it while searching.",
)
@option(
    "--custom-ops",
    section=SITE,
    type=FILE,
    metavar="FILE",
    multiple=True,
    help="Library of custom operators that the model needs; its code runs in the workers. Repeatable.",
)
@source_options
@option(
    "-o", "--output", section=OUTPUT, type=FILE, metavar="DIR", help="Where the artifact goes; default: ./NAME.lathe."
)
@option("--overwrite", section=OUTPUT, is_flag=True, help="Replace an artifact that is there.")
@option(
    "--golden",
    section=OUTPUT,
    type=Word("kind", GOLDEN),
    default="synthetic",
    show_default=True,
    help="What the golden pairs in the artifact are made of.",
)
@option(
    "--watch/--no-watch",
    "watched",
    section=OUTPUT,
    default=True,
    show_default=True,
    help="Let the artifact remember what its data looks like, for lathe check-data.",
)
@option(
    "--license", section=OUTPUT, metavar="TEXT", help="Licence of the result (an SPDX expression), for the manifest."
)
@option(
    "--cache-dir",
    section=OUTPUT,
    type=FILE,
    metavar="DIR",
    help="Cache folder; default: LATHE_CACHE_DIR, else the user's.",
)
@option(
    "--dry-run", section=OUTPUT, is_flag=True, help="Show the plan with estimates of time, disk and memory; do nothing."
)
@option("--print-config", section=OUTPUT, is_flag=True, help="Show which settings hold and where each comes from.")
@option("-v", "--verbose", section=OUTPUT, is_flag=True, help="Say more.")
@option("-q", "--quiet", section=OUTPUT, is_flag=True, help="Say nothing but warnings.")
@option("--log-file", section=OUTPUT, type=FILE, metavar="FILE", help="Append everything, with times, to this file.")
def command(
    model: str | None,
    as_json: bool,
    verbose: bool,
    quiet: bool,
    log_file: Path | None,
    print_config: bool,
    **given: Any,
) -> None:
    """Turn MODEL into an artifact that is faster, is shown to keep its quality, and carries the evidence.

    MODEL is a .onnx file, package.module:factory (a PyTorch module or a function that returns one), or sample:NAME.
    The report goes to stderr, the path of the artifact to stdout.
    """
    ctx = click.get_current_context()
    if print_config:
        emit(_config_json(ctx) if as_json else _config_text(ctx))
        return
    settings = _settings(model, given)
    if settings.dry_run:
        _dry_run(settings, as_json)
        return
    from optimizer.cli.watching import watching

    with watching(verbose=verbose, quiet=quiet, log_file=log_file) as watch:
        record: Record = api().compile_settings(settings, watch)
        for text in record.warnings if quiet else ():
            if text not in watch.warned:
                watch.warn(text)
    _tell(record, as_json, quiet)
    ctx.exit(exit_code(record, strict=settings.strict))


def exit_code(record: Record, *, strict: bool) -> int:
    """0 when something ships; 1 when a limit cannot be met; with ``--strict`` 4 when it could not be decided."""
    if record.outcome is Outcome.NONE:
        return int(Exit.DOES_NOT_HOLD)
    doubts = [record.confirm, *(s.verdict for s in record.steps)]
    open_question = record.confidence is Confidence.UNDECIDED or any(
        v is not None and v.judgement is Judgement.UNDECIDED for v in doubts
    )
    settled = record.outcome is Outcome.OPTIMIZED and record.confidence is Confidence.PROVEN
    return int(Exit.UNDECIDED if strict and open_question and not settled else Exit.DONE)


def _settings(model: str | None, given: dict[str, Any]) -> Settings:
    source = source_request(model, given)
    data = DataRequest(**{n: given.pop(n) for n in ("data", "calibrate", "select", "confirm")})
    cache_dir = given.pop("cache_dir") or default_cache_dir()
    return Settings(source=source, data=data, cache_dir=cache_dir, **given)


def _dry_run(settings: Settings, as_json: bool) -> None:
    from optimizer.report.json_ import dump

    plan = api().plan(settings)
    emit(dump(plan, "lathe.plan/1") if as_json else "\n".join(plan.lines()))


def _tell(record: Record, as_json: bool, quiet: bool) -> None:
    if as_json:
        from optimizer.report.json_ import dump

        emit(dump(record))
        return
    if quiet and record.error:
        click.echo(f"error: {record.error['message']}. {record.error['hint']}", err=True)
    if not quiet:
        from optimizer.report.console import closing

        click.echo(err=True)
        show(closing(record), to_stderr=True)
    if record.artifact:
        emit(record.artifact)


def _held(ctx: click.Context) -> dict[str, tuple[Any, str]]:
    """Every setting with its value and where that comes from."""
    places = {"COMMANDLINE": "flag", "ENVIRONMENT": "environment", "DEFAULT_MAP": ctx.meta.get(CONFIG_KEY, "settings")}
    found = {}
    for param in ctx.command.params:
        name = str(param.name)
        if key_of(param) in ("print-config", "debug"):
            continue
        source = ctx.get_parameter_source(name)
        found[key_of(param)] = (ctx.params.get(name), places.get(source.name if source else "", "default"))
    return found


def _config_text(ctx: click.Context) -> str:
    from optimizer.report.pages import spell_toml

    held = _held(ctx)
    lines = {k: f"{k} = {spell_toml(value)}" for k, (value, _) in held.items() if value is not None}
    width = min(60, max(map(len, lines.values())))
    return "\n".join(f"{lines[k]:<{width}}  # {held[k][1]}" if k in lines else f"# {k} is not set" for k in held)


def _config_json(ctx: click.Context) -> str:
    from optimizer.report.json_ import dump

    settings = {k: {"value": v, "from": where} for k, (v, where) in _held(ctx).items()}
    return dump({"schema": "lathe.config/1", "settings": settings})
