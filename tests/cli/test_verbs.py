"""The other verbs: what reaches the API, what comes back, exit codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from click.testing import Result

from optimizer.api import BenchmarkReport
from optimizer.measure.scaling import Sweeps
from optimizer.package.check import Finding, Trust, VerifyReport
from optimizer.plan import Settings, SourceRequest
from optimizer.report import pages
from optimizer.report.inspection import inspect_model
from optimizer.report.nouns import Doctor, Problem
from optimizer.store.store import Entry
from tests.cli.conftest import one_object
from tests.package import parts
from tests.report.test_benchmark import ROW
from tests.report.test_tables import Sample

Lathe = Callable[..., Result]


def test_benchmark(lathe: Lathe, api: SimpleNamespace) -> None:
    calls: list[Any] = []

    def benchmark(models: list[str], **given: Any) -> Any:
        calls.append((models, given))
        return BenchmarkReport((ROW,), {}, ("random inputs",))

    api.benchmark = benchmark
    flags = "--provider cpu --batch 1 --batch 8 --threads 2 --shape x:1,3"
    result = lathe("benchmark", "a.onnx", "b", *flags.split())
    assert "1.20 ±1.7%" in result.stdout and "warning: random inputs" in result.stderr
    models, given = calls[0]
    del given["watch"]
    assert [given.pop(n) for n in ("profile", "price_per_hour", "watts")] == [False, None, None]
    assert given.pop("slice_by") is None
    assert given.pop("settings").source.shapes == ("x:1,3",), "a PyTorch module may need them"
    wanted = {"provider_names": ("cpu",), "batches": (1, 8), "threads": (2,), "data": None, "metric": None}
    how = {"seconds": 3.0, "precision": 0.01, "allow_fallback": False, "sweeps": Sweeps()}
    assert models == ["a.onnx", "b"] and given == {**wanted, **how}
    flags = "--batch-sweep --length-sweep ids:1=64,128 --precision 2% --provider cuda:device_id=1"
    lathe("benchmark", "a.onnx", *flags.split())
    assert calls[-1][1]["sweeps"] == Sweeps(True, False, {"ids:1": (64, 128)}) and calls[-1][1]["precision"] == 0.02
    assert calls[-1][1]["provider_names"] == ("cuda:device_id=1",)
    assert one_object(lathe("benchmark", "a.onnx", "--json").stdout)["rows"][0]["latency"]["p50"] == 1.2
    assert lathe("benchmark", "a.onnx", "--scenario", "offline", "--batch-sweep").exit_code == 2
    api.benchmark = lambda *_, **__: BenchmarkReport((replace(ROW, latency=None, reason="no cuda"),), {})
    assert lathe("benchmark", "a.onnx").exit_code == 4


def test_verify(lathe: Lathe, api: SimpleNamespace) -> None:
    calls: list[Any] = []
    report = VerifyReport(True, (Finding("files", True, "7 files"),), "a.lathe")

    def verify(folder: Path, *, latency: bool, custom_ops: tuple[Path, ...], trust: Trust) -> VerifyReport:
        calls.append((folder, latency))
        return report

    api.verify = verify
    assert "a.lathe holds" in lathe("verify", "a.lathe", "--latency").stdout
    assert calls == [(Path("a.lathe"), True)]
    tree = one_object(lathe("verify", "a.lathe", "--json").stdout)
    assert tree["schema"] == "lathe.verify/1" and tree["ok"] is True and tree["findings"][0]["check"] == "files"
    report = replace(report, ok=False)
    assert lathe("verify", "a.lathe").exit_code == 1


def test_inspect(lathe: Lathe, api: SimpleNamespace, tmp_path: Path) -> None:
    calls: list[Any] = []

    def inspect(model: str, **given: Any) -> Any:
        calls.append((model, given))
        return inspect_model(parts.model(), name=model, sizes=given["sizes"])

    api.inspect = inspect
    result = lathe("inspect", "m.onnx", "--size", "N=4", "--no-passes", "--opset", "17")
    assert "2.05 k multiply-accumulates a run with N=4" in result.stdout
    settings = Settings(SourceRequest("m.onnx", opset=17, folder=tmp_path))
    assert calls == [("m.onnx", {"passes": False, "sizes": {"N": 4}, "settings": settings})]
    tree = one_object(lathe("inspect", "m.onnx", "--json").stdout)
    assert tree["work"]["total"] == 512 and tree["inputs"][0] == {"name": "x", "type": "FLOAT", "dims": ["N", 32]}


def test_export(lathe: Lathe, api: SimpleNamespace) -> None:
    parity = SimpleNamespace(max_abs=1e-6, max_rel=2e-6, tolerance=1e-4, batches=("batch=1",), worst="y")
    seen: list[Any] = []

    def export(source: SourceRequest, output: Path, **given: Any) -> Any:
        seen.append((source.model, output, given["overwrite"], given["settings"].data.data))
        return SimpleNamespace(path=str(output), exporter="dynamo", parity=parity, size_bytes=1000, warnings=("w",))

    api.export = export
    result = lathe("export", "a:b", "-o", "m.onnx", "--overwrite", "--data", "d.npz")
    assert result.stdout == "m.onnx\n" and "largest difference 1e-06 in 'y'" in result.stderr
    assert seen == [("a:b", Path("m.onnx"), True, "d.npz")]


def test_doctor(lathe: Lathe, api: SimpleNamespace) -> None:
    found = Doctor("0.1", "3.12", "Linux", "A CPU", 2, 8 * 10**9, ("avx2",), "x86-avx2", {"onnx": "1"}, ("cpu",))
    api.doctor = lambda **_: found
    assert lathe("doctor").exit_code == 0
    assert one_object(lathe("doctor", "--json").stdout)["target"] == "x86-avx2"
    found = replace(found, problems=(Problem("no onnxruntime", "pip install 'lathe[cpu]'"),))
    result = lathe("doctor")
    assert result.exit_code == 4 and "pip install 'lathe[cpu]'" in result.stdout


def test_cache(lathe: Lathe, api: SimpleNamespace, tmp_path: Path) -> None:
    api.cache_entries = lambda folder: [Entry(folder / "blobs" / "a", "weights", 1_500_000, 1.7e9)]
    asked: list[Any] = []
    api.cache_prune = lambda folder, most: asked.append((folder, most)) or 2_000_000
    assert "1.50 MB" in lathe("cache", "list", "--cache-dir", "c").stdout
    assert one_object(lathe("cache", "list", "--cache-dir", "c", "--json").stdout)["entries"][0]["kind"] == "weights"
    assert lathe("cache", "prune", "--cache-dir", "c", "--max-size", "2.5 GB").stdout == "freed 2.00 MB in c\n"
    lathe("cache", "prune", "--cache-dir", "c", "--max-size", "0")
    assert asked == [(Path("c"), 2_500_000_000), (Path("c"), 0)]
    assert lathe("cache", "path", "--cache-dir", "c").stdout == "c\n"
    (tmp_path / "lathe.toml").write_text('cache-dir = "from-file"')
    assert lathe("cache", "path").stdout == "from-file\n"


def test_passes(lathe: Lathe, api: SimpleNamespace) -> None:
    api.passes_list = lambda names: (pages.page_of(Sample),)
    assert "Turn one thing into another." in lathe("passes").stdout
    assert "int, 1 to 9" in lathe("passes", "sample-pass").stdout
    tree = one_object(lathe("passes", "--json").stdout)
    assert tree["passes"][0]["options"][0]["low"] == 1
