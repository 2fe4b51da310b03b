"""Watching data inside a service: no model, no runtime, a few milliseconds a batch.

from optimizer.watch import Watcher
watcher = Watcher("model.lathe")
watcher.update({"image": batch}, outputs)       # as often as there are samples
print(watcher.verdict().verdict)                # ok, drift or undecided
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.boundary import pictures, text
from optimizer.boundary.graph import channels_of, image_port
from optimizer.faults import bad_input, usage
from optimizer.package import golden
from optimizer.report.drift import DriftRecord
from optimizer.watch import reference
from optimizer.watch.feeding import apart
from optimizer.watch.sketches import Array, Pile
from optimizer.watch.verdict import ALPHA, Key, judge
from passes.kit.summaries import classes, rows

WATCHED = ("input", "output", "label")
"""What a service can see: what happens inside of the model only ``lathe check-data`` looks at."""


class Watcher:
    """Holds the data that passes by against what an artifact remembers, in bounded memory. Not for several threads at
    once; watchers of several threads, or processes, merge."""

    def __init__(self, artifact: str | Path, *, alpha: float = ALPHA, looks: int = 1) -> None:
        """``alpha`` is how often, at most, unchanged data is called drift; ``looks`` at how many verdicts together.

        Raises :class:`optimizer.Fault` when the artifact cannot be read or remembers nothing.
        """
        if not 0 < alpha < 1 or looks < 1:
            raise usage(f"alpha {alpha} must lie between 0 and 1 and looks {looks} be at least 1")
        self._artifact = str(artifact)
        self._reference = reference.read(artifact)
        self._edges = reference.edges_of(artifact)
        self._dims = reference.dims_of(artifact)
        self._alpha = alpha / looks
        self._piles: dict[Key, Pile] = {}
        self.reset()

    def reset(self) -> None:
        """Forget what was seen since, as at the start of a new window."""
        held = {key: seen for key, seen in self._reference.seen.items() if key[0] in WATCHED}
        self._piles = {key: Pile(seen.layout, seen.classes) for key, seen in held.items()}

    def update(
        self,
        inputs: Mapping[str, Array] | None = None,
        outputs: Mapping[str, Array] | None = None,
        labels: Mapping[str, Array] | None = None,
    ) -> None:
        """Take in a batch as it was fed to the model, what it gave, and the true labels where they are known.

        Where the artifact has preprocessing of its own, the images that it takes (uint8 [N, H, W, C], or the bytes of
        one file) are preprocessed by the Python reference first; ``outputs`` are those before postprocessing.

        Arrays have the samples on axis 0 (where a feed of the model is one sample, all of it is one). Names that the
        artifact does not remember are left out. Raises :class:`optimizer.Fault` when an array has another type or shape
        than the model takes; then nothing of the batch was taken in.
        """
        inputs = self._preprocessed(inputs)
        parts = {"input": inputs, "output": outputs, "label": labels}
        found = [
            (self._piles[part, name], self._rows(part, name, np.asarray(array)))
            for part, arrays in parts.items()
            for name, array in (arrays or {}).items()
            if (part, name) in self._piles
        ]
        if inputs and not any((part, name) in self._piles for part in ("input",) for name in inputs):
            known = ", ".join(f"'{name}'" for part, name in self._piles if part == "input")
            raise bad_input(f"no array is named like an input of the model ({known})", code="no-input-array")
        for pile, (more, names) in found:
            pile.add(more, names)

    def _preprocessed(self, inputs: Mapping[str, Array] | None) -> Mapping[str, Array] | None:
        edges = self._edges
        if not inputs or edges is None or not edges.preprocess or not edges.image or edges.image not in inputs:
            return inputs
        steps = text.preprocess(edges.preprocess)
        port, first = image_port(edges.inputs, steps)
        channels, given = channels_of(port, first, steps), np.asarray(inputs[edges.image])
        if given.dtype != np.uint8 or given.ndim != (1 if steps.decode else 4):
            wanted = "the bytes of one file" if steps.decode else f"uint8 [N, H, W, {channels}]"
            message = f"input '{edges.image}' is {given.dtype} {list(given.shape)}, not {wanted}"
            raise bad_input(message, code="wrong-shape")
        images = [pictures.open_pixels(given.tobytes(), channels)] if steps.decode else list(given)
        made = [pictures.apply(steps, pixels, channels_first=first) for pixels in images]
        return {**{n: a for n, a in inputs.items() if n != edges.image}, port.name: np.stack(made)}

    def _rows(self, part: str, name: str, array: Array) -> tuple[Array, Array | None]:
        seen = self._reference.seen[part, name]
        if array.ndim == 0:
            raise bad_input(f"{part} '{name}' is a single value: samples come on axis 0", code="wrong-shape")
        dims = self._dims.get((part, name))
        if dims and not _agree(dims, array.shape):
            raise bad_input(f"{part} '{name}' is {list(array.shape)}, not {list(dims)}", code="wrong-shape")
        batch = apart(array, self._reference.whole and part != "label", len(array))
        try:
            numbers = np.issubdtype(batch.dtype, np.number) or batch.dtype.kind == "b"
            if (seen.layout.kind == "text") == numbers:
                raise ValueError(f"it is {batch.dtype}")
            return rows(seen.layout, batch), classes(batch) if seen.classes else None
        except (ValueError, IndexError) as error:
            text = f"{part} '{name}' {list(array.shape)} is not what the artifact was made for: {error}"
            raise bad_input(text, code="wrong-shape") from None

    def verdict(self) -> DriftRecord:
        """What the samples since the last :meth:`reset` say. Every verdict on one window is a look: see ``looks``."""
        now = {key: pile.seen() for key, pile in self._piles.items() if pile.count}
        return replace(judge(self._reference.seen, now, self._alpha), artifact=self._artifact)

    def to_bytes(self) -> bytes:
        """Everything seen, for :meth:`merge` in another process."""
        arrays: dict[str, Array] = {}
        about = []
        for i, (key, pile) in enumerate(self._piles.items()):
            state = pile.state()
            arrays[f"{i}.sums"] = state.pop("sums")
            arrays.update({f"{i}.{k}": sketch for k, sketch in enumerate(state.pop("sketches"))})
            about.append({"key": list(key), **state})
        arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
        stream = io.BytesIO()
        golden.write(stream, arrays)
        return stream.getvalue()

    def merge(self, other: Watcher | bytes) -> None:
        """Take in what another watcher of the same artifact saw. Bytes must come from your own processes.

        Raises :class:`optimizer.Fault` when they are not of such a watcher.
        """
        try:
            piles = other._piles if isinstance(other, Watcher) else _piles(other)
            if set(piles) != set(self._piles) or any(piles[k].layout != self._piles[k].layout for k in piles):
                raise ValueError("it watches another artifact")
        except (ValueError, KeyError, TypeError) as error:
            raise bad_input(f"this watcher cannot be merged: {error}", code="other-watcher") from None
        for key, pile in piles.items():
            self._piles[key].merge(pile)


def _agree(dims: Sequence[int | str | None], shape: Sequence[int]) -> bool:
    """Whether an array of any number of samples has the shape of a port."""
    if len(dims) != len(shape):
        return False
    return all(d == n for d, n in zip(dims[1:], shape[1:], strict=True) if isinstance(d, int))


def _piles(data: bytes) -> dict[Key, Pile]:
    arrays: dict[str, Any] = golden.read(io.BytesIO(data))
    found: dict[Key, Pile] = {}
    for i, state in enumerate(json.loads(arrays["about"].tobytes())):
        part, name = state.pop("key")
        count = len(arrays[f"{i}.sums"])
        sketches = [arrays[f"{i}.{k}"] for k in range(count)]
        found[part, name] = Pile.of_state({**state, "sums": arrays[f"{i}.sums"], "sketches": sketches})
    return found
