"""The world as a pass sees it: answers to its questions, each remembered by what it depends on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from optimizer.runtime import sessions
from optimizer.runtime.sessions import JOBS, Site
from passes.kit import reducers as kit
from passes.kit.context import Feeds, NoData, NoGradients
from passes.kit.model import Model
from passes.kit.reducers import Reducer
from passes.kit.target import Target

Array = np.ndarray[Any, Any]

FOLDS = "optimizer.runtime.folds:"

BLOCKS = 5
"""Blocks of runs of which the fastest tells what a model costs."""

PARCEL_BYTES = 4 * 2**20
"""Feeds that go to a worker in one message: the memory that calibration needs beside the model and its activations."""


class Memory(Protocol):
    """Where models and answers are kept between questions."""

    def put_model(self, model: Model) -> Path: ...

    def get_answer(self, key: str) -> Any | None: ...

    def put_answer(self, key: str, answer: Any) -> None: ...


class Calibration(Protocol):
    """Calibration samples: feed dicts with the number of real samples in each, and their digest."""

    def fed(self, batch: int) -> int: ...

    def feeds(self, batch: int) -> Iterable[tuple[dict[str, Array], int]]: ...

    def digest(self) -> str: ...


class Slopes(Protocol):
    """Where gradients come from: see :meth:`passes.kit.context.Context.gradients`."""

    def __call__(
        self, model: Model, feeds: Sequence[Feeds], of: Sequence[str], seed: int
    ) -> list[dict[str, Array]]: ...


@dataclass
class World:
    """A :class:`passes.kit.context.Context` backed by the runtime, the calibration data and a memory.

    The runtime has no gradients: ``slopes`` is what does.
    """

    target: Target
    seed: int
    site: Site
    memory: Memory
    key_of: Callable[..., str]
    samples: Calibration | None = None
    answered: list[str] = field(default_factory=list)
    original: Model | None = None
    slopes: Slopes | None = None

    def sampled(self, count: int) -> list[Feeds]:
        """The first ``count`` calibration samples, a feed each. Raises :class:`NoData` without any."""
        if self.samples is None:
            raise NoData("there is no calibration data")
        return [feed for feed, _ in itertools.islice(self.samples.feeds(1), count)]

    def stats(self, model: Model, reducers: Mapping[str, Reducer]) -> dict[str, Reducer]:
        """Fold activations of ``model`` over the calibration samples. Raises :class:`NoData` without any."""
        if self.samples is None:
            raise NoData("there is no calibration data")
        specs = {name: reducer.spec() for name, reducer in reducers.items()}
        key = self.key_of("stats", model.digest(), self.samples.digest(), specs, self.site.provider, self.site.runtime)
        states = self.memory.get_answer(key)
        if states is None:
            states = self._fold(model, specs)
            self.memory.put_answer(key, states)
        self.answered.append(key)
        return {name: _filled(specs[name], state) for name, state in states.items()}

    def _fold(self, model: Model, specs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Array]]:
        assert self.samples is not None
        exposed, named = exposing(model, list(specs))
        path = self.memory.put_model(exposed)
        wanted = {named[name]: spec for name, spec in specs.items()}
        with sessions.worker() as worker:
            handle = sessions.ask(worker, FOLDS + "begin_fold", self.site, path=str(path), specs=wanted)
            for feeds, real in self._parcels():
                sessions.ask(worker, FOLDS + "fold", handle=handle, feeds=feeds, real=real, fed=self.samples.fed(1))
            states: dict[str, dict[str, Array]] = sessions.ask(worker, FOLDS + "end_fold", handle=handle)
        return {name: states[named[name]] for name in specs}

    def _parcels(self) -> Iterator[tuple[list[Feeds], list[int]]]:
        """Feeds of one sample (or of the model's own batch) and the real samples in each, as many as a message holds.

        The model always meets one sample at a time: a matrix product of one row and one of many differ in their last
        bits, so larger batches would let the answer depend on how the samples were grouped.
        """
        assert self.samples is not None
        feeds: list[Feeds] = []
        real: list[int] = []
        room = PARCEL_BYTES
        for feed, count in self.samples.feeds(1):
            size = sum(array.nbytes for array in feed.values())
            if feeds and size > room:
                yield feeds, real
                feeds, real, room = [], [], PARCEL_BYTES
            feeds.append(feed)
            real.append(count)
            room -= size
        if feeds:
            yield feeds, real

    def run(self, model: Model, feeds: Sequence[Feeds], fetch: Sequence[str]) -> list[dict[str, Array]]:
        """The named values for each of ``feeds``, with the runtime's own optimizer off."""
        exposed, named = exposing(model, fetch)
        path = self.memory.put_model(exposed)
        with sessions.worker() as worker:
            outputs = sessions.run(worker, path, [dict(f) for f in feeds], self.site, optimize=False)
        return [{name: out[named[name]] for name in fetch} for out in outputs]

    def gradients(self, model: Model, feeds: Sequence[Feeds], of: Sequence[str]) -> list[dict[str, Array]]:
        """How random projections of the outputs change with the named constants. Raises :class:`NoGradients`."""
        if self.slopes is None:
            raise NoGradients("gradients cannot be had here")
        return self.slopes(model, feeds, of, self.seed)

    def cost(self, model: Model) -> float:
        """Milliseconds of one run of ``model``: the least median of a few blocks. Needs calibration samples.

        The least, because whatever else runs on the machine only ever adds to it.
        """
        if self.samples is None:
            raise NoData("there is no data to time the model with")
        feed, _ = next(iter(self.samples.feeds(1)))
        with sessions.worker() as worker:
            sessions.begin_timing(worker, self.memory.put_model(model), feed, self.site)
            blocks = [sessions.ask(worker, JOBS + "time_block", runs=10, clock=self.site.clock) for _ in range(BLOCKS)]
        return min(float(np.median(block["taken"])) for block in blocks)


def exposing(model: Model, names: Sequence[str]) -> tuple[Model, dict[str, str]]:
    """A fork of ``model`` whose outputs are the named values of its main graph, and under which names they come out.

    A graph input cannot be an output by itself: it goes through an Identity and has another name there.
    Raises ``KeyError`` for a name that the main graph does not have.
    """
    fork = model.fork()
    graph = fork.graph
    values = {v.name: v for v in (*graph.inputs, *graph.initializers.values(), *(o for n in graph for o in n.outputs))}
    missing = [n for n in names if n not in values]
    if missing:
        raise KeyError(f"no value named {missing[0]!r} in the main graph")
    graph.outputs.clear()
    named = {}
    for name in names:
        value = _through_identity(graph, values[name]) if values[name].is_graph_input() else values[name]
        graph.outputs.append(value)
        named[name] = str(value.name)
    return fork, named


def _through_identity(graph: ir.Graph, value: ir.Value) -> ir.Value:
    node = ir.Node("", "Identity", [value], name=f"{value.name}/expose")
    node.outputs[0].name = f"{value.name}/exposed"
    graph.append(node)
    return node.outputs[0]


def _filled(spec: dict[str, Any], state: dict[str, Array]) -> Reducer:
    reducer = kit.build(spec)
    reducer.arrays = {k: np.asarray(v) for k, v in state.items()}
    return reducer
