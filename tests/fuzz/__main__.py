"""Fuzz the passes. ``SEED`` judges one seed again; ``--count N`` runs a campaign and prints its table."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

MARK = "<!-- the table below is written by `make fuzz N=10000` -->\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("seed", type=int, nargs="?", help="judge this seed alone")
    parser.add_argument("--save", type=Path, help="write the seed's model.onnx and variant.onnx to this folder")
    parser.add_argument("--count", type=int, default=0, help="judge so many seeds")
    parser.add_argument("--start", type=int, default=0, help="the first of them")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--write", type=Path, help="put the table below the mark of this page")
    options = parser.parse_args()
    if options.seed is not None:
        return _one(options.seed, options.save)
    if options.count < 1:
        parser.error("name a seed or --count")
    return _many(options)


def _one(seed: int, save: Path | None) -> int:
    import onnx

    from tests.fuzz.generate import make
    from tests.fuzz.judge import judge

    if save:
        save.mkdir(parents=True, exist_ok=True)
        made = make(seed)
        onnx.save(made.model, save / "model.onnx")
        onnx.save(made.variant, save / "variant.onnx")
    verdict = judge(seed)
    print(f"{verdict.nodes} nodes, {verdict.seconds:.2f} s of CPU; fired: {', '.join(verdict.fired) or 'nothing'}")
    if verdict.rejected:
        print(f"rejected: {verdict.rejected}")
    for failure in verdict.failures:
        print(failure)
    return 1 if verdict.failures else 0


def _many(options: argparse.Namespace) -> int:
    from tests.fuzz.campaign import campaign, table

    def tell(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    found = campaign(range(options.start, options.start + options.count), options.jobs, tell)
    text = table(found, options.start, options.jobs)
    print(text)
    if options.write:
        head = options.write.read_text().partition(MARK)[0]
        options.write.write_text(head + MARK + "\n" + text)
    return 1 if found.missed() else 0


if __name__ == "__main__":
    sys.exit(main())
