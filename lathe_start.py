"""Where the ``lathe`` command starts: it makes sure that ``optimizer`` and ``passes`` are ours.

Those names are common. With ``PYTHONPATH`` set to a folder that has an ``optimizer.py`` of its own, Python would find
that one first; this module has a name of its own and puts our folder in front then.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent


def main() -> None:
    """Run the command line."""
    if not all(_is_ours(name) for name in ("optimizer", "passes", "sample_models")):
        sys.path.insert(0, str(ROOT))
    from optimizer.cli.main import main as run

    run()


def _is_ours(name: str) -> bool:
    found = importlib.util.find_spec(name)
    return found is not None and found.origin is not None and Path(found.origin).resolve().parent == ROOT / name
