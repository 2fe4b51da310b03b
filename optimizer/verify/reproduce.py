"""A fault as a folder that anyone can run: two small models, the inputs, and the command that shows the difference."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np

from optimizer.verify.reduce import Pair

LEFT, RIGHT, FEED, README = "before.onnx", "after.onnx", "feed.npz", "README.txt"


def write(folder: Path, pair: Pair, words: str, tolerance: float) -> Path:
    """Write ``pair`` to ``folder``, replacing what is there, whole or not at all. Raises ``OSError``."""
    made = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    try:
        (made / LEFT).write_bytes(pair.left.to_bytes())
        (made / RIGHT).write_bytes(pair.right.to_bytes())
        # One entry per feed: an array of the input's rank + 1.
        np.savez(made / FEED, **{name: array[None] for name, array in pair.feed.items()})  # type: ignore[arg-type]
        command = f"lathe debug bisect {LEFT} {RIGHT} --data {FEED} --tolerance {tolerance:g}"
        text = f"{words}\n\nThe output '{pair.output}' of {LEFT} and {RIGHT} differs on {FEED}. To see it, here:\n\n"
        (made / README).write_text(f"{text}    {command}\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder


def folder_name(subject: str, site: tuple[str, str], pair: Pair) -> str:
    """A name that is the same for the same fault."""
    content = "|".join((subject, *site, pair.left.digest(), pair.right.digest()))
    return f"{subject}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"
