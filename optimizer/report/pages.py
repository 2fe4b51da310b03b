"""The catalogue of passes as people read it: a list with one line each, and the page of one pass."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optimizer.report.console import line, table
from passes.kit.contract import Pass
from passes.kit.options import Option, describe

if TYPE_CHECKING:
    from rich.console import RenderableType

FULL_LINE = 75
"""A line of a docstring that is at least this long goes on in the next."""

Find = Callable[[str], type[Pass]]


@dataclass(frozen=True)
class PassPage:
    """What a pass says of itself. ``problem`` is set when it could not be loaded."""

    name: str
    exactness: str = ""
    summary: str = ""
    page: str = ""
    native: bool = False
    options: tuple[Option, ...] = ()
    problem: str = ""


def page_of(cls: type[Pass]) -> PassPage:
    """The page of one pass class."""
    text = cls.page()
    summary = " ".join(text.split("\n\n")[0].split())
    return PassPage(cls.name, cls.exactness.value, summary, text, cls.native, describe(cls))


def gather(names: Iterable[str], find: Find) -> tuple[PassPage, ...]:
    """A page for every name; a pass of someone else that does not load is listed with its problem."""
    pages = []
    for name in names:
        try:
            pages.append(page_of(find(name)))
        except Exception as error:
            pages.append(PassPage(name, problem=f"cannot be loaded: {error}"))
    return tuple(pages)


def listing(pages: Sequence[PassPage]) -> RenderableType:
    """All passes, one row each."""
    rows = [(p.name, p.exactness, p.problem or p.summary) for p in pages]
    return table(("pass", "promise", "what it does"), rows, last_wide=True)


def full(page: PassPage) -> RenderableType:
    """The page of one pass with its options."""
    from rich.console import Group

    promises = {
        "exact": "exact: bit-equal with the runtime's own optimizer off",
        "numeric": "numeric: the same algebra with other rounding",
        "lossy": "lossy: spends quality, so it is kept only where measurement says that it pays",
    }
    parts: list[RenderableType] = [line(page.name, promises.get(page.exactness, page.exactness))]
    if page.native:
        parts.append(line("native", "wraps native code, so it runs in a process of its own"))
    parts += ["", *paragraphs(page.page), ""]
    if page.options:
        rows = [(o.name, _fits(o), spell(o.default), o.help) for o in page.options]
        parts.append(table(("option", "values", "default", "what it does"), rows, last_wide=True))
    else:
        parts.append(line("options", "none"))
    return Group(*parts)


def paragraphs(page: str) -> list[RenderableType]:
    """The text of a page, wrapped to whatever width the terminal has; short lines stay as they stand."""
    from rich.padding import Padding
    from rich.text import Text

    joined: list[str] = []
    last_was_full = False
    for raw in page.splitlines():
        goes_on = (
            last_was_full
            and raw.strip()
            and _indent(raw) == _indent(joined[-1])
            and not raw.lstrip().startswith(("- ", "* "))
        )
        if goes_on:
            joined[-1] += " " + raw.strip()
        else:
            joined.append(raw)
        last_was_full = len(raw) >= FULL_LINE
    return [Padding(Text(text.strip()), (0, 0, 0, _indent(text))) for text in joined]


def _indent(text: str) -> int:
    return len(text) - len(text.lstrip())


def spell(value: object) -> str:
    """A default as recipe text would have it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(f'"{v}"' for v in value) + "]"
    return str(value) if value != "" else '""'


def _fits(option: Option) -> str:
    if option.choices:
        return " | ".join(option.choices)
    if option.low is not None and option.high is not None:
        return f"{option.kind}, {option.low:g} to {option.high:g}"
    if option.low is not None:
        return f"{option.kind}, at least {option.low:g}"
    return f"{option.kind}, at most {option.high:g}" if option.high is not None else option.kind


def spell_toml(value: object) -> str:
    """A value as a line of a settings file would have it."""
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(spell_toml(v) for v in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, (int, float)) else json.dumps(str(value), ensure_ascii=False)
