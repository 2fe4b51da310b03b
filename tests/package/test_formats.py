"""Hand-off formats: each is loaded by its real consumer and gives the golden outputs."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import yaml

from optimizer.faults import Exit, Fault
from optimizer.package import artifact, formats
from optimizer.package.check import verify
from optimizer.package.formats import base, ort, triton
from optimizer.package.receiver.pairs import Tolerance, difference, read_pair
from tests.package import parts
from tests.support import runtime

CPU = ["CPUExecutionProvider"]
CONV = """
<ir_version: 8, opset_import: ["" : 17]>
conv (float[batch, 3, 16, 16] pixels) => (float[batch, 8] scores, int64[batch] label)
{
    c = Conv <kernel_shape = [3, 3]> (pixels, w)
    r = Relu (c)
    p = GlobalAveragePool (r)
    scores = Flatten (p)
    label = ArgMax <axis = 1, keepdims = 0> (scores)
}
"""
QUANTIZED = """
<ir_version: 8, opset_import: ["" : 17]>
quantized (float[N, 32] x) => (float[N, 16] y)
{
    q = QuantizeLinear (x, s, z)
    d = DequantizeLinear (q, s, z)
    v = DequantizeLinear (w, t, o)
    y = MatMul (d, v)
}
"""


def conv() -> Any:
    weights = np.random.default_rng(3).standard_normal((8, 3, 3, 3), dtype=np.float32)
    return runtime.model(CONV, w=weights)


def quantized() -> Any:
    rng = np.random.default_rng(4)
    return runtime.model(
        QUANTIZED, s=np.float32(0.05), z=np.uint8(128), t=np.float32(0.01), o=np.int8(0),
        w=rng.integers(-100, 100, (32, 16)).astype(np.int8),
    )  # fmt: skip


def pairs_of(subject: Any, feeds: list[dict[str, Any]]) -> Any:
    return parts.golden.pairs(feeds, [runtime.run(subject, f, optimize=True) for f in feeds])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of a small float network, with golden pairs as artifacts have them: the runtime's optimizer on."""
    return write(conv(), "pixels", (2, 3, 16, 16), tmp_path_factory.mktemp("made") / "conv.lathe", {"license": "MIT"})


