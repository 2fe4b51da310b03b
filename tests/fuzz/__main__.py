"""``python -m tests.fuzz SEED``: one seed again, with what was tried; ``--save DIR`` writes its models."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import onnx

from tests.fuzz.generate import make
from tests.fuzz.judge import judge


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("--save", type=Path, help="write model.onnx and variant.onnx there")
    options = parser.parse_args()
    if options.save:
        options.save.mkdir(parents=True, exist_ok=True)
        made = make(options.seed)
        onnx.save(made.model, options.save / "model.onnx")
        onnx.save(made.variant, options.save / "variant.onnx")
    verdict = judge(options.seed)
    print(f"{verdict.nodes} nodes, {verdict.seconds:.2f} s of CPU; fired: {', '.join(verdict.fired) or 'nothing'}")
    if verdict.rejected:
        print(f"rejected: {verdict.rejected}")
    for failure in verdict.failures:
        print(failure)
    return 1 if verdict.failures else 0


if __name__ == "__main__":
    sys.exit(main())
