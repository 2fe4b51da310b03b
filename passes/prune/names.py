"""Which layers the options ``only`` and ``exclude`` name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a pattern (an exact name, or one with ``*``, ``?``, ``[...]``) names this layer."""
    return any(p == name or fnmatchcase(name, p) for p in patterns)


def chosen(name: str, only: Sequence[str], exclude: Sequence[str]) -> bool:
    """Whether a layer is to be worked on."""
    return not matches(name, exclude) and (not only or matches(name, only))
