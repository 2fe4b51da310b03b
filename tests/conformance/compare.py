"""Whether outputs are what a case expects, by the rule of onnx's own runner; whether two files have one signature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx

BFLOAT16_RTOL = 2.0**-6
"""Two units in the last place: what onnx's runner grants bfloat16 whatever the case says."""


def mismatch(found: Mapping[str, Any], expected: Mapping[str, Any], rtol: float, atol: float) -> str:
    """How the named outputs differ from the expected ones, or an empty text."""
    for name, wanted in expected.items():
        if name not in found:
            return f"output '{name}' is missing"
        if why := _differs(found[name], wanted, rtol, atol):
            return f"output '{name}' {why}"
    return ""


def _differs(found: Any, wanted: Any, rtol: float, atol: float) -> str:
    if wanted is None or found is None:
        return "" if found is wanted else f"is {type(found).__name__} instead of {type(wanted).__name__}"
    if isinstance(wanted, (list, tuple)):
        if not isinstance(found, (list, tuple)) or len(found) != len(wanted):
            return f"is not a sequence of {len(wanted)}"
        return next((why for f, w in zip(found, wanted, strict=True) if (why := _differs(f, w, rtol, atol))), "")
    if isinstance(wanted, dict):
        return "" if found == wanted else "is another map"
    return _arrays_differ(_as_stored(np.asarray(found), np.asarray(wanted)), np.asarray(wanted), rtol, atol)


def _as_stored(found: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """onnxruntime hands 8-bit floats out as their bytes."""
    if wanted.dtype.name.startswith("float8") and found.dtype == np.uint8:
        return found.view(wanted.dtype)
    return found


def _arrays_differ(found: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any], rtol: float, atol: float) -> str:
    if found.shape != wanted.shape:
        return f"has shape {list(found.shape)} instead of {list(wanted.shape)}"
    if _is_text(wanted):
        same = [_text(v) for v in found.reshape(-1)] == [_text(v) for v in wanted.reshape(-1)]
        return "" if same else "holds other text"
    if found.dtype != wanted.dtype:
        return f"is {found.dtype} instead of {wanted.dtype}"
    if found.dtype == ml_dtypes.bfloat16:
        rtol = max(rtol, BFLOAT16_RTOL)
    x, y = (_plain(a) for a in (found, wanted))
    with np.errstate(all="ignore"):
        close = np.isclose(x, y, rtol=rtol, atol=atol, equal_nan=True)
    if close.all():
        return ""
    where = int(np.argmin(close.reshape(-1)))
    many = int((~close).sum())
    return f"has {many} of {close.size} values off, the first {x.reshape(-1)[where]!s} for {y.reshape(-1)[where]!s}"


def _plain(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """As a type that numpy compares; every narrow type of ONNX fits into float32."""
    return array.astype(np.float32) if array.dtype.kind == "V" or array.dtype.name in _NARROW else array


_NARROW = {"bfloat16", "int4", "uint4", "int2", "uint2", "float4_e2m1fn"} | {
    name for name in dir(ml_dtypes) if name.startswith("float8")
}


def _is_text(array: np.ndarray[Any, Any]) -> bool:
    return array.dtype.kind in "OSU"


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


# -- signatures -------------------------------------------------------------------------------------------------------
def signature_change(before: onnx.ModelProto, after: onnx.ModelProto) -> str:
    """How what a caller sees of ``after`` differs: names, order, types and dimensions. Empty when it does not.

    Read from the files themselves, not by way of the product's own idea of a signature. An initializer that an old
    file also lists as an input is none of the caller's business.
    """
    for side in ("input", "output"):
        old, new = _ports(before.graph, side), _ports(after.graph, side)
        if old != new:
            lost = [p for p in old if p not in new] or old
            return f"the {side}s changed: {lost[0]} is now {', '.join(p for p in new if p not in old) or 'elsewhere'}"
    return ""


def _ports(graph: onnx.GraphProto, side: str) -> Sequence[str]:
    weights = {tensor.name for tensor in graph.initializer} if side == "input" else ()
    return [f"{p.name}: {_kind(p.type)}" for p in getattr(graph, side) if p.name not in weights]


def _kind(kind: onnx.TypeProto) -> str:
    """A type as text; a dimension below zero is one that is not known."""
    which = kind.WhichOneof("value")
    if which == "tensor_type":
        dims = [_dim(d) for d in kind.tensor_type.shape.dim] if kind.tensor_type.HasField("shape") else None
        return f"tensor {kind.tensor_type.elem_type} {dims}"
    if which in ("sequence_type", "optional_type"):
        return f"{which} of {_kind(getattr(kind, which).elem_type)}"
    return str(kind).strip()


def _dim(dim: onnx.TensorShapeProto.Dimension) -> str:
    if dim.HasField("dim_value"):
        return str(dim.dim_value) if dim.dim_value >= 0 else "?"
    return dim.dim_param or "?"
