"""The red-team corpus: no file runs code, reads outside of its folder, or takes this process down.

Each file is refused with a typed fault, or opened and then as harmless as any other; both in bounded time and memory.
The payload of every file that carries one is ``os.mkdir(marker)``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from optimizer.data.readers import read
from optimizer.faults import Exit, Fault
from optimizer.plan import SourceRequest
from optimizer.runtime.sessions import JOBS
from optimizer.source.open import open_source
from optimizer.store.store import Store
from optimizer.workers.pool import CallFailed, Worker
from passes import catalogue
from passes.kit.model import Model, Port
from tests.redteam import attacks_onnx, attacks_pickle
from tests.support import runtime

MARKER = "code-ran"
MOST_SECONDS = 10.0
"""For one file, on a machine that does other things too; most take milliseconds."""

MOST_GROWTH_BYTES = 500e6
GRAPHS, OUTSIDE, DAMAGED = attacks_onnx.graphs(), attacks_onnx.external(), attacks_onnx.damaged()
PICKLES = attacks_pickle.models(Path(MARKER))
DATA = {**attacks_pickle.data(Path(MARKER)), **attacks_pickle.tensors()}
ALL = {**GRAPHS, **OUTSIDE, **DAMAGED, **PICKLES, **DATA}

HARMLESS = (
    "unfolds: ", "doubling: ", "many foldings", "loop without end", "if: ", "dims: input of", "dims: ten", "dims: zero",
    "attribute: ", "name: ", "opset: 2**62", "type: nested", "type: string", "typed data", "flipped bits",
    "npz that climbs out", "npz of ", "npz with a pickle", "jsonl of huge",
)  # fmt: skip
"""What may open: these files ask for much, or look odd, and are then as harmless as any other."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The attacker's folder, beside a secret and a marker that must stay away, in a place of its own."""
    (tmp_path / attacks_onnx.SECRET).write_bytes(b"s" * 64)
    inside = tmp_path / "model"
    (inside / "sub").mkdir(parents=True)
    monkeypatch.chdir(inside)
    yield inside
    assert not list(tmp_path.rglob(MARKER)) and not list(tmp_path.rglob("evil.npy")), "code of the file ran"
    assert not (tmp_path / "m").exists() and not Path("/tmp/evil.npy").exists()


def bounded(action: Callable[[], Any]) -> Any:
    """What the action gives, or its typed refusal; in bounded time and memory."""
    before, start = peak(), time.monotonic()
    try:
        found = action()
    except Fault as fault:
        assert fault.exit is Exit.BAD_INPUT and fault.code not in ("internal", "fault") and "\n" not in str(fault)
        found = fault
    assert time.monotonic() - start < MOST_SECONDS
    assert peak() - before < MOST_GROWTH_BYTES
    return found


def peak() -> int:
    """Largest resident size of this process so far, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def opened(path: Path, folder: Path) -> Model:
    request = SourceRequest(str(path), folder=folder)
    return open_source(request, target=runtime.target(), scratch=folder / "scratch").model


def harmless(model: Model, place: Path) -> None:
    """The lossless passes on what was opened, where a compile runs them: a pass may fail, the worker may not die."""
    store = Store(place / "cache")
    target = asdict(runtime.target())
    with Worker.ours() as worker:
        for step in catalogue.LOSSLESS.steps:
            (subject,) = catalogue.build(type(catalogue.LOSSLESS)((step,)))
            if subject.native:
                continue
            home, out = f"{type(subject).__module__}:{type(subject).__qualname__}", place / "out.onnx"
            given = {"path": str(store.put_model(model)), "recipe": step.text(), "home": home, "out": str(out)}
            try:
                told = worker.call(JOBS + "apply_native", timeout=20, target=target, seed=0, folders=[], **given)
            except CallFailed:
                continue
            model = Model.from_bytes(out.read_bytes()) if told["changes"] else model


def may_open(name: str) -> bool:
    return any(part in name for part in HARMLESS)


@pytest.mark.parametrize("name", [*GRAPHS, *DAMAGED])
def test_a_graph_is_refused_or_harmless(folder: Path, name: str) -> None:
    found = bounded(lambda: opened(ALL[name](folder), folder))
    if isinstance(found, Model):
        assert may_open(name), f"{name} was opened"
        start = time.monotonic()
        harmless(found, folder)
        assert time.monotonic() - start < MOST_SECONDS
    assert peak() < 2e9


@pytest.mark.parametrize("name", OUTSIDE)
def test_nothing_outside_of_the_folder_is_read(folder: Path, name: str) -> None:
    attacks_onnx.lay_traps(folder)
    secret = folder.parent / attacks_onnx.SECRET
    os.utime(secret, (0, 1))  # with relatime, the next read would move the time of the last access
    found = bounded(lambda: opened(ALL[name](folder), folder))
    # The libraries would refuse many of these as well; it must be our own check that does, before they see the file.
    assert isinstance(found, Fault) and "takes its data from" in found.message
    gone = any(word in name for word in ("memory", "file-url"))
    assert found.code == ("broken-model" if gone else "unsafe-model")
    assert secret.stat().st_atime == 0, "the secret was read"


def test_reading_the_secret_would_be_seen(folder: Path) -> None:
    secret = folder.parent / attacks_onnx.SECRET
    os.utime(secret, (0, 1))
    secret.read_bytes()
    if secret.stat().st_atime == 0:
        pytest.skip("this file system keeps no times of access")


@pytest.mark.parametrize("name", PICKLES)
def test_no_pickle_is_loaded(folder: Path, name: str) -> None:
    found = bounded(lambda: opened(ALL[name](folder), folder))
    assert isinstance(found, Fault) and found.code in ("unsafe-model", "not-a-model", "not-onnx", "not-supported")


def test_the_payload_works(folder: Path) -> None:
    """Were one of these files unpickled, the marker would be there."""
    import pickle

    for name, evil in attacks_pickle.opcodes(folder / "really").items():
        pickle.loads(evil)
        (folder / "really").rmdir()
        assert name


@pytest.mark.parametrize("name", DATA)
def test_data_is_refused_or_read_as_data(folder: Path, name: str) -> None:
    port = (Port("x", "Tensor(FLOAT)", ("n", 4)),)
    path = ALL[name](folder)
    found = bounded(lambda: read(path, port, scratch=folder / "scratch"))
    assert isinstance(found, Fault) or may_open(name), found
    assert sum(p.stat().st_size for p in folder.rglob("*.npy")) < 1e8, "a bomb was unpacked"


def test_weights_of_a_factory_are_never_unpickled(folder: Path) -> None:
    """Every opcode in every container, as a state dict: in one worker, because torch takes seconds to import."""
    pytest.importorskip("torch")
    from optimizer.source.user_code import UserWorker

    (folder / "net.py").write_text("import torch\ndef make(): return torch.nn.Linear(2, 2)\n")
    tried = 0
    with UserWorker(folder, "net:make") as worker:
        for evil in attacks_pickle.opcodes(folder / MARKER).values():
            carriers = attacks_pickle.containers(evil)
            for name, data in (
                carriers[kind] for kind in ("pt", "pth", "torchscript", "pkl", "archive called safetensors")
            ):
                path = folder / name
                path.write_bytes(data)
                with pytest.raises(Fault) as caught:
                    worker.call("torch_worker.py:build", factory="net:make", roots=[], weights=str(path))
                assert caught.value.code == "bad-weights"
                tried += 1
    assert tried >= 25


def test_the_corpus_is_large_enough() -> None:
    assert len(ALL) >= 60
