"""What weight-only quantization costs a language model: bits per token for every method, on the emitted model.

    python benchmarks/weight_only.py MODEL CALIB EVAL [--exclude PATTERN ...] [--block 32] [--accuracy-level 0]

MODEL is an ONNX file with token ids in and logits [batch, sequence, vocabulary] out; CALIB an npz of its inputs,
samples along the first axis; EVAL an npz of its inputs and ``labels`` int64 [samples, sequence] (the next token, -100:
none).
Methods that need data see three random halves of CALIB; the table shows mean, least and greatest.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from passes.clean.fold_constants import FoldConstants
from passes.clean.tidy import Tidy
from passes.kit.model import Model
from passes.kit.target import Target
from passes.quantize.quantize_weights import QuantizeWeights

Array = np.ndarray[Any, Any]
BATCH = 8
HALVES = 3
ROWS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("8 bits, rtn", {"bits": 8, "method": "rtn"}),
    ("8 bits, gptq", {"bits": 8, "method": "gptq"}),
    ("4 bits, rtn", {"method": "rtn"}),
    ("4 bits, rtn, symmetric", {"method": "rtn", "symmetric": True}),
    ("4 bits, hqq", {"method": "hqq"}),
    ("4 bits, awq", {"method": "awq"}),
    ("4 bits, gptq", {"method": "gptq"}),
    ("4 bits, gptq-awq", {"method": "gptq-awq"}),
    ("2 bits, rtn", {"bits": 2, "method": "rtn"}),
    ("2 bits, gptq", {"bits": 2, "method": "gptq"}),
)


@dataclass
class World:
    """The context of a pass over arrays held in memory, answering with onnxruntime in this process."""

    feeds: Mapping[str, Array]
    target: Target
    seed: int = 0
    answers: dict[tuple[str, str], Any] = field(default_factory=dict)
    original: Model | None = None

    def sampled(self, count: int) -> Any:
        raise NotImplementedError("weight-only passes sample nothing")

    def stats(self, model: Model, reducers: Mapping[str, Any]) -> dict[str, Any]:
        keys = {name: (name, str(reducer.spec())) for name, reducer in reducers.items()}
        missing = [name for name, key in keys.items() if key not in self.answers]
        if missing:
            session = open_session(model, missing)
            for feeds in batches(self.feeds):
                for name, value in zip(missing, session.run(missing, feeds), strict=True):
                    reducers[name].fold(value)
            self.answers.update({keys[name]: reducers[name] for name in missing})
        return {name: self.answers[key] for name, key in keys.items()}

    def run(self, model: Model, feeds: Any, fetch: Any) -> Any:
        raise NotImplementedError("weight-only passes run nothing")

    def cost(self, model: Model) -> float:
        raise NotImplementedError("weight-only passes time nothing")


def open_session(model: Model, fetch: list[str] | None = None) -> Any:
    """A session on one thread; ``fetch`` names inner values to expose."""
    proto = model.to_proto()
    have = {o.name for o in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=n) for n in fetch or [] if n not in have)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def batches(arrays: Mapping[str, Array]) -> Iterator[dict[str, Array]]:
    """Slices of BATCH samples."""
    for start in range(0, len(next(iter(arrays.values()))), BATCH):
        yield {name: array[start : start + BATCH] for name, array in arrays.items()}


def bits_per_token(model: Model, data: Mapping[str, Array]) -> tuple[float, float]:
    """Mean negative log2 likelihood of the labels, and CPU seconds that the model ran."""
    session = open_session(model)
    wanted = {i.name for i in session.get_inputs()}
    total, count, spent = 0.0, 0, 0.0
    for feeds in batches(data):
        start = time.process_time()
        logits = session.run(None, {k: v for k, v in feeds.items() if k in wanted})[0].astype(np.float64)
        spent += time.process_time() - start
        logits -= logits.max(axis=-1, keepdims=True)
        logs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        labels = feeds["labels"]
        kept = labels >= 0
        total -= np.take_along_axis(logs, np.where(kept, labels, 0)[..., None], -1)[..., 0][kept].sum()
        count += int(kept.sum())
    return total / count / float(np.log(2)), spent


def target() -> Target:
    import tomllib

    path = Path(__file__).parents[1] / "optimizer" / "targets" / "x86-vnni.toml"
    return Target.from_toml(tomllib.loads(path.read_text()))


def row(label: str, options: dict[str, Any], model: Model, worlds: list[World], data: Any, base: float) -> float:
    """Quantize on every half (on one, where no data is used), print a line, return mean bits per token."""
    found, spent, size, took = [], 0.0, 0, 0.0
    for world in worlds if options["method"] not in ("rtn", "hqq") else worlds[:1]:
        start = time.process_time()
        result = QuantizeWeights(**options)(model, world)
        took = time.process_time() - start
        bits, spent = bits_per_token(result.model, data)
        found.append(bits)
        size = result.model.file_bytes()
    mean = float(np.mean(found))
    spread = f"{min(found):.4f} … {max(found):.4f}" if len(found) > 1 else ""
    cells = (
        label,
        f"{mean:.4f}",
        spread,
        f"{100 * (mean / base - 1):+.2f} %",
        f"{size:,}",
        f"{took:.1f}",
        f"{spent:.1f}",
    )
    print("| " + " | ".join(cells) + " |", flush=True)
    return mean


def verdicts(found: Mapping[str, float], base: float) -> Iterator[str]:
    """The claims that the table is for, each with its number."""
    lost = found["4 bits, rtn"] - base
    gptq, both, awq = found["4 bits, gptq"], found["4 bits, gptq-awq"], found["4 bits, awq"]
    yield f"8 bits cost {100 * (found['8 bits, rtn'] / base - 1):+.3f} % (at most 0.2)"
    yield f"GPTQ wins back {100 * (1 - (gptq - base) / lost):.0f} % of what round-to-nearest loses (at least 30)"
    yield f"AWQ is {found['4 bits, rtn'] - awq:+.4f} bits better than round-to-nearest (more than 0)"
    yield f"both together are {both - min(gptq, awq):+.4f} bits from the better one (at most 0.002)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "calib", "eval"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--exclude", nargs="*", default=[])
    parser.add_argument("--block", type=int, default=32)
    parser.add_argument("--accuracy-level", type=int, default=4)
    given = parser.parse_args()
    calib, data = dict(np.load(given.calib)), dict(np.load(given.eval))
    source = Model.from_proto(onnx.load(given.model), str(given.model.parent))
    rng, count = np.random.default_rng(0), len(next(iter(calib.values())))
    halves = [np.sort(rng.permutation(count)[: count // 2]) for _ in range(HALVES)]
    worlds = [World({k: v[h] for k, v in calib.items()}, target()) for h in halves]
    for clean in (Tidy(), FoldConstants()):
        source = clean(source, worlds[0]).model
    base, spent = bits_per_token(source, data)
    shared = {"exclude": tuple(given.exclude), "block": given.block, "accuracy_level": given.accuracy_level}
    print(f"onnxruntime {ort.__version__}, CPU, accuracy_level {given.accuracy_level}, blocks of {given.block}\n")
    print(
        "| weights | bits/token | three halves | change | bytes | quantize, s CPU | evaluate, s CPU |\n|" + " --- |" * 7
    )
    print(f"| float32 | {base:.4f} | | | {source.file_bytes():,} | | {spent:.1f} |")
    found = {label: row(label, {**options, **shared}, source, worlds, data, base) for label, options in ROWS}
    print("\n" + "\n".join(verdicts(found, base)))


if __name__ == "__main__":
    main()
