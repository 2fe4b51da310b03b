"""Records read back from plain data: the way back of :func:`optimizer.records.to_plain`.

What is read may be anyone's: every value is held against the type that the record declares for it, and nothing is
built of what does not fit.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")

_ENDLESS = {"low": -math.inf, "high": math.inf}
"""What an end of an interval is that JSON has as ``null``; any other number there was not a number."""


def from_plain(kind: type[T], tree: Any) -> T:
    """An object of the frozen dataclass ``kind`` from dicts, lists, numbers and text.

    Keys that ``kind`` does not know are left aside, so that a newer Lathe may have written it. Raises ``ValueError``
    that names the place where something is missing or of another type.
    """
    found: T = _read(kind, tree, "")
    return found


def _read(kind: Any, value: Any, where: str) -> Any:
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _record(kind, value, where)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        wanted = [k for k in inner if k is not type(None)]
        return None if value is None and len(wanted) < len(inner) else _read(wanted[0], value, where)
    if origin is tuple:
        _require(isinstance(value, (list, tuple)), where, "a list", value)
        return tuple(_read(inner[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is not None:
        _require(isinstance(value, Mapping), where, "an object", value)
        return {str(k): _read(inner[1], v, f"{where}.{k}") for k, v in value.items()}
    return _scalar(kind, value, where)


def _record(kind: Any, value: Any, where: str) -> Any:
    _require(isinstance(value, Mapping), where, "an object", value)
    hints = typing.get_type_hints(kind)
    given = {}
    for field in dataclasses.fields(kind):
        place = f"{where}.{field.name}".lstrip(".")
        if field.name in value and value[field.name] is None and hints[field.name] is float:
            given[field.name] = _ENDLESS.get(field.name, math.nan)  # JSON has no infinities
        elif field.name in value:
            given[field.name] = _read(hints[field.name], value[field.name], place)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ValueError(f"'{place}' is missing")
    return kind(**given)


def _scalar(kind: Any, value: Any, where: str) -> Any:
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        known = [member.value for member in kind]
        _require(value in known, where, f"one of {', '.join(map(str, known))}", value)
        return kind(value)
    if kind is float:
        _require(isinstance(value, (int, float)) and not isinstance(value, bool), where, "a number", value)
        return float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    _require(fits, where, {int: "a whole number", str: "a text", bool: "true or false"}.get(kind, str(kind)), value)
    return value


def _require(fits: bool, where: str, wanted: str, value: Any) -> None:
    if not fits:
        raise ValueError(f"'{where or 'the whole'}' is not {wanted} but {type(value).__name__}")
