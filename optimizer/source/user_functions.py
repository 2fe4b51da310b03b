"""Running a user's metric, evaluator or data reader, in the worker for user code.

Loaded there by path: standard library, numpy and its neighbour ``user_import``.
"""

from __future__ import annotations

import importlib.util
import queue
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np


def _neighbour(name: str) -> types.ModuleType:
    """Another file of this folder, loaded by path under a private name."""
    key = f"_lathe_{name}"
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None and spec.loader is not None
        sys.modules[key] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[key])
    return sys.modules[key]


if TYPE_CHECKING:
    from optimizer.source import user_import as user
else:
    user = _neighbour("user_import")

READER_HINT = "A reader gives dicts of input name -> array, one feed each"


def call(spec: str, roots: Sequence[str], args: Sequence[Any], named: Mapping[str, Any]) -> Any:
    """The function's result as plain data."""
    function = _callable(spec, roots)
    with user.telling("user-code-failed", f"'{spec}'"):
        return plain(function(*args, **named))


def _callable(spec: str, roots: Sequence[str]) -> Callable[..., Any]:
    found = user.load(spec, roots)
    if not callable(found):
        raise user.Told("not-a-function", f"'{spec}' is {type(found).__name__}, not a function")
    result: Callable[..., Any] = found
    return result


def plain(thing: Any) -> Any:
    """Plain data and numpy arrays of what user code returns: tensors, data frames and numpy numbers included."""
    if thing is None or isinstance(thing, (bool, int, float, str, bytes, np.ndarray)):
        return thing
    if isinstance(thing, np.generic):
        return thing.item()
    if isinstance(thing, Mapping):
        return {str(key): plain(value) for key, value in thing.items()}
    if isinstance(thing, (list, tuple)):
        return [plain(value) for value in thing]
    if hasattr(thing, "detach"):
        thing = thing.detach().cpu()
        thing = thing.float() if str(thing.dtype) == "torch.bfloat16" else thing
    if hasattr(thing, "__array__"):
        found = np.asarray(thing)
        return found.item() if found.ndim == 0 else found
    raise user.Told("bad-result", f"it returned a {type(thing).__name__}", hint="Return numbers or numpy arrays")


# -- readers -----------------------------------------------------------------------------------------------------
def read(spec: str, roots: Sequence[str], limit_bytes: int) -> dict[str, Any]:
    """Drain a reader: ``arrays`` by name, whether they are ``stacked`` (one feed an entry), and ``notes``."""
    found = user.load(spec, roots)
    with user.telling("user-code-failed", f"the reader '{spec}'"):
        if isinstance(found, type) or (callable(found) and not hasattr(found, "get_next")):
            found = found()
        if isinstance(found, Mapping):
            return {"arrays": {str(k): np.asarray(plain(v)) for k, v in found.items()}, "stacked": False, "notes": []}
        feeds, notes = _drain(_feeds(found, spec), limit_bytes)
    if not feeds:
        raise user.Told("no-data", f"the reader '{spec}' gave no feed", hint=READER_HINT)
    return {"arrays": _stack(feeds, notes), "stacked": True, "notes": notes}


def _feeds(reader: Any, spec: str) -> Iterator[Any]:
    if hasattr(reader, "get_next"):
        return iter(reader.get_next, None)
    if isinstance(reader, Iterable) and not isinstance(reader, (str, bytes, np.ndarray)):
        return iter(reader)
    message = f"'{spec}' gave a {type(reader).__name__}, which is no reader"
    raise user.Told(
        "not-a-reader", message, hint="It needs get_next(), or to be an iterable of dicts or a dict of arrays"
    )


def _drain(feeds: Iterator[Any], limit_bytes: int) -> tuple[list[dict[str, np.ndarray[Any, Any]]], list[str]]:
    taken: list[dict[str, np.ndarray[Any, Any]]] = []
    held = 0
    for number, feed in enumerate(feeds):
        if not isinstance(feed, Mapping):
            raise user.Told("not-a-reader", f"feed {number} is a {type(feed).__name__}, not a dict", hint=READER_HINT)
        arrays = {str(name): np.asarray(plain(value)) for name, value in feed.items()}
        if taken and set(arrays) != set(taken[0]):
            names = f"{', '.join(sorted(arrays))} instead of {', '.join(sorted(taken[0]))}"
            raise user.Told("bad-feed", f"feed {number} holds {names}", hint=READER_HINT)
        held += sum(array.nbytes for array in arrays.values())
        if held > limit_bytes:
            return taken, [f"the reader was stopped after {number} feeds: {limit_bytes:,} bytes are the limit"]
        taken.append(arrays)
    return taken, []


def _stack(feeds: list[dict[str, np.ndarray[Any, Any]]], notes: list[str]) -> dict[str, np.ndarray[Any, Any]]:
    first = {name: array.shape for name, array in feeds[0].items()}
    for number, feed in enumerate(feeds):
        wrong = next((name for name, array in feed.items() if array.shape != first[name]), None)
        if wrong is None:
            continue
        if number == len(feeds) - 1 and number > 0 and feed[wrong].shape[1:] == first[wrong][1:]:
            notes.append("the last feed is smaller than the others and was left out")
            feeds.pop()
            break
        shapes = f"has shape {list(feed[wrong].shape)}, the first one {list(first[wrong])}"
        hint = "Give every feed the same shape (pad it), or give a folder of arrays instead"
        raise user.Told("bad-feed", f"'{wrong}' in feed {number} {shapes}", hint=hint)
    return {name: np.stack([feed[name] for feed in feeds]) for name in first}


# -- evaluators --------------------------------------------------------------------------------------------------
class _Conversation:
    """A user's ``function(run)`` in a thread; each ``run(feeds)`` waits there for the parent's answer."""

    def __init__(self, function: Callable[..., Any], spec: str) -> None:
        self._spec = spec
        self._told: queue.Queue[dict[str, Any] | Exception] = queue.Queue()
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        threading.Thread(target=self._work, args=(function,), daemon=True).start()

    def _work(self, function: Callable[..., Any]) -> None:
        try:
            with user.telling("user-code-failed", f"the evaluator '{self._spec}'"):
                self._told.put({"done": plain(function(self._run))})
        except Exception as error:
            self._told.put(error)

    def _run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        self._told.put({"need": {str(name): np.asarray(plain(value)) for name, value in feeds.items()}})
        return self._answers.get()

    def next(self) -> dict[str, Any]:
        told = self._told.get()
        if isinstance(told, Exception):
            raise told
        return told

    def answer(self, outputs: dict[str, Any]) -> None:
        self._answers.put(outputs)


_OPEN: list[_Conversation] = []


def evaluate(spec: str, roots: Sequence[str]) -> dict[str, Any]:
    """Start ``function(run)``: ``{"need": feeds}`` when it wants a run, ``{"done": result}`` at its end."""
    _OPEN[:] = [_Conversation(_callable(spec, roots), spec)]
    return _OPEN[0].next()


def answer(spec: str, roots: Sequence[str], outputs: dict[str, Any]) -> dict[str, Any]:
    """Give the outputs that were needed; then as :func:`evaluate`."""
    _OPEN[0].answer(outputs)
    return _OPEN[0].next()
