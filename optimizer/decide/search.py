"""The strategy of -O3: which recipe to look at next, given what was measured so far. Pure: it asks, others measure.

:func:`strategy` is a generator: it yields an :class:`Ask` and is sent a :class:`Seen`. It may be stopped at any
moment; whatever was accepted until then can ship. The same answers give the same questions, so a search that was
killed takes up its path again from what the store remembers.

It halves the space with cheap looks before it measures (successive halving; Jamieson & Talwalkar 2016, arXiv
1502.07943): a *glance* builds a model and compares its outputs with the float ones, a *full* look adds the metric, and
only what holds there is timed. Between them it climbs one coordinate at a time:

1. every form as it is;
2. for those that are fast but lose too much: aids (observers, equalizing, rounding ...) one kind after the other at a
   glance, what they make together measured in full;
3. while the quality does not hold with room to spare: layers left in float by the damage that they do for the time
   that they save, the fewest that suffice found by doubling and bisection;
4. layers left in float whose integer kernel the profile shows to be slower than the float one;
5. neighbours of the best, until none is better;
6. narrower networks: as much of the work pruned as the quality bears, alone and under the best form, with the pruning
   behind and before the cleaning.
"""

from __future__ import annotations

import enum
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from optimizer.decide.space import KINDS, PRUNED, REFIT, STATIC, Aid, Point, Space
from optimizer.records import Sensitivity
from passes.kit.recipe import Step as Part

COMFORTABLE = 0.5
"""A drop up to this share of what is allowed leaves room for the confirm samples to be harder."""

FASTER = 1.01
"""A recipe is better than another from this ratio of their gains on; below it, the one that loses less is."""

HELPS_DB = 0.1
"""An aid is taken when it wins this much signal over noise at the outputs."""

ROUNDS = 2
"""How often every kind of aid is gone through; most is won in the first round."""

SAVES_SHARE = 1e-3
"""The least share of the run that a layer is taken to save, so that prices stay finite."""

LEAST_SAVED = 0.1
"""Layers are left out as long as the others save this share of what all of them save."""

RATIOS = {"prune-channels": (0.12, 0.25, 0.4, 0.55), "prune-heads": (0.04, 0.08, 0.16)}
"""Shares of the multiplications that are pruned; the second is tried first."""

MOST_LIGHTENED = 6
MOST_AIMED = 4


class Depth(enum.Enum):
    """How closely to look."""

    GLANCE = "glance"
    FULL = "full"


@dataclass(frozen=True)
class Ask:
    """A recipe to look at, how closely, and why, in words."""

    point: Point
    depth: Depth
    why: str


@dataclass(frozen=True)
class Seen:
    """What came of a look. ``sqnr`` is signal over noise at the outputs in dB; ``drop`` in the metric's unit, ``high``
    the upper end of its interval; ``gain`` how many times better than the source it is in what the goal asks for
    (``None`` when it was not measured); ``pays`` says that it is worth its quality, or may be: it was not timed
    because it lost too much."""

    sqnr: float | None = None
    accepted: bool = False
    gain: float | None = None
    drop: float | None = None
    pays: bool = False
    high: float | None = None


@dataclass(frozen=True)
class Facts:
    """What the search stands on.

    ``margin`` is the drop allowed (``None``: no limit), ``evidence`` what each layer costs and saves in static int8
    (``None`` where that was not possible), ``slower`` for every form the layers that it makes slower with the
    milliseconds lost, ``known`` what was measured before the search began.
    """

    space: Space
    margin: float | None
    evidence: Sensitivity | None = None
    slower: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    known: Mapping[Point, Seen] = field(default_factory=dict)


Looking = Generator[Ask, Seen, None]
Weighing = Generator[Ask, Seen, Seen]


def prices(evidence: Sensitivity) -> dict[str, float]:
    """What each layer's integers cost: damage at the outputs for each millisecond that they save. A layer that saves
    next to nothing is charged as if it saved a thousandth of the run; without a profile all save alike."""
    if not evidence.saved_ms:
        return dict(evidence.layers)
    least = max(evidence.whole_ms * SAVES_SHARE, 1e-6)
    return {name: damage / max(evidence.saved_ms.get(name, 0.0), least) for name, damage in evidence.layers.items()}


def strategy(facts: Facts) -> Looking:
    """Questions, the most promising first; ends when nothing is left that could be better."""
    return _Search(facts).run()


