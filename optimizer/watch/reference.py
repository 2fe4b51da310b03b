"""The file in an artifact that remembers what its data looked like: distributions of summaries, never a sample."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.faults import Fault, bad_input, cannot
from optimizer.package import golden
from optimizer.package.artifact import WATCH
from optimizer.package.receiver.files import describe_file, read_manifest
from optimizer.package.receiver.words import MANIFEST, SUMS, Refusal
from optimizer.watch.sketches import Array, Seen
from optimizer.watch.verdict import Key
from passes.kit.model import Port
from passes.kit.summaries import Layout

SCHEMA = "lathe.watch/1"
PARTS = ("input", "tensor", "output", "label")


@dataclass(frozen=True)
class Reference:
    """What an artifact remembers. ``whole`` says that a feed of the model is one sample, however many rows it has."""

    seen: Mapping[Key, Seen]
    whole: bool = False

    def layouts(self, part: str) -> dict[str, Layout]:
        """Layouts of one part, by name."""
        return {name: seen.layout for (kind, name), seen in self.seen.items() if kind == part}


@dataclass(frozen=True)
class Edges:
    """What stands around the network in an artifact: the text of its preprocessing (or nothing), the input that takes
    images (or nothing), and the inputs and names of outputs of the network inside."""

    preprocess: str | None
    image: str | None
    inputs: tuple[Port, ...]
    outputs: tuple[str, ...]


def edges_of(folder: Path | str) -> Edges | None:
    """The edges of an artifact; ``None`` where it has none. Raises a bad-input Fault when its manifest is garbled."""
    try:
        tree = json.loads((Path(folder) / MANIFEST).read_text("utf-8"))
        found = tree.get("boundary")
        if not found:
            return None
        inputs = tuple(Port(str(p["name"]), str(p["type"]), tuple(p["dims"])) for p in found["core"]["inputs"])
        outputs = tuple(str(p["name"]) for p in found["core"]["outputs"])
        own = {port.name for port in inputs}
        image = next((str(p["name"]) for p in tree["signature"]["inputs"] if p["name"] not in own), None)
        return Edges(found["preprocess"] or None, image, inputs, outputs)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        message = f"{MANIFEST} does not say what stands around the network: {error}"
        raise bad_input(message, where=str(folder), code="bad-manifest") from None


def dims_of(folder: Path | str) -> dict[Key, tuple[int | str | None, ...]]:
    """Dimensions of the network's own inputs and outputs, by part and name, as far as the manifest tells them."""
    try:
        tree = json.loads((Path(folder) / MANIFEST).read_text("utf-8"))
        ports = (tree.get("boundary") or {}).get("core") or tree.get("signature") or {}
        sides = (("input", ports.get("inputs", [])), ("output", ports.get("outputs", [])))
        return {(part, str(p["name"])): tuple(p["dims"]) for part, side in sides for p in side if p.get("dims")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        message = f"{MANIFEST} does not say what the network takes: {error}"
        raise bad_input(message, where=str(folder), code="bad-manifest") from None


def to_bytes(reference: Reference) -> bytes:
    """The file; the same reference gives the same bytes."""
    arrays: dict[str, Array] = {}
    groups: list[dict[str, Any]] = []
    for i, ((part, name), seen) in enumerate(reference.seen.items()):
        groups.append(
            {
                "part": part,
                "name": name,
                "layout": seen.layout.plain(),
                "count": seen.count,
                "means": [float(m) for m in seen.means],
                "classes": [[c, n] for c, n in sorted(seen.classes.items())],
                "error": seen.error,
            }
        )
        arrays[f"{i}.items"] = seen.items
        if not (seen.weights == 1).all():
            arrays[f"{i}.weights"] = seen.weights
    about = {"schema": SCHEMA, "whole": reference.whole, "groups": groups}
    arrays["about"] = np.frombuffer(json.dumps(about, sort_keys=True).encode(), np.uint8)
    stream = io.BytesIO()
    golden.write(stream, arrays)
    return stream.getvalue()


def of_bytes(data: bytes) -> Reference:
    """What :func:`to_bytes` wrote. Raises ``ValueError`` when it is something else."""
    arrays = golden.read(io.BytesIO(data))
    try:
        about = json.loads(arrays["about"].tobytes())
        if about["schema"] != SCHEMA:
            raise ValueError(f"it has schema '{about['schema']}', this Lathe reads '{SCHEMA}'")
        groups = enumerate(about["groups"])
        seen = {(str(g["part"]), str(g["name"])): _seen(g, arrays, i) for i, g in groups}
        return Reference(seen, bool(about["whole"]))
    except (KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(f"it misses or garbles {error}") from error


def _check_manifest(root: Path) -> None:
    """There is an artifact in ``root`` of a schema that is known. Raises a bad-input Fault."""
    try:
        read_manifest(root)
    except Refusal as refusal:
        raise bad_input(refusal.message, where=refusal.where, hint=refusal.hint, code=refusal.code) from refusal


def read(folder: Path | str) -> Reference:
    """What the artifact in ``folder`` remembers.

    Raises :class:`~optimizer.faults.Fault`: bad input when it is no artifact or the file is not the one that was
    written, exit code 4 when the artifact remembers nothing.
    """
    root = Path(folder)
    where = str(root)
    _check_manifest(root)
    path = root / WATCH
    listed = _listed(root)
    if not path.is_file():
        if listed:
            raise _changed(path, "is missing, though the artifact was written with it")
        hint = "Make it again with data, and without --no-watch"
        raise cannot(
            f"the artifact does not remember its data: it has no {WATCH}", where=where, hint=hint, code="no-watch"
        )
    if path.is_symlink() or describe_file(path)["sha256"] != listed:
        raise _changed(path, f"is not the file that {SUMS} lists")
    try:
        return of_bytes(path.read_bytes())
    except ValueError as error:
        raise bad_input(f"cannot be read: {error}", where=str(path), code="bad-watch") from None


def _changed(path: Path, what: str) -> Fault:
    return bad_input(what, where=str(path), hint="Get the artifact again from whoever made it", code="changed-watch")


def _listed(root: Path) -> str:
    """The digest that the checksums give for the file, or nothing."""
    try:
        entries = [line.split("  ", 1) for line in (root / SUMS).read_text("utf-8").splitlines()]
    except (OSError, ValueError):
        return ""
    return next((e[0] for e in entries if len(e) == 2 and e[1] == WATCH), "")


def _seen(group: Mapping[str, Any], arrays: Mapping[str, Any], place: int) -> Seen:
    layout = Layout.of_plain(group["layout"])
    items = np.asarray(arrays[f"{place}.items"], np.float32)
    weights = np.asarray(arrays.get(f"{place}.weights", np.ones(items.shape)), np.int64)
    means = np.asarray(group["means"], np.float64)
    count = int(group["count"])
    sizes = {len(layout.names()), len(items), len(means)}
    if group["part"] not in PARTS or items.ndim != 2 or items.shape != weights.shape or len(sizes) != 1:
        raise ValueError(f"the part on {group['name']!r} is not of one piece")
    if len(items) and ((weights < 0).any() or (weights.sum(axis=1) != count).any() or not np.isfinite(items).all()):
        raise ValueError(f"the part on {group['name']!r} counts wrongly")
    classes = {int(c): int(n) for c, n in group["classes"]}
    if any(n < 0 for n in classes.values()):
        raise ValueError(f"the part on {group['name']!r} counts wrongly")
    return Seen(layout, count, items, weights, means, classes, float(group["error"]))
