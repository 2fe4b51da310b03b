"""HTML as nested calls: text is escaped because there is no other way to put it in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


class Html(str):
    """Markup that is finished. Everything else that is put into a :func:`tag` is text."""

    __slots__ = ()


Child = str | Iterable["Child"] | None

_EMPTY = frozenset(("meta", "br"))


def tag(name: str, /, *children: Child, **attributes: str | float | bool | None) -> Html:
    """``<name attributes>children</name>``. Attributes that are ``None`` or false are left out; ``class_`` stands for
    ``class``, and other underscores for dashes."""
    told = "".join(
        _attribute(key, value) for key, value in attributes.items() if value is not None and value is not False
    )
    if name in _EMPTY:
        return Html(f"<{name}{told}>")
    return Html(f"<{name}{told}>{join(children)}</{name}>")


def join(children: Iterable[Child]) -> Html:
    """Children one after the other, text escaped."""
    return Html("".join(_child(child) for child in children))


def _child(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Html):
        return child
    return escape(child) if isinstance(child, str) else join(child)


def _attribute(key: str, value: str | float | bool) -> str:
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'


def table(head: Sequence[Child], rows: Iterable[Sequence[Child]], *, right: Sequence[int] = (), kind: str = "") -> Html:
    """A table that scrolls where it is too wide. ``right`` aligns columns to the right; ``kind="stack"`` turns
    each row into a block on a narrow screen, every cell under its heading."""
    heads = [tag("th", text, scope="col", class_="num" if i in right else None) for i, text in enumerate(head)]
    body = [tag("tr", [_cell(i, cell, head, right) for i, cell in enumerate(row)]) for row in rows]
    inner = tag("table", tag("thead", tag("tr", heads)), tag("tbody", body), class_=kind or None)
    return tag("div", inner, class_="scroll", tabindex="0")


def _cell(i: int, cell: Child, head: Sequence[Child], right: Sequence[int]) -> Html:
    title = head[i]
    label = title if isinstance(title, str) and not isinstance(title, Html) else None
    kind = "num" if i in right else None
    return tag("th", cell, scope="row") if i == 0 else tag("td", cell, class_=kind, data_label=label or None)


def bar(share: float, kind: str) -> Html:
    """A bar of ``share`` (0 to 1) of the room that it has; ``kind`` names its colour. The number stands beside it."""
    width = f"{100 * min(1.0, max(0.0, share)):.1f}%"
    return tag("svg", tag("rect", width=width, height="100%", rx="2", class_=kind), class_="bar", aria_hidden="true")
