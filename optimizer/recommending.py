"""Whether what ships runs faster on another provider of this machine: advice, with the interval it rests on."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from optimizer.faults import Fault
from optimizer.measure.bench import SEED, Entrant, Place, open_lane, take_turns
from optimizer.measure.latency import quick, speedup
from optimizer.runtime import providers
from optimizer.ship import Choice, output_folder
from optimizer.workshop import Bench, choose_site


def faster_elsewhere(bench: Bench, choice: Choice) -> Iterator[str]:
    """One sentence for each other provider that runs the chosen model faster, clear of the interval.

    Nothing when ``--target`` names another site, and for providers that cannot run the model.
    """
    others = [p for p in providers.everywhere() if p not in (bench.site.provider, *providers.REMOTE)]
    if not others or bench.settings.target is not None or bench.site.custom_ops:
        return
    model = choice.candidate.model if choice.candidate else bench.source.model
    samples = bench.splits.select if bench.splits is not None else bench.bare
    entrant = Entrant(bench.source.name, bench.store.put_model(model), 0, samples)
    sites = [bench.site, *(choose_site(name, bench.settings.threads) for name in others)]
    lanes = [open_lane(entrant, Place(s.provider, s.threads, s), bench.settings.batch, bench.feed) for s in sites]
    own, rest = lanes[0], [lane for lane in lanes[1:] if lane.site is not None]
    if own.site is None or not rest:
        return
    try:
        mine, *theirs = take_turns([own, *rest], quick(bench.settings.seconds))
    except Fault:
        return
    for lane, timing in zip(rest, theirs, strict=True):
        found = speedup(mine, timing, SEED)
        if found.low > 1:
            names = " ".join(
                f"--provider {providers.short_name(n)}" for n in (bench.site.provider, lane.place.provider)
            )
            folder = shlex.quote(output_folder(bench).name)  # evidence names no folders of this machine
            yield (
                f"here {lane.place.provider} runs this model {found.value:.2f}x [{found.low:.2f}, {found.high:.2f}] as "
                f"fast; look at its quality there: lathe benchmark {folder} {names} --data SOURCE"
            )
