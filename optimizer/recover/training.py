"""Distillation in a worker: the teacher and the student as torch functions, trained a few steps at a call.

The loss is the squared error of the student's outputs, with the cross entropy to the teacher's softened outputs where
they are scores of classes (Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531), and
the squared error of what both call by the same name inside (Romero et al. 2015, "FitNets", arXiv 1412.6550; the logits
and blocks of Minitron, Muralidharan et al. 2024, arXiv 2407.14679). Inputs are mixed with each other, because the
teacher has an answer for every input (Beyer et al. 2022, "Knowledge distillation: A good teacher is patient and
consistent", arXiv 2106.05237).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from optimizer.recover.graph import TorchGraph, read, torch_graph

Array = np.ndarray[Any, Any]

BATCH = 32
WARM_SHARE = 0.1
"""Share of the steps in which the rate rises; then it falls along a cosine."""

TEMPERATURE = 2.0
MIXED = 0.5
"""Share of the batches whose inputs are mixed."""

CLASSES = 1024
"""Outputs [N, C] with at most so many columns are taken for scores of classes when their metric says so."""


@dataclass
class Lesson:
    """A student in training."""

    student: TorchGraph
    teacher: TorchGraph
    inside: tuple[tuple[str, Any], ...]
    rate: float
    steps: int
    seed: int
    classes: bool
    feeds: list[dict[str, Any]] = field(default_factory=list)
    rows: bool = True
    done: int = 0
    optimizer: Any = None
    losses: list[float] = field(default_factory=list)


_AT_HAND: list[Lesson] = []


def begin(
    student: str, teacher: str, inside: Mapping[str, Array | None], settings: Mapping[str, Any], threads: int
) -> dict[str, Any]:
    """Read both models. ``inside`` names values that both have, with the positions of the teacher's channels (axis 1 of
    images, else the last) that the student kept (``None``: all). Returns the number of ``parameters``."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(settings["seed"])
    graphs = [torch_graph(read(path)) for path in (student, teacher)]
    kept = tuple((n, None if k is None else torch.tensor(np.asarray(k))) for n, k in inside.items())
    _AT_HAND[:] = [Lesson(graphs[0], graphs[1], kept, settings["rate"], settings["steps"], settings["seed"],
                          settings["classes"])]  # fmt: skip
    lesson = _AT_HAND[0]
    for weight in lesson.student.weights.values():
        weight.requires_grad_(True)
    lesson.optimizer = torch.optim.AdamW(lesson.student.weights.values(), lr=lesson.rate, weight_decay=0.0)
    return {"parameters": sum(w.numel() for w in lesson.student.weights.values())}


def take(feeds: Sequence[Mapping[str, Array]]) -> None:
    """Add samples, one a feed."""
    import torch

    lesson = _AT_HAND[0]
    lesson.feeds += [{k: torch.tensor(np.asarray(v)) for k, v in feed.items()} for feed in feeds]


def settle() -> dict[str, Any]:
    """See whether samples can be put together along axis 0, and take the means of BatchNormalization anew.

    Returns the ``outputs`` of the student and of the teacher for the first sample, to compare with the runtime's.
    """
    import torch

    lesson = _AT_HAND[0]
    with torch.no_grad():
        names = [n for n, _ in lesson.inside]
        both = [g(lesson.feeds[0], names) for g in (lesson.student, lesson.teacher)]
        alone = [{k: v.numpy() for k, v in found.items()} for found in both]
        alike = (n for n, kept in lesson.inside if both[0][n].shape == _kept(both[1][n], kept).shape)
        lesson.inside = tuple((n, dict(lesson.inside)[n]) for n in alike)
        lesson.rows = _rows_go_together(lesson)
        _reestimate(lesson)
    return {"outputs": alone}


def _rows_go_together(lesson: Lesson) -> bool:
    import torch

    pair = lesson.feeds[:2]
    if len(pair) < 2 or any(f[k].dim() == 0 or f[k].shape[1:] != pair[0][k].shape[1:] for f in pair for k in f):
        return False
    try:
        both = lesson.student(_stacked(pair))
        each = [lesson.student(f) for f in pair]
        joined = {k: torch.cat([e[k] for e in each]) for k in both}
        return all(both[k].shape == joined[k].shape and torch.allclose(both[k], joined[k], 1e-3, 1e-4) for k in both)
    except RuntimeError:
        return False


