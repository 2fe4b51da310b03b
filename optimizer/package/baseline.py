"""The results of an artifact as one small file that can be committed, to hold later ones against.

It keeps what each sample contributed to the metric, so that a later artifact is compared sample by sample. Latency and
memory stand in it for people only: nothing compares them across machines or days.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.faults import Fault, bad_input
from optimizer.package.manifest import to_text

Array = np.ndarray[Any, Any]

SCHEMA = "lathe.baseline/1"
SUFFIX = ".json"
MOST_BYTES = 32 * 2**20
"""A results file beyond this is refused, as are rows that unpack to more."""


@dataclass(frozen=True)
class Rows:
    """What each sample contributed to a metric: float64 [samples, k], for the data with that digest."""

    metric: str
    data: str
    values: Array


@dataclass(frozen=True)
class Results:
    """What is held against a later artifact."""

    name: str
    digest: str
    size_bytes: int
    signature: Mapping[str, Any]
    rows: Rows | None
    shown: Mapping[str, Any]

    def text(self) -> str:
        """The file. The same results give the same text."""
        rows = None
        if self.rows is not None:
            packed = base64.b64encode(
                zlib.compress(np.ascontiguousarray(self.rows.values, "<f8").tobytes(), 9)
            ).decode()
            shape = list(self.rows.values.shape)
            rows = {"metric": self.rows.metric, "data": self.rows.data, "shape": shape, "float64": packed}
        return to_text(
            {
                "schema": SCHEMA,
                "artifact": self.name,
                "digest": self.digest,
                "size_bytes": self.size_bytes,
                "signature": self.signature,
                "rows": rows,
                "shown": self.shown,
            }
        )


def read(path: Path) -> Results:
    """Read a results file. Raises a :class:`Fault` (bad input) when there is none that can be read."""
    where = str(path)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise bad_input("this is too large for a results file", where=where, code="bad-baseline")
        tree = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise bad_input("there is no such results file", where=where, hint="--write-baseline writes one") from error
    except OSError as error:
        raise bad_input(f"cannot be read: {error.strerror}", where=where) from error
    except ValueError as error:
        raise bad_input(f"this is not readable JSON: {error}", where=where, code="bad-baseline") from error
    if not isinstance(tree, dict) or tree.get("schema") != SCHEMA:
        hint = "lathe gate --write-baseline FILE writes one"
        raise bad_input(f"this is not a results file ({SCHEMA})", where=where, hint=hint, code="bad-baseline")
    try:
        return _results(tree)
    except Fault:
        raise
    except (KeyError, TypeError, ValueError, binascii.Error, zlib.error) as error:
        raise bad_input(f"the results file is garbled: {error!r}", where=where, code="bad-baseline") from error


def _results(tree: Mapping[str, Any]) -> Results:
    signature = tree["signature"]
    if not isinstance(signature, dict) or not {"inputs", "outputs"} <= signature.keys():
        raise ValueError("signature")
    size, rows = tree["size_bytes"], tree["rows"]
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ValueError("size_bytes")
    kept = None if rows is None else Rows(str(rows["metric"]), str(rows["data"]), _unpacked(rows))
    shown = tree.get("shown")
    return Results(
        str(tree["artifact"]), str(tree["digest"]), size, signature, kept, shown if isinstance(shown, dict) else {}
    )


def _unpacked(rows: Mapping[str, Any]) -> Array:
    samples, width = (int(n) for n in rows["shape"])
    wanted = samples * width * 8
    if samples < 1 or width < 1 or wanted > MOST_BYTES:
        raise ValueError("shape")
    packed = base64.b64decode(rows["float64"], validate=True)
    plain = zlib.decompressobj().decompress(packed, wanted + 1)
    if len(plain) != wanted:
        raise ValueError("rows of another length than their shape")
    return np.frombuffer(plain, "<f8").reshape(samples, width).astype(np.float64)
