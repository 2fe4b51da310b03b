"""What -O3 gains over -O2, and what it takes: the three samples and any MODEL=DATA given.

python benchmarks/levels.py [--time-limit SECONDS] [--budget LIMIT]... [MODEL=DATA ...]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import optimizer
from optimizer.records import Record
from optimizer.report import words
from optimizer.runtime import hardware

SAMPLES = ("sample:residual-cnn", "sample:depthwise-cnn", "sample:transformer")


def compiled(model: str, data: str | None, level: int, limit: float, budget: list[str]) -> Record:
    """One compile from a cold cache."""
    with tempfile.TemporaryDirectory(prefix="lathe-levels-") as folder:
        return optimizer.compile(
            model, data=data or None, budget=budget, level=level, time_limit=limit if level >= 3 else None,
            output=Path(folder) / "out.lathe", cache_dir=Path(folder) / "cache", batch=1,
        )  # fmt: skip


def cells(record: Record) -> str:
    """Speed-up, quality, confidence and time of one compile, and the recipe that shipped."""
    quality = record.final.quality if record.final else None
    shipped = next((s.label for s in record.steps if s.recipe == record.recipe), "source")
    moved = words.change(record.quality_drop, quality) if record.quality_drop else words.NOTHING
    took = words.duration(record.seconds)
    return f"{words.times(record.speedup)} | {moved} | {shipped} ({record.confidence}) | {took}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL=DATA")
    parser.add_argument("--time-limit", type=float, default=300.0)
    parser.add_argument("--budget", action="append", default=[])
    parser.add_argument("--no-samples", action="store_true")
    given = parser.parse_args()
    print(f"{hardware.host().cpu}, batch 1, one thread; -O3 with --time-limit {given.time_limit:g}\n")
    print("| model | level | speed-up | quality | what ships | took |")
    print("| --- " * 6 + "|")
    asked = [] if given.no_samples else [(s, "") for s in SAMPLES]
    asked += [(model, data) for model, _, data in (text.partition("=") for text in given.models)]
    for model, data in asked:
        for level in (2, 3):
            record = compiled(model, data, level, given.time_limit, given.budget)
            name = model if ":" in model else f"{Path(model).parent.name}/{Path(model).stem}"
            print(f"| {name} | -O{level} | {cells(record)} |", flush=True)


if __name__ == "__main__":
    main()
