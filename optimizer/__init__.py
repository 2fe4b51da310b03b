"""Lathe: a model optimization compiler that ships only what it has measured.

The Python API has the same nouns as the command line; names are loaded on first use so that importing is cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from optimizer.api import (
        benchmark,
        check_data,
        compile,
        diff,
        doctor,
        explain,
        export,
        gate,
        inspect,
        package,
        replay,
        sign,
        verify,
    )
    from optimizer.faults import Fault
    from optimizer.records import Record

__all__ = [
    "Fault",
    "Record",
    "benchmark",
    "check_data",
    "compile",
    "diff",
    "doctor",
    "explain",
    "export",
    "gate",
    "inspect",
    "package",
    "replay",
    "sign",
    "verify",
]

_HOMES = {"Fault": "optimizer.faults", "Record": "optimizer.records"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'optimizer' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES.get(name, "optimizer.api")), name)
