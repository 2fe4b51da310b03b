"""Target files: complete, consistent, found for the host, and followed by quantize-static."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from optimizer.faults import Fault
from optimizer.plan import PROVIDERS
from optimizer.runtime import hardware
from optimizer.runtime.hardware import Host, detect_target, load_target, target_names
from passes.kit.target import Target
from passes.quantize.quantize_static import QuantizeStatic
from tests.support.runtime import Array, LocalContext, model, op_types, run

CPU = PROVIDERS["cpu"]


@pytest.fixture(params=target_names())
def site(request: pytest.FixtureRequest) -> Target:
    return load_target(str(request.param))


def on(monkeypatch: pytest.MonkeyPatch, *features: str) -> None:
    host = Host("a CPU", "x", frozenset(features), 1, 1 << 30, "test")
    monkeypatch.setattr(hardware, "host", lambda: host)


def test_a_target_says_of_each_form_whether_it_is_fast_and_right(site: Target) -> None:
    integers, pairs = {"uint8", "int8"}, {f"{a}*{w}" for a in ("uint8", "int8") for w in ("uint8", "int8")}
    assert {site.activation, site.weight} <= integers
    assert set(site.fast) <= pairs
    assert set(site.right) <= pairs
    form = f"{site.activation}*{site.weight}"
    assert form in site.fast or not site.static_ops
    assert form in site.right or site.weight_range < 127, "what is not right must be held in range"
    assert site.provider in PROVIDERS.values()
    assert site.summary
    assert site.export_opset <= site.max_opset
    assert not site.symmetric_activations or site.activation == "int8"


@pytest.mark.parametrize(
    ("features", "wanted"),
    [
        (["avx2"], "x86-avx2"),
        (["avx2", "avx_vnni"], "x86-vnni"),
        (["avx2", "avx512_vnni"], "x86-vnni"),
        (["avx2", "avx_vnni", "avx_vnni_int8"], "x86-avx-vnni-int8"),
        (["avx2", "avx512_vnni", "amx_int8"], "x86-amx"),
        (["asimd", "asimddp"], "arm64-dotprod"),
        (["asimd", "asimddp", "i8mm"], "arm64-i8mm"),
    ],
)
def test_the_host_is_found_by_its_best_feature(
    monkeypatch: pytest.MonkeyPatch, features: list[str], wanted: str
) -> None:
    on(monkeypatch, *features)
    assert detect_target().name == wanted


def test_a_device_has_its_own_target_whatever_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, "avx2")
    for provider, wanted in (("cuda", "cuda"), ("tensorrt", "tensorrt"), ("openvino", "openvino")):
        assert detect_target(PROVIDERS[provider]).name == wanted
    assert detect_target(PROVIDERS["directml"]).name == "x86-avx2"


def test_an_unknown_host_is_asked_to_name_its_target(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, "sse2")
    with pytest.raises(Fault, match="--target") as caught:
        detect_target()
    assert caught.value.code == "no-target"


def test_a_target_file_of_ones_own_needs_only_the_old_keys() -> None:
    site = load_target("x86-vnni")
    tree = {f.name: getattr(site, f.name) for f in dataclasses.fields(site) if f.default is dataclasses.MISSING}
    assert Target.from_toml(tree).fast == ()
    with pytest.raises(ValueError, match="provider"):
        Target.from_toml({k: v for k, v in tree.items() if k != "provider"})
    with pytest.raises(ValueError, match="quick"):
        Target.from_toml({**tree, "quick": True})


NET = """<ir_version: 8, opset_import: ["" : 17]> g (float[1,4,8,8] x) => (float[1,8,4,4] y)
    <float[8,4,3,3] w, float[8] b, float[8,8,3,3] v> {
    c = Conv<pads = [1,1,1,1]>(x, w, b)
    r = Relu(c)
    d = Conv<pads = [1,1,1,1]>(r, v)
    y = MaxPool<kernel_shape = [2,2], strides = [2,2]>(d)
}"""


def quantized(name: str) -> tuple[list[str], dict[str, Array], float]:
    """Operators, constants by name, and the largest error in shares of the largest output."""
    rng = np.random.default_rng(0)
    shapes = {"w": (8, 4, 3, 3), "b": (8,), "v": (8, 8, 3, 3)}
    source = model(NET, **{k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()})
    feeds = [{"x": rng.normal(size=(1, 4, 8, 8)).astype(np.float32)} for _ in range(4)]
    made = QuantizeStatic()(source, LocalContext(feeds, load_target(name))).model
    held = {n: v.const_value.numpy() for n, v in made.graph.initializers.items() if v.const_value is not None}
    before, after = run(source, feeds[0])["y"], run(made, feeds[0])["y"]
    return op_types(made), held, float(np.abs(before - after).max() / np.abs(before).max())


def test_tensorrt_gets_symmetric_pairs_its_relus_and_float_biases() -> None:
    ops, held, error = quantized("tensorrt")
    assert error < 0.05
    assert "Relu" in ops
    zeros = [a for n, a in held.items() if n.endswith("zero_point")]
    assert zeros
    assert all(a.dtype == np.int8 and not a.any() for a in zeros)
    assert not any(a.dtype == np.int32 for a in held.values())


def test_the_cpu_gets_unsigned_activations_and_integer_biases() -> None:
    ops, held, error = quantized("x86-vnni")
    assert error < 0.05
    assert "Relu" not in ops
    assert any(a.dtype == np.uint8 for a in held.values())
    assert any(a.dtype == np.int32 for a in held.values())


def test_arm_gets_signed_types_and_cuda_none() -> None:
    ops, held, error = quantized("arm64-i8mm")
    assert error < 0.05
    assert "Relu" not in ops
    assert not any(a.dtype == np.uint8 for a in held.values())
    assert "QuantizeLinear" not in quantized("cuda")[0]
