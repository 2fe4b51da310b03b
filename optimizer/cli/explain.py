"""``lathe explain``: where a quantized model loses quality and time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from optimizer.cli.boundary import emit
from optimizer.cli.common import OUTPUT, Provider, api, option, show, source_options, source_request, verb
from optimizer.plan import DataRequest, Settings, default_cache_dir

WHAT = "What to compare"
SITE = "Where it runs"


@verb("explain", short_help="Say what quantization costs, layer by layer.")
@click.argument("model", metavar="DIR|MODEL")
@option("--data", section=WHAT, metavar="SOURCE", help="Real samples (.npz, folder, or module:reader).")
@option(
    "--against",
    section=WHAT,
    metavar="MODEL",
    help="The float model that it was made of; default: its float twin, made from the model itself.",
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
@option("--target", section=SITE, metavar="NAME|FILE", help="Deployment site; default: this machine.")
@option(
    "--threads", section=SITE, type=click.IntRange(min=1), metavar="N", default=1, show_default=True, help="Threads."
)
@option("--all", "everything", section=OUTPUT, is_flag=True, help="Show every layer, not only the worst.")
@option(
    "--cache-dir",
    section=OUTPUT,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Cache folder; default: LATHE_CACHE_DIR, else the user's.",
)
@source_options
def command(
    model: str,
    data: str | None,
    against: str | None,
    provider: str,
    target: str | None,
    threads: int,
    everything: bool,
    cache_dir: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Say where a quantized model loses quality and time, why layers are float, and what to try next.

    DIR is an artifact. A quantized MODEL is compared with its source (--against), else with its float twin; a float one
    is explained as plain int8 would make it.
    """
    settings = Settings(
        source=source_request(model, given),
        data=DataRequest(data),
        provider=provider,
        target=target,
        threads=threads,
        cache_dir=cache_dir or default_cache_dir(),
    )
    found = api().explain(model, against=against, settings=settings)
    if as_json:
        from optimizer.report.json_ import dump

        emit(dump(found, "lathe.explanation/1"))
    else:
        from optimizer.report.explain import explanation

        show(explanation(found, everything=everything))
