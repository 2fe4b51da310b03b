"""Finding what ``package.module:name`` means, and telling in one line how user code failed.

Runs in the worker for user code, where it is loaded by path: it imports the standard library alone.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

BAD_INPUT, ENVIRONMENT = 3, 4
LINE = 300
_OURS = str(Path(__file__).parents[1])
_LIBRARIES = tuple({sysconfig.get_path(key) for key in ("stdlib", "platstdlib", "purelib", "platlib")})


class Told(Exception):
    """An error for the user. It has the members by which a worker sends it to the parent as a Fault."""

    def __init__(self, code: str, message: str, where: str = "", hint: str = "", exit: int = BAD_INPUT) -> None:
        super().__init__(message)
        self.code, self.message, self.where, self.hint, self.exit = code, message, where, hint, exit

    def as_json(self) -> dict[str, str]:
        """What the parent rebuilds its Fault from."""
        return {"code": self.code, "message": self.message, "where": self.where, "hint": self.hint}


@contextlib.contextmanager
def telling(code: str, doing: str, hint: str = "") -> Iterator[None]:
    """Turn whatever user code raises, ``sys.exit()`` too, into one line with the place in the user's file."""
    try:
        yield
    except Told:
        raise
    except BaseException as error:
        raise Told(code, f"{doing} raised {words(error)}", place(error), hint) from error


def words(error: BaseException) -> str:
    """An exception as ``Type: first line of its text``."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    name = type(error).__name__
    return (f"{name}: {text}" if text else name)[:LINE]


def place(error: BaseException) -> str:
    """``file.py:line`` of the innermost frame of the user's own code, else of the innermost frame that is not ours."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_short(error.filename)}:{error.lineno}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<")]
    own = [f for f in frames if _is_users(f.filename)]
    best = own or [f for f in frames if not f.filename.startswith(_OURS)]
    return f"{_short(best[-1].filename)}:{best[-1].lineno}" if best else ""


def _is_users(name: str) -> bool:
    return not name.startswith((_OURS, *_LIBRARIES))


def _short(name: str) -> str:
    with contextlib.suppress(ValueError):
        return str(Path(name).relative_to(Path.cwd()))
    return name


def load(spec: str, roots: Sequence[str] = ()) -> Any:
    """The object that ``module:name`` (or ``module:Class.method``) names. ``roots`` are searched after the folder.

    Raises :class:`Told` when the module or the name is missing, or when importing the module fails.
    """
    reach(roots)
    module_name, _, attribute = spec.partition(":")
    found: Any = _module(module_name)
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise _no_attribute(found, module_name, part)
        found = getattr(found, part)
    return found


def reach(roots: Sequence[str]) -> None:
    """Let user code be imported from ``roots`` too, after its own folder, before any of it runs."""
    for root in reversed(roots):
        if root not in sys.path:
            sys.path.insert(1, root)
    # Our messages travel over stdin: user code that reads it must find it empty.
    sys.stdin = Path(os.devnull).open()  # noqa: SIM115 - for the rest of the process


def _module(name: str) -> Any:
    with telling("user-code-failed", f"importing '{name}'"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise _not_found(name, error) from error


def _not_found(name: str, error: ModuleNotFoundError) -> Told:
    missing = error.name or name
    if name == missing or name.startswith(f"{missing}."):
        return Told("module-not-found", f"there is no module '{missing}'", sys.path[0], _nearby_modules(name))
    return missing_package(missing, place(error))


def missing_package(name: str, where: str = "") -> Told:
    """The error for a package that the user's code needs and this environment lacks."""
    package = name.partition(".")[0]
    if package in ("torch", "safetensors"):
        hint = 'Install it with: pip install "lathe[torch]"'
        return Told("package-missing", f"this needs the package '{package}', which is not installed", where, hint, 4)
    hint = f"Install '{package}' in the environment that lathe runs in"
    return Told("package-missing", f"it imports '{name}', which is not installed", where, hint, ENVIRONMENT)


def _nearby_modules(name: str) -> str:
    folder = Path(sys.path[0])
    head = name.rpartition(".")[0]
    inside = folder.joinpath(*head.split(".")) if head else folder
    files = sorted(p.stem for p in inside.glob("*.py") if p.stem != "__init__") if inside.is_dir() else []
    folders = sorted(p.parent.name for p in inside.glob("*/__init__.py")) if inside.is_dir() else []
    names = [f"{head}.{n}" if head else n for n in (*files, *folders)]
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"Did you mean '{close[0]}'?"
    if names:
        return f"Modules there: {', '.join(names[:8])}"
    return "No Python file lies there; run lathe in the folder of your code, or write path/to/file.py:factory"


def _no_attribute(owner: Any, module_name: str, name: str) -> Told:
    public = [n for n in vars(owner) if not n.startswith("_") and callable(getattr(owner, n, None))]
    own = [n for n in public if getattr(getattr(owner, n), "__module__", None) == module_name] or public
    close = difflib.get_close_matches(name, public, n=1)
    if close:
        hint = f"Did you mean '{close[0]}'?"
    else:
        hint = f"It defines: {', '.join(own[:8])}" if own else "It defines no function and no class"
    where = getattr(owner, "__file__", None) or ""
    label = getattr(owner, "__name__", module_name)
    return Told("name-not-found", f"'{label}' has no '{name}'", _short(where), hint)
