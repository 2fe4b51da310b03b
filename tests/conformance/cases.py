"""Every offline case of the installed onnx wheel, written to disk once: a model and its data sets.

A case is a folder with ``model.onnx`` and ``test_data_set_N/{input,output}_K.pb``, ONNX's own layout, which
``lathe optimize --data`` reads too. Making the node cases costs ten seconds of CPU, so they are kept under a folder
named by the version of onnx.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".conformance"
KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator", "real")
"""As onnx names them; ``real`` are the light models, whose weights the wheel leaves out."""

Value = Any
"""An array, a list of values (a sequence), or ``None`` (an empty optional)."""


@dataclass(frozen=True)
class Case:
    """One case: where it lies, and the tolerances that it is held to."""

    id: str
    folder: str
    rtol: float
    atol: float

    @property
    def model(self) -> Path:
        return Path(self.folder) / "model.onnx"


def collect(cache: Path = CACHE) -> list[Case]:
    """All cases in a fixed order, from disk when they were written before."""
    home = cache / f"cases-onnx-{onnx.__version__}"
    if not (home / "index.json").exists():
        _write_whole(home)
    return [
        Case(**{**entry, "folder": str(home / entry["folder"])})
        for entry in json.loads((home / "index.json").read_text())
    ]


def data_sets(case: Case) -> Iterator[tuple[dict[str, Value], dict[str, Value]]]:
    """Feeds and expected outputs by name, one pair for each data set of a case."""
    graph = onnx.load(case.model, load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    asked = [port for port in graph.input if port.name not in weights]
    for folder in sorted(Path(case.folder).glob("test_data_set_*")):
        yield _read_side(folder, "input", asked), _read_side(folder, "output", graph.output)


# -- reading ----------------------------------------------------------------------------------------------------------
def _read_side(folder: Path, side: str, ports: Sequence[onnx.ValueInfoProto]) -> dict[str, Value]:
    count = len(list(folder.glob(f"{side}_*.pb")))
    return {port.name: _read(folder / f"{side}_{k}.pb", port.type) for k, port in enumerate(ports[:count])}


def _read(path: Path, kind: onnx.TypeProto) -> Value:
    data = path.read_bytes()
    if kind.HasField("sequence_type"):
        return numpy_helper.to_list(onnx.SequenceProto.FromString(data))
    if kind.HasField("optional_type"):
        optional = onnx.OptionalProto.FromString(data)
        return numpy_helper.to_optional(optional) if optional.elem_type else None
    array = numpy_helper.to_array(onnx.TensorProto.FromString(data))
    return array if array.dtype.kind != "O" else np.asarray(np.frompyfunc(_text, 1, 1)(array), object)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


# -- writing ----------------------------------------------------------------------------------------------------------
def _write_whole(home: Path) -> None:
    """All cases under a temporary name first: another process may be at it too."""
    home.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".new-", dir=home.parent))
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            index = [asdict(_write(case, draft)) for case in _from_onnx()]
        (draft / "index.json").write_text(json.dumps(index, indent=0))
        draft.rename(home)
    except OSError:
        if not (home / "index.json").exists():
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _from_onnx() -> Iterator[Any]:
    from onnx.backend.test.loader import load_model_tests

    for kind in KINDS:
        yield from sorted(load_model_tests(kind=kind), key=lambda case: case.name)


def _write(case: Any, home: Path) -> Case:
    name = f"{case.kind}/{case.name}"
    folder = home / name
    if case.model_dir is not None:
        shutil.copytree(case.model_dir, folder)
    elif case.model is not None:
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(case.model.SerializeToString())
        for number, (inputs, outputs) in enumerate(case.data_sets):
            _write_set(folder / f"test_data_set_{number}", case.model.graph, inputs, outputs)
    else:
        _write_light(case.url, folder)
    return Case(name, name, case.rtol, case.atol)


def _write_set(folder: Path, graph: onnx.GraphProto, inputs: Sequence[Value], outputs: Sequence[Value]) -> None:
    folder.mkdir(parents=True)
    for side, ports, values in (("input", graph.input, inputs), ("output", graph.output, outputs)):
        for k, (port, value) in enumerate(zip(ports, values, strict=False)):
            (folder / f"{side}_{k}.pb").write_bytes(_proto(value, port.type).SerializeToString())


def _proto(value: Value, kind: onnx.TypeProto) -> Any:
    if isinstance(value, onnx.TensorProto):
        return value
    if kind.HasField("sequence_type"):
        return numpy_helper.from_list(value, dtype=None if value else onnx.SequenceProto.TENSOR)
    if kind.HasField("optional_type"):
        return onnx.OptionalProto() if value is None else numpy_helper.from_optional(value)
    return numpy_helper.from_array(np.asarray(value))


def _write_light(url: str, folder: Path) -> None:
    """A light model lies in the wheel with the outputs that belong to a fixed ramp of numbers as its input."""
    path = Path(onnx.__file__).parents[1] / url
    folder.mkdir(parents=True)
    shutil.copy(path, folder / "model.onnx")
    graph = onnx.load(path).graph
    weights = {tensor.name for tensor in graph.initializer}
    ramps = [_ramp(port) for port in graph.input if port.name not in weights]
    _write_set(folder / "test_data_set_0", graph, ramps, ())
    for output in sorted(path.parent.glob(f"{path.stem}_output_*.pb")):
        number = output.stem.rpartition("_")[2]
        shutil.copy(output, folder / "test_data_set_0" / f"output_{number}.pb")


def _ramp(port: onnx.ValueInfoProto) -> np.ndarray[Any, Any]:
    """0 to 1 in as many steps as the input has elements: what onnx's own runner feeds."""
    shape = tuple(d.dim_value if d.HasField("dim_value") else 1 for d in port.type.tensor_type.shape.dim)
    count = int(np.prod(shape))
    return (np.arange(count).reshape(shape) / count).astype(np.float32)


def only(cases: Sequence[Case], pattern: str) -> list[Case]:
    """The cases whose id holds ``pattern``."""
    return [case for case in cases if pattern in case.id]
