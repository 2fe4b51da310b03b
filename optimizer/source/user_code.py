"""The parent's handle on user code: where a text points, and the isolated worker that runs it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from optimizer.faults import Fault, bad_input, broken, usage
from optimizer.workers.pool import CallFailed, Worker, WorkerDied

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]

_HERE = Path(__file__).parent
_NAME = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"
_MODULE = re.compile(rf"({_NAME}):({_NAME})")
_FILE = re.compile(rf"(.+\.py):({_NAME})")

READ_LIMIT_BYTES = 2**30
"""What a reader may hand over; more than that is cut, and said so."""


@dataclass(frozen=True)
class Spec:
    """User code as it is named to a worker: ``module:name`` and the folder that the module is found from."""

    text: str
    dotted: str
    root: Path

    @property
    def module(self) -> str:
        """The dotted module."""
        return self.dotted.partition(":")[0]

    @property
    def name(self) -> str:
        """The object in the module."""
        return self.dotted.partition(":")[2]


def is_code(text: str) -> bool:
    """Whether ``text`` reads like ``package.module:name`` or ``path/to/file.py:name``."""
    return bool(_MODULE.fullmatch(text) or _FILE.fullmatch(text))


def parse(text: str, folder: Path, what: str = "") -> Spec:
    """Read ``package.module:name`` (found from ``folder``) or ``path/to/file.py:name``.

    Raises :class:`Fault`: exit 2 for a text of neither form, exit 3 for a file that does not exist.
    """
    if found := _FILE.fullmatch(text):
        return _file_spec(text, folder / found[1], found[2])
    if _MODULE.fullmatch(text):
        return Spec(text, text, folder.resolve())
    raise usage(f"'{text}' is not of the form package.module:function", where=what)


def _file_spec(text: str, path: Path, name: str) -> Spec:
    path = path.resolve()
    if not path.is_file():
        beside = sorted(p.name for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        hint = f"Python files there: {', '.join(beside[:6])}" if beside else ""
        raise bad_input("there is no such Python file", where=str(path), hint=hint, code="module-not-found")
    parts, root = [path.stem], path.parent
    while (root / "__init__.py").exists():  # a file of a package is imported as such: it may import its siblings
        parts.insert(0, root.name)
        root = root.parent
    return Spec(text, f"{'.'.join(parts)}:{name}", root)


class UserWorker:
    """A worker for user code with this room's standalone files; how it ends becomes a :class:`Fault`."""

    def __init__(self, root: Path, what: str) -> None:
        self._worker = Worker.users(root)
        self._what = what

    def call(self, op: str, *, timeout: float | None = None, **args: Any) -> Any:
        """Run ``file.py:function`` of this folder there.

        Raises the user's error as :class:`Fault` (exit 3), also ``user-code-crashed`` and ``user-code-timeout``.
        """
        try:
            return self._worker.call(f"{_HERE / op}", timeout=timeout, **args)
        except Fault as fault:
            fault.where = fault.where or self._what
            raise
        except WorkerDied as death:
            raise _death(str(death), self._what, timeout) from death
        except CallFailed as failure:
            raise _failure(failure, self._what) from failure

    def close(self) -> None:
        """End the process."""
        self._worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _death(text: str, what: str, timeout: float | None) -> Fault:
    if timeout and text.startswith("no answer"):
        return bad_input(f"the code did not finish ({text})", where=what, code="user-code-timeout")
    return bad_input(f"the code ended its process: {text}", where=what, code="user-code-crashed")


def _failure(failure: CallFailed, what: str) -> Fault:
    if failure.kind == "MemoryError":
        return broken("the code ran out of memory", where=what, code="out-of-memory")
    if failure.kind == "TypeError" and "cannot be sent" in str(failure):
        return bad_input(f"the result cannot be used: {failure}", where=what, hint="Return numbers or numpy arrays")
    last = failure.trace.strip().splitlines()[-3:-1]
    return broken(f"{failure.kind}: {failure}", where=what, hint=" ".join(line.strip() for line in last))


@dataclass(frozen=True)
class Read:
    """What a reader gave. ``stacked``: every array has a new first axis with one feed an entry; otherwise the arrays
    came whole and follow the usual sample axis. ``notes`` says what was left out."""

    arrays: dict[str, Array]
    stacked: bool
    notes: tuple[str, ...]


class UserFunction:
    """A user's metric, evaluator or data reader, kept alive in a worker of its own. Close it, or use ``with``."""

    def __init__(self, text: str, folder: Path, timeout: float | None = None) -> None:
        """``text`` is ``module:function`` or ``file.py:function``; nothing is imported before the first call.

        Raises :class:`Fault` as :func:`parse` does.
        """
        self.spec = parse(text, folder)
        self.timeout = timeout
        self._roots = [str(folder.resolve())]
        self._worker: UserWorker | None = None

    def call(self, *args: Any, **named: Any) -> Any:
        """The function's result on plain data and arrays, as plain data and arrays.

        Raises :class:`Fault` (exit 3) with the place in the user's file when the function raises.
        """
        return self._ask("call", args=list(args), named=named)

    def read(self, limit_bytes: int = READ_LIMIT_BYTES) -> Read:
        """Everything that a reader gives: an object with ``get_next()``, an iterable of dicts, or a dict of arrays.

        Raises :class:`Fault` (exit 3) for other results, feeds of different names or shapes, and an empty reader.
        """
        told = self._ask("read", limit_bytes=limit_bytes)
        return Read(told["arrays"], bool(told["stacked"]), tuple(told["notes"]))

    def evaluate(self, run: Callable[[dict[str, Array]], Mapping[str, Array]]) -> Any:
        """The result of ``function(run)``. Each call of ``run`` in the user's process is answered by ours here."""
        told = self._ask("evaluate")
        while "need" in told:
            told = self._ask("answer", outputs=dict(run(told["need"])))
        return told["done"]

    def _ask(self, op: str, **args: Any) -> Any:
        if self._worker is None:
            self._worker = UserWorker(self.spec.root, self.spec.text)
        try:
            return self._worker.call(
                f"user_functions.py:{op}", timeout=self.timeout, spec=self.spec.dotted, roots=self._roots, **args
            )
        except Fault as fault:
            if fault.code in ("user-code-crashed", "user-code-timeout"):
                self.close()
            raise

    def close(self) -> None:
        """End the worker; a later call starts a fresh one."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def python_callable(text: str, folder: Path, timeout: float | None = None) -> UserFunction:
    """A handle on ``module:function`` found from ``folder``; see :class:`UserFunction`."""
    return UserFunction(text, folder, timeout)
