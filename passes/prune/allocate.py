"""How many units each group loses, so that a goal is met for the least damage. Pure: curves in, widths out."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from passes.kit.options import OptionError, closest
from passes.prune.labels import Array

KINDS = ("macs", "latency", "size")

_GOAL = re.compile(r"\s*([A-Za-z]+)\s*<=\s*([0-9.]+)\s*(x|%)\s*")

Widths = Mapping[str, int]
"""Units that each group keeps, by name."""


@dataclass(frozen=True)
class Goal:
    """``kind`` (macs, latency or size) must fall to ``share`` of what it was."""

    kind: str
    share: float

    def __str__(self) -> str:
        return f"{self.kind}<={self.share:g}x"


def parse_goal(text: str) -> Goal:
    """Read ``macs<=0.75x``, ``latency<=0.8x`` or ``size<=60%``. Raises :class:`OptionError`."""
    found = _GOAL.fullmatch(text)
    if found is None:
        raise OptionError(f"'{text}' is no goal; it looks like macs<=0.75x, latency<=0.8x or size<=60%")
    kind, number, unit = found.groups()
    if kind not in KINDS:
        raise OptionError(f"a goal cannot be about '{kind}'{closest(kind, KINDS)}; it is one of {', '.join(KINDS)}")
    try:
        share = float(number) / (100 if unit == "%" else 1)
    except ValueError:
        raise OptionError(f"'{number}' in the goal '{text}' is no number") from None
    if not 0 < share < 1:
        raise OptionError(f"the goal '{text}' takes nothing away; the share lies between 0 and 1")
    return Goal(kind, share)


def levels(size: int, breadth: int, multiple: int, least: float, whole: bool) -> tuple[int, ...]:
    """Numbers of units that a group may keep, most first; the first is all of them.

    ``breadth`` positions make a unit, and what is kept must be a multiple of ``multiple`` positions and at least the
    share ``least`` of all. ``whole``: units are as wide as kernels like already (heads), so every number will do.
    """
    step = 1 if whole else multiple // math.gcd(multiple, breadth)
    low = max(1, math.ceil(least * size))
    return (size, *(k for k in range(size - 1, low - 1, -1) if k % step == 0))


@dataclass(frozen=True)
class Curve:
    """What a group may keep (most first) and the damage at each of these numbers (rising from 0)."""

    kept: tuple[int, ...]
    damage: tuple[float, ...]


def curve(kept: Sequence[int], lost: Array, probed: Mapping[int, float]) -> Curve:
    """Damage at every level: what was measured at some of them, shared out between by the importance that is lost.

    ``lost`` (float64 [units], rising) is the importance that goes with the first units; ``probed`` the error at the
    outputs when so many are kept.
    """
    size = kept[0]
    share = {k: float(lost[size - k - 1]) if k < size else 0.0 for k in kept}
    points = sorted((share[k], error) for k, error in probed.items())
    xs, ys = [0.0, *(p[0] for p in points)], [0.0, *np.maximum.accumulate([p[1] for p in points])]
    if len(xs) == 1:
        return Curve(tuple(kept), tuple(share[k] for k in kept))
    found = []
    for k in kept:
        inside = float(np.interp(share[k], xs, ys))
        beyond = ys[-1] * (share[k] - xs[-1]) / max(xs[-1], 1e-12) if share[k] > xs[-1] else 0.0
        found.append(inside + max(0.0, beyond))
    return Curve(tuple(kept), tuple(float(v) for v in np.maximum.accumulate(found)))


def allocate(
    curves: Mapping[str, Curve], price: Callable[[Widths], float], most: float
) -> tuple[dict[str, int], float]:
    """Widths whose price is at most ``most``, or the cheapest that there are, and their price.

    Greedy: again and again the step that does least damage for what it saves. A step may go over several levels, as
    the first may save nothing by itself.
    """
    at = dict.fromkeys(curves, 0)

    def widths(name: str = "", level: int = 0) -> dict[str, int]:
        return {n: curves[n].kept[level if n == name else at[n]] for n in curves}

    now = price(widths())
    while now > most:
        best: tuple[float, float, str, int] | None = None
        for name in curves:
            here = at[name]
            for level in range(here + 1, min(here + 3, len(curves[name].kept))):
                saved = now - price(widths(name, level))
                if saved > 0:
                    worth = (curves[name].damage[level] - curves[name].damage[here]) / saved
                    if best is None or (worth, -saved) < best[:2]:
                        best = (worth, -saved, name, level)
        if best is None:
            break
        at[best[2]] = best[3]
        now = price(widths())
    return widths(), now
