"""A user's own optimizer.py, passes.py and sample_models.py do not get in the command's way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["optimizer", "passes", "sample_models"])
def test_names_like_ours_first_on_the_path(name: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.py").write_text("raise SystemExit('this is mine')\n")
    code = "import sys; from lathe_start import main; sys.argv = ['lathe', 'passes', 'tidy']; main()"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "tidy" in done.stdout, done.stderr
