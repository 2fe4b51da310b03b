"""Preprocessing and postprocessing around what ships: built, held against the Python reference, timed, remembered."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.boundary import pictures, text
from optimizer.boundary.graph import channels_of, image_port, wrap
from optimizer.boundary.text import Preprocess
from optimizer.data.images import image_files
from optimizer.faults import broken
from optimizer.measure import latency
from optimizer.package import golden
from optimizer.package.golden import GoldenPair
from optimizer.package.manifest import signature_of
from optimizer.records import Boundary, Interval
from optimizer.runtime import sessions
from optimizer.runtime.sessions import Site
from optimizer.workshop import Array, Bench
from passes.kit.model import Model, Port

WITHIN = 1e-4
"""How far what the operators make of pixels may be from the reference, as a share of the range of pixels."""

SIZES = ((240, 320), (375, 250), (96, 128))
"""Heights and widths of made-up images, where there are no real ones and the steps take any size."""

REAL = 8
"""So many real images are looked at."""

GOLDEN = 3

DECODER_WITHIN = 2 / 255
"""How far what the decoder inside of a graph makes of a file may be from the reference: beyond that it is skew."""

DECODED = frozenset({".png", ".jpg", ".jpeg"})
"""Files that the decoder inside of a graph reads."""

Image = tuple[Array, Array]
"""The bytes of a file and its pixels, uint8 [H, W, C]."""


@dataclass(frozen=True)
class Edged:
    """A model with its edges, where it runs, golden pairs for the whole (``None`` where it takes what it took before),
    and what was measured."""

    model: Model
    site: Site
    golden: tuple[GoldenPair, ...] | None
    boundary: Boundary
    manifest: dict[str, Any]


def put_around(bench: Bench, model: Model) -> Edged:
    """Put the steps that were asked for around ``model``.

    Raises a Fault: usage when they do not fit, exit 4 when a package is missing, broken when the operators do not do
    what the reference does.
    """
    settings = bench.settings
    before = text.preprocess(settings.preprocess) if settings.preprocess else None
    after = text.postprocess(settings.postprocess) if settings.postprocess else None
    whole = wrap(model, before, after)
    site = bench.site if before is None or not before.decode else sessions.with_decoder(bench.site)
    others = next(iter((bench.splits.select if bench.splits and settings.golden == "data" else bench.bare).feeds(1)))[0]
    outer, inner, worst, seen = bench.feed, bench.feed, 0.0, 0
    pairs: tuple[GoldenPair, ...] | None = None
    if before is not None:
        port, first = image_port(model.signature.inputs, before)
        real, made_up = _real(bench, before, port, first), _made_up_images(bench, before, port, first)
        fed = _Fed(before, port, first, others, next(p.name for p in whole.signature.inputs if p.name not in others))
        worst, seen = _worst(bench, model, whole, site, fed, [*real, *made_up]), len(real) + len(made_up)
        if before.decode:
            said = decoder_says(worst, len(real))
            if worst > DECODER_WITHIN and not before.any_file:
                raise broken(said, where=before.text, hint="Write decode=any to accept it", code="skew")
            bench.watch.warn(said)
        shown = real if real and settings.golden == "data" else made_up
        outer, inner = fed.outer(shown[0]), fed.inner(shown[0])
        feeds = [fed.outer(image) for image in shown[:GOLDEN]] if settings.golden != "none" else []
        pairs = _pairs(bench, whole, site, feeds)
    boundary = Boundary(
        settings.preprocess or "",
        settings.postprocess or "",
        tuple(map(str, whole.signature.inputs)),
        tuple(map(str, whole.signature.outputs)),
        worst,
        seen,
        *_timed(bench, model, whole, site, inner, outer),
    )
    tree = {"preprocess": boundary.preprocess, "postprocess": boundary.postprocess, "core": signature_of(model)}
    return Edged(whole, site, pairs, boundary, tree)


def decoder_says(worst: float, files: int) -> str:
    """What whoever ships ``decode`` must know; ``worst`` is the largest difference seen, as a share of the range of
    pixels, on so many ``files`` of the user's."""
    if worst > DECODER_WITHIN:
        found = (
            f"on {files} of your files the decoder inside is up to {worst * 255:.0f} of 255 levels off the reference"
        )
        return f"'decode' skews what is served: {found} (JPEG with chroma subsampling); decode outside of the graph"
    return (
        "'decode' is right for PNG of 8 bits and for JPEG without chroma subsampling alone; other JPEG files come "
        "out up to 53 of 255 levels off, and damaged or other files can end the process that serves"
    )


@dataclass(frozen=True)
class _Fed:
    """How an image gets into the whole and, through the reference, into the network alone."""

    before: Preprocess
    port: Port
    first: bool
    others: dict[str, Array]
    name: str

    def outer(self, image: Image) -> dict[str, Array]:
        raw, pixels = image
        return {**self._rest(), self.name: raw if self.before.decode else self._rows(pixels)}

    def inner(self, image: Image) -> dict[str, Array]:
        made = self._rows(self.made(image))
        return {**self._rest(), self.port.name: made.astype(self.others[self.port.name].dtype)}

    def made(self, image: Image) -> Array:
        return pictures.apply(self.before, image[1], channels_first=self.first)

    def _rest(self) -> dict[str, Array]:
        return {name: array for name, array in self.others.items() if name != self.port.name}

    def _rows(self, array: Array) -> Array:
        batch = (self.port.dims or (1,))[0]
        return np.repeat(array[None], batch if isinstance(batch, int) else 1, 0)


