"""``lathe cache``: what is kept between compiles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from optimizer.cli.boundary import emit, unknown
from optimizer.cli.common import Bytes, api, option, show, verb
from optimizer.plan import default_cache_dir

F = TypeVar("F", bound=Callable[..., Any])


class Actions(click.Group):
    """The actions of a verb, with the closest one offered."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            raise click.UsageError(unknown("action", args[0], self.commands), ctx)
        return super().resolve_command(ctx, args)


@click.group("cache", cls=Actions, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def command() -> None:
    """What Lathe keeps between compiles: graphs, weights, answers. Removing it loses time, never results."""


def cache_dir(function: F) -> F:
    """The option that names the folder."""
    text = "Cache folder; default: LATHE_CACHE_DIR, else the user's."
    return option("--cache-dir", section="Options", type=click.Path(path_type=Path), metavar="DIR", help=text)(function)


@verb("list")
@cache_dir
def list_(cache_dir: Path | None, as_json: bool) -> None:
    """Show how much of what is kept."""
    folder = cache_dir or default_cache_dir()
    entries = api().cache_entries(folder)
    if as_json:
        from optimizer.report.json_ import dump

        emit(dump({"schema": "lathe.cache/1", "path": folder, "entries": entries}))
    else:
        from optimizer.report.tables import cache

        show(cache(entries, str(folder)))


@verb("prune")
@cache_dir
@option(
    "--max-size",
    section="Options",
    type=Bytes(),
    default="10GB",
    show_default=True,
    metavar="SIZE",
    help="Keep at most this much, the most recently used; 0 empties it.",
)
def prune(cache_dir: Path | None, max_size: int, as_json: bool) -> None:
    """Remove what was not used for longest until the rest fits."""
    folder = cache_dir or default_cache_dir()
    freed = int(api().cache_prune(folder, max_size))
    if as_json:
        from optimizer.report.json_ import dump

        emit(dump({"schema": "lathe.cache/1", "path": folder, "freed_bytes": freed}))
    else:
        from optimizer.report.words import size

        emit(f"freed {size(freed)} in {folder}")


@verb("path")
@cache_dir
def path(cache_dir: Path | None, as_json: bool) -> None:
    """Print where the cache is."""
    folder = cache_dir or default_cache_dir()
    if as_json:
        from optimizer.report.json_ import dump

        emit(dump({"schema": "lathe.cache/1", "path": folder}))
    else:
        emit(str(folder))


for action in (list_, prune, path):
    command.add_command(action)
