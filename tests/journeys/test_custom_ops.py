"""Libraries of custom operators run code: only a flag names them, and the artifact says which they were."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from optimizer.api import compile_settings
from optimizer.faults import Fault
from optimizer.package.check import verify
from optimizer.plan import Settings, SourceRequest
from tests.source.onnx_models import add_weights, model, node, save, tensor

CODE = """
#include <stdio.h>
void *RegisterCustomOps(void *options, const void *api) {
    FILE *file = fopen("%s", "w");
    if (file) fclose(file);
    return 0;
}
"""


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A library that registers no operator and leaves a mark when it is asked to."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    (tmp_path / "ops.c").write_text(CODE % (tmp_path / "loaded"))
    made = tmp_path / "ops.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(made), str(tmp_path / "ops.c")], check=True)
    return made


def settings(path: Path, folder: Path, *custom_ops: Path) -> Settings:
    made = Settings(SourceRequest(str(path), folder=folder), level=0, seconds=0.05, custom_ops=custom_ops)
    return made.but(cache_dir=folder / "cache", output=folder / "out.lathe")


def test_only_the_flag_loads_a_library_and_the_artifact_names_it(tmp_path: Path, library: Path) -> None:
    path = save(add_weights(), tmp_path)
    record = compile_settings(settings(path, tmp_path, library))
    assert (tmp_path / "loaded").exists()
    assert any("code of ops.so ran in the workers (--custom-ops)" in text for text in record.warnings)
    manifest = json.loads((tmp_path / "out.lathe" / "manifest.json").read_text())
    assert list(manifest["requires"]["custom_ops"]) == ["ops.so"]
    (tmp_path / "loaded").unlink()
    missing = verify(tmp_path / "out.lathe")
    assert not missing.ok and any("ops.so is needed" in finding.detail for finding in missing.findings)
    assert not (tmp_path / "loaded").exists()
    assert verify(tmp_path / "out.lathe", custom_ops=[library]).ok
    assert (tmp_path / "loaded").exists()
    library.write_bytes(library.read_bytes() + b"\0")
    (tmp_path / "loaded").unlink()
    changed = verify(tmp_path / "out.lathe", custom_ops=[library])
    assert not changed.ok and not (tmp_path / "loaded").exists(), "another library is not loaded"


def test_without_the_flag_an_unknown_operator_is_refused(tmp_path: Path, library: Path) -> None:
    proto = model([node("Strange", ["x"], ["y"], domain="own")], [tensor("w", [1.0])], opset=[("", 18), ("own", 1)])
    with pytest.raises(Fault, match="Strange"):
        compile_settings(settings(save(proto, tmp_path), tmp_path))
    assert not (tmp_path / "loaded").exists() and not (tmp_path / "out.lathe").exists()
    with pytest.raises(Fault, match="no such library"):
        compile_settings(settings(save(proto, tmp_path), tmp_path, tmp_path / "gone.so"))
