"""Options of a pass: declared once on the class, with type, range and help; everything else is read from there."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


class OptionError(ValueError):
    """An unknown option, or a value of the wrong type or outside its range. The text says which and what fits."""


@dataclass(frozen=True)
class Option:
    """What an option says of itself. ``name`` is kebab-case, ``kind`` one of bool, int, float, str, list."""

    name: str
    kind: str
    default: Any
    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] | None = None


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: Iterable[str] | None = None,
) -> Any:
    """Declare an option of a pass: ``keep: bool = option(False, "keep the thing")``. Lists are tuples of strings."""
    picks = tuple(choices) if choices is not None else None
    metadata = {"help": help, "low": low, "high": high, "choices": picks}
    return dataclasses.field(default=default, metadata=metadata)


def describe(cls: type) -> tuple[Option, ...]:
    """The options that a pass class declares, in order."""
    hints = typing.get_type_hints(cls)
    found = []
    for field in dataclasses.fields(cls):
        m = field.metadata
        name = field.name.replace("_", "-")
        kind = _kind(hints[field.name])
        found.append(Option(name, kind, field.default, m["help"], m["low"], m["high"], m["choices"]))
    return tuple(found)


def check(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn recipe options (kebab-case names, TOML values) into keyword arguments for ``cls``.

    Raises :class:`OptionError` for an unknown name or a value that does not fit.
    """
    known = {o.name: o for o in describe(cls)}
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        wanted = known.get(name.replace("_", "-"))
        if wanted is None:
            raise OptionError(f"no option '{name}'{closest(name, known)}; it has: {', '.join(known) or 'none'}")
        arguments[wanted.name.replace("-", "_")] = fit(wanted, value)
    return arguments


def fit(wanted: Option, value: Any) -> Any:
    """``value`` as the option's type, or :class:`OptionError`."""
    if wanted.kind == "list":
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)) or not all(isinstance(i, str) for i in items):
            raise OptionError(f"option '{wanted.name}' takes a list of strings, not {value!r}")
        return tuple(items)
    accepted: Any = {"bool": bool, "int": int, "float": (int, float), "str": str}[wanted.kind]
    if not isinstance(value, accepted) or (wanted.kind != "bool" and isinstance(value, bool)):
        raise OptionError(f"option '{wanted.name}' takes a {wanted.kind}, not {value!r}")
    if isinstance(value, float) and value != value:
        raise OptionError(f"option '{wanted.name}' is not a number")
    if wanted.choices is not None and value not in wanted.choices:
        hint = closest(str(value), wanted.choices)
        raise OptionError(f"option '{wanted.name}' cannot be {value!r}{hint}; choices: {', '.join(wanted.choices)}")
    if wanted.low is not None and value < wanted.low:
        raise OptionError(f"option '{wanted.name}' is {value}, below its lowest value {wanted.low:g}")
    if wanted.high is not None and value > wanted.high:
        raise OptionError(f"option '{wanted.name}' is {value}, above its highest value {wanted.high:g}")
    return float(value) if wanted.kind == "float" else value


def closest(word: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the most similar known word, else an empty text."""
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{match[0]}'?)" if match else ""


def _kind(hint: Any) -> str:
    if hint in (bool, int, float, str):
        return str(hint.__name__)
    if typing.get_origin(hint) is tuple:
        return "list"
    raise TypeError(f"an option cannot have the type {hint!r}")