def _stacked(feeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    import torch

    return {k: torch.cat([f[k] for f in feeds]) for k in feeds[0]}


def _reestimate(lesson: Lesson) -> None:
    """Means and variances of BatchNormalization, over all samples, as the student is now."""
    import torch

    lesson.student.means.clear()
    for start in range(0, len(lesson.feeds), BATCH) if lesson.rows else ():
        lesson.student(_stacked(lesson.feeds[start : start + BATCH]), gather=True)
    for name, found in lesson.student.means.items():
        if name in lesson.student.fixed:
            lesson.student.fixed[name] = torch.stack(found).mean(0)


def train(steps: int) -> dict[str, Any]:
    """Go on for so many steps. Returns ``done`` and the mean ``loss``; it is not finite when training diverged."""
    import torch

    lesson = _AT_HAND[0]
    total = 0.0
    for _ in range(steps):
        generator = np.random.default_rng((lesson.seed, lesson.done))
        loss = sum(_loss(lesson, batch) for batch in _batches(lesson, generator))
        if not math.isfinite(float(loss)):
            return {"done": lesson.done, "loss": float("nan")}
        lesson.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(lesson.student.weights.values()), 1.0)
        for group in lesson.optimizer.param_groups:
            group["lr"] = lesson.rate * _schedule((lesson.done + 1) / max(1, lesson.steps))
        lesson.optimizer.step()
        lesson.done += 1
        total += float(loss.detach())
    return {"done": lesson.done, "loss": total / max(1, steps)}


def plan(steps: int) -> None:
    """Lay the learning rate out for so many steps in all."""
    _AT_HAND[0].steps = steps


def _schedule(share: float) -> float:
    if share < WARM_SHARE:
        return share / WARM_SHARE
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (share - WARM_SHARE) / (1 - WARM_SHARE))))


def _batches(lesson: Lesson, generator: np.random.Generator) -> list[dict[str, Any]]:
    size = min(BATCH, len(lesson.feeds)) if lesson.rows else min(4, len(lesson.feeds))
    chosen = [lesson.feeds[int(i)] for i in generator.choice(len(lesson.feeds), size, replace=False)]
    if not lesson.rows:
        return chosen
    batch = _stacked(chosen)
    floats = all(v.is_floating_point() for v in batch.values())
    if floats and generator.random() < MIXED:
        share, order = float(generator.beta(1.0, 1.0)), generator.permutation(size)
        rows = next(iter(batch.values())).shape[0]
        if rows == size:
            batch = {k: share * v + (1 - share) * v[order] for k, v in batch.items()}
    return [batch]


def _loss(lesson: Lesson, batch: Mapping[str, Any]) -> Any:
    import torch
    from torch.nn import functional as f

    names = [n for n, _ in lesson.inside]
    with torch.no_grad():
        wanted = lesson.teacher(batch, names)
    got = lesson.student(batch, names)
    loss: Any = 0.0
    for name in lesson.teacher.outputs:
        if not wanted[name].is_floating_point():
            continue
        loss = loss + _relative(got[name], wanted[name])
        if lesson.classes and wanted[name].dim() >= 2:
            soft = f.log_softmax(got[name] / TEMPERATURE, dim=-1)
            hard = f.softmax(wanted[name] / TEMPERATURE, dim=-1)
            loss = loss + TEMPERATURE**2 * f.kl_div(soft, hard, reduction="none").sum(-1).mean()
    for name, kept in lesson.inside:
        loss = loss + _relative(got[name], _kept(wanted[name], kept)) / len(names)
    return loss


def _kept(value: Any, kept: Any) -> Any:
    """The teacher's channels that the student has too."""
    import torch

    if kept is None:
        return value
    return torch.index_select(value, 1 if value.dim() == 4 else value.dim() - 1, kept)


def _relative(got: Any, wanted: Any) -> Any:
    return ((got - wanted) ** 2).mean() / ((wanted**2).mean() + 1e-12)


def weights() -> dict[str, Array]:
    """The student's constants as they are now, means of BatchNormalization taken anew."""
    import torch

    lesson = _AT_HAND[0]
    with torch.no_grad():
        _reestimate(lesson)
    return lesson.student.arrays()


def state() -> dict[str, Any]:
    """What a later process needs to go on from here."""
    lesson = _AT_HAND[0]
    moments = [lesson.optimizer.state.get(w, {}) for w in lesson.student.weights.values()]
    return {
        "done": lesson.done,
        "weights": {name: value.detach().numpy().copy() for name, value in lesson.student.weights.items()},
        "moments": [{k: np.asarray(v.numpy()) for k, v in m.items()} for m in moments],
    }


def resume(found: Mapping[str, Any]) -> None:
    """Go on from a :func:`state`."""
    import torch

    lesson = _AT_HAND[0]
    lesson.done = int(found["done"])
    with torch.no_grad():
        for name, value in lesson.student.weights.items():
            value.copy_(torch.tensor(np.asarray(found["weights"][name])))
    for weight, moments in zip(lesson.student.weights.values(), found["moments"], strict=True):
        if moments:
            lesson.optimizer.state[weight] = {k: torch.tensor(np.asarray(v)) for k, v in moments.items()}
