"""The receiver's check. It imports nothing of ours: its parts, joined into one file, are what lies in every artifact.

Whoever receives an artifact needs Python, numpy and onnxruntime to run ``verify.py``; ``lathe verify`` calls the same
functions. There is no second version of any of them.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

PARTS = ("words", "files", "pairs", "signature", "session", "main")
"""Modules in the order in which they stand in the script."""

_HEAD = '''#!/usr/bin/env python3
"""Check a Lathe artifact where it arrived: ``python verify.py [FOLDER]``. Needs Python 3.10, numpy and onnxruntime.

Joined from the parts of optimizer/package/receiver in Lathe {version}. It imports nothing of Lathe, and
``lathe verify`` runs the same code. A copy inside an artifact is as trustworthy as whoever handed it over: take the
script, and the key for --key, from a place of your own.
"""

from __future__ import annotations

import sys

# A file beside this script must not pass for a module: nothing was checked yet.
if __name__ == "__main__" and not getattr(sys.flags, "safe_path", False):
    del sys.path[0]

{imports}

try:
    import numpy as np
except ImportError:
    print("error: numpy is not installed. pip install numpy onnxruntime", file=sys.stderr)
    sys.exit(4)
'''
_TAIL = '\n\nif __name__ == "__main__":\n    sys.exit(main())\n'


@cache
def script(version: str) -> str:
    """The parts as one file that runs by itself."""
    plain: set[str] = set()
    named: dict[str, set[str]] = {}
    bodies = []
    for part in PARTS:
        text = (Path(__file__).parent / f"{part}.py").read_text(encoding="utf-8")
        lines = text.splitlines()
        for node in ast.parse(text).body:
            if isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("optimizer."):
                named.setdefault(str(node.module), set()).update(alias.name for alias in node.names)
            elif isinstance(node, ast.Import):
                plain.add(ast.unparse(node))
            elif not isinstance(node, ast.ImportFrom) and node.lineno > 1:  # the docstring stands on the first line
                continue
            assert node.end_lineno is not None
            lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
        bodies.append("\n".join(lines).strip("\n"))
    del named["__future__"]
    taken = [f"from {module} import {', '.join(sorted(names))}" for module, names in sorted(named.items())]
    imports = "\n".join([*sorted(plain - {"import sys", "import numpy as np"}), *taken])
    return _HEAD.format(imports=imports, version=version) + "".join(f"\n\n{body}\n" for body in bodies) + _TAIL
