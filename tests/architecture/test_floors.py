"""The floors of the house: a room imports only lower rooms, and heavy packages only inside functions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

FLOORS: tuple[tuple[str, ...], ...] = (
    ("passes.kit",),
    ("passes.clean", "passes.fuse", "passes.quantize", "passes.prune"),
    ("passes.catalogue",),
    ("optimizer.measured",),
    (
        "optimizer.faults",
        "optimizer.records",
        "optimizer.plain",
        "optimizer.plan",
        "optimizer.progress",
        "optimizer.interrupts",
    ),
    ("optimizer.workers",),
    ("optimizer.boundary",),
    ("optimizer.source", "optimizer.data", "optimizer.store", "optimizer.runtime"),
    ("optimizer.verify", "optimizer.measure", "optimizer.recover"),
    ("optimizer.decide", "optimizer.report", "optimizer.package"),
    ("optimizer.watch",),
    ("optimizer.dissecting",),
    ("optimizer.workshop",),
    ("optimizer.edging",),
    (
        "optimizer.preflight",
        "optimizer.ship",
        "optimizer.climb",
        "optimizer.gating",
        "optimizer.contests",
        "optimizer.checking",
        "optimizer.examining",
        "optimizer.doctoring",
    ),
    (
        "optimizer.benchmarking",
        "optimizer.explore",
        "optimizer.recovering",
        "optimizer.explaining",
        "optimizer.debugging",
        "optimizer.recommending",
        "optimizer.comparing",
        "optimizer.replaying",
    ),
    ("optimizer.compile",),
    ("optimizer.api",),
    ("optimizer.cli",),
)
SAME_FLOOR_FRIENDS = {("optimizer.records", "optimizer.faults"), ("optimizer.progress", "optimizer.records")}
LAZY = {
    "torch",
    "onnxruntime",
    "onnxsim",
    "onnxscript",
    "openvino",
    "scipy",
    "rich",
    "datasketches",
    "PIL",
    "matplotlib",
    "pynvml",
}
ONLY_HOME = {
    "onnxruntime": "optimizer/runtime/",
    "openvino": "optimizer/runtime/engines/",
    "onnxruntime_extensions": "optimizer/runtime/",
    "onnxsim": "passes/clean/simplify.py",
    "matplotlib": "optimizer/report/plots.py",
}
STANDALONE = (
    "optimizer/package/receiver/",
    "optimizer/workers/user_main.py",
    "optimizer/source/torch_",
    "optimizer/source/user_",
)


def files(*tops: str) -> list[Path]:
    return sorted(p for top in tops for p in (ROOT / top).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Imported modules, and whether the import stands at the top level of the file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = {id(n) for n in tree.body}
    guarded = {
        id(n) for b in tree.body if isinstance(b, ast.If) and "TYPE_CHECKING" in ast.dump(b.test) for n in ast.walk(b)
    }
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in top
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, id(node) in top
            for alias in node.names:
                yield f"{node.module}.{alias.name}", id(node) in top


def room(module: str) -> tuple[int, str] | None:
    for floor, rooms in enumerate(FLOORS):
        for name in rooms:
            if module == name or module.startswith(name + "."):
                return floor, name
    return None


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", files("passes", "optimizer"), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_only_lower_ones(path: Path) -> None:
    here = room(module_of(path))
    if here is None:
        return
    for module, _ in imports(path):
        there = room(module)
        if there is None or there == here or (here[1], there[1]) in SAME_FLOOR_FRIENDS:
            continue
        assert there[0] < here[0], f"{module_of(path)} imports {module}, which is not on a lower floor"


@pytest.mark.parametrize("path", files("passes", "optimizer"), ids=lambda p: str(p.relative_to(ROOT)))
def test_heavy_packages_are_imported_inside_functions(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    for module, at_top in imports(path):
        package = module.split(".")[0]
        if package in LAZY:
            assert not at_top, f"{name} imports {package} at the top of the file"
        home = ONLY_HOME.get(package)
        if home and not name.startswith(STANDALONE):
            assert name.startswith(home), f"{name} imports {package}; only {home} may"


def test_passes_know_nothing_of_the_optimizer_nor_samples_of_anyone() -> None:
    for path in files("passes"):
        assert not any(m.split(".")[0] in ("optimizer", "sample_models") for m, _ in imports(path)), path
    for path in files("sample_models"):
        assert not any(m.split(".")[0] in ("optimizer", "passes") for m, _ in imports(path)), path


@pytest.mark.parametrize("path", files("passes"), ids=lambda p: str(p.relative_to(ROOT)))
def test_passes_never_touch_disk_clock_or_terminal(path: Path) -> None:
    forbidden = {"os", "pathlib", "time", "subprocess", "socket", "shutil", "tempfile", "click", "rich", "datetime"}
    assert not forbidden & {m.split(".")[0] for m, _ in imports(path)}


def test_user_code_workers_import_nothing_of_ours() -> None:
    for path in files("optimizer"):
        name = path.relative_to(ROOT).as_posix()
        if name == "optimizer/workers/user_main.py" or name.startswith("optimizer/source/torch_worker"):
            assert not any(m.split(".")[0] in ("optimizer", "passes") for m, _ in imports(path)), name


def test_the_receivers_check_imports_nothing_of_ours() -> None:
    for path in files("optimizer/package/receiver"):
        ours = [m for m, _ in imports(path) if m.split(".")[0] in ("optimizer", "passes")]
        assert all(m.startswith("optimizer.package.receiver.") for m in ours), path
