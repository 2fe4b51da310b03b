"""Records of every outcome, as a compile would hand them back."""

from __future__ import annotations

from dataclasses import replace

from optimizer.records import (
    Confidence,
    Interval,
    Judgement,
    Latency,
    Measured,
    Outcome,
    PassNote,
    Quality,
    Record,
    Step,
    Verdict,
)

TOP1 = Quality("top1", 0.9651, 0.95, 0.98, True, 573)
NOTES = (
    PassNote("fold-batchnorm", "numeric", 12, 0.02, proved=3, tested=9),
    PassNote("quantize-static", "lossy", 40, 1.5, ("/head: [left in float], it feeds no kernel", "b", "c", "d")),
)
RECIPE = 'tidy, quantize-static{exclude=["/head/*"]}'
KEPT = Step(
    RECIPE,
    "int8 static",
    Verdict(Judgement.ACCEPTED, "2.31x at 0.2 points"),
    "ab" * 32,
    TOP1,
    Interval(0.002, -0.001, 0.005),
    Interval(2.31, 2.25, 2.38),
    Latency(0.52, 0.51, 0.53, "cpu", 3000, 0.55, 0.61),
    1_210_000,
    42_000_000,
    NOTES,
)
LET_GO = Step(
    "tidy, quantize-dynamic",
    "int8 dynamic",
    Verdict(Judgement.REJECTED, "slower than the source: 0.71x [0.70, 0.72], so its quality would be paid for nothing"),
    speedup=Interval(0.71, 0.70, 0.72),
    drop=Interval(-0.004, -0.008, 0.0),
    quality=TOP1,
    passes=(PassNote("simplify", "numeric", 0, 0.1, fault="the worker process was killed by SIGSEGV"),),
)
SKIPPED = Step("tidy", "your recipe", Verdict(Judgement.SKIPPED, "the time limit was reached"))

OPTIMIZED = Record(
    outcome=Outcome.OPTIMIZED,
    source="/home/someone/residual_cnn.onnx",
    artifact="/home/someone/residual_cnn.lathe",
    recipe=RECIPE,
    baseline=Measured(replace(TOP1, value=0.9671), Latency(1.2, 1.19, 1.22, "cpu", 2800), 4_700_000, 66_000_000),
    final=Measured(TOP1, KEPT.latency_ms, 1_210_000, 42_000_000),
    speedup=Interval(2.31, 2.25, 2.38),
    quality_drop=Interval(0.002, -0.001, 0.0049),
    confidence=Confidence.PROVEN,
    budget=("top1.drop<=0.5%",),
    target="x86-vnni",
    provider="CPUExecutionProvider",
    steps=(LET_GO, KEPT, SKIPPED),
    warnings=("2 batch sizes | were not [tried]",),
    confirm=Verdict(Judgement.ACCEPTED, "drop 0.002 [-0.001, 0.0049], allowed 0.005"),
    environment={"cpu": "Some CPU", "memory_bytes": 8_000_000_000, "packages": {"onnx": "1.23"}},
    seconds=63.2,
)
UNDECIDED = replace(
    OPTIMIZED,
    confidence=Confidence.UNDECIDED,
    confirm=Verdict(Judgement.UNDECIDED, "drop 0.002 [-0.001, 0.008]", "812 more samples"),
)
UNPROVEN = replace(OPTIMIZED, confidence=Confidence.UNPROVEN, quality_drop=None, confirm=None)
LOSSLESS = replace(
    OPTIMIZED,
    outcome=Outcome.LOSSLESS,
    recipe="tidy",
    speedup=Interval(1.12, 1.1, 1.14),
    quality_drop=Interval(0, 0, 0),
    confirm=Verdict(Judgement.ACCEPTED, "int8 is slower here"),
    steps=(LET_GO,),
)
UNCHANGED = replace(LOSSLESS, outcome=Outcome.UNCHANGED, recipe="", speedup=Interval(1, 1, 1))
NONE = replace(
    OPTIMIZED,
    outcome=Outcome.NONE,
    artifact=None,
    recipe="",
    final=None,
    speedup=None,
    quality_drop=None,
    confirm=None,
    error={"code": "limit-not-met", "message": "no recipe reaches latency<=0.1ms", "where": "", "hint": "loosen it"},
)
ALL = {
    "optimized": OPTIMIZED,
    "undecided": UNDECIDED,
    "unproven": UNPROVEN,
    "lossless": LOSSLESS,
    "unchanged": UNCHANGED,
    "none": NONE,
}
