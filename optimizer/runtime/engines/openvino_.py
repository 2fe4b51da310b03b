"""The ``openvino`` package as a runtime of its own: the same ONNX file, read by its own reader.

Unless told otherwise it runs on the CPU, in one stream, and keeps float32: by itself it computes float32 models in
bfloat16 on processors that have it, which is another model (``INFERENCE_PRECISION_HINT=bf16`` asks for it).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from optimizer.faults import Fault, bad_input, cannot, usage
from optimizer.plan import OPENVINO_RUNTIME
from optimizer.runtime.engines import Feeds
from optimizer.runtime.engines.onnxruntime_ import whole_work
from passes.kit.options import closest

DEVICE = "device"
"""Our own option: where openvino runs, as it names its devices (CPU, GPU, NPU, AUTO). All others are its own."""

DEFAULTS = {
    "NUM_STREAMS": "1",
    "PERFORMANCE_HINT": "LATENCY",
    "INFERENCE_PRECISION_HINT": "f32",
    "ENABLE_CPU_PINNING": "NO",  # models that take turns are pinned to one core from outside
}


@dataclass(frozen=True)
class OpenVino:
    """The openvino package with a device and properties."""

    options: tuple[tuple[str, str], ...] = ()

    def load(self) -> None:
        if importlib.util.find_spec("openvino") is None:
            hint = "pip install 'lathe[openvino-runtime]'"
            raise cannot("the openvino package is not installed", hint=hint, code="missing-package")
        import openvino  # noqa: F401 - takes most of a second, which is not the model's

    def open(self, path: str, threads: int, *, optimize: bool = True) -> Compiled:
        if not optimize:
            raise cannot("the openvino package cannot run a model as it stands, without its own optimizer")
        return Compiled(self._compile(path, threads))

    def coverage(self, path: str, feeds: Feeds, threads: int) -> list[dict[str, Any]]:
        compiled = self._compile(path, threads, PERF_COUNT="YES")
        program = Compiled(compiled)
        program.bind(feeds)()
        ran = [n for n in program.request.profiling_info if str(n.status).endswith("EXECUTED")]
        where = ", ".join(compiled.get_property("EXECUTION_DEVICES"))
        macs = whole_work(path, feeds)
        return [{"provider": OPENVINO_RUNTIME, "nodes": len(ran), "macs": macs, "device": where}]

    def _compile(self, path: str, threads: int, **more: str) -> Any:
        import openvino

        self.load()
        core = openvino.Core()
        given = {key: value for key, value in self.options if key.lower() != DEVICE}
        device = next((value for key, value in self.options if key.lower() == DEVICE), "CPU")
        known = _properties(core, device)
        for key in given:
            if key not in known:
                near = closest(key, (DEVICE, *known))
                hint = "" if near else f"It has: {', '.join((DEVICE, *sorted(known)))}."
                raise usage(f"openvino on {device} has no option '{key}'{near}", hint=hint)
        wanted = {**DEFAULTS, "INFERENCE_NUM_THREADS": str(threads), **more}
        config = {**{k: v for k, v in wanted.items() if k in known}, **given}
        try:
            return core.compile_model(core.read_model(path), device, config)
        except Exception as error:
            raise bad_input(f"openvino cannot load the model: {_line(error)}", code="runtime-refused") from error


class Compiled:
    """A model compiled for a device, with one request for inference."""

    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled
        self.request = compiled.create_infer_request()

    def run(self, feeds: Feeds) -> dict[str, Any]:
        self.bind(feeds)()
        found = (self.request.get_output_tensor(i).data for i in range(len(self.compiled.outputs)))
        return {port.get_any_name(): np.array(data) for port, data in zip(self.compiled.outputs, found, strict=True)}

    def bind(self, feeds: Feeds) -> Callable[[], None]:
        with _in_plain_words():
            for port in self.compiled.inputs:
                name = next((n for n in port.get_names() if n in feeds), None)
                if name is None:
                    raise bad_input(f"there is no data for the input '{port.get_any_name()}'")
                self.request.set_tensor(port, _tensor(np.asarray(feeds[name])))

        def run() -> None:
            with _in_plain_words():
                self.request.infer(share_outputs=True)

        return run


def _tensor(array: Any) -> Any:
    import openvino

    if array.dtype.kind in "OSU" or array.dtype.isbuiltin == 2:
        raise bad_input(f"openvino takes no {array.dtype} from Python", code="wrong-type")
    return openvino.Tensor(np.ascontiguousarray(array), shared_memory=bool(array.ndim))


def _properties(core: Any, device: str) -> set[str]:
    """Names of the properties of a device that can be set. Raises a Fault where there is no such device."""
    try:
        found = core.get_property(device, "SUPPORTED_PROPERTIES")
        return {name for name, kind in found.items() if kind == "RW"}
    except Exception as error:
        hint = f"It has: {', '.join(core.available_devices) or 'none'}."
        raise cannot(f"openvino has no device '{device}' here", hint=hint, code="missing-provider") from error


class _in_plain_words:
    """Turn whatever openvino raises while it runs a model into a Fault; lighter than a generator, for timed runs."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, Fault):
            text = f"openvino failed while running the model: {_line(error)}"
            raise bad_input(text, code="runtime-failed") from error


def _line(error: Exception) -> str:
    """What openvino said, without the places in its sources."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith(("Exception from ", "Check '"))]
    return (told or lines or [type(error).__name__])[-1][:300]


def write_ir(path: str, feeds: list[dict[str, Any]], out: str) -> list[dict[str, Any]]:
    """Write OpenVINO's form of an ONNX file to ``out`` (.xml) without rounding weights, load that file again and give
    its outputs by name for each feed."""
    import openvino

    openvino.save_model(openvino.convert_model(path), out, compress_to_fp16=False)
    exactly = {"INFERENCE_PRECISION_HINT": "f32", "CACHE_DIR": ""}
    model = openvino.Core().compile_model(out, "CPU", exactly)
    names = [output.get_any_name() for output in model.outputs]
    return [dict(zip(names, list(model(feed).values()), strict=True)) for feed in feeds]
