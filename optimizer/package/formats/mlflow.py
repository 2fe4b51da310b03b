"""``--to mlflow``: a model folder with the onnx and python_function flavours, signature and requirements.

Written by hand, so that the model stays byte for byte what was shipped and its digest what the manifest says.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, ClassVar

from optimizer.package.formats.base import Artifact, no_such_form
from optimizer.package.receiver.words import EVIDENCE, MANIFEST, MODEL

# numpy's names of ONNX's element types, which are those that MLflow's tensor specifications take.
_NUMPY = {
    "FLOAT": "float32", "DOUBLE": "float64", "FLOAT16": "float16", "INT8": "int8", "UINT8": "uint8", "INT16": "int16",
    "UINT16": "uint16", "INT32": "int32", "UINT32": "uint32", "INT64": "int64", "UINT64": "uint64", "BOOL": "bool",
    "STRING": "str",
}  # fmt: skip
_UTC = "1970-01-01 00:00:00.000000"
"""MLflow wants a date; the same artifact must give the same bytes."""


class MLflow:
    """A folder that ``mlflow.pyfunc.load_model`` and ``mlflow.onnx.load_model`` read."""

    name: ClassVar[str] = "mlflow"
    summary: ClassVar[str] = "an MLflow model: onnx and pyfunc flavours, signature, requirements"
    needs: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = "mlflow"

    def write(self, artifact: Artifact, folder: Path) -> tuple[str, ...]:
        artifact.copy_model(folder)
        requirements = _requirements(artifact)
        _write(folder / "requirements.txt", "\n".join(requirements) + "\n")
        python = {"python": "3.11", "build_dependencies": ["pip"], "dependencies": ["-r requirements.txt"]}
        conda = {
            "name": "mlflow-env",
            "channels": ["conda-forge"],
            "dependencies": ["python=3.11", "pip", {"pip": requirements}],
        }
        _write(folder / "python_env.yaml", _yaml(python))
        _write(folder / "conda.yaml", _yaml(conda))
        _write(folder / "MLmodel", _yaml(_description(artifact)))
        (folder / "metadata").mkdir()
        for name in (MANIFEST, EVIDENCE):
            shutil.copyfile(artifact.folder / name, folder / "metadata" / name)
        return ()


def _description(artifact: Artifact) -> dict[str, Any]:
    providers = list(dict.fromkeys([artifact.provider, "CPUExecutionProvider"]))
    onnx = {
        "onnx_version": str(artifact.manifest.get("packages", {}).get("onnx", "")),
        "data": MODEL,
        "providers": providers,
        "onnx_session_options": {"intra_op_num_threads": artifact.threads, "inter_op_num_threads": 1},
        "code": None,
    }
    pyfunc = {
        "loader_module": "mlflow.onnx",
        "data": MODEL,
        "env": {"conda": "conda.yaml", "virtualenv": "python_env.yaml"},
        "python_version": "3.11",
    }
    return {
        "flavors": {"onnx": onnx, "python_function": pyfunc},
        "signature": {kind: json.dumps([_spec(p) for p in artifact.ports(kind)]) for kind in ("inputs", "outputs")},
        "model_uuid": str(artifact.manifest["files"][MODEL]["sha256"])[:32],
        "model_size_bytes": sum(f["size"] for n, f in artifact.manifest["files"].items() if n.startswith(MODEL)),
        "utc_time_created": _UTC,
        "metadata": {"lathe_model_digest": artifact.manifest["model"]["digest"]},
    }


def _spec(port: Any) -> dict[str, Any]:
    if port["type"] not in _NUMPY or port["dims"] is None:
        raise no_such_form("mlflow", f"'{port['name']}' ({port['type']}) has no MLflow tensor type")
    shape = [d if isinstance(d, int) else -1 for d in port["dims"]]
    return {"name": port["name"], "type": "tensor", "tensor-spec": {"dtype": _NUMPY[port["type"]], "shape": shape}}


def _requirements(artifact: Artifact) -> list[str]:
    """What serving takes, in the versions that it was measured with."""
    packages = artifact.manifest.get("packages", {})
    wanted = ("onnx", "onnxruntime", "onnxruntime-gpu", "numpy")
    return ["mlflow", *(f"{name}=={packages[name]}" for name in wanted if name in packages), "pandas"]


def _yaml(tree: dict[str, Any]) -> str:
    """YAML 1.2 is a superset of JSON; one member a line reads best."""
    return "".join(f"{key}: {json.dumps(value, sort_keys=True)}\n" for key, value in tree.items())


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
