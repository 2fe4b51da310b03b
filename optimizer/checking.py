"""``lathe check-data``: new data held against what an artifact remembers."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from optimizer.boundary.graph import core
from optimizer.data.samples import Samples
from optimizer.faults import bad_input
from optimizer.plan import DataRequest, Settings
from optimizer.progress import Watcher as Progress
from optimizer.report.drift import DriftRecord
from optimizer.runtime import hardware
from optimizer.runtime.answers import World
from optimizer.source.open import Source
from optimizer.store.store import Store, key_of
from optimizer.watch import feeding, reference
from optimizer.watch.reference import Reference
from optimizer.watch.sketches import Pile, Seen
from optimizer.watch.verdict import Key, judge
from optimizer.workshop import open_model, open_site, read_samples, scratch_folder
from passes.kit.model import Model

MOST_RUN = 2048
"""Samples that the model runs on: clipping is known well enough by then. Inputs are looked at in all samples."""


def check_settings(settings: Settings, watch: Progress, *, alpha: float, inputs_only: bool = False) -> DriftRecord:
    """Hold the data of ``settings`` against the artifact that is its model.

    Raises :class:`~optimizer.faults.Fault`: exit 3 when the artifact or the data cannot be read or the data does not
    fit the model, exit 4 when the artifact remembers nothing.
    """
    folder = Path(settings.source.model)
    known = reference.read(folder)
    store = Store(settings.cache_dir)
    site = open_site(settings.provider, settings.threads, settings.custom_ops)
    with ExitStack() as stack:
        watch.stage("opening the artifact")
        scratch = stack.enter_context(scratch_folder(store))
        source = open_model(settings.but(data=DataRequest()), hardware.loosest_target(), store, site, scratch)
        steps, source = without_edges(folder, source)
        settings = settings.but(preprocess=steps)
        watch.stage("reading the data")
        samples = read_samples(str(settings.data.data), settings, source, store, stack)
        _fits(known, samples, str(settings.data.data))
        watch.stage("looking at the inputs")
        now = look_at_inputs(known, samples)
        ran = 0
        if not inputs_only and _inside(known):
            watch.stage("running the model")
            world = World(hardware.loosest_target(), settings.seed, site, store, key_of, samples)
            ran = min(MOST_RUN, len(samples))
            now.update(look_inside(known, source.model, world, samples, ran, settings.seed))
        store.prune()
    record = judge(known.seen, now, alpha)
    return replace(
        record, artifact=str(folder), data=str(settings.data.data), ran=ran, samples=len(samples),
        warnings=(*samples.warnings, *record.warnings),
    )  # fmt: skip


def without_edges(folder: Path, source: Source) -> tuple[str | None, Source]:
    """The text of the preprocessing in an artifact, and the network inside: what is remembered is of the latter."""
    edges = reference.edges_of(folder)
    if edges is None:
        return None, source
    try:
        return edges.preprocess, replace(source, model=core(source.model, edges.inputs, edges.outputs))
    except KeyError as error:
        message = f"the manifest speaks of {error}, which the model does not have"
        raise bad_input(message, where=str(folder), code="bad-manifest") from None


def look_at_inputs(known: Reference, samples: Samples) -> dict[Key, Seen]:
    """Distributions of the inputs and of the labels that the artifact remembers too."""
    inputs = {name: Pile(layout) for name, layout in known.layouts("input").items()}
    feeding.fill_inputs(inputs, samples)
    held = set(feeding.class_labels(samples))
    labels = {n: Pile(known.seen["label", n].layout, known.seen["label", n].classes) for n in known.layouts("label")}
    labels = {name: pile for name, pile in labels.items() if name in held}
    feeding.fill_labels(labels, samples)
    return {
        **{("input", name): pile.seen() for name, pile in inputs.items()},
        **{("label", name): pile.seen() for name, pile in labels.items()},
    }


def look_inside(
    known: Reference, model: Model, world: World, samples: Samples, most: int, seed: int
) -> dict[Key, Seen]:
    """Distributions of what the model makes of at most ``most`` samples."""
    piles = {key: Pile(known.seen[key].layout, known.seen[key].classes) for key in _inside(known)}
    drawn = np.sort(np.random.default_rng(seed).permutation(len(samples))[:most])
    feeding.fill_inside({name: pile for (_, name), pile in piles.items()}, model, world, samples.take(drawn))
    return {key: pile.seen() for key, pile in piles.items()}


def _inside(known: Reference) -> list[Key]:
    return [key for key in known.seen if key[0] in ("tensor", "output")]


def _fits(known: Reference, samples: Samples, where: str) -> None:
    """Refuse samples that the model takes, but that are cut otherwise than when the artifact was made."""
    if samples.whole != known.whole:
        told = "one feed an entry" if known.whole else "samples along axis 0"
        raise bad_input(f"the data is not cut into samples as it was: the artifact was made with {told}", where=where)
