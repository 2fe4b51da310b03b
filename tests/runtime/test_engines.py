"""Engines: every one keeps the same contract, and a GPU is timed where its memory is. The GPU here is a double."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from optimizer.faults import Exit, Fault
from optimizer.plan import OPENVINO_RUNTIME, ProviderText
from optimizer.runtime import providers
from optimizer.runtime.engines import engine_for
from tests.support import fake_cuda, models
from tests.support.fake_cuda import CPU, CUDA, TENSORRT, FakeCuda

MACS = 16 * 16 * 9 * (3 * 16 + 2 * 16 * 16) + 16 * 10
needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="the openvino package is not installed"
)
GRAPHS = f"{CUDA}:enable_cuda_graph=1,device_id=0"


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(models.cnn(tmp_path_factory.mktemp("nets") / "net.onnx", width=16))


@pytest.fixture
def feed() -> dict[str, Any]:
    return {"x": np.random.default_rng(3).normal(size=(2, 3, 16, 16)).astype(np.float32), "unused": np.zeros(1)}


@pytest.fixture(params=[CPU, CUDA, GRAPHS, TENSORRT, pytest.param(OPENVINO_RUNTIME, marks=needs_openvino)])
def provider(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    fake_cuda.install(monkeypatch, FakeCuda())
    return str(request.param)


def test_it_computes_what_the_cpu_does(provider: str, net: str, feed: dict[str, Any]) -> None:
    session = onnxruntime.InferenceSession(net, providers=[CPU])
    (wanted,) = session.run(None, {"x": feed["x"]})
    program = engine_for(provider).open(net, 1)
    for _ in range(2):
        np.testing.assert_allclose(program.run(feed)["y"], wanted, rtol=1e-4, atol=1e-4)


def test_a_bound_run_can_be_repeated_beside_others(provider: str, net: str, feed: dict[str, Any]) -> None:
    program = engine_for(provider).open(net, 1)
    bound = program.bind(feed)
    bound()
    other = program.run({"x": np.ones((1, 3, 16, 16), np.float32)})
    bound()
    assert other["y"].shape == (1, 10)


def test_it_proves_who_ran_what(provider: str, net: str, feed: dict[str, Any]) -> None:
    shares = engine_for(provider).coverage(net, feed, 1)
    assert [s["provider"] for s in shares] == [ProviderText.parse(provider).name]
    assert shares[0]["nodes"] >= 4 and shares[0]["macs"] == 2 * MACS


# -- the GPU -----------------------------------------------------------------------------------------------------------
def test_inputs_lie_on_the_device_and_a_run_is_over_when_it_says_so(
    monkeypatch: pytest.MonkeyPatch, net: str, feed: dict[str, Any]
) -> None:
    fake = fake_cuda.install(monkeypatch, FakeCuda())
    bound = engine_for(CUDA).open(net, 1).bind(feed)
    assert fake.calls == ["to device", "wait for inputs"]
    bound()
    bound()
    assert fake.calls[2:] == ["launch", "wait for outputs"] * 2, "nothing is copied while the clock runs"


def test_a_graph_is_captured_with_outputs_that_stay_in_place(
    monkeypatch: pytest.MonkeyPatch, net: str, feed: dict[str, Any]
) -> None:
    fake_cuda.install(monkeypatch, FakeCuda())
    program: Any = engine_for(GRAPHS).open(net, 1)
    bound = program.bind(feed)
    assert program.session.captured is None, "the run that finds the sizes is not captured"
    bound()
    bound()
    assert program.session.captured is not None
    assert program.session.options == {"enable_cuda_graph": "1", "device_id": "0"}


def test_copies_are_nobodys_work_and_compiled_graphs_ran_what_others_did_not(
    monkeypatch: pytest.MonkeyPatch, net: str, feed: dict[str, Any]
) -> None:
    fake = FakeCuda(placed=lambda op: CPU if op == "Gemm" else TENSORRT, compiles=True)
    fake_cuda.install(monkeypatch, fake)
    shares = {s["provider"]: s for s in engine_for(TENSORRT).coverage(net, feed, 1)}
    assert shares[TENSORRT]["nodes"] == 1 and shares[CPU]["nodes"] == 1
    assert shares[CPU]["macs"] == 2 * 160 and shares[TENSORRT]["macs"] == 2 * MACS - 320


def test_a_provider_that_does_not_start_is_never_the_cpu_in_silence(monkeypatch: pytest.MonkeyPatch, net: str) -> None:
    fake_cuda.install(monkeypatch, FakeCuda(starts=False))
    with pytest.raises(Fault, match="did not start") as caught:
        engine_for(CUDA).open(net, 1)
    assert caught.value.exit is Exit.UNDECIDED
    fake_cuda.install(monkeypatch, FakeCuda(broken="no kernel image"))
    with pytest.raises(Fault, match="no kernel image"):
        engine_for(CUDA).open(net, 1)


# -- names and options -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("cpu", CPU),
        ("CudaExecutionProvider", CUDA),
        ("cuda:device_id=1, use_tf32=0", f"{CUDA}:device_id=1,use_tf32=0"),
        ("tensorrt:trt_profile_min_shapes=x:1x3,y:1,device_id=0", None),
        ("openvino-runtime:device=AUTO:GPU,CPU", f"{OPENVINO_RUNTIME}:device=AUTO:GPU,CPU"),
    ],
)
def test_options_are_read_and_can_be_read_again(text: str, wanted: str | None) -> None:
    full = providers.full_name(text)
    assert wanted is None or full == wanted
    assert providers.full_name(full) == full


def test_commas_and_colons_may_stand_in_values() -> None:
    told = ProviderText.parse("tensorrt:trt_profile_min_shapes=x:1x3,y:1,device_id=0")
    assert dict(told.options) == {"trt_profile_min_shapes": "x:1x3,y:1", "device_id": "0"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cuda:enable_cuda_graf=1", "did you mean 'enable_cuda_graph'"),
        ("cpu:threads=2", "has no option 'threads'. It has none"),
        ("cuda:device_id", "write NAME:key=value"),
        ("cuda:device_id=0,device_id=1", "stands twice"),
        ("cudda", "did you mean 'cuda'"),
        ("CUDAExecutionProvidr", "did you mean 'CUDAExecutionProvider'"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_fault(text: str, said: str) -> None:
    with pytest.raises(Fault) as caught:
        providers.full_name(text)
    assert caught.value.exit is Exit.USAGE and said in str(caught.value)


def test_an_unknown_option_without_a_likeness_is_for_the_runtime_to_judge() -> None:
    assert providers.full_name("cuda:zzz=1") == f"{CUDA}:zzz=1"


def test_openvino_is_whichever_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def here(*names: str) -> None:
        monkeypatch.setattr(providers, "everywhere", lambda: names)

    here("OpenVINOExecutionProvider", CPU, OPENVINO_RUNTIME)
    assert providers.choose("openvino") == "OpenVINOExecutionProvider"
    here(CPU, OPENVINO_RUNTIME)
    assert providers.choose("openvino:device=CPU") == f"{OPENVINO_RUNTIME}:device=CPU"
    with pytest.raises(Fault, match="OpenVINOExecutionProvider is not available"):
        providers.choose("OpenVINOExecutionProvider")
    with pytest.raises(Fault, match="onnxruntime must look inside"):
        providers.require("openvino")
    here(CPU)
    with pytest.raises(Fault, match=r"pip install 'lathe\[openvino-runtime\]'") as caught:
        providers.choose("openvino")
    assert caught.value.exit is Exit.UNDECIDED


@needs_openvino
def test_openvino_names_its_options_and_devices(net: str) -> None:
    with pytest.raises(Fault, match="did you mean 'INFERENCE_PRECISION_HINT'") as caught:
        engine_for(f"{OPENVINO_RUNTIME}:INFERENCE_PRECISON_HINT=f32").open(net, 1)
    assert caught.value.exit is Exit.USAGE
    with pytest.raises(Fault, match="no device 'TPU' here"):
        engine_for(f"{OPENVINO_RUNTIME}:device=TPU").open(net, 1)
    with pytest.raises(Fault, match="openvino cannot load the model"):
        engine_for(f"{OPENVINO_RUNTIME}:NUM_STREAMS=many").open(net, 1)


@needs_openvino
def test_openvino_keeps_float32_by_itself(net: str) -> None:
    compiled: Any = engine_for(OPENVINO_RUNTIME).open(net, 1)
    assert str(compiled.compiled.get_property("INFERENCE_PRECISION_HINT")) == "<Type: 'float32'>"


def test_an_artifact_cannot_name_options(tmp_path: Path) -> None:
    assert providers.named("TensorrtExecutionProvider:trt_extra_plugin_lib_paths=/tmp/evil.so") == TENSORRT
