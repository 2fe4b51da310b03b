"""The only door out of a pass: questions to the world, which the world records by digest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from passes.kit.model import Model
from passes.kit.reducers import Reducer
from passes.kit.target import Target

Feeds = Mapping[str, np.ndarray[Any, Any]]


Site = tuple[str, str]
"""Where a pass rewrites: the rule and the place, as in :class:`passes.kit.contract.Change`."""


class NoData(RuntimeError):
    """A pass asked for activations, but the compile has no calibration data."""


class NoGradients(NoData):
    """A pass asked for gradients, and there is no way to them; the text says what is missing."""


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

    @property
    def original(self) -> Model | None:
        """The model that the recipe started from, for passes that make up for what those before them spent."""
        ...

    def sampled(self, count: int) -> list[Feeds]:
        """The first ``count`` calibration samples, a feed each. Raises :class:`NoData` when there are none."""
        ...

    def stats(self, model: Model, reducers: Mapping[str, Reducer]) -> dict[str, Reducer]:
        """Fold the activations of ``model`` on the calibration data: value name -> reducer, filled.

        Only the named values are fetched. Raises :class:`NoData` when there is no calibration data.
        """
        ...

    def run(self, model: Model, feeds: Sequence[Feeds], fetch: Sequence[str]) -> list[dict[str, np.ndarray[Any, Any]]]:
        """The named values of ``model`` for each of ``feeds``, with the runtime's own optimizer off."""
        ...

    def gradients(
        self, model: Model, feeds: Sequence[Feeds], of: Sequence[str]
    ) -> list[dict[str, np.ndarray[Any, Any]]]:
        """For each of ``feeds``, how a random projection of the outputs changes with the named constants of floats.

        The projection gives every element of an output of floats a drawn sign and divides by the output's norm. The
        squares of these gradients are therefore, in the mean, the squared relative changes of the outputs, to first
        order. Raises :class:`NoGradients` where gradients cannot be had.
        """
        ...

    def cost(self, model: Model) -> float:
        """Measured milliseconds of one run of ``model`` on the target."""
        ...


@dataclass(frozen=True)
class Without:
    """A context in which some rewrites are off the table; everything else is asked of ``inner``.

    Lets a pass run again without the one rewrite that was found to be wrong, with all its others.
    """

    inner: Context
    sites: frozenset[Site]

    @property
    def target(self) -> Target:
        return self.inner.target

    @property
    def seed(self) -> int:
        return self.inner.seed

    @property
    def original(self) -> Model | None:
        return self.inner.original

    def sampled(self, count: int) -> list[Feeds]:
        return self.inner.sampled(count)

    def stats(self, model: Model, reducers: Mapping[str, Reducer]) -> dict[str, Reducer]:
        return self.inner.stats(model, reducers)

    def run(self, model: Model, feeds: Sequence[Feeds], fetch: Sequence[str]) -> list[dict[str, np.ndarray[Any, Any]]]:
        return self.inner.run(model, feeds, fetch)

    def gradients(
        self, model: Model, feeds: Sequence[Feeds], of: Sequence[str]
    ) -> list[dict[str, np.ndarray[Any, Any]]]:
        return self.inner.gradients(model, feeds, of)

    def cost(self, model: Model) -> float:
        return self.inner.cost(model)


def forbidden(context: Context | None) -> frozenset[Site]:
    """The rewrites that a pass must leave out this time."""
    return context.sites if isinstance(context, Without) else frozenset()
