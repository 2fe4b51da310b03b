"""Two models that should compute the same: where they part, and the smallest part that shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.faults import Fault, bad_input, usage
from optimizer.plan import Settings, SourceRequest
from optimizer.report.nouns import Bisection
from optimizer.runtime import hardware
from optimizer.runtime.answers import World
from optimizer.source.open import Source
from optimizer.store.store import Store, key_of
from optimizer.verify import reproduce
from optimizer.verify.adversaries import Kind, Probe, adversaries
from optimizer.verify.reduce import TOLERANCE, Run, Split, first_difference
from optimizer.verify.reduce import reduce as reduced
from optimizer.verify.verifier import Verifier
from optimizer.workshop import made_up_samples, open_model, open_site, read_unjudged, scratch_folder
from passes.kit.model import Model, Signature

SAMPLES = 3
"""Real samples that two models are compared on, one by one."""


@dataclass(frozen=True)
class _Found:
    """The first feed on which two models part."""

    left: Source
    right: Source
    feeds: int
    run: Run
    probe: Probe | None = None
    split: Split | None = None
    warnings: tuple[str, ...] = ()


def bisect(
    left: str,
    right: str,
    data: str | None = None,
    *,
    tolerance: float = TOLERANCE,
    settings: Settings | None = None,
) -> Bisection:
    """The first value, in the order of ``right``, at which it departs from ``left``.

    Args:
        left, right: Any MODEL texts with the same inputs and outputs; values are matched by name.
        data: Real samples; NaN and infinities are taken. Without any, made-up inputs and adversarial ones that
            ``left`` runs on.
        tolerance: Relative to the largest element of a value; 0 asks for equal bits. Integers must be equal.
        settings: Anything else (cache folder, provider, seed, source options).

    Raises :class:`optimizer.Fault` when a model cannot be opened or run, or when the two have other inputs or outputs.
    """
    with ExitStack() as stack:
        return _told(left, right, _compared(left, right, data, tolerance, settings, stack), tolerance)


def reduce(
    left: str,
    right: str,
    output: str | Path,
    data: str | None = None,
    *,
    tolerance: float = TOLERANCE,
    overwrite: bool = False,
    settings: Settings | None = None,
) -> Bisection:
    """:func:`bisect`, and the smallest pair that shows the difference written to the folder ``output``.

    Nothing is written when the models agree. Raises :class:`optimizer.Fault` as :func:`bisect` does, and when
    ``output`` exists.
    """
    place = Path(output)
    if place.exists() and not (overwrite and (place / reproduce.README).exists()):
        hint = "Choose another name, or add --overwrite to replace an earlier result."
        raise usage("the output exists", where=str(place), hint=hint)
    with ExitStack() as stack:
        found = _compared(left, right, data, tolerance, settings, stack)
        told = _told(left, right, found, tolerance)
        if found.probe is None:
            return told
        pair = reduced(found.left.model, found.right.model, found.probe.feed, found.run, tolerance)
        assert pair is not None, "the same comparison found a difference before"
        reproduce.write(place, pair, f"{left} against {right}: {told.difference}", tolerance)
        return replace(told, folder=str(place), nodes=pair.nodes)


def _compared(
    left: str, right: str, data: str | None, tolerance: float, settings: Settings | None, stack: ExitStack
) -> _Found:
    base = settings or Settings(SourceRequest(left))
    store, site = Store(base.cache_dir), open_site(base.provider, base.threads)
    target = hardware.loosest_target()

    def opened(text: str) -> Source:
        wanted = base.but(source=replace(base.source, model=text))
        return open_model(wanted, target, store, site, stack.enter_context(scratch_folder(store)))

    one, other = opened(left), opened(right)
    _same_ports(one.model.signature, other.model.signature, right)
    world = World(target, base.seed, site, store, key_of)
    where = {id(one.model): left, id(other.model): right}

    def run(model: Model, feed: Mapping[str, Any], names: Sequence[str]) -> Mapping[str, Any]:
        try:
            return world.run(model, [feed], names)[0]
        except Fault as fault:
            fault.where = fault.where or where.get(id(model), "")
            raise

    if data is not None:
        samples = read_unjudged(data, base, one, store, stack)
    else:
        samples = made_up_samples(one.model, base.seed, store, site)
    few = samples.take(np.arange(min(SAMPLES, len(samples))))
    probes = [Probe(f"sample {i}", Kind.REAL, feed) for i, (feed, _) in enumerate(few.feeds(1))]
    warnings = (*one.warnings, *other.warnings, *samples.warnings)
    if data is None:
        verifier = Verifier(site, store, [])
        stack.callback(verifier.close)
        tried = adversaries(one.model.signature.inputs, probes[0].feed, base.seed, one.model.weight_bytes())
        probes += verifier.tolerated(one.model, tried)[0]
    for probe in probes:
        split = first_difference(one.model, other.model, probe.feed, run, tolerance)
        if split is not None:
            return _Found(one, other, len(probes), run, probe, split, warnings)
    return _Found(one, other, len(probes), run, warnings=warnings)


def _same_ports(left: Signature, right: Signature, where: str) -> None:
    for side in ("inputs", "outputs"):
        mine, theirs = ([(p.name, p.type) for p in getattr(s, side)] for s in (left, right))
        if sorted(mine) != sorted(theirs):
            names = ", ".join(f"{name}: {kind}" for name, kind in theirs)
            raise bad_input(
                f"its {side} are not those of the first model: {names}", where=where, code="other-signature"
            )


def _told(left: str, right: str, found: _Found, tolerance: float) -> Bisection:
    warnings = tuple(dict.fromkeys(found.warnings))
    if found.probe is None or found.split is None:
        return Bisection(left, right, True, found.feeds, tolerance, warnings=warnings)
    split = found.split
    return Bisection(
        left=left,
        right=right,
        agree=False,
        feeds=found.feeds,
        tolerance=tolerance,
        values=split.compared,
        agreeing=len(split.agreeing),
        feed=found.probe.name,
        value=split.value,
        difference=str(split.difference).replace("output '", "value '", 1),
        left_node=split.left,
        right_node=split.right,
        warnings=warnings,
    )
