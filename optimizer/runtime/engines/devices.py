"""onnxruntime's providers with memory of their own: inputs lie on the device before the clock starts, outputs stay
there, and a run is over when the device says so.

CUDA graphs (``enable_cuda_graph=1``, for TensorRT ``trt_cuda_graph_enable=1``) replay what one run launched, at the
addresses of that run: inputs and outputs are therefore bound to buffers that stay where they are. The sizes of the
outputs come from a first run that is told not to be captured.
Source: onnxruntime's pages "CUDA Execution Provider" and "I/O Binding"; the run option ``gpu_graph_id``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from optimizer.plan import PROVIDERS, ProviderText
from optimizer.runtime import values
from optimizer.runtime.engines import Feeds
from optimizer.runtime.engines.onnxruntime_ import InMemory, OnnxRuntime, in_plain_words
from optimizer.runtime.providers import open_session, runtime

DEVICES = {PROVIDERS["cuda"]: "cuda", PROVIDERS["tensorrt"]: "cuda", "NvTensorRTRTXExecutionProvider": "cuda"}
"""Providers with device memory, and what onnxruntime calls it."""

GRAPHS = ("enable_cuda_graph", "trt_cuda_graph_enable")
NOT_CAPTURED = ("gpu_graph_id", "-1")


@dataclass(frozen=True)
class OnDevice(OnnxRuntime):
    """onnxruntime with a provider that has memory of its own."""

    def load(self) -> None:
        """CUDA's libraries too, where they were installed by pip: the system's loader does not look there."""
        module = runtime()
        if hasattr(module, "preload_dlls"):
            module.preload_dlls()

    def open(self, path: str, threads: int, *, optimize: bool = True) -> InMemory:
        self.load()
        session = open_session(path, self.provider.text, threads, optimize=optimize)
        return DeviceMemory(session, self.provider)

    def profiled(self) -> ProviderText:
        """Without CUDA graphs: what is replayed as one does not show its nodes."""
        kept = tuple((key, value) for key, value in self.provider.options if key not in GRAPHS)
        return ProviderText(self.provider.name, kept)


class DeviceMemory(InMemory):
    """A session whose inputs and outputs are bound to memory of the device."""

    def __init__(self, session: Any, provider: ProviderText) -> None:
        super().__init__(session)
        options = dict(provider.options)
        self.kind, self.device = DEVICES[provider.name], int(options.get("device_id", 0))
        self.graphs = any(options.get(key, "0").lower() in ("1", "true") for key in GRAPHS)

    def run(self, feeds: Feeds) -> dict[str, Any]:
        if not self.graphs:
            return super().run(feeds)
        with in_plain_words():  # a replayed graph reads the buffers of its first run, not these feeds
            found = self.session.run(None, self.fitting(feeds), self._not_captured())
        return dict(zip(self.names, found, strict=True))

    def bind(self, feeds: Feeds) -> Callable[[], None]:
        binding = self.session.io_binding()
        for name, array in self.fitting(feeds).items():
            binding.bind_ortvalue_input(name, self._moved(np.asarray(array)))
        for name in self.names:
            binding.bind_output(name, self.kind, self.device)
        binding.synchronize_inputs()
        if self.graphs:
            with in_plain_words():
                self.session.run_with_iobinding(binding, self._not_captured())
                binding.synchronize_outputs()
            for name, value in zip(self.names, binding.get_outputs(), strict=True):
                binding.bind_ortvalue_output(name, value)

        def run() -> None:
            self.session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return run

    def _moved(self, array: Any) -> Any:
        """A copy on the device; types that numpy lacks stay in host memory, from where onnxruntime copies them."""
        if values.is_narrow(array):
            return values.to_value(array)
        return runtime().OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self.kind, self.device)

    def _not_captured(self) -> Any:
        options = runtime().RunOptions()
        options.add_run_config_entry(*NOT_CAPTURED)
        return options
