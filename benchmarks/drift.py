"""How often check-data cries wolf, and how often it finds what it should: 1,000 and 200 trials, n = 200.

Every trial draws anew which samples the artifact remembers (768) and which come new (200), without overlap, so that
both sets have the same distribution by construction; then the new ones are spoilt. The digits run through the whole
check, inside and at the end of the int8 model of a fresh artifact too; the colour crops (of the two photographs that
scikit-learn carries, and of any .npz with an array [N, 3, H, W] in 0..1 given as argument) have inputs only.

.venv/bin/python benchmarks/drift.py [IMAGES.npz ...]
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

import optimizer
from optimizer.plan import DataRequest, Settings, SourceRequest
from optimizer.report.drift import Drift
from optimizer.runtime import hardware
from optimizer.runtime.answers import World
from optimizer.store.store import Store, key_of
from optimizer.watch import reference
from optimizer.watch.sketches import Pile
from optimizer.watch.verdict import Key, judge
from optimizer.workshop import open_model, open_site, read_samples
from passes.kit.summaries import Layout, SampleRows, layout_of, rows
from sample_models import SAMPLES

Array = np.ndarray[Any, Any]
Rows = Mapping[Key, tuple[Layout, Array, Array]]
"""Layout, rows and classes of all samples, for everything that is looked at."""

REMEMBERED, NEW = 768, 200
QUIET_TRIALS, SPOILT_TRIALS = 1000, 200
CROP = 32


def spoilt(x: Array, rng: np.random.Generator) -> dict[str, Array]:
    """The data as it comes out of pipelines that went wrong; everything that a camera or file would clip is clipped."""
    low, high = 0.0, 1.0
    middle = x.mean(axis=(1, 2, 3), keepdims=True)
    noise = rng.standard_normal(x.shape) * 0.05 * (high - low)
    found = {
        "brightness x 1.1, clipped": np.clip(x * 1.1, low, high),
        "brightness + 10 % of range, clipped": np.clip(x + 0.1 * (high - low), low, high),
        "contrast x 0.8": middle + 0.8 * (x - middle),
        "noise, sigma 5 % of range, clipped": np.clip(x + noise, low, high),
        "missing / 255": x * 255,
    }
    if x.shape[1] == 3:
        found["swapped channels"] = x[:, ::-1]
    return {name: np.ascontiguousarray(a, np.float32) for name, a in found.items()}


def crops(rng: np.random.Generator, count: int = 2000) -> Array:
    """Square pieces of photographs, reduced to 32 x 32: float32 [count, 3, 32, 32] in 0..1."""
    from sklearn.datasets import load_sample_images

    photos = load_sample_images().images
    found = np.empty((count, 3, CROP, CROP), np.float32)
    for i in range(count):
        photo = photos[rng.integers(len(photos))]
        step = int(rng.integers(1, 5))
        top, left = (int(rng.integers(0, side - step * CROP)) for side in photo.shape[:2])
        piece = photo[top : top + step * CROP, left : left + step * CROP]
        found[i] = piece.reshape(CROP, step, CROP, step, 3).mean(axis=(1, 3)).transpose(2, 0, 1) / 255
    return found


def rows_of_inputs(x: Array) -> Rows:
    layout = layout_of(x.shape[1:], x.dtype)
    parts = [rows(layout, x[i : i + 256]) for i in range(0, len(x), 256)]
    return {("input", "x"): (layout, np.concatenate(parts), np.zeros(0, np.int64))}


def trial(calm: Rows, other: Rows, rng: np.random.Generator) -> bool:
    """Whether one draw of remembered samples and of new ones, taken from ``other``, is called drift."""
    order = rng.permutation(len(next(iter(calm.values()))[1]))
    sides = [(calm, order[:REMEMBERED]), (other, order[REMEMBERED : REMEMBERED + NEW])]
    before, now = ({key: _pile(*whole[key], drawn) for key in whole} for whole, drawn in sides)
    seen = [{key: pile.seen() for key, pile in side.items()} for side in (before, now)]
    return judge(*seen).verdict is Drift.DRIFT


def _pile(layout: Layout, found: Array, classes: Array, drawn: Array) -> Pile:
    pile = Pile(layout)
    pile.add(found[drawn], classes[drawn] if len(classes) else None)
    return pile


def table(title: str, calm: Rows, bad: Mapping[str, Rows], rng: np.random.Generator, note: str) -> None:
    started = time.process_time()
    false = sum(trial(calm, calm, rng) for _ in range(QUIET_TRIALS))
    each = 1e3 * (time.process_time() - started) / QUIET_TRIALS
    print(f"\n**{title}** ({note}; {each:.0f} ms of CPU a verdict)\n\n| new data | called drift |\n| --- | --- |")
    print(f"| the same distribution | {false} of {QUIET_TRIALS} ({false / QUIET_TRIALS:.1%}) |", flush=True)
    for name, other in bad.items():
        hits = sum(trial(calm, other, rng) for _ in range(SPOILT_TRIALS))
        print(f"| {name} | {hits} of {SPOILT_TRIALS} ({hits / SPOILT_TRIALS:.1%}) |", flush=True)


def digits(folder: Path, rng: np.random.Generator) -> None:
    """The whole check on a fresh artifact of a sample model."""
    place = folder / "digits.lathe"
    optimizer.compile("sample:residual-cnn", output=place, cache_dir=folder / "cache", seconds=0.5)
    known = reference.read(place)
    sizes = [seen.items.nbytes for (part, _), seen in known.seen.items() if part == "input"]
    with ExitStack() as stack:
        settings = Settings(SourceRequest(str(place)), DataRequest(), cache_dir=folder / "cache")
        store, site = Store(settings.cache_dir), open_site("cpu", 1)
        source = open_model(settings, hardware.loosest_target(), store, site, folder)
        samples = read_samples(str(SAMPLES["residual-cnn"].data), settings, source, store, stack)
        world = World(hardware.loosest_target(), 0, site, store, key_of, samples)

        inside = {key: seen.layout for key, seen in known.seen.items() if key[0] in ("tensor", "output")}
        asked = {name: SampleRows(layout.plain()) for (_, name), layout in inside.items()}

        def everything(x: Array) -> Rows:
            world.samples = dataclasses.replace(samples, inputs={samples.ports[0].name: x}, _memo={})
            told = {name: reducer.arrays for name, reducer in world.stats(source.model, asked).items()}
            made = {key: (inside[key], told[key[1]]["rows"], told[key[1]]["classes"]) for key in inside}
            return {**rows_of_inputs(x), **made}

        images = np.concatenate([feed[samples.ports[0].name] for feed, _ in samples.feeds(1)])
        bad = {what: everything(y) for what, y in spoilt(images, rng).items()}
        tensors = sum(part == "tensor" for part, _ in known.seen)
        note = f"{len(images)} images, {tensors} quantized tensors; sketches of the input {sizes[0] / 1e3:.0f} kB, "
        note += f"the file {(place / 'watch.npz').stat().st_size / 1e3:.0f} kB"
        table("Digits through an int8 model", everything(images), bad, rng, note)


def colours(title: str, x: Array, rng: np.random.Generator) -> None:
    calm = rows_of_inputs(x)
    layout = next(iter(calm.values()))[0]
    bad = {what: rows_of_inputs(y) for what, y in spoilt(x, rng).items()}
    kept = 4 * len(layout.names()) * REMEMBERED
    note = f"{len(x)} images, {len(layout.names())} statistics, sketches of the input {kept / 1e3:.0f} kB"
    table(title, calm, bad, rng, note)


def main(paths: list[str]) -> None:
    rng = np.random.default_rng(0)
    print(f"{REMEMBERED} remembered samples, {NEW} new ones, at most 1 % false alarms allowed in all.")
    colours("Crops of two photographs", crops(rng), rng)
    for path in paths:
        with np.load(path, allow_pickle=False) as arrays:
            colours(Path(path).stem, next(arrays[n] for n in arrays.files if arrays[n].ndim == 4), rng)
    with tempfile.TemporaryDirectory() as folder:
        digits(Path(folder), rng)


if __name__ == "__main__":
    main(sys.argv[1:])
