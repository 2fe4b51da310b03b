"""Arrays of element types that numpy lacks (bfloat16, floats of 8 and 4 bits, integers of 4 and 2 bits), in and out of
the runtime.

onnxruntime's ``run`` takes and gives numpy's own types only; others go by way of its own values, whose memory is read
and written here. Types narrower than a byte lie packed there, the first element in the lowest bits.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

Array = np.ndarray[Any, Any]

_REGISTERED = 2
"""numpy's ``isbuiltin`` of a type that a package added to it."""


def run(session: Any, feeds: Mapping[str, Any], names: list[str] | None) -> list[Any]:
    """The named outputs (none: all) of one run. Raises what the runtime raises."""
    wanted = [o.name for o in session.get_outputs()] if names is None else names
    if not _needs_values(session, feeds, wanted):
        return list(session.run(names, dict(feeds)))
    return [_to_array(value) for value in session.run_with_ort_values(wanted, _to_values(feeds))]


def bind(session: Any, feeds: Mapping[str, Any]) -> Callable[[], Any]:
    """A call that runs the model once on ``feeds``, with nothing to convert left for it."""
    wanted = [o.name for o in session.get_outputs()]
    if not _needs_values(session, feeds, wanted):
        return lambda: session.run(None, feeds)
    values = _to_values(feeds)
    return lambda: session.run_with_ort_values(wanted, values)


def _needs_values(session: Any, feeds: Mapping[str, Any], wanted: list[str]) -> bool:
    given = any(map(is_narrow, feeds.values()))
    return given or any(o.type in _NARROW for o in session.get_outputs() if o.name in wanted)


def _to_values(feeds: Mapping[str, Any]) -> dict[str, Any]:
    return {name: to_value(np.asarray(array)) for name, array in feeds.items()}


_FLOATS = ("bfloat16", "float8e4m3fn", "float8e4m3fnuz", "float8e5m2", "float8e5m2fnuz", "float8e8m0", "float4e2m1")
_NARROW = {f"tensor({name})" for name in (*_FLOATS, "int4", "uint4", "int2", "uint2")}
"""Types of outputs, as the runtime spells them."""


def is_narrow(fed: Any) -> bool:
    """Whether ``fed`` is an array of a type that numpy lacks."""
    return isinstance(fed, np.ndarray) and fed.dtype.isbuiltin == _REGISTERED


def to_value(array: Array) -> Any:
    """The array as a value of the runtime, in the memory of this process."""
    from optimizer.runtime.providers import runtime

    if not is_narrow(array):
        return runtime().OrtValue.ortvalue_from_numpy(array)
    element = ir.DataType.from_numpy(array.dtype)
    held = np.ascontiguousarray(array)
    if element.bitwidth < 8:
        held = np.zeros(array.shape, np.uint8)  # the runtime reads the front of it only
        packed = _pack(array.reshape(-1).view(np.uint8), element.bitwidth)
        held.reshape(-1)[: packed.size] = packed
    return runtime().OrtValue.ortvalue_from_numpy_with_onnx_type(held, element.value)


def _to_array(value: Any) -> Array:
    element = ir.DataType(value.element_type())
    dtype = np.dtype(element.numpy())
    if dtype.isbuiltin != _REGISTERED:
        return np.asarray(value.numpy())
    shape = tuple(value.shape())
    count = int(np.prod(shape, dtype=np.int64))
    size = (count * element.bitwidth + 7) // 8
    held = np.frombuffer(ctypes.string_at(value.data_ptr(), size), np.uint8) if size else np.zeros(0, np.uint8)
    if element.bitwidth < 8:
        held = _unpack(held, element, count)
    return held.view(dtype).reshape(shape)


def _pack(codes: Array, bits: int) -> Array:
    """uint8 codes of ``bits`` bits each -> bytes."""
    per = 8 // bits
    rows = np.zeros((-(-codes.size // per), per), np.uint8)
    rows.reshape(-1)[: codes.size] = codes & (2**bits - 1)
    shifted = rows << (np.arange(per, dtype=np.uint8) * bits)
    return np.asarray(np.bitwise_or.reduce(shifted, axis=1), np.uint8)


def _unpack(held: Array, element: ir.DataType, count: int) -> Array:
    """Bytes -> one byte for each element, as ml_dtypes stores them: signed integers with their sign extended."""
    bits = element.bitwidth
    shifts = np.arange(8 // bits, dtype=np.uint8) * bits
    codes = ((held[:, None] >> shifts) & (2**bits - 1)).reshape(-1)[:count]
    if element.name.startswith("INT"):
        sign = 2 ** (bits - 1)
        codes = ((codes.astype(np.int8) ^ sign) - sign).view(np.uint8)
    return np.asarray(codes, np.uint8)
