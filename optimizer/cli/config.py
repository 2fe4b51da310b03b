"""Settings from ``lathe.toml`` or ``[tool.lathe]`` of ``pyproject.toml`` in the current folder. Flags win."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimizer.faults import Fault, usage
from passes.kit.options import closest

FILE = "lathe.toml"
PROJECT = "pyproject.toml"


@dataclass(frozen=True)
class Config:
    """The tree that was found, and where."""

    where: str
    tree: Mapping[str, Any]

    def values(self, verb: str, keys: Collection[str], all_keys: Mapping[str, Collection[str]]) -> dict[str, Any]:
        """Settings for ``verb`` by option name: those on the top level that it has, then those in its own table.

        ``all_keys`` holds the options of every verb: a key that no verb has is an error with the closest match.
        """
        everything = {key for known in all_keys.values() for key in known}
        found = {}
        for key, value in self.tree.items():
            if key in all_keys and isinstance(value, dict):
                continue
            if key not in everything:
                raise self._unknown(key, everything | set(all_keys))
            if key in keys:
                found[key] = self._plain(key, value)
        for key, value in self.tree.get(verb, {}).items():
            if key not in keys:
                raise self._unknown(f"{verb}.{key}", {f"{verb}.{k}" for k in keys})
            found[key] = self._plain(key, value)
        return found

    def _plain(self, key: str, value: Any) -> Any:
        items = value if isinstance(value, list) else [value]
        if not all(isinstance(i, (str, int, float)) for i in items):
            raise usage(f"'{key}' takes a text, a number, true or false, or a list of these", where=self.where)
        return value

    def _unknown(self, key: str, known: Collection[str]) -> Fault:
        return usage(f"no setting '{key}'{closest(key, known)}", where=self.where, code="unknown-setting")


def load(folder: Path) -> Config | None:
    """The settings that stand in ``folder``, or ``None``. Raises a usage Fault for what cannot be read."""
    own = _read(folder / FILE)
    project = _read(folder / PROJECT)
    inside = (project or {}).get("tool", {}).get("lathe") if project else None
    if own is not None and inside is not None:
        raise usage(f"settings stand both in {FILE} and in [tool.lathe] of {PROJECT}", hint="Keep one of them.")
    if own is not None:
        return Config(FILE, own)
    return Config(f"{PROJECT} [tool.lathe]", inside) if isinstance(inside, dict) else None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise usage(f"cannot be read: {error.strerror}", where=path.name) from error
    except ValueError as error:
        raise usage(f"is not valid TOML: {error}", where=path.name) from error
