"""What was asked for: settings as one frozen tree, read from flags, ``lathe.toml`` and the Python API alike."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

GOALS = ("latency", "throughput", "size", "memory")
RECOVERIES = ("none", "distill")
GOLDEN = ("synthetic", "data", "none")
LEVELS = (0, 1, 2, 3)
DEFAULT_THREADS = 1
DEFAULT_BATCH = 1

PROVIDERS: Mapping[str, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "directml": "DmlExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "rocm": "ROCMExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
    "webgpu": "WebGpuExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "openvino-runtime": "OpenVINORuntime",
}
"""Short names of providers; the full names work everywhere too. All are onnxruntime's but the last, which is the
``openvino`` package as a runtime of its own; ``openvino`` stands for whichever of the two is here."""

OPENVINO_RUNTIME = PROVIDERS["openvino-runtime"]

_NEXT_OPTION = re.compile(r",(?=\s*[A-Za-z_]\w*\s*=)")


@dataclass(frozen=True)
class ProviderText:
    """A provider as it is written: ``cuda``, or with options of its own ``cuda:device_id=1,enable_cuda_graph=1``.

    A comma starts a new option only where a key and ``=`` follow, since values may hold commas and colons.
    """

    name: str
    options: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> ProviderText:
        """Raises ``ValueError`` that says what is wrong with the options."""
        name, colon, rest = text.strip().partition(":")
        options: dict[str, str] = {}
        for part in _NEXT_OPTION.split(rest) if colon else ():
            key, equals, value = (p.strip() for p in part.partition("="))
            if not (re.fullmatch(r"[A-Za-z_]\w*", key) and equals and value):
                raise ValueError(f"cannot read '{part.strip()}' in '{text}': write NAME:key=value,key=value")
            if key in options:
                raise ValueError(f"'{key}' stands twice in '{text}'")
            options[key] = value
        return cls(name.strip(), tuple(options.items()))

    @property
    def text(self) -> str:
        """As it is written, so that it can be parsed again."""
        told = ",".join(f"{key}={value}" for key, value in self.options)
        return f"{self.name}:{told}" if told else self.name


@dataclass(frozen=True)
class DataRequest:
    """Where samples come from: one source that is split, or a source for each split (paths or ``module:reader``)."""

    data: str | None = None
    calibrate: str | None = None
    select: str | None = None
    confirm: str | None = None

    def given(self) -> bool:
        """Whether the user named any data."""
        return any((self.data, self.calibrate, self.select, self.confirm))


@dataclass(frozen=True)
class Caps:
    """How much a model file may ask for before it is refused, because a small file can unfold to anything.

    ``model_bytes`` counts the file and the external data it names; ``nodes`` every node, with functions expanded where
    they are called; ``depth`` how deep bodies of If, Loop and Scan nest; ``folded_bytes`` what one pass may add to
    the weights.
    """

    model_bytes: int = 64 * 10**9
    nodes: int = 500_000
    depth: int = 16
    folded_bytes: int = 256 * 10**6


@dataclass(frozen=True)
class SourceRequest:
    """How to open MODEL and, for PyTorch, how to export it.

    ``dynamic`` holds texts like ``input:0=batch``; ``example`` is ``module:function`` returning example inputs;
    ``shapes`` holds texts like ``input:1,3,224,224`` used to make example inputs when there is nothing else.
    ``weights`` is a state dict for what the factory returns. ``trust_code`` lets a file run the code inside it.
    """

    model: str
    example: str | None = None
    dynamic: tuple[str, ...] = ()
    shapes: tuple[str, ...] = ()
    opset: int | None = None
    fix_training: bool = False
    refuse_training: bool = False
    trust_code: bool = False
    weights: Path | None = None
    caps: Caps = Caps()
    folder: Path = field(default_factory=Path.cwd)


@dataclass(frozen=True)
class Settings:
    """Everything that ``lathe optimize`` was asked for."""

    source: SourceRequest
    data: DataRequest = DataRequest()
    metric: str | None = None
    evaluator: str | None = None
    budget: tuple[str, ...] = ()
    goal: str = "latency"
    level: int = 2
    recipe: str | None = None
    passes: tuple[str, ...] = ()
    provider: str = "cpu"
    target: str | None = None
    runtime: str | None = None
    output: Path | None = None
    overwrite: bool = False
    seed: int = 0
    cache_dir: Path = field(default_factory=lambda: default_cache_dir())
    batch: int = DEFAULT_BATCH
    threads: int = DEFAULT_THREADS
    custom_ops: tuple[Path, ...] = ()
    license: str | None = None
    seconds: float = 3.0
    strict: bool = False
    golden: str = "synthetic"
    allow_random_data: bool = False
    time_limit: float | None = None
    dry_run: bool = False
    watched: bool = True
    recover: str = "none"
    steps: int | None = None
    minutes: float | None = None
    student: str | None = None
    preprocess: str | None = None
    postprocess: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "cache_dir", Path(self.cache_dir))  # a script may give text

    def but(self, **changes: Any) -> Settings:
        """The same settings with some changed."""
        return replace(self, **changes)


def default_cache_dir() -> Path:
    """``LATHE_CACHE_DIR``, else the user's cache folder."""
    if found := os.environ.get("LATHE_CACHE_DIR"):
        return Path(found)
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(base) if base else Path.home() / ".cache") / "lathe"
