"""``python -m tests.conformance``: every case, the table, ``docs/conformance.md``; exit 1 when something is missed."""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.conformance import report
from tests.conformance.cases import CACHE, ROOT, Case, collect, only
from tests.conformance.harness import LATHE, Harness, Result
from tests.conformance.peers import PEERS

PAGE = ROOT / "docs" / "conformance.md"
PEER_SECONDS = 60.0


def main(arguments: Sequence[str] | None = None) -> int:
    asked = _parser().parse_args(arguments)
    cases = only(collect(asked.cache), asked.only)
    results = Harness(LATHE, asked.cache, asked.jobs).run(cases)
    print(report.summary(results))
    peers = _peers(asked, cases)
    (asked.cache / "table.csv").write_text(report.table(results), encoding="utf-8")
    print(f"every case, verdict and reason: {asked.cache / 'table.csv'}")
    if not asked.only:
        PAGE.write_text(report.page(results, peers), encoding="utf-8")
        print(f"written: {PAGE.relative_to(ROOT)}")
    return 1 if report.missed(results) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("--jobs", type=int, default=2, help="processes side by side")
    parser.add_argument("--only", default="", help="cases whose id holds this text; the page is not written")
    parser.add_argument("--peers", action="store_true", help="other optimizers too, those that are installed")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where cases and results are kept")
    return parser


def _peers(asked: argparse.Namespace, cases: Sequence[Case]) -> dict[str, Sequence[Result]]:
    """Results of the other optimizers: measured when asked for, else those that are known from before."""
    found: dict[str, Sequence[Result]] = {}
    for name, peer in PEERS.items():
        if not peer.installed:
            if asked.peers:
                print(f"{name} is not installed and left out: pip install {name}", file=sys.stderr)
            continue
        harness = Harness(name, asked.cache, asked.jobs, PEER_SECONDS)
        if asked.peers:
            print(f"{name} {importlib.metadata.version(name)}", file=sys.stderr)
            found[name] = harness.run(cases)
        elif known := harness.known():
            found[name] = list(known.values())
    return found


if __name__ == "__main__":
    sys.exit(main())
