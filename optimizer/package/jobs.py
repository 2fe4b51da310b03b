"""What the receiver's check asks of a worker: reading a stranger's graph happens in a process that may die."""

from __future__ import annotations

from typing import Any


def describe(path: str) -> dict[str, Any]:
    """The signature, opsets and IR of an ONNX file, and the external files that it names. No weights are read."""
    import onnx

    from optimizer.package.manifest import signature_of
    from passes.kit.model import Model

    proto = onnx.load(path, load_external_data=False)
    return {
        "external": sorted(_external_files(proto)),
        "ir": proto.ir_version,
        "opsets": {o.domain or "ai.onnx": o.version for o in proto.opset_import},
        "signature": signature_of(Model.from_proto(proto)),
    }


def _external_files(proto: Any) -> set[str]:
    from onnx.external_data_helper import ExternalDataInfo, _get_all_tensors, uses_external_data

    return {ExternalDataInfo(t).location for t in _get_all_tensors(proto) if uses_external_data(t)}
