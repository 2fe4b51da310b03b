"""``lathe replay``: an artifact made again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from optimizer.cli.boundary import emit
from optimizer.cli.common import OUTPUT, api, option, show, verb
from optimizer.faults import Exit
from optimizer.plan import DataRequest, Settings, SourceRequest, default_cache_dir

FROM = "What it was made from"
FILE = click.Path(path_type=Path)


@verb("replay", short_help="Make an artifact again and compare.")
@click.argument("folder", metavar="DIR", type=FILE)
@option(
    "--model", section=FROM, metavar="MODEL", help="The source; default: the name in the manifest, looked for here."
)
@option("--data", section=FROM, metavar="SOURCE", help="The samples, as at the making.")
@option("--calibrate", section=FROM, metavar="SOURCE", help="Samples that ranges were taken from.")
@option("--select", section=FROM, metavar="SOURCE", help="Samples that recipes were judged on.")
@option("--confirm", section=FROM, metavar="SOURCE", help="Samples that the choice was proven on.")
@option("--weights", section=FROM, type=FILE, metavar="FILE", help="State dict for what the factory returns.")
@option("--pass", "passes", section=FROM, metavar="MODULE:CLASS", multiple=True, help="A pass of your own. Repeatable.")
@option(
    "--custom-ops",
    section=FROM,
    type=FILE,
    metavar="FILE",
    multiple=True,
    help="Library of custom operators that the model needs; its code runs in the workers. Repeatable.",
)
@option(
    "--trust-code",
    section=FROM,
    is_flag=True,
    help="Open .pt2, TorchScript and pickled modules, which run code inside them.",
)
@option("-o", "--output", section=OUTPUT, type=FILE, metavar="DIR", help="Keep what was made in this new folder.")
@option(
    "--cache-dir",
    section=OUTPUT,
    type=FILE,
    metavar="DIR",
    help="Cache folder; default: LATHE_CACHE_DIR, else the user's.",
)
def command(folder: Path, output: Path | None, as_json: bool, **given: Any) -> None:
    """Make the artifact in DIR again from its manifest, and compare every file by its digest.

    Exit code 0 when all come out, 1 when some do not, 4 when the model or the data is not here: the digest that is
    needed is named.
    """
    data = DataRequest(**{n: given.pop(n) for n in ("data", "calibrate", "select", "confirm")})
    source = SourceRequest(given.pop("model") or "", weights=given.pop("weights"), trust_code=given.pop("trust_code"))
    settings = Settings(source, data, cache_dir=given.pop("cache_dir") or default_cache_dir(), **given)
    from optimizer.cli.watching import watching

    with watching(verbose=False, quiet=True, log_file=None) as watch:
        found = api().replay(folder, settings=settings, output=output, watch=watch)
    if as_json:
        from optimizer.report.json_ import dump

        emit(dump(found, "lathe.replay/1"))
    else:
        from optimizer.report.tables import replayed

        show(replayed(found))
    if not found.ok:
        click.get_current_context().exit(int(Exit.DOES_NOT_HOLD))
