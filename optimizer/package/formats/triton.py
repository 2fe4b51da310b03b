"""``--to triton``: a model repository of one model, batching chosen from batches that were timed on this machine.

Field names and types are those of Triton's ``model_config.proto``.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from optimizer.faults import Fault
from optimizer.measure import latency
from optimizer.package.check import replay_in_worker
from optimizer.package.formats.base import Artifact, no_such_form
from optimizer.package.receiver.pairs import Tolerance, difference
from optimizer.plan import PROVIDERS
from optimizer.runtime.sessions import Site

BATCHES = (1, 2, 4, 8, 16, 32)
"""Batches that are timed; the largest that pays bounds what Triton puts together."""
SECONDS_A_BATCH = 0.4
GAIN, NEARLY = 1.05, 0.8
"""A batch is preferred when it serves so many times the requests a second of single ones, and of the best batch."""

_TYPES = {
    "FLOAT": "FP32", "DOUBLE": "FP64", "FLOAT16": "FP16", "BFLOAT16": "BF16", "BOOL": "BOOL", "STRING": "STRING",
    **{f"{sign}INT{bits}": f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)},
}  # fmt: skip
_GPU = {PROVIDERS["cuda"], PROVIDERS["tensorrt"]}
_ACCELERATORS = {PROVIDERS["tensorrt"]: ("gpu", "tensorrt"), PROVIDERS["openvino"]: ("cpu", "openvino")}

Feed = dict[str, Any]


@dataclass(frozen=True)
class Batching:
    """What Triton may put together: the largest batch, those that it should wait for, and how long, microseconds."""

    largest: int
    preferred: tuple[int, ...]
    delay_us: int


class Triton:
    """``NAME/config.pbtxt``, ``NAME/1/model.onnx`` and warm-up requests from the golden inputs."""

    name: ClassVar[str] = "triton"
    summary: ClassVar[str] = "a Triton model repository, with batching from batch sizes timed here"
    needs: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = "triton"

    def write(self, artifact: Artifact, folder: Path) -> tuple[str, ...]:
        for port in (*artifact.ports("inputs"), *artifact.ports("outputs")):
            if port["type"] not in _TYPES or port["dims"] is None:
                raise no_such_form("triton", f"'{port['name']}' ({port['type']}) is no tensor that Triton knows")
        home = folder / artifact.name
        (home / "1").mkdir(parents=True)
        artifact.copy_model(home / "1")
        why = unbatchable(artifact)
        curve = {} if why else batch_curve(artifact)
        batching = choose(curve) if curve else Batching(0, (), 0)
        warm_up = _warm_up(artifact, home, batching)
        (home / "config.pbtxt").write_text(config(artifact, batching, warm_up), encoding="utf-8")
        return (f"no batching: {why}",) if why else (_told(curve, batching),)


# -- batching ----------------------------------------------------------------------------------------------------------
def choose(curve: Mapping[int, float]) -> Batching:
    """Batching from milliseconds per run by batch size (1 among them).

    A batch is preferred when it serves nearly as many requests a second as the best one, and noticeably more than
    they get alone: Triton sends a preferred batch off without waiting for more, so smaller ones would only hinder.
    Waiting is worth at most what the smallest of them saves a request in the machine's time: with L(b) milliseconds
    for a batch of b, L(1) - L(b) / b.
    """
    served = {batch: batch / ms for batch, ms in sorted(curve.items())}
    best = max(served, key=lambda batch: served[batch])
    preferred = tuple(
        b for b, s in served.items() if 1 < b <= best and s >= max(NEARLY * served[best], GAIN * served[1])
    )
    if not preferred:
        return Batching(max(curve), (), 0)
    saved = curve[1] - curve[preferred[0]] / preferred[0]
    return Batching(preferred[-1], preferred, max(1, round(saved * 1e3)))


def unbatchable(artifact: Artifact) -> str:
    """Why requests of this model cannot be put together, as text: found in its signature, then by trying."""
    for kind in ("inputs", "outputs"):
        for port in artifact.ports(kind):
            if not port["dims"] or isinstance(port["dims"][0], int):
                return f"'{port['name']}' has no open batch axis"
    rows = [{n: a[i : i + 1] for n, a in p.feeds.items()} for p in artifact.pairs for i in range(_length(p.feeds))]
    alike = [row for row in rows if _shapes(row) == _shapes(rows[0])]
    if len(alike) < 2:
        return "there are no two golden samples of one shape to try it on"
    first, second = alike[0], alike[-1]
    try:
        *alone, together = _run(artifact, [first, second, {n: np.concatenate([first[n], second[n]]) for n in first}])
    except Fault as fault:
        return f"it does not run on a batch of two ({fault.message})"
    for name, value in together.items():
        apart = np.concatenate([outputs[name] for outputs in alone])
        if difference(apart, value, Tolerance(**artifact.manifest["golden"]["tolerance"][name])):
            return f"output '{name}' of two samples is not that of each alone"
    return ""


def _length(feed: Mapping[str, Any]) -> int:
    return min(len(array) for array in feed.values())


def _shapes(feed: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in feed.items()}


def batch_curve(artifact: Artifact) -> dict[int, float]:
    """Milliseconds per run by batch size, timed side by side on this machine."""
    feeds = [_rows(artifact.pairs[0].feeds, b) for b in BATCHES]
    site = Site(artifact.provider, artifact.threads, artifact.runtime_version)
    effort = latency.Effort(restarts=2, seconds=SECONDS_A_BATCH, least=3)
    timings = latency.compare([artifact.model] * len(BATCHES), feeds, site, effort)
    return {batch: timing.latency().p50 for batch, timing in zip(BATCHES, timings, strict=True)}


def _rows(feed: Mapping[str, Any], batch: int) -> Feed:
    """``batch`` samples: those of the feed, over and over."""
    return {n: np.ascontiguousarray(a[np.arange(batch) % len(a)]) for n, a in feed.items()}


def _run(artifact: Artifact, feeds: Sequence[Feed]) -> list[dict[str, Any]]:
    return replay_in_worker(artifact.model, feeds, artifact.provider, artifact.threads)


def _told(curve: Mapping[int, float], batching: Batching) -> str:
    timed = ", ".join(f"{batch}: {ms:.3g} ms" for batch, ms in sorted(curve.items()))
    if not batching.preferred:
        return f"batches gain less than {GAIN - 1:.0%}, so Triton does not wait for any ({timed})"
    sizes = ", ".join(map(str, batching.preferred))
    return f"preferred batches {sizes}, waiting at most {batching.delay_us} µs ({timed})"


# -- config.pbtxt ------------------------------------------------------------------------------------------------------
def config(artifact: Artifact, batching: Batching, warm_up: str = "") -> str:
    """The text of ``config.pbtxt``."""
    batched = batching.largest > 0
    kind = "KIND_GPU" if artifact.provider in _GPU else "KIND_CPU"
    parts = [
        f"name: {json.dumps(artifact.name)}",
        'backend: "onnxruntime"',
        'default_model_filename: "model.onnx"',
        f"max_batch_size: {batching.largest}",
        *(_port("input", port, batched) for port in artifact.ports("inputs")),
        *(_port("output", port, batched) for port in artifact.ports("outputs")),
        f"instance_group [ {{ count: 1 kind: {kind} }} ]",
        _parameter("intra_op_thread_count", artifact.threads),
        _parameter("inter_op_thread_count", 1),
    ]
    if batching.preferred:
        sizes = ", ".join(map(str, batching.preferred))
        delay = f"max_queue_delay_microseconds: {batching.delay_us}"
        parts.append(f"dynamic_batching {{ preferred_batch_size: [ {sizes} ] {delay} }}")
    if artifact.provider in _ACCELERATORS:
        where, name = _ACCELERATORS[artifact.provider]
        chosen = f'{where}_execution_accelerator : [ {{ name : "{name}" }} ]'
        parts.append(f"optimization {{ execution_accelerators {{ {chosen} }} }}")
    return "\n".join([*parts, *([warm_up] if warm_up else [])]) + "\n"


def _port(kind: str, port: Mapping[str, Any], batched: bool) -> str:
    dims = [d if isinstance(d, int) else -1 for d in port["dims"]][1 if batched else 0 :]
    said = f"name: {json.dumps(port['name'])} data_type: TYPE_{_TYPES[port['type']]}"
    if not dims:  # Triton knows no scalars: an empty shape is told as one element
        return f"{kind} [ {{ {said} dims: [ 1 ] reshape: {{ shape: [ ] }} }} ]"
    return f"{kind} [ {{ {said} dims: [ {', '.join(map(str, dims))} ] }} ]"


def _parameter(key: str, value: int) -> str:
    return f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}'


# -- warm-up -----------------------------------------------------------------------------------------------------------
def _warm_up(artifact: Artifact, home: Path, batching: Batching) -> str:
    """A request for each golden pair, and one of the largest preferred batch; their arrays go to ``warmup/``."""
    feeds = [dict(pair.feeds) for pair in artifact.pairs]
    if batching.largest:
        whole = max(batching.preferred, default=1)
        feeds = [_rows(f, min(len(next(iter(f.values()))), batching.largest)) for f in feeds]
        feeds = [*feeds, *([_rows(feeds[0], whole)] if feeds and whole > 1 else [])]
    if not feeds:
        return ""
    (home / "warmup").mkdir()
    kinds = {port["name"]: _TYPES[port["type"]] for port in artifact.ports("inputs")}
    return "\n".join(_request(home, i, feed, kinds, batching.largest > 0) for i, feed in enumerate(feeds))


def _request(home: Path, number: int, feed: Feed, kinds: Mapping[str, str], batched: bool) -> str:
    inputs = []
    for place, (name, array) in enumerate(feed.items()):
        file = f"golden-{number}-{place}"
        (home / "warmup" / file).write_bytes(_raw(np.asarray(array)))
        dims = ", ".join(map(str, array.shape[1 if batched else 0 :])) or "1"
        said = f'data_type: TYPE_{kinds[name]} dims: [ {dims} ] input_data_file: "{file}"'
        inputs.append(f"inputs {{ key: {json.dumps(name)} value: {{ {said} }} }}")
    count = len(next(iter(feed.values()))) if batched else 0
    size = f"batch_size: {count} " if count else ""
    return f'model_warmup [ {{ name: "golden-{number}" {size}{" ".join(inputs)} }} ]'


def _raw(array: np.ndarray[Any, Any]) -> bytes:
    """The bytes as Triton's requests hold them: row-major; texts with their length before them."""
    if array.dtype.kind not in "OSU":
        return np.ascontiguousarray(array).tobytes()
    texts = [str(t).encode() for t in array.reshape(-1)]
    return b"".join(struct.pack("<I", len(t)) + t for t in texts)