@pytest.fixture(scope="module")
def rounded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of a quantized model."""
    return write(quantized(), "x", (2, 32), tmp_path_factory.mktemp("made") / "quantized.lathe", {})


def write(subject: Any, name: str, shape: tuple[int, ...], place: Path, licence: dict[str, str]) -> Path:
    rng = np.random.default_rng(5)
    feeds = [{name: rng.standard_normal(shape, dtype=np.float32)} for _ in range(2)]
    contents = parts.contents(subject, golden=pairs_of(subject, feeds), licence=licence)
    return artifact.write(place, contents, external_above=256)


def packed(made: Path, to: str, place: Path) -> Path:
    found = formats.package(made, to, place / "out")
    assert found.format == to and found.files and (place / "out").is_dir()
    assert {p.name for p in place.iterdir()} == {"out"}, "nothing half-written stays"
    return place / "out"


def same(made: Path, run: Callable[[dict[str, Any]], dict[str, Any]], *, exact: bool) -> None:
    manifest = json.loads((made / "manifest.json").read_text())
    for i in range(2):
        pair = read_pair(made, i)
        outputs = run(dict(pair.feeds))
        for name, expected in pair.outputs.items():
            allowed = Tolerance(0.0, 0.0) if exact else Tolerance(**manifest["golden"]["tolerance"][name])
            assert difference(expected, np.asarray(outputs[name]), allowed) == ""


def session_of(path: Path) -> Callable[[dict[str, Any]], dict[str, Any]]:
    session = onnxruntime.InferenceSession(str(path), providers=CPU)
    names = [o.name for o in session.get_outputs()]
    return lambda feed: dict(zip(names, session.run(None, feed), strict=True))


def need(module: str) -> Any:
    return pytest.importorskip(module, reason=f"{module} is not installed (an extra)")


# -- each format with its consumer -------------------------------------------------------------------------------------
def test_mlflow(made: Path, tmp_path: Path) -> None:
    out = packed(made, "mlflow", tmp_path)
    tree = yaml.safe_load((out / "MLmodel").read_text())
    assert set(tree["flavors"]) == {"onnx", "python_function"} and (out / "requirements.txt").read_text()
    need("mlflow")
    need("pandas")
    loaded = importlib.import_module("mlflow.pyfunc").load_model(str(out))
    signature = loaded.metadata.signature
    assert [s.name for s in signature.inputs.inputs] == [p.name for p in session_ports(made)]
    same(made, loaded.predict, exact=True)
    native = importlib.import_module("mlflow.onnx").load_model(str(out))
    assert {o.name for o in native.graph.output} == set(read_pair(made, 0).outputs)


def session_ports(made: Path) -> Any:
    return onnxruntime.InferenceSession(str(made / "model.onnx"), providers=CPU).get_inputs()


def test_openvino(made: Path, tmp_path: Path) -> None:
    openvino = need("openvino")
    out = packed(made, "openvino", tmp_path)
    model = openvino.Core().compile_model(str(out / "model.xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    names = [o.get_any_name() for o in model.outputs]
    same(made, lambda feed: dict(zip(names, model(feed).values(), strict=True)), exact=False)


def test_ort(rounded: Path, tmp_path: Path) -> None:
    out = packed(rounded, "ort", tmp_path)
    same(rounded, session_of(out / "model.ort"), exact=True)
    parse = importlib.import_module("onnxruntime.tools.reduced_build_config_parser").parse_config
    operators, _ = parse(str(out / "required_operators.config"), True)
    found = {op for domain in operators.values() for ops in domain.values() for op in ops}
    assert "MatMulIntegerToFloat" in found and str(tmp_path) not in (out / "required_operators.config").read_text()


def test_huggingface(made: Path, tmp_path: Path) -> None:
    out = packed(made, "huggingface", tmp_path)
    head = yaml.safe_load((out / "README.md").read_text().split("---")[1])
    assert head["license"] == "mit" and "onnx" in head["tags"]
    same(made, session_of(out / "model.onnx"), exact=True)
    optimum = need("optimum.onnxruntime")
    transformers = need("transformers")
    card = need("huggingface_hub").ModelCard.load(out / "README.md")
    assert card.data.license == "mit" and card.data.library_name == "onnx"
    config = transformers.PretrainedConfig.from_pretrained(str(out))
    model = optimum.ORTModelForCustomTasks.from_pretrained(str(out), config=config)
    same(made, lambda feed: dict(model(**feed)), exact=True)


def test_oci(made: Path, tmp_path: Path) -> None:
    out = packed(made, "oci", tmp_path)
    assert json.loads((out / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}

    def blob(described: dict[str, Any]) -> bytes:
        algorithm, digest = described["digest"].split(":")
        data = (out / "blobs" / algorithm / digest).read_bytes()
        assert hashlib.sha256(data).hexdigest() == digest and len(data) == described["size"]
        return data

    (named,) = json.loads((out / "index.json").read_text())["manifests"]
    image = json.loads(blob(named))
    config = json.loads(blob(image["config"]))
    (layer,) = image["layers"]
    assert config["rootfs"]["diff_ids"] == [layer["digest"]], "the layer is not compressed"
    assert {p.name for p in (out / "blobs" / "sha256").iterdir()} == {
        d["digest"].partition(":")[2] for d in (named, image["config"], layer)
    }
    with tarfile.open(fileobj=io.BytesIO(blob(layer))) as tar:
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # from Python 3.11.4
        tar.extractall(tmp_path / "root", **safely)
    assert verify(tmp_path / "root" / "models").ok
    same(made, session_of(tmp_path / "root" / "models" / "model.onnx"), exact=True)
    if skopeo := shutil.which("skopeo"):
        copied = [skopeo, "--insecure-policy", "copy", f"oci:{out}:latest", f"dir:{tmp_path / 'copied'}"]
        subprocess.run(copied, check=True, capture_output=True)


def test_zip(made: Path, tmp_path: Path) -> None:
    out = packed(made, "zip", tmp_path)
    (archive,) = out.iterdir()
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(tmp_path / "unpacked")
    (home,) = (tmp_path / "unpacked").iterdir()
    assert verify(home / "artifact").ok

    def run(feed: dict[str, Any]) -> dict[str, Any]:
        np.savez(tmp_path / "in.npz", **feed)
        command = [sys.executable, str(home / "run.py"), str(tmp_path / "in.npz"), str(tmp_path / "out.npz")]
        subprocess.run(command, check=True, capture_output=True)
        with np.load(tmp_path / "out.npz") as arrays:
            return dict(arrays)

    same(made, run, exact=True)
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("there is no C++ compiler for the runner in C++")
    assert 'add_input<float>("pixels", {2, 3, 16, 16});' in (home / "run.cpp").read_text()
    if release := os.environ.get("ONNXRUNTIME_HOME"):
        same(made, compiled(compiler, home, Path(release), tmp_path), exact=True)
        return
    include = f"-I{Path(parts.__file__).parents[1] / 'support' / 'cpp'}"
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", include]
    done = subprocess.run([compiler, *flags, str(home / "run.cpp")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def compiled(compiler: str, home: Path, release: Path, place: Path) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The runner in C++, built with an unpacked release of onnxruntime."""
    library = ["-L", str(release / "lib"), "-lonnxruntime", f"-Wl,-rpath,{release / 'lib'}"]
    build = [compiler, "-std=c++17", str(home / "run.cpp"), "-isystem", str(release / "include"), *library]
    subprocess.run([*build, "-o", str(home / "run")], check=True)

    def run(feed: dict[str, Any]) -> dict[str, Any]:
        (place / "0.bin").write_bytes(feed["pixels"].tobytes())
        command = [str(home / "run"), str(home / "artifact" / "model.onnx"), str(place)]
        subprocess.run(command, check=True, capture_output=True)
        scores, label = (np.fromfile(place / f"out{i}.bin", kind) for i, kind in enumerate((np.float32, np.int64)))
        return {"scores": scores.reshape(2, 8), "label": label}

    return run