def _real(bench: Bench, before: Preprocess, port: Port, first: bool) -> list[Image]:
    """A few of the user's own images, where the data is a folder of them."""
    wanted = bench.settings.data
    given = wanted.data or wanted.select or wanted.calibrate or wanted.confirm
    files = image_files(Path(given)) if given and Path(given).is_dir() else []
    if before.decode:
        files = [f for f in files if f.suffix.lower() in DECODED]
    chosen = [files[i] for i in np.linspace(0, len(files) - 1, min(REAL, len(files))).astype(int)] if files else []
    raws = [file.read_bytes() for file in chosen]
    channels = channels_of(port, first, before)
    return [(np.frombuffer(raw, np.uint8), pictures.open_pixels(raw, channels)) for raw in raws]


def _made_up_images(bench: Bench, before: Preprocess, port: Port, first: bool) -> list[Image]:
    rng = np.random.default_rng(bench.settings.seed)
    return [_made_up(rng, size, channels_of(port, first, before)) for size in _sizes(before, port, first)]


def _sizes(before: Preprocess, port: Port, first: bool) -> list[tuple[int, int]]:
    if before.shorter is not None or before.size is not None:
        return list(SIZES)
    dims = (port.dims or ())[2:4] if first else (port.dims or ())[1:3]
    high, wide = (d if isinstance(d, int) else s for d, s in zip(dims, SIZES[-1], strict=True))
    return [(high, wide)] * len(SIZES)


def _made_up(rng: np.random.Generator, size: tuple[int, int], channels: int) -> Image:
    """Slopes with grain on them, as photographs have."""
    high, wide = size
    slope = np.add.outer(np.linspace(0, 1, high), np.linspace(0, 1, wide))[..., None] * rng.uniform(0.2, 0.5, channels)
    levels = np.clip(255 * (slope + 0.05 * rng.standard_normal((high, wide, channels))), 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    pictures.pillow().fromarray(levels if channels == 3 else levels[..., 0]).save(stream, "PNG")
    return np.frombuffer(stream.getvalue(), np.uint8), levels


def _worst(bench: Bench, model: Model, whole: Model, site: Site, fed: _Fed, images: list[Image]) -> float:
    """The largest difference between operators and reference, as a share of the range of pixels: above
    :data:`WITHIN`, where both start from the same pixels, the fault is ours."""
    world = replace(bench.builder.world, site=site, answered=[])
    before, first, name = fed.before, fed.first, fed.port.name
    answers = [port.name for port in model.signature.outputs if port.type in ("FLOAT", "FLOAT16", "DOUBLE")]
    told = world.run(whole, [fed.outer(image) for image in images], [name, *answers])
    alone = world.run(
        model, [{**fed.inner(image), name: t[name]} for image, t in zip(images, told, strict=True)], answers
    )
    if any(
        not np.allclose(t[n], a[n], rtol=1e-4, atol=1e-5) for t, a in zip(told, alone, strict=True) for n in answers
    ):
        message = "with the steps around it the network gives other answers"
        raise broken(message, where=before.text, hint="This is a bug in Lathe: report it", code="skew")
    found = [t[name][0] for t in told]
    made = [fed.made(image) for image in images]
    gaps = [
        np.abs(_levels(a, before, first) - _levels(b, before, first)).max() for a, b in zip(found, made, strict=True)
    ]
    worst = float(max(gaps))
    if worst > WITHIN and fed.port.type == "FLOAT" and not before.decode:
        message = f"the operators of --preprocess differ from the reference by {worst:.2g} of the range of pixels"
        raise broken(message, where=before.text, hint="This is a bug in Lathe: report it", code="skew")
    return worst


def _levels(values: Array, before: Preprocess, first: bool) -> Array:
    """Preprocessed values back in 0..1."""
    found = np.moveaxis(values.astype(np.float64), 0, -1) if first else values.astype(np.float64)
    if before.mean:
        found = found * np.asarray(before.std) + np.asarray(before.mean)
    return np.asarray(found / ((before.factor or 1.0) * 255))


def _pairs(bench: Bench, whole: Model, site: Site, feeds: list[dict[str, Array]]) -> tuple[GoldenPair, ...]:
    with sessions.worker() as worker:
        return golden.pairs(feeds, sessions.run(worker, bench.store.put_model(whole), feeds, site))


def _timed(
    bench: Bench, model: Model, whole: Model, site: Site, inner: dict[str, Array], outer: dict[str, Array]
) -> tuple[Any, Any, Interval]:
    """Milliseconds of the core and of the whole, in turns, and whole over core."""
    paths = [bench.store.put_model(m) for m in (model, whole)]
    core, all_of_it = latency.compare(paths, [inner, outer], site, latency.quick(bench.settings.seconds))
    return core.latency(), all_of_it.latency(), latency.speedup(all_of_it, core, bench.settings.seed)
