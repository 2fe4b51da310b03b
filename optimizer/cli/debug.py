"""``lathe debug``: where two models part."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from optimizer.cli.boundary import emit
from optimizer.cli.cache import Actions
from optimizer.cli.common import OUTPUT, Provider, api, option, show, source_options, source_request, verb
from optimizer.faults import Exit
from optimizer.plan import Settings, default_cache_dir

F = TypeVar("F", bound=Callable[..., Any])

WHAT = "What to compare"


@click.group("debug", cls=Actions, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def command() -> None:
    """Compare two models that should compute the same, value by value.

    Exit code 0 when they agree, 1 when they do not.
    """


def pair_options(function: F) -> F:
    """Two models, what they are compared on, and where."""
    for add in (
        source_options,
        option(
            "--cache-dir",
            section=OUTPUT,
            type=click.Path(path_type=Path),
            metavar="DIR",
            help="Cache folder; default: LATHE_CACHE_DIR, else the user's.",
        ),
        option("--seed", section=WHAT, type=click.IntRange(min=0), default=0, metavar="N", help="Of made-up inputs."),
        option(
            "--provider",
            section=WHAT,
            type=Provider(),
            default="cpu",
            show_default=True,
            metavar="NAME",
            help="Execution provider, as in cpu, cuda or its full name.",
        ),
        option(
            "--tolerance",
            section=WHAT,
            type=click.FloatRange(min=0),
            default=1e-5,
            show_default=True,
            metavar="X",
            help="Largest difference, relative to the largest element of a value; 0 asks for equal bits.",
        ),
        option(
            "--data",
            section=WHAT,
            metavar="SOURCE",
            help="Real samples (.npz, folder, or module:reader); default: made-up and adversarial inputs.",
        ),
        click.argument("right", metavar="MODEL_B"),
        click.argument("left", metavar="MODEL_A"),
    ):
        function = add(function)
    return function


@verb("bisect")
@pair_options
def bisect(left: str, right: str, data: str | None, tolerance: float, as_json: bool, **given: Any) -> None:
    """Find the first value at which MODEL_B departs from MODEL_A. Values are matched by name."""
    _tell(api().bisect(left, right, data, tolerance=tolerance, settings=_settings(left, given)), as_json)


@verb("reduce")
@pair_options
@option(
    "-o",
    "--output",
    section=OUTPUT,
    type=click.Path(path_type=Path),
    default=Path("reduced"),
    show_default=True,
    metavar="DIR",
    help="Where the two small models, the inputs and the command that shows the difference go.",
)
@option("--overwrite", section=OUTPUT, is_flag=True, help="Replace an earlier result in DIR.")
def reduce(
    left: str,
    right: str,
    data: str | None,
    tolerance: float,
    output: Path,
    overwrite: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Cut the smallest pair out of MODEL_A and MODEL_B that shows how they differ."""
    settings = _settings(left, given)
    found = api().reduce(left, right, output, data, tolerance=tolerance, overwrite=overwrite, settings=settings)
    _tell(found, as_json)


def _settings(left: str, given: dict[str, Any]) -> Settings:
    request = source_request(left, given)
    cache_dir = given.pop("cache_dir") or default_cache_dir()
    return Settings(source=request, cache_dir=cache_dir, **given)


def _tell(found: Any, as_json: bool) -> None:
    if as_json:
        from optimizer.report.json_ import dump

        emit(dump(found, "lathe.debug/1"))
    else:
        from optimizer.report.tables import bisection

        show(bisection(found))
    if not found.agree:
        click.get_current_context().exit(int(Exit.DOES_NOT_HOLD))


for action in (bisect, reduce):
    command.add_command(action)
