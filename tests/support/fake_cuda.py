"""An onnxruntime with a GPU: a double that computes on the CPU and is as particular as the real thing.

What is launched is done only when it is waited for; device memory cannot be read by accident; a captured graph is
replayed at the addresses that it was captured with. ``calls`` holds what was asked of it, in order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from optimizer.runtime import hardware, providers, sessions
from optimizer.runtime.engines import devices, onnxruntime_
from optimizer.workers.child import find

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
REAL = ort.InferenceSession


class DeviceValue:
    """A tensor in device memory: no numpy in sight."""

    def __init__(self, array: Any, device: int) -> None:
        self._array, self.device = array, device


class FakeCuda:
    """Stands for the module onnxruntime.

    ``placed`` says which provider runs a node, by its operator; ``starts`` is false for a GPU whose libraries are
    missing: onnxruntime then leaves the provider out without a word. ``compiles`` makes one node of everything, as
    TensorRT does.
    """

    SessionOptions, GraphOptimizationLevel = ort.SessionOptions, ort.GraphOptimizationLevel

    def __init__(
        self,
        *,
        starts: bool = True,
        placed: Callable[[str], str] | None = None,
        compiles: bool = False,
        broken: str = "",
    ) -> None:
        self.starts, self.placed, self.compiles, self.broken = starts, placed, compiles, broken
        self.calls: list[str] = []
        self.__version__ = "fake"
        outer = self

        class OrtValue:
            @staticmethod
            def ortvalue_from_numpy(array: Any, kind: str = "cpu", device: int = 0) -> Any:
                if kind == "cpu":
                    return ort.OrtValue.ortvalue_from_numpy(array)
                outer.calls.append("to device")
                return DeviceValue(np.array(array), device)

        class RunOptions:
            def __init__(self) -> None:
                self.entries: dict[str, str] = {}

            def add_run_config_entry(self, key: str, value: str) -> None:
                self.entries[key] = value

        self.OrtValue, self.RunOptions = OrtValue, RunOptions

    def get_available_providers(self) -> list[str]:
        return [TENSORRT, CUDA, CPU]

    def InferenceSession(self, path: str, options: Any, providers: list[str], given: list[Any], **how: Any) -> Any:
        assert how == {"enable_fallback": False}, "onnxruntime's own fallback is silent"
        if self.broken and providers[0] != CPU:
            raise RuntimeError(f"[ONNXRuntimeError] : 1 : FAIL : {self.broken}")
        if providers[0] == CPU:
            return REAL(path, options, providers=[CPU])
        return FakeSession(self, REAL(path, options, providers=[CPU]), providers, given[0])


class FakeSession:
    def __init__(self, fake: FakeCuda, real: Any, providers: list[str], options: dict[str, str]) -> None:
        self.fake, self.real, self.providers, self.options = fake, real, providers, options
        self.captured: list[Any] | None = None
        self.waiting: list[Callable[[], None]] = []

    def get_inputs(self) -> Any:
        return self.real.get_inputs()

    def get_outputs(self) -> Any:
        return self.real.get_outputs()

    def get_providers(self) -> list[str]:
        return self.providers if self.fake.starts else [CPU]

    def run(self, names: Any, feeds: Any, options: Any = None) -> Any:
        assert options is not None or not self.graphs, "a run from host memory would capture a graph of it"
        return self.real.run(names, feeds)

    @property
    def graphs(self) -> bool:
        return "1" in (self.options.get("enable_cuda_graph"), self.options.get("trt_cuda_graph_enable"))

    def io_binding(self) -> FakeBinding:
        return FakeBinding(self)

    def run_with_iobinding(self, binding: FakeBinding, options: Any = None) -> None:
        self.fake.calls.append("launch")
        skipped = options is not None and options.entries.get("gpu_graph_id") == "-1"
        if self.graphs and not skipped:
            addresses = [id(v) for v in (*binding.inputs.values(), *binding.outputs.values())]
            assert all(isinstance(v, DeviceValue) for v in binding.outputs.values()), "captured without fixed outputs"
            assert self.captured in (None, addresses), "replayed at other addresses"
            self.captured = addresses
        self.waiting.append(lambda: binding.compute(self.real))

    def end_profiling(self) -> str:
        path = Path(self.real.end_profiling())
        events = json.loads(path.read_text())
        for event in events:
            if event.get("cat") == "Node":
                told = event["args"]
                told["provider"] = self.fake.placed(told["op_name"]) if self.fake.placed else self.providers[0]
                if self.fake.compiles and told["provider"] != CPU:
                    event["name"], told["op_name"] = "fused_0_kernel_time", "TRTKernel_graph_0"
        path.write_text(json.dumps(events))
        return str(path)


class FakeBinding:
    def __init__(self, session: FakeSession) -> None:
        self.session = session
        self.inputs: dict[str, Any] = {}
        self.outputs: dict[str, Any] = {}

    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        assert isinstance(value, DeviceValue), "an input in host memory is copied in every run"
        self.inputs[name] = value

    def bind_output(self, name: str, kind: str, device: int) -> None:
        assert kind == "cuda"
        self.outputs[name] = device

    def bind_ortvalue_output(self, name: str, value: Any) -> None:
        self.outputs[name] = value

    def get_outputs(self) -> list[DeviceValue]:
        return list(self.computed)

    def compute(self, real: Any) -> None:
        found = real.run(None, {name: value._array for name, value in self.inputs.items()})
        self.computed = [DeviceValue(array, 0) for array in found]

    def synchronize_inputs(self) -> None:
        self.session.fake.calls.append("wait for inputs")

    def synchronize_outputs(self) -> None:
        self.session.fake.calls.append("wait for outputs")
        for work in self.session.waiting:
            work()
        self.session.waiting.clear()


def install(monkeypatch: pytest.MonkeyPatch, fake: FakeCuda) -> FakeCuda:
    """Let this process find the double where it looks for onnxruntime."""
    for module in (providers, devices, onnxruntime_):
        monkeypatch.setattr(module, "runtime", lambda: fake)
    return fake


class InProcess:
    """A worker that is no process: what it is asked runs here, where a double can be installed."""

    pid, timed_out = 0, False

    def call(self, op: str, *, timeout: float | None = None, **args: Any) -> Any:
        return find(op)(**args)


@contextmanager
def _in_process() -> Iterator[InProcess]:
    yield InProcess()


def without_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the parent's side call jobs in this process, which is not to be pinned to a core."""
    monkeypatch.setattr(sessions, "worker", _in_process)
    monkeypatch.setattr(hardware, "idlest_core", lambda: None)
