"""The child's side: answer calls until the other end closes. Standard library and numpy only, like ``wire``."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any, BinaryIO

Find = Callable[[str], Callable[..., Any]]


def serve(reader: BinaryIO, writer: BinaryIO, wire: Any, find: Find) -> None:
    """Answer ``{"op", "args"}`` messages with ``{"ok": result}`` or ``{"error": ...}``.

    An exception with an ``as_json`` method (our Fault) travels whole; any other as its type, text and traceback.
    """
    while True:
        try:
            message = wire.receive(reader)
        except EOFError:
            return
        try:
            answer = {"ok": find(message["op"])(**message["args"])}
        except MemoryError:
            answer = {"error": {"type": "MemoryError", "text": "out of memory", "trace": ""}}
        except Exception as error:
            answer = {"error": _describe(error)}
        wire.send(writer, answer)


def _describe(error: Exception) -> dict[str, Any]:
    plain: dict[str, Any] = {"type": type(error).__name__, "text": str(error), "trace": traceback.format_exc()}
    if hasattr(error, "as_json"):
        plain["fault"] = {**error.as_json(), "exit": int(error.exit)}  # type: ignore[attr-defined]
    return plain
