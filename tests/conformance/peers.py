"""Other ONNX optimizers behind one form: model file in, model file out. Those that are not installed are left out."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx

Optimize = Callable[[onnx.ModelProto], onnx.ModelProto]


@dataclass(frozen=True)
class Peer:
    """``module`` tells whether it is here; ``packages`` are the distributions whose versions count."""

    module: str
    packages: tuple[str, ...]
    optimize: Optimize

    @property
    def installed(self) -> bool:
        return importlib.util.find_spec(self.module) is not None

    def run(self, source: Path, out: Path) -> bool:
        """Write what it makes of ``source`` to ``out``; whether the model became another one."""
        before = onnx.load(source)
        data = before.SerializeToString(deterministic=True)
        with contextlib.redirect_stdout(io.StringIO()):
            after = self.optimize(onnx.load(source))
        made = after.SerializeToString(deterministic=True)
        out.write_bytes(made)
        return made != data


def _onnxsim(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnxsim

    return onnxsim.simplify(model)[0]


def _onnxslim(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnxslim

    return onnxslim.slim(model)


def _onnxscript(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnxscript.optimizer

    return onnxscript.optimizer.optimize(model)


def _onnxoptimizer(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnxoptimizer

    return onnxoptimizer.optimize(model)


PEERS: dict[str, Peer] = {
    "onnxsim": Peer("onnxsim", ("onnxsim",), _onnxsim),
    "onnxslim": Peer("onnxslim", ("onnxslim",), _onnxslim),
    "onnxscript": Peer("onnxscript", ("onnxscript",), _onnxscript),
    "onnxoptimizer": Peer("onnxoptimizer", ("onnxoptimizer",), _onnxoptimizer),
}
"""As their own documentation calls them, with default settings."""
