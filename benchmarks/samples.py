"""Speed-up, quality and size of the three samples: the table in the README. Cold cache, one thread, batch 1."""

from __future__ import annotations

import tempfile
from pathlib import Path

import optimizer
from optimizer.records import Record
from optimizer.report import words
from sample_models import SAMPLES


def row(name: str, record: Record) -> str:
    assert record.baseline is not None and record.final is not None and record.speedup is not None
    cells = (
        name,
        str(record.outcome),
        words.times(record.speedup),
        words.change(record.quality_drop, record.final.quality),
        str(record.confidence),
        f"{words.size(record.baseline.size_bytes)} → {words.size(record.final.size_bytes)}",
        f"{record.seconds:.0f} s",
    )
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    print("| sample | outcome | speed-up | top1 | confidence | size | took |")
    print("|" + " --- |" * 7)
    with tempfile.TemporaryDirectory() as folder:
        for name in SAMPLES:
            record = optimizer.compile(
                f"sample:{name}", output=Path(folder) / f"{name}.lathe", cache_dir=Path(folder) / "cache"
            )
            print(row(name, record), flush=True)
        print(
            f"\nMeasured on {record.environment['cpu']}, onnxruntime {record.environment['packages']['onnxruntime']}."
        )


if __name__ == "__main__":
    main()
