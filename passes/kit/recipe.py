"""A recipe: which passes, in which order, with which options. One tree, three spellings (text, TOML, objects)."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


class RecipeError(ValueError):
    """Recipe text that cannot be read; the message points at the part."""


@dataclass(frozen=True)
class Step:
    """One pass by name with its options (kebab-case name and TOML value), in the order in which they were given."""

    name: str
    options: tuple[tuple[str, Any], ...] = ()

    def text(self) -> str:
        if not self.options:
            return self.name
        return self.name + "{" + ", ".join(f"{k}={_spell(v)}" for k, v in self.options) + "}"


@dataclass(frozen=True)
class Recipe:
    """A sequence of steps. ``Recipe.parse(recipe.text()) == recipe`` for every recipe."""

    steps: tuple[Step, ...] = ()

    def text(self) -> str:
        """The spelling that the log prints and the command line accepts."""
        return ", ".join(step.text() for step in self.steps)

    def __add__(self, other: Recipe) -> Recipe:
        return Recipe(self.steps + other.steps)

    @classmethod
    def parse(cls, text: str) -> Recipe:
        """Read ``fold-batchnorm, quantize-static{observer=percentile, exclude=["/head/*"]}``.

        Option values are TOML values; a bare word is a string. Raises :class:`RecipeError`.
        """
        return cls(tuple(_parse_step(part) for part in _split(text) if part))

    @classmethod
    def from_toml(cls, tree: Mapping[str, Any]) -> Recipe:
        """Read ``[[step]]`` tables: ``name`` and the options beside it. Raises :class:`RecipeError`."""
        steps = tree.get("step")
        if not isinstance(steps, list) or set(tree) != {"step"}:
            raise RecipeError("a recipe file holds [[step]] tables, each with a name and its options")
        return cls(tuple(_toml_step(entry) for entry in steps))


def _toml_step(entry: Any) -> Step:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
        raise RecipeError(f"a [[step]] needs a name: {entry!r}")
    return Step(entry["name"], _freeze((k, v) for k, v in entry.items() if k != "name"))


def _parse_step(text: str) -> Step:
    name, brace, rest = text.partition("{")
    name = name.strip()
    if not name or not all(c.isalnum() or c in "-_." for c in name):
        raise RecipeError(f"'{text}' does not start with the name of a pass")
    if not brace:
        return Step(name)
    if not rest.rstrip().endswith("}"):
        raise RecipeError(f"'{text}' misses its closing brace")
    options = []
    for part in _split(rest.rstrip()[:-1]):
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise RecipeError(f"'{part}' in '{name}' is not option=value")
        options.append((key.strip(), _value(value.strip(), part)))
    return Step(name, _freeze(options))


def _split(text: str) -> list[str]:
    """Split at commas that stand outside quotes, brackets and braces."""
    parts, depth, quote, start, escaped = [], 0, "", 0, False
    for i, c in enumerate(text):
        if escaped:
            escaped = False
        elif quote:
            escaped = c == "\\" and quote == '"'
            quote = "" if c == quote else quote
        elif c in "\"'":
            quote = c
        elif c in "[{":
            depth += 1
        elif c in "]}":
            depth -= 1
        elif c == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    if depth or quote:
        raise RecipeError(f"unbalanced brackets or quotes in '{text}'")
    parts.append(text[start:].strip())
    return parts if parts != [""] else []


def _value(text: str, part: str) -> Any:
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        if text and all(c.isalnum() or c in "-_./*:<=>" for c in text):
            return text
        raise RecipeError(f'\'{part}\': {text!r} is not a value (quote strings, lists look like ["a", "b"])') from None


def _spell(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_quote(v) if isinstance(v, str) else _spell(v) for v in value) + "]"
    if isinstance(value, str):
        plain = value and all(c.isalpha() or c == "-" for c in value) and value not in ("true", "false", "inf", "nan")
        return value if plain and value.isascii() and value not in ("-inf", "-nan") else _quote(value)
    return repr(value)


def _quote(text: str) -> str:
    """A TOML basic string: JSON's escapes, but characters beyond the basic plane as they are, and DEL escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _freeze(options: Iterable[tuple[str, Any]]) -> tuple[tuple[str, Any], ...]:
    return tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in options)