class _Search:
    """One search: what was seen, and the best so far."""

    def __init__(self, facts: Facts) -> None:
        self._facts, self._space = facts, facts.space
        self._evidence = facts.evidence or Sensitivity("", {})
        self._full = dict(facts.known)
        self._sqnr: dict[Point, float | None] = {}
        self.best: Point | None = None
        for point in self._full:
            self._consider(point)

    def run(self) -> Looking:
        for point in self._space.forms():
            yield from self._weigh(point, "the form as it is")
        for point in self._promising():
            if not self._comfortable(point):
                yield from self._sharpen(point)
        if self.best is None or not self._comfortable(self.best):
            yield from self._leave_out()
        yield from self._lighten()
        yield from self._fill_in()
        yield from self._neighbours()
        yield from self._narrow()

    # -- looking -------------------------------------------------------------------------------------------------
    def _weigh(self, point: Point, why: str) -> Weighing:
        if point not in self._full:
            self._full[point] = yield Ask(point, Depth.FULL, why)
            self._consider(point)
        return self._full[point]

    def _glance(self, point: Point, why: str) -> Generator[Ask, Seen, float | None]:
        if point not in self._sqnr:
            self._sqnr[point] = (yield Ask(point, Depth.GLANCE, why)).sqnr
        return self._sqnr[point]

    def _consider(self, point: Point) -> None:
        seen = self._full[point]
        if seen.accepted and (self.best is None or self._better(seen, self._full[self.best])):
            self.best = point

    def _better(self, seen: Seen, than: Seen) -> bool:
        mine, theirs = seen.gain or 0.0, than.gain or 0.0
        if mine >= theirs * FASTER or theirs >= mine * FASTER:
            return mine > theirs
        return (seen.drop or 0.0, -mine) < (than.drop or 0.0, -theirs)

    def _comfortable(self, point: Point) -> bool:
        """Whether the quality holds with room to spare: the whole interval does, or half of what is allowed is left."""
        seen, margin = self._full[point], self._facts.margin
        if not seen.accepted or margin is None:
            return seen.accepted
        return (seen.drop or 0.0) <= margin * COMFORTABLE or (seen.high is not None and seen.high <= margin)

    def _promising(self) -> list[Point]:
        """What pays and leaves no layer out, the fastest first."""
        found = [p for p, s in self._full.items() if s.pays and not p.left]
        return sorted(found, key=lambda p: -(self._full[p].gain or 0.0))

    # -- the steps -----------------------------------------------------------------------------------------------
    def _sharpen(self, point: Point) -> Looking:
        """One kind of aid after the other at a glance, each beside the ones that were found to help, until none does.

        What helps alone may not help beside others (equalizing makes other ranges best), so kinds are looked at on
        top of each other rather than one by one.
        """
        start = yield from self._glance(point, "what the form alone gives")
        if start is None:
            return
        made, reached = point, start
        for _ in range(ROUNDS):
            before = made
            for aids in self._kinds(point.form):
                bare = replace(made, aids=tuple(a for a in made.aids if a.kind != aids[0].kind))
                for tried in (bare, *(bare.with_aid(aid) for aid in aids)):
                    sqnr = yield from self._glance(tried, f"{reached - start:+.1f} dB so far")
                    if sqnr is not None and sqnr > reached + HELPS_DB:
                        made, reached = tried, sqnr
            if made == before:
                break
        if made != point:
            yield from self._weigh(made, f"{reached - start:+.1f} dB at a glance")

    def _kinds(self, form: str) -> list[list[Aid]]:
        """The aids of a form by kind, in the order in which they act."""
        kinds: dict[str, list[Aid]] = {}
        for aid in self._space.aids(form):
            kinds.setdefault(aid.kind, []).append(aid)
        return [kinds[k] for k in sorted(kinds, key=lambda k: KINDS.index(k) if k in KINDS else len(KINDS))]

    def _lighten(self) -> Looking:
        """Leave in float, one after the other, layers that integers make slower."""
        if self.best is None:
            return
        slower = self._facts.slower.get(self.best.form, {})
        for name in sorted(slower, key=lambda n: (-slower[n], n))[:MOST_LIGHTENED]:
            if name not in self.best.left and name in self._facts.slower.get(self.best.form, {}):
                wider = replace(self.best, left=self.best.left | {name})
                yield from self._weigh(wider, f"its kernel is {slower[name] * 1e3:.0f} us slower than the float one")

    def _leave_out(self) -> Looking:
        """The fewest damaging groups whose absence lets the quality hold with room to spare."""
        order, start = self._by_damage(), self._most_accurate()
        if start is None or len(order) < 2:
            return
        fails, enough, count = 0, len(order), 1
        while count < len(order):
            if (yield from self._left_out(start, order, count)):
                enough = count
                break
            fails, count = count, count * 2
        while enough - fails > 1:
            middle = (fails + enough) // 2
            if (yield from self._left_out(start, order, middle)):
                enough = middle
            else:
                fails = middle

    def _left_out(self, start: Point, order: Sequence[str], count: int) -> Generator[Ask, Seen, bool]:
        """Whether leaving out so many is enough: the quality holds with room to spare, or nothing is saved any more."""
        names = frozenset(n for group in order[:count] for n in self._evidence.groups[group])
        if self._still_saved(names) < LEAST_SAVED:
            return True
        point = replace(start, left=start.left | names)
        seen = yield from self._weigh(point, f"without the {count} that do most damage for the time that they save")
        return self._comfortable(point) or (seen.gain is not None and not seen.pays)

    def _still_saved(self, left: frozenset[str]) -> float:
        """The share of the time saved by integers that is left when some layers are float, by the profile."""
        saved = {n: ms for n, ms in self._evidence.saved_ms.items() if ms > 0}
        whole = sum(saved.values())
        return sum(ms for n, ms in saved.items() if n not in left) / whole if whole else 1.0

    def _by_damage(self) -> list[str]:
        """Groups by damage for each millisecond that they save, the worst first."""
        layers = prices(self._evidence)
        dear = {g: sum(layers.get(n, 0.0) for n in names) for g, names in self._evidence.groups.items()}
        return sorted(dear, key=lambda g: (-dear[g], g))

    def _most_accurate(self) -> Point | None:
        """The static point that is most accurate at a glance among those that pay, before layers are left out."""
        found = [p for p in self._promising() if p.form == STATIC]
        return max(found, key=lambda p: self._sqnr.get(p) or 0.0) if found else None

    def _fill_in(self) -> Looking:
        """Give layers that static int8 leaves alone another form."""
        start = self.best
        if start is not None and start.form == STATIC and start.left and not start.rest:
            for rest in self._space.rests(start.left):
                yield from self._weigh(replace(start, rest=rest), "another form for the layers left in float")

    def _neighbours(self) -> Looking:
        """One change of the best at a time, until no change makes it better."""
        while (start := self.best) is not None:
            for point, why in self._near(start):
                yield from self._weigh(point, why)
                if self.best != start:
                    break
            if self.best == start:
                return

    def _near(self, start: Point) -> Iterator[tuple[Point, str]]:
        order = [n for g in reversed(self._by_damage()) for n in self._evidence.groups[g]]
        for name in [n for n in order if n in start.left][:MOST_AIMED]:
            yield replace(start, left=start.left - {name}), "one layer less in float"
        if self._comfortable(start):
            return
        for aid in self._space.aids(start.form):
            if aid not in start.aids:
                yield start.with_aid(aid), f"with '{aid.label}'"
        for aid in start.aids:
            yield start.without_aid(aid), f"without '{aid.label}'"

    # -- narrower networks -------------------------------------------------------------------------------------------
    def _narrow(self) -> Looking:
        """Prune as much as the quality bears, then put the best form on top, in both orders."""
        form = self.best
        steps: list[tuple[Part, ...]] = [()]
        for kind in self._space.prunable:
            found = yield from self._how_much(kind, steps[-1])
            steps += found
        bare = tuple(part for part in steps[-1] if part.name != REFIT)
        if bare != steps[-1]:
            yield from self._weigh(Point(PRUNED, narrowed=bare), "what pruning costs without the fit")
        for narrowed in reversed(steps[1:]):
            if form is None:
                return
            seen = yield from self._weigh(replace(form, narrowed=narrowed), "narrower, in the best form")
            if seen.accepted:
                early = replace(form, narrowed=narrowed, early=True)
                yield from self._weigh(early, "the same, pruned before it is cleaned")
                return

    def _how_much(self, kind: str, before: tuple[Part, ...]) -> Generator[Ask, Seen, list[tuple[Part, ...]]]:
        """Ever more pruned while it holds, or less until it does: the steps that held, the gentlest first."""
        gentle, *bolder = RATIOS[kind]
        held: list[tuple[Part, ...]] = []
        for ratio in bolder:
            narrowed = before + self._space.narrower(kind, ratio)
            if not (
                yield from self._weigh(Point(PRUNED, narrowed=narrowed), f"{ratio:.0%} of the work pruned")
            ).accepted:
                break
            held.append(narrowed)
        if held:
            return held
        narrowed = before + self._space.narrower(kind, gentle)
        seen = yield from self._weigh(Point(PRUNED, narrowed=narrowed), f"only {gentle:.0%} of the work pruned")
        return [narrowed] if seen.accepted else []
