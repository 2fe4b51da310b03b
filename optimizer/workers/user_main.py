"""The worker that runs user code. Started by path; imports nothing of ours except a few files loaded by path.

Arguments: the user's folder (first on ``sys.path``) and our own (last, for the sample models). User code may print
what it likes: its stdout goes to stderr, because ours carries messages.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

CPU_SECONDS_PER_CORE = 4 * 3600.0
"""What user code may compute before it is ended; how long one call may take is the caller's to say."""

LARGEST_FILE_BYTES = 64 * 2**30
"""The largest file that user code may write: an export with its weights."""


def by_path(path: Path) -> Any:
    """Load one file as a module under a private name, whatever else is called the same."""
    spec = importlib.util.spec_from_file_location(f"_lathe_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def find(op: str) -> Callable[..., Any]:
    """The function behind ``path/of/file.py:function``; the file is one of ours and is loaded by path."""
    path, _, name = op.rpartition(":")
    key = f"_lathe_{Path(path).stem}"
    module = sys.modules.get(key) or by_path(Path(path))
    found: Callable[..., Any] = getattr(module, name)
    return found


def main() -> None:
    folder, ours = sys.argv[1:3]
    sys.path[:] = [folder, *(p for p in sys.path if p not in (str(HERE), folder)), ours]
    sys.argv = sys.argv[:1]
    limits = by_path(HERE / "limits.py")
    cpu_seconds = CPU_SECONDS_PER_CORE * (os.cpu_count() or 1)
    limits.hold(data_bytes=limits.share_of_memory(), cpu_seconds=cpu_seconds, file_bytes=LARGEST_FILE_BYTES)
    writer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    by_path(HERE / "serve.py").serve(sys.stdin.buffer, writer, by_path(HERE / "wire.py"), find)


if __name__ == "__main__":
    main()
