"""What the data looked like that an artifact was made for, and whether new data still does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optimizer.watch.service import Watcher

__all__ = ["Watcher"]


def __getattr__(name: str) -> Any:
    if name != "Watcher":
        raise AttributeError(f"module 'optimizer.watch' has no attribute {name!r}")
    from optimizer.watch.service import Watcher

    return Watcher
