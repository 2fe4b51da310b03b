"""The only door out of a pass: questions to the world, which the world records by digest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from passes.kit.model import Model
from passes.kit.reducers import Reducer
from passes.kit.target import Target

Feeds = Mapping[str, np.ndarray[Any, Any]]


class NoData(RuntimeError):
    """A pass asked for activations, but the compile has no calibration data."""


class Context(Protocol):
    """What a pass may ask for while it works. Every answer is deterministic for the same model, data and seed."""

    @property
    def target(self) -> Target:
        """The site that the model is for."""
        ...

    @property
    def seed(self) -> int:
        """Seed for anything that a pass draws at random."""
        ...

    def stats(self, model: Model, reducers: Mapping[str, Reducer]) -> dict[str, Reducer]:
        """Fold the activations of ``model`` on the calibration data: value name -> reducer, filled.

        Only the named values are fetched. Raises :class:`NoData` when there is no calibration data.
        """
        ...

    def run(self, model: Model, feeds: Sequence[Feeds], fetch: Sequence[str]) -> list[dict[str, np.ndarray[Any, Any]]]:
        """The named values of ``model`` for each of ``feeds``, with the runtime's own optimizer off."""
        ...

    def cost(self, model: Model) -> float:
        """Measured milliseconds of one run of ``model`` on the target."""
        ...
