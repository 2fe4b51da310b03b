"""Distillation from outside: a worker trains, and here it is watched, judged now and then, kept and taken up again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from optimizer.data.samples import Samples
from optimizer.faults import cannot
from optimizer.recover.codes import rounds
from optimizer.recover.graph import with_weights
from optimizer.recover.parity import PARITY, ROUNDED_PARITY, disagreement
from optimizer.runtime import sessions
from optimizer.runtime.sessions import Site
from optimizer.store.store import Store, key_of
from optimizer.workers.pool import CallFailed, Worker
from passes.kit.model import Model
from passes.prune.cut import kept_of

Array = np.ndarray[Any, Any]

NOT_TRAINABLE = "not-trainable"
STEP = "distill"
"""What a recipe calls training."""

JOB = "optimizer.recover.training:"
DEFAULT_STEPS = 600
RATE = 1e-3
FITTED_RATE = 3e-4
"""The learning rate behind `refit`: what was solved for in closed form is first lost again at a higher one."""
ROUNDED_RATE = 2e-4
"""The learning rate where integers are trained: a number that moves too far falls to other codes again and again."""

CHECKS = 8
"""How often the student is judged on the select samples on its way."""

PARCEL = 64
"""Samples that go to the worker in one message."""

CALL_SECONDS = 1800.0
INSIDE = 12
"""Values inside that are matched at most, evenly spaced: the sums that blocks end with."""


@dataclass(frozen=True)
class Lesson:
    """How long to train: ``steps`` (``None``: as many as fit into ``minutes``, else a default), from which seed, and
    how fast (``None``: by what is trained)."""

    steps: int | None = None
    minutes: float | None = None
    seed: int = 0
    rate: float | None = None

    def planned(self) -> int:
        """Steps that the learning rate is laid out for at the start."""
        return self.steps or DEFAULT_STEPS

    def rate_for(self, student: Model) -> float:
        """The highest learning rate for ``student``."""
        return self.rate or (ROUNDED_RATE if rounds(student) else RATE)


@dataclass(frozen=True)
class Distilled:
    """The best student on the select samples. ``steps`` is how far it had been trained (0: training did not help, and
    it is as it was); ``note`` says what happened."""

    model: Model
    steps: int
    note: str


@dataclass(frozen=True)
class Room:
    """What a distillation needs of the world: ``score`` tells how good a student is (higher is better), ``tell`` is
    given the steps done and planned and the seconds left, ``over`` says when to stop."""

    site: Site
    store: Store
    samples: Samples
    score: Callable[[Model], float]
    tell: Callable[[int, int, float | None], None]
    over: Callable[[], bool]
    classes: bool


@dataclass
class _Run:
    """A distillation on its way: the student to hand back, and what was reached."""

    best: Model
    best_score: float
    weights: Mapping[str, Array] = field(default_factory=dict)
    best_steps: int = 0
    done: int = 0
    planned: int = 0
    note: str = ""


def distill(student: Model, teacher: Model, lesson: Lesson, room: Room) -> Distilled:
    """Train ``student`` to compute what ``teacher`` does on the samples, which need no labels.

    A training that was interrupted goes on where it was. Raises a Fault (exit 4) when the models hold operators that
    cannot be trained.
    """
    key = key_of("distill", student.digest(), teacher.digest(), room.samples.digest(), asdict(lesson))
    run = _Run(student, room.score(student), planned=lesson.planned())
    first = run.best_score
    with sessions.worker() as worker:
        _begin(worker, student, teacher, lesson, room)
        _resume(worker, run, student, room, key)
        _train(worker, run, student, lesson, room, key)
    said = run.note or f"{run.done} steps"
    if run.best_steps == 0:
        return Distilled(student, 0, f"{said}; no checkpoint was better than the start, which is kept")
    return Distilled(run.best, run.best_steps, f"{said}; the best was that of step {run.best_steps} "
                     f"({run.best_score - first:+.4g})")  # fmt: skip


def _begin(worker: Worker, student: Model, teacher: Model, lesson: Lesson, room: Room) -> None:
    paths = [room.store.put_model(m) for m in (student, teacher)]
    settings = {
        "rate": lesson.rate_for(student),
        "steps": lesson.planned(),
        "seed": lesson.seed,
        "classes": room.classes,
    }
    inside = common(student, teacher)
    try:
        _ask(worker, "begin", student=str(paths[0]), teacher=str(paths[1]), inside=inside, settings=settings,
             threads=room.site.threads)  # fmt: skip
        feeds = [feed for feed, _ in room.samples.feeds(1)]
        for start in range(0, len(feeds), PARCEL):
            _ask(worker, "take", feeds=feeds[start : start + PARCEL])
        told = _ask(worker, "settle")["outputs"]
    except CallFailed as failure:
        hint = "Leave --recover out, or prune with `refit` alone, which needs no gradients"
        raise cannot(f"this model cannot be distilled: {failure}", hint=hint, code=NOT_TRAINABLE) from failure
    for model, path, outputs in zip((student, teacher), paths, told, strict=True):
        tolerance = ROUNDED_PARITY if rounds(model) else PARITY
        if message := disagreement(path, feeds[0], outputs, room.site, tolerance):
            raise cannot(f"this model cannot be distilled: {message}", code=NOT_TRAINABLE)


def _ask(worker: Worker, job: str, **args: Any) -> Any:
    return worker.call(JOB + job, timeout=CALL_SECONDS, **args)


def common(student: Model, teacher: Model) -> dict[str, Array | None]:
    """Sums that both models make under one name, with the channels that the student kept (``None``: all)."""
    theirs = {str(o.name) for n in teacher.graph for o in n.outputs}
    sums = [n for n in student.graph if n.op_type in ("Add", "Sum") and str(n.outputs[0].name) in theirs]
    found: dict[str, Array | None] = {}
    for node in sums:
        if any(v is not None and v.producer() is None and v.is_initializer() for v in node.inputs):
            continue  # a bias
        makers = [_maker(v) for v in node.inputs if v is not None]
        names = [str(m.outputs[0].name) for m in makers if m is not None]
        kept = [kept_of(student, n, axis) for n in names for axis in (1, 2)]
        known = next((k for k in kept if k is not None), None)
        found[str(node.outputs[0].name)] = None if known is None else np.flatnonzero(known)
    picked = sorted({int(i) for i in np.linspace(0, len(found) - 1, min(INSIDE, len(found)))}) if found else []
    names = list(found)
    return {names[i]: found[names[i]] for i in picked}


def _maker(value: ir.Value) -> ir.Node | None:
    """The node that makes a value, behind the quantizers that it goes through."""
    node = value.producer()
    while node is not None and node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node


def _resume(worker: Worker, run: _Run, student: Model, room: Room, key: str) -> None:
    kept = room.store.get_answer(key)
    if kept is None:
        return
    _ask(worker, "resume", found=kept["state"])
    run.done, run.planned = int(kept["state"]["done"]), int(kept["planned"])
    _ask(worker, "plan", steps=run.planned)
    if kept["best"]:
        run.best, run.weights = with_weights(student, kept["best"]), kept["best"]
        run.best_score, run.best_steps = float(kept["score"]), int(kept["steps"])


def _train(worker: Worker, run: _Run, student: Model, lesson: Lesson, room: Room, key: str) -> None:
    """Train and judge in turns, until the steps or the minutes are over, somebody says stop, or it diverges."""
    started = time.monotonic()
    first = run.done
    while run.done < run.planned and not room.over():
        chunk = max(1, min(run.planned // CHECKS, run.planned - run.done)) if run.done > first else 1
        told = _ask(worker, "train", steps=chunk)
        run.done = int(told["done"])
        if not math.isfinite(told["loss"]):
            run.note = f"training diverged after {run.done} steps"
            return
        pace = (time.monotonic() - started) / max(1, run.done - first)
        if lesson.minutes is not None and _replanned(run, lesson, pace, time.monotonic() - started):
            _ask(worker, "plan", steps=run.planned)
        room.tell(run.done, run.planned, pace * (run.planned - run.done))
        if run.done - first == 1 and run.done < run.planned:
            continue  # the first step only tells the pace
        weights = _ask(worker, "weights")
        score = room.score(made := with_weights(student, weights))
        if score > run.best_score:
            run.best, run.best_score, run.best_steps, run.weights = made, score, run.done, weights
        kept = {"state": _ask(worker, "state"), "planned": run.planned, "best": dict(run.weights)}
        room.store.put_answer(key, {**kept, "score": run.best_score, "steps": run.best_steps})


def _replanned(run: _Run, lesson: Lesson, pace: float, spent: float) -> bool:
    """Lay the steps out anew for the minutes that are left; whether they changed."""
    assert lesson.minutes is not None
    fitting = run.done + int(max(0.0, lesson.minutes * 60 - spent) / max(pace, 1e-6))
    planned = min(lesson.steps or fitting, fitting)
    changed, run.planned = planned != run.planned, planned
    return changed
