"""What ``prune-channels`` and ``prune-heads`` share: groups are ranked, widths allocated, units taken out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from passes.kit.context import Context
from passes.kit.contract import Edit, Exactness, Pass, PassResult
from passes.kit.model import Model
from passes.kit.options import closest, option
from passes.kit.target import Target
from passes.prune import prices
from passes.prune.allocate import Curve, Goal, allocate, curve, levels, parse_goal
from passes.prune.cut import NotValid, take_out
from passes.prune.groups import Group, Structure, study
from passes.prune.importance import KINDS, Ranking, rank
from passes.prune.names import chosen, matches

SENSITIVITY_SAMPLES = 32
"""Calibration samples on which it is measured what a group does to the outputs."""

LEAST = 0.25
"""Share of its units that every group keeps."""

PROBES = 2
"""Widths of each group at which that is measured."""

MOST_PROBED = 96
"""Groups whose effect is measured; where there are more, importance alone decides."""

ROUNDS = 3
"""How often a latency goal is tightened when the model that was made is slower than the tables said."""

Outputs = Sequence[Mapping[str, np.ndarray[Any, Any]]]


@dataclass(frozen=True)
class Task:
    """What a pass works on: the model, its structure, the groups that may lose units, and their rankings."""

    model: Model
    structure: Structure
    groups: Sequence[Group]
    rankings: Mapping[str, Ranking]
    context: Context
    edit: Edit

    def gone(self, widths: Mapping[str, int]) -> list[int]:
        """The units that go when groups keep so many."""
        return prices.gone_at(self.groups, self.rankings, widths)

    def made(self, widths: Mapping[str, int]) -> Model:
        """The model with these widths. Raises :class:`NotValid`."""
        return take_out(self.model.fork(), self.gone(widths))


@dataclass(frozen=True)
class Structured(Pass):
    """Base of the passes that take whole units out of a graph."""

    exactness: ClassVar[Exactness] = Exactness.LOSSY

    goal: str = option("macs<=0.75x", "what to reach, as in macs<=0.75x, latency<=0.8x or size<=60%")
    ratio: float = option(0.0, "share of the multiplications to remove, in place of a goal", low=0, high=0.95)
    importance: str = option("obs", "what tells which units matter least", choices=KINDS)
    multiple: int = option(0, "widths that are kept are multiples of this (0: what the target likes)", low=0, high=1024)
    least: float = option(LEAST, "share of its units that every group keeps", low=0.01, high=1)
    keep: tuple[str, ...] = option((), "what groups keep, as in layer=48 or *=75%, in place of a goal")
    only: tuple[str, ...] = option((), "names or patterns of the layers to narrow (none: all)")
    exclude: tuple[str, ...] = option((), "names or patterns of layers to leave as they are")

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_goal(self.goal)

    def wants(self, group: Group) -> bool:
        """Whether the pass is for this kind of group."""
        raise NotImplementedError

    def apply(self, model: Model, context: Context) -> PassResult:
        source = model.fork()  # reading a Constant names its tensor, and the model is not ours
        edit = Edit(source)
        structure = study(source)
        for refusal in structure.refused:
            edit.skip(self.name, refusal.where, refusal.reason)
        wanted = [g for g in structure.groups if self.wants(g) and chosen(g.name, self.only, self.exclude)]
        able = [g for g in wanted if self._able(g, context, edit)]
        rankings = rank(self.importance, structure, able, model, context, edit) if able else {}
        task = Task(model, structure, [g for g in able if g.name in rankings], rankings, context, edit)
        try:
            widths = self._widths(task) if task.groups else {}
            cut = task.made(widths) if task.gone(widths) else model
        except NotValid as error:
            edit.skip(self.name, "graph", str(error))
            return PassResult(model, (), tuple(edit.skips))
        for group in task.groups:
            if widths[group.name] < group.size:
                edit.change(self.name, group.name, f"{group.size} to {widths[group.name]}")
        return PassResult(cut, tuple(edit.changes), tuple(edit.skips))

    def _able(self, group: Group, context: Context, edit: Edit) -> bool:
        if self.keep or len(self._levels(group, context)) > 1:
            return True
        multiple = self.multiple or context.target.channel_multiple
        edit.skip(self.name, group.name, f"{group.size} units of {group.breadth}: no smaller multiple of {multiple} "
                  f"keeps the share of {self.least:g}")  # fmt: skip
        return False

    def _levels(self, group: Group, context: Context) -> tuple[int, ...]:
        multiple = self.multiple or context.target.channel_multiple
        return levels(group.size, group.breadth, multiple, self.least, group.heads)

    # -- widths ------------------------------------------------------------------------------------------------------
    def _widths(self, task: Task) -> dict[str, int]:
        """How many units each group keeps."""
        if self.keep:
            return self._asked_for(task)
        goal = Goal("macs", 1 - self.ratio) if self.ratio else parse_goal(self.goal)
        curves = self._curves(task)
        if goal.kind == "latency":
            return self._by_clock(task, curves, goal)
        if goal.kind == "macs":
            price = prices.macs(task.structure, task.groups)
        else:
            price = prices.size(task.model, task.structure, task.groups)
        widths, left = allocate(curves, price, price({}) * goal.share)
        return widths if left <= price({}) * goal.share else self._unmet(task, goal, left / price({}))

    def _unmet(self, task: Task, goal: Goal, reached: float) -> dict[str, int]:
        """Nothing is cut when the goal is out of reach; it is said what is in reach."""
        text = f"{len(task.groups)} groups narrowed as far as they go give {goal.kind}<={reached:.3g}x"
        task.edit.skip(self.name, "goal", f"{goal} cannot be met: {text}; ask for that, or lower `least`")
        return {g.name: g.size for g in task.groups}

    def _asked_for(self, task: Task) -> dict[str, int]:
        known = {g.name: g.size for g in task.groups}
        wanted = dict(known)
        for text in self.keep:
            pattern, _, count = text.rpartition("=")
            found = [g for g in task.groups if matches(g.name, [pattern])]
            if not pattern or not count.removesuffix("%").isdigit() or not int(count.removesuffix("%")):
                task.edit.skip(self.name, text, "this is not of the form layer=48 or layer=75%")
            elif not found:
                task.edit.skip(self.name, pattern, f"no such group can be cut{closest(pattern, known)}")
            for group in found if count.removesuffix("%").isdigit() else ():
                wanted[group.name] = min(group.size, max(1, self._number(group, count, task.context)))
        return wanted

    def _number(self, group: Group, count: str, context: Context) -> int:
        """``48`` as it is, ``75%`` as the nearest number that kernels like."""
        if not count.endswith("%"):
            return int(count)
        share = int(count.removesuffix("%")) / 100 * group.size
        multiple = self.multiple or context.target.channel_multiple
        return min(levels(group.size, group.breadth, multiple, 0.0, group.heads), key=lambda k: abs(k - share))

    def _curves(self, task: Task) -> dict[str, Curve]:
        """What each group does to the outputs when it alone is narrowed, measured at a few widths."""
        names = [str(o.name) for o in task.model.graph.outputs]
        feeds = task.context.sampled(SENSITIVITY_SAMPLES)
        before = task.context.run(task.model, feeds, names) if len(task.groups) <= MOST_PROBED else []
        found = {}
        for group in task.groups:
            kept = self._levels(group, task.context)
            probed = {}
            for width in picked(kept, PROBES) if before else ():
                after = task.context.run(task.made({group.name: width}), feeds, names)
                probed[width] = output_error(before, after)
            found[group.name] = curve(kept, task.rankings[group.name].lost, probed)
        return found

    def _by_clock(self, task: Task, curves: Mapping[str, Curve], goal: Goal) -> dict[str, int]:
        """Widths by measured tables; the model that they make is measured too, and the goal tightened if it is late."""
        whole = task.context.cost(task.model)
        tables = {}
        for group in task.groups:
            asked = picked(curves[group.name].kept, PROBES)
            tables[group.name] = {k: task.context.cost(task.made({group.name: k})) for k in asked} | {group.size: whole}
        price = prices.milliseconds(tables, whole)
        aim, reached = goal.share, 1.0
        for _ in range(ROUNDS):
            widths, left = allocate(curves, price, whole * aim)
            reached = task.context.cost(task.made(widths)) / max(whole, 1e-9)
            if reached <= goal.share:
                return widths
            if left > whole * aim:
                break
            aim *= goal.share / reached
        return self._unmet(task, goal, reached)


def picked(kept: Sequence[int], count: int) -> list[int]:
    """So many of the levels, evenly spaced, the least among them and the first (all units) not."""
    places = np.linspace(0, len(kept) - 1, count + 1).astype(int)[1:]
    return sorted({kept[i] for i in places} - {kept[0]})


def output_error(wanted: Outputs, got: Outputs) -> float:
    """Squared error at the outputs over their energy, over all samples and outputs of floats."""
    error = energy = 0.0
    for one, other in zip(wanted, got, strict=True):
        for name, value in one.items():
            if value.dtype.kind == "f":
                good = np.isfinite(value)
                error += float(np.square(np.where(good, value - other[name], 0.0), dtype=np.float64).sum())
                energy += float(np.square(np.where(good, value, 0.0), dtype=np.float64).sum())
    return error / max(energy, 1e-300) if np.isfinite(error) else 1e300


def prunable(model: Model, target: Target) -> tuple[str, ...]:
    """The passes of this family that find groups of units of which some may go on that target."""
    found = study(model.fork()).groups
    room = [g for g in found if len(levels(g.size, g.breadth, target.channel_multiple, LEAST, g.heads)) > 1]
    names = {True: "prune-heads", False: "prune-channels"}
    return tuple(dict.fromkeys(names[g.heads] for g in sorted(room, key=lambda g: g.heads)))