@pytest.mark.parametrize("to", ["mlflow", "huggingface", "oci", "zip"])
def test_the_same_artifact_gives_the_same_bytes(made: Path, tmp_path: Path, to: str) -> None:
    found = []
    for i in range(2):
        copy = shutil.copytree(made, tmp_path / str(i) / made.name)
        out = packed(copy, to, tmp_path / f"to{i}")
        found.append({p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()})
    assert found[0] == found[1]


# -- Triton ------------------------------------------------------------------------------------------------------------
def test_triton(made: Path, tmp_path: Path) -> None:
    out = packed(made, "triton", tmp_path)
    (home,) = out.iterdir()
    pb2 = need("tritonclient.grpc.model_config_pb2")
    from google.protobuf import text_format

    config = text_format.Parse((home / "config.pbtxt").read_text(), pb2.ModelConfig())
    assert config.name == home.name == made.name.removesuffix(".lathe") and config.backend == "onnxruntime"
    assert config.max_batch_size > 0 and config.default_model_filename == "model.onnx"
    names = {p.name for p in session_ports(made)}
    assert {i.name for i in config.input} == names and all(i.data_type == pb2.TYPE_FP32 for i in config.input)
    assert {o.name for o in config.output} == set(read_pair(made, 0).outputs)
    assert len(config.instance_group) == 1 and config.parameters["intra_op_thread_count"].string_value == "1"
    if config.HasField("dynamic_batching"):
        sizes = list(config.dynamic_batching.preferred_batch_size)
        assert sizes == sorted(sizes) and sizes[-1] <= config.max_batch_size
        assert config.dynamic_batching.max_queue_delay_microseconds > 0
    run = session_of(home / "1" / "model.onnx")
    same(made, run, exact=True)
    for i, request in enumerate(list(config.model_warmup)[:2]):  # warm-up requests are the golden inputs
        feed = {}
        for name, said in request.inputs.items():
            shape = (request.batch_size, *said.dims)
            feed[name] = np.fromfile(home / "warmup" / said.input_data_file, np.float32).reshape(shape)
        pair = read_pair(made, i)
        assert all(np.array_equal(feed[n], pair.feeds[n]) for n in feed)


@pytest.mark.parametrize(
    ("curve", "preferred", "delay_us"),
    [
        ({1: 1.0, 2: 2.0, 4: 4.0, 8: 8.0}, (), 0),  # a batch costs what its samples cost: nothing to wait for
        ({1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0}, (8,), 875),  # a batch costs what one costs
        ({1: 1.0, 2: 1.2, 4: 1.8, 8: 3.4}, (4, 8), 550),
        ({1: 1.0, 2: 1.2, 4: 4.0, 8: 9.0}, (2,), 400),  # larger ones fall off
    ],
)
def test_batches_are_chosen_from_the_curve(curve: dict[int, float], preferred: tuple[int, ...], delay_us: int) -> None:
    chosen = triton.choose(curve)
    assert (chosen.preferred, chosen.delay_us) == (preferred, delay_us)
    assert chosen.largest == max(preferred, default=8)


