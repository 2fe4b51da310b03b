"""A folder of images as arrays: preprocessed once by the Python reference, then memory-mapped like anything else."""

from __future__ import annotations

import csv
import hashlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from optimizer.boundary import pictures
from optimizer.boundary.graph import channels_of, image_port
from optimizer.boundary.text import Preprocess
from optimizer.data.checks import listed
from optimizer.data.npz import load_npy
from optimizer.data.samples import Array
from optimizer.faults import Fault, bad_input, broken
from passes.kit.model import Port

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm"})
LABELS = "labels.csv"
"""``file,label`` a line, beside the images; without it the folders below are the classes, in the order of names."""


def image_files(folder: Path) -> list[Path]:
    """Every image in the folder and below, in the order of their names; hidden files are left out."""
    found = (p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def read_images(folder: Path, inputs: Sequence[Port], steps: Preprocess, scratch: Path) -> dict[str, Array]:
    """The images of ``folder`` as the model takes them, float32 [images, ...] by the name of its input, and their
    labels (int64 [images], ``labels``) where folders or :data:`LABELS` give any.

    What the reference makes of them is kept in ``scratch`` under the digest of files and steps. Raises
    :class:`~optimizer.faults.Fault`: bad input for a file that is no image or a label that is missing, exit 4 when
    Pillow is missing, usage when the steps do not fit the model.
    """
    port, first = image_port(inputs, steps)
    if others := [p.name for p in inputs if p.name != port.name]:
        hint = "Save the preprocessed arrays of all inputs in a .npz"
        message = f"a folder of images cannot feed the other inputs ({listed(others)})"
        raise bad_input(message, where=str(folder), hint=hint, code="missing-input-array")
    files = image_files(folder)
    if steps.decode and not steps.any_file:
        _check_decoder(files)
    place = scratch / f"{_digest(folder, files, steps, port)}.npy"
    if not _readable(place):
        _unfold(files, place, scratch, steps, channels_of(port, first, steps), first)
    labels = _labels(folder, files)
    return {port.name: load_npy(place, str(folder)), **({} if labels is None else {"labels": labels})}


def _check_decoder(files: Sequence[Path]) -> None:
    for file in files:
        if reason := pictures.why_decoded_otherwise(file):
            message = f"the decoder inside of the graph would give other pixels: {reason}"
            hint = (
                "Leave 'decode' out and serve pixels, convert the files, or write decode=any to accept the difference"
            )
            raise bad_input(message, where=str(file), hint=hint, code="skew")


def _readable(place: Path) -> bool:
    try:
        load_npy(place)
    except (OSError, Fault):
        return False
    return True


def _unfold(files: Sequence[Path], place: Path, scratch: Path, steps: Preprocess, channels: int, first: bool) -> None:
    """Write the array beside its place and rename it: a reader never sees half of it."""
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=scratch, prefix=".images-", suffix=".npy", delete=False) as stream:
        building = Path(stream.name)
    try:
        sample = _made(files[0], steps, channels, first)
        shape = (len(files), *sample.shape)
        if sample.nbytes * len(files) > shutil.disk_usage(scratch).free:
            raise broken("there is no room to keep the preprocessed images", where=str(scratch), code="no-room")
        array = np.lib.format.open_memmap(building, mode="w+", dtype=np.float32, shape=shape)
        for i, file in enumerate(files):
            made = sample if i == 0 else _made(file, steps, channels, first)
            if made.shape != sample.shape:
                told = f"{list(made.shape)}, and {list(sample.shape)} of '{files[0].name}'"
                hint = "Add a resize and a center-crop to --preprocess, so that all come out alike"
                raise bad_input(f"comes out as {told}", where=str(file), hint=hint, code="wrong-shape")
            array[i] = made
        array.flush()
        del array
        building.replace(place)
    finally:
        building.unlink(missing_ok=True)


def _made(file: Path, steps: Preprocess, channels: int, first: bool) -> Array:
    return pictures.apply(steps, pictures.open_pixels(file, channels), channels_first=first)


def _digest(folder: Path, files: Sequence[Path], steps: Preprocess, port: Port) -> str:
    total = hashlib.sha256(f"lathe.images/1|{steps}|{port}".encode())
    for file in files:
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        total.update(f"|{file.relative_to(folder).as_posix()}|{content}".encode())
    return total.hexdigest()


def _labels(folder: Path, files: Sequence[Path]) -> Array | None:
    table = folder / LABELS
    if table.is_file():
        return _numbers(_listed(table, folder, files))
    classes = [file.relative_to(folder).parts[0] if file.parent != folder else "" for file in files]
    if len(set(classes)) < 2:
        return None
    if "" in classes:
        hint = f"Put every image into the folder of its class, or name labels in {LABELS}"
        message = f"'{files[classes.index('')].name}' lies beside the folders of the classes"
        raise bad_input(message, where=str(folder), hint=hint, code="bad-data")
    return _numbers(classes)


def _numbers(names: Sequence[str]) -> Array:
    """Numbers as they are, names by their place among the sorted ones."""
    if all(name.isdecimal() for name in names):
        return np.array([int(name) for name in names], np.int64)
    order: Mapping[str, int] = {name: i for i, name in enumerate(sorted(set(names)))}
    return np.array([order[name] for name in names], np.int64)


def _listed(table: Path, folder: Path, files: Sequence[Path]) -> list[str]:
    try:
        with table.open(encoding="utf-8", newline="") as stream:
            rows = [row for row in csv.reader(stream) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise bad_input(f"cannot be read: {error}", where=str(table), code="bad-data") from None
    if any(len(row) < 2 for row in rows):
        raise bad_input("is not a table of file,label", where=str(table), code="bad-data")
    known = {row[0].strip(): row[1].strip() for row in rows}
    found = [known.get(file.relative_to(folder).as_posix(), known.get(file.name)) for file in files]
    if None in found:
        name = files[found.index(None)].relative_to(folder).as_posix()
        raise bad_input(f"has no label for '{name}'", where=str(table), hint="Give every image one", code="bad-data")
    return [str(label) for label in found]
