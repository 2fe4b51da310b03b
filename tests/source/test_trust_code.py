"""Files that run code when they are opened: refused, unless the user says whom to trust; then exported in a child."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimizer.faults import Fault
from optimizer.plan import SourceRequest
from optimizer.source.open import Source, open_source
from optimizer.source.user_code import UserWorker
from optimizer.workers.pool import Worker
from passes.kit.model import Model
from tests.support import runtime

torch = pytest.importorskip("torch")

NET = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)
    def forward(self, x):
        return torch.relu(self.layer(x))
def small():
    return torch.nn.Linear(4, 2)
"""
ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of each kind of file, made of the same module, whose class stands in ``nets_here.py``."""
    place = tmp_path_factory.mktemp("trusted")
    (place / "nets_here.py").write_text(NET)
    script = place / "make.py"
    script.write_text(
        "import pickle, torch\nfrom nets_here import Net\n"
        "def make():\n"
        "    torch.manual_seed(3)\n"
        "    net = Net()\n"
        "    example = (torch.arange(8.0).reshape(2, 4),)\n"
        "    torch.export.save(torch.export.export(net, example), 'net.pt2')\n"
        "    torch.jit.script(net).save('net_script.pt')\n"
        "    torch.save(net, 'net.pth')\n"
        "    pickle.dump(net, open('net.pkl', 'wb'))\n"
        "    torch.save(net.state_dict(), 'state.pt')\n"
        "    torch.save({'state_dict': net.state_dict(), 'epoch': 3}, 'checkpoint.ckpt')\n"
        "    from safetensors.torch import save_file\n"
        "    save_file(net.state_dict(), 'state.safetensors')\n"
        "    torch.save({'w': Net()}, 'objects.pt')\n"
        "    import numpy\n"
        "    numpy.savez('weights.npz', weight=net.layer.weight.detach(), bias=net.layer.bias.detach())\n"
        "    return net(*example).detach().numpy()\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        with Worker.users(place) as maker:
            np.save(place / "expected.npy", maker.call(f"{script}:make"))
    return place


def run(model: Model, feeds: list[Any]) -> list[dict[str, Any]]:
    return [runtime.run(model, f) for f in feeds]


def opened(text: str, folder: Path, scratch: Path, **request: Any) -> Source:
    asked = SourceRequest(text, folder=folder, **request)
    return open_source(asked, target=runtime.target(), scratch=scratch, run=run)


@pytest.mark.parametrize(
    ("name", "loader", "shapes"),
    [
        ("net.pt2", "torch.export.load", ()),
        ("net_script.pt", "torch.jit.load", ("x:2,4",)),
        ("net.pth", "torch.load", ("x:2,4",)),
    ],
)
def test_each_kind_is_refused_and_with_trust_exported(
    folder: Path, tmp_path: Path, name: str, loader: str, shapes: tuple[str, ...]
) -> None:
    with pytest.raises(Fault, match=r"can run any code inside it.*--trust-code") as caught:
        opened(name, folder, tmp_path)
    assert caught.value.code == "unsafe-model"
    found = opened(name, folder, tmp_path, trust_code=True, shapes=shapes)
    assert f"'{name}' was loaded with {loader}, which may run code in it (--trust-code)" in found.warnings
    assert found.kind == "torch" and found.parity is not None and found.parity.ok
    (port,) = found.model.signature.inputs
    (made,) = runtime.run(found.model, {port.name: ROWS}).values()
    assert np.allclose(made, np.load(folder / "expected.npy"), atol=1e-6)


def test_a_loader_that_fails_is_not_followed_by_another(folder: Path, tmp_path: Path) -> None:
    """A .pt2 that the exported-program reader refuses is not handed to the pickle reader."""
    import zipfile

    with zipfile.ZipFile(folder / "net.pth") as archive, zipfile.ZipFile(tmp_path / "sly.pt2", "w") as sly:
        for item in archive.infolist():
            sly.writestr(item, archive.read(item))
        sly.writestr("net/archive_format", "pt2")
    with pytest.raises(Fault, match=r"loading the file with torch\.export\.load raised") as caught:
        opened("sly.pt2", tmp_path, tmp_path, trust_code=True)
    assert caught.value.code == "load-failed"


def test_files_that_hold_no_module_say_what_to_do(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(Fault, match=r"neither an nn.Module.*--weights"):
        opened("state.pt", folder, tmp_path, trust_code=True)
    with pytest.raises(Fault, match=r"there is no such|not opened"):
        opened("gone.pt2", folder, tmp_path, trust_code=True)
    (tmp_path / "n.pkl").write_bytes(pickle.dumps([1]))
    with pytest.raises(Fault, match=r"a list, neither an nn.Module"):
        opened("n.pkl", tmp_path, tmp_path, trust_code=True)


@pytest.fixture(scope="module")
def worker(folder: Path) -> Iterator[UserWorker]:
    """A worker on the user's folder: torch takes seconds to import, so the quick questions share one."""
    with UserWorker(folder, "nets_here") as shared:
        yield shared


def outputs(worker: UserWorker) -> tuple[Any, Any]:
    """Input and output of the module at hand on made-up rows."""
    given = {"example": None, "wanted_shapes": ["x:2,4"], "arrays": {}, "roots": []}
    worker.call("torch_worker.py:prepare", **given)
    case = worker.call("torch_worker.py:cases", dims={})["cases"][0]
    return case["feeds"]["x"], next(iter(case["outputs"].values()))


def expected(folder: Path, x: Any) -> Any:
    with np.load(folder / "weights.npz") as held:
        return np.maximum(x @ held["weight"].T + held["bias"], 0)


@pytest.mark.parametrize("weights", ["state.pt", "state.safetensors", "checkpoint.ckpt"])
def test_a_factory_takes_its_weights_from_a_state_dict(folder: Path, worker: UserWorker, weights: str) -> None:
    path = str(folder / weights)
    told = worker.call("torch_worker.py:build", factory="nets_here:Net", roots=[], weights=path)
    assert any("checkpoint" in note for note in told["notes"]) == (weights == "checkpoint.ckpt")
    x, y = outputs(worker)
    assert np.allclose(y, expected(folder, x), atol=1e-6)


def test_a_plain_pickle_of_a_module_is_loaded_too(folder: Path, worker: UserWorker) -> None:
    told = worker.call("torch_worker.py:build_file", path=str(folder / "net.pkl"), roots=[])
    assert "'net.pkl' was loaded with pickle.load" in told["notes"][0]
    x, y = outputs(worker)
    assert np.allclose(y, expected(folder, x), atol=1e-6)


@pytest.mark.parametrize(
    ("factory", "weights", "text"),
    [
        ("Net", "objects.pt", "cannot be read without running code"),
        ("Net", "net.pth", "cannot be read without running code"),
        ("Net", "net.pkl", "cannot be read without running code"),
        ("Net", "nets_here.py", "cannot be read without running code"),
        ("small", "state.pt", "the file lacks weight, bias"),
    ],
)
def test_weights_never_run_code(folder: Path, worker: UserWorker, factory: str, weights: str, text: str) -> None:
    """Whether or not the user trusts MODEL: a state dict needs no code."""
    path = str(folder / weights)
    with pytest.raises(Fault, match=text) as caught:
        worker.call("torch_worker.py:build", factory=f"nets_here:{factory}", roots=[], weights=path)
    assert caught.value.code == "bad-weights"


def test_weights_that_are_not_there_are_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(Fault, match="no such file of weights"):
        opened("nets_here:Net", folder, tmp_path, weights=Path("gone.pt"))
