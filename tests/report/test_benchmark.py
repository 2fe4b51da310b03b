"""Tables of benchmarks at 80 columns."""

from __future__ import annotations

from dataclasses import replace

from optimizer.records import BenchmarkRow, Coverage, Interval, Latency, Noise, Quality, Sweep, SweepPoint
from optimizer.report.benchmark import benchmark
from tests.report.test_tables import lines

CPU, CUDA, OPENVINO = "CPUExecutionProvider", "CUDAExecutionProvider", "OpenVINORuntime"

ROW = BenchmarkRow(
    "/models/a/model.onnx",
    "CPUExecutionProvider",
    1,
    1,
    Latency(1.2, 1.19, 1.22, "cpu", 3000, 1.3, 1.5),
    833.0,
    None,
    66_000_000,
    12.0,
    4_700_000,
    Quality("top1", 0.967, 0.95, 0.98, True, 500),
)
FASTER = replace(ROW, model="/models/b/model.onnx", speedup=Interval(2.31, 2.25, 2.38), size_bytes=1_210_000)


def test_one_provider_stands_over_its_table() -> None:
    failed = replace(FASTER, batch=8, latency=None, throughput=None, speedup=None, reason="out of memory [8 GB]")
    text = lines(benchmark([ROW, FASTER, replace(ROW, batch=8), failed, replace(failed, batch=16)]))
    assert "CPUExecutionProvider, batch 8, 1 thread, cpu time" in text
    assert "2.31x [2.25, 2.38]" in text and "1.20 ±1.7%" in text and "833" in text
    assert "a/model.onnx" in text and "/models" not in text
    assert "failed" in text and text.count("b/model.onnx on CPUExecutionProvider: out of memory [8 GB]") == 1
    assert "96.7 % top1" in text and "1.21 MB" in text


def test_several_providers_share_a_table_and_say_who_ran_what() -> None:
    own = replace(ROW, coverage=(Coverage(CPU, 14, 100),))
    split = (Coverage(CUDA, 12, 97), Coverage(CPU, 2, 3))
    elsewhere = replace(FASTER, provider=OPENVINO, coverage=(Coverage(OPENVINO, 15, 100, "CPU"),))
    gpu = replace(FASTER, provider=f"{CUDA}:device_id=1", coverage=split)
    stand_in = replace(own, asked=CUDA, speedup=Interval(1.0, 0.9, 1.1))
    text = lines(
        benchmark([own, FASTER, elsewhere, gpu, stand_in], [Noise(1, 1, "cpu", Interval(1, 0.99, 1.012), 0.012)])
    )
    assert text.count("p50 ms") == 1 and "batch 1, 1 thread, cpu time" in text
    heads = [row.strip() for row in text.splitlines() if row.startswith("  ") and not row.startswith("   ")]
    assert heads[1:5] == ["cpu", "openvino-runtime", "cuda:device_id=1", "cpu, not cuda"]
    assert "on openvino-runtime: all 15 nodes ran there (on CPU)" in text
    assert "12 of 14 nodes and 97.0% of the multiply-accumulates ran there" in " ".join(text.split())
    assert "1.00x [0.99, 1.01]: ratios are resolved down to 1.2%" in " ".join(text.split())


def test_long_names_leave_room_for_numbers() -> None:
    long = replace(ROW, provider=f"{OPENVINO}:INFERENCE_PRECISION_HINT=bf16,NUM_STREAMS=1", speedup=Interval(2, 1, 3))
    text = lines(benchmark([ROW, long]))
    assert "2.00x [1.00, 3.00]" in text and "1.20 ±1.7%" in text and "66.0 MB" in text


def test_a_noise_that_leaves_one_out_is_a_warning() -> None:
    text = " ".join(lines(benchmark([ROW], [Noise(1, 1, "cpu", Interval(1.05, 1.02, 1.08), 0.08)])).split())
    assert "uneasy, so do not trust differences below 8.0%" in text


def test_a_sweep_says_what_to_take_and_why() -> None:
    latency = Latency(2.0, 1.9, 2.2, "wall", 100)
    points = (
        SweepPoint(1, latency, 500.0, None, 10_000_000),
        SweepPoint(2, latency, 990.0, Interval(1.98, 1.9, 2.1), 11_000_000),
        SweepPoint(4, reason="it does not fit"),
    )
    found = Sweep("batch", ROW.model, CPU, 0, 1, points, 2, "batch 4 does not run: it does not fit")
    text = " ".join(lines(benchmark([ROW], (), [found])).split())
    assert "batch sweep of model.onnx on CPUExecutionProvider, 1 thread, wall time" in text
    assert "2.00 ±10.0% 990 11.0 MB 1.98x [1.90, 2.10]" in text and "4 failed" in text
    assert "suggested batch: 2, since batch 4 does not run" in text
