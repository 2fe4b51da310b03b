"""What a reducer is: a streaming fold over activations that can be merged."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, ClassVar, Self

import numpy as np

Array = np.ndarray[Any, Any]


class Reducer:
    """Base of all reducers. Parameters are dataclass fields; the folded state lives in ``arrays``."""

    kind: ClassVar[str]
    arrays: dict[str, Array]
    per_sample: ClassVar[bool] = False
    """Whether ``fold`` must be given one sample at a time, because it draws a line between samples."""

    def fold(self, batch: Array) -> None:
        """Take in one array of activations (any shape, float)."""
        raise NotImplementedError

    def merge(self, other: Self) -> None:
        """Take in the state of another reducer with the same parameters."""
        raise NotImplementedError

    def spec(self) -> dict[str, Any]:
        """Kind and parameters, as plain data; :func:`build` turns it back into an empty reducer."""
        return {"kind": self.kind, **{f.name: getattr(self, f.name) for f in fields(self) if f.init}}  # type: ignore[arg-type]