def test_a_model_whose_samples_meddle_is_not_batched(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 4] x) => (float[N, 4] y) { m = ReduceMean <axes = [0], keepdims = 1> (x) y = Sub (x, m) }"""
    subject = runtime.model(text)
    feeds = [{"x": np.arange(8, dtype=np.float32).reshape(2, 4)}]
    place = artifact.write(tmp_path / "m.lathe", parts.contents(subject, golden=pairs_of(subject, feeds)))
    why = triton.unbatchable(base.open_artifact(place))
    assert "not that of each alone" in why
    fixed = runtime.model(text.replace("N,", "2,"))
    place = artifact.write(tmp_path / "f.lathe", parts.contents(fixed, golden=pairs_of(fixed, feeds)))
    assert "no open batch axis" in triton.unbatchable(base.open_artifact(place))
    found = formats.package(place, "triton", tmp_path / "out")
    config = (tmp_path / "out" / "f" / "config.pbtxt").read_text()
    assert "max_batch_size: 0" in config and "dims: [ 2, 4 ]" in config and found.notes[0].startswith("no batching")


# -- what cannot be handed over ----------------------------------------------------------------------------------------
@pytest.fixture
def small(tmp_path: Path) -> Path:
    return artifact.write(tmp_path / "small.lathe", parts.contents())


def refused(small: Path, to: str, out: Path) -> Fault:
    before = sorted(p.name for p in out.parent.iterdir())
    with pytest.raises(Fault) as caught:
        formats.package(small, to, out)
    assert sorted(p.name for p in out.parent.iterdir()) == before, "nothing changed"
    return caught.value


def test_unknown_forms_and_outputs_that_exist(small: Path, tmp_path: Path) -> None:
    fault = refused(small, "tritn", tmp_path / "out")
    assert fault.exit is Exit.USAGE and "did you mean 'triton'" in str(fault)
    (tmp_path / "there").mkdir()
    assert refused(small, "zip", tmp_path / "there").code == "output-exists"


def test_a_changed_artifact_is_not_handed_over(small: Path, tmp_path: Path) -> None:
    (small / "report.md").write_text("better than it is")
    fault = refused(small, "zip", tmp_path / "out")
    assert fault.exit is Exit.BAD_INPUT and "report.md" in fault.message
    fault = refused(tmp_path, "zip", tmp_path / "out")
    assert fault.exit is Exit.BAD_INPUT and fault.code == "not-an-artifact"


def test_a_manifest_that_lies_is_told_in_one_line(small: Path, tmp_path: Path) -> None:
    tree = json.loads((small / "manifest.json").read_text())
    del tree["recipe"]
    (small / "manifest.json").write_text(json.dumps(tree))
    digest = hashlib.sha256((small / "manifest.json").read_bytes()).hexdigest()
    sums = (small / "SHA256SUMS").read_text().splitlines()
    lines = [f"{digest}  manifest.json" if line.endswith("  manifest.json") else line for line in sums]
    (small / "SHA256SUMS").write_text("\n".join(lines) + "\n")
    for to in (name for name, form in formats.FORMATS.items() if not form.needs):
        fault = refused(small, to, tmp_path / "out")
        assert fault.exit is Exit.BAD_INPUT and "recipe is missing" in fault.message


def test_a_missing_package_is_named(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base.importlib.util, "find_spec", lambda name: None)
    fault = refused(small, "openvino", tmp_path / "out")
    assert fault.exit is Exit.UNDECIDED and "lathe[openvino-runtime]" in str(fault)


def test_a_converted_model_that_answers_otherwise_is_not_written(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = {"y": np.zeros((2, 16), np.float32)}
    monkeypatch.setattr(ort, "replay_in_worker", lambda path, feeds, *_: [wrong for _ in feeds])
    fault = refused(small, "ort", tmp_path / "out")
    assert fault.exit is Exit.DOES_NOT_HOLD and "answers otherwise" in fault.message


def test_no_tensor_no_triton(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N] x) => (seq(float[N]) y) { y = SequenceConstruct (x, x) }"""
    place = artifact.write(tmp_path / "seq.lathe", parts.contents(runtime.model(text), golden=()))
    for to in ("triton", "mlflow"):
        assert refused(place, to, tmp_path / "out").code == "not-supported"
