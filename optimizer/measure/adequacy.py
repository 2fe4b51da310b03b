"""Whether the calibration data was enough: how much of unseen data its ranges leave out, and whether they still grow.

Read off the quantized model itself: what enters a QuantizeLinear is a float, and scale and zero point say which floats
have integers. The judgement is a pure function of counts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from optimizer.data.samples import Samples
from optimizer.runtime.answers import World
from passes.kit.model import Model, constant
from passes.kit.reducers import Outside, Reducer

CLIPPED_AT_MOST = 1e-3
"""Share of a tensor's unseen values that may be clipped beyond what is clipped of the calibration data."""

CHANCE = 0.25
"""How much the share that is clipped on purpose may differ between two sets of samples, relative to itself."""

FEW_VALUES = 5
"""How many values of a tensor may be clipped by chance alone: the extremes of any sample are passed now and then."""

GROWTH_AT_MOST = 0.10
"""How much wider the middle tensor's extremes may be for all samples than for half of them.

The extremes of n values from a normal distribution grow like sqrt(2 log n): by 3 to 5 % with a doubling at the counts
of values that tensors have. Ten says that the samples themselves still bring something new.
"""

LOOK_AT = 64
"""Samples of either kind that are run for this; when the calibration data is at most twice as much, all of it is."""


@dataclass(frozen=True)
class TensorAdequacy:
    """One tensor: shares of values outside its grid (calibration and unseen data), growth of its extremes with the last
    doubling of the samples, as a share of their width (``None``: not measured), and how many unseen values there were.
    """

    name: str
    seen_clipped: float
    unseen_clipped: float
    growth: float | None
    unseen_values: int = 1 << 30

    @property
    def excess(self) -> float:
        """Share of unseen values that is clipped although nobody meant to.

        An observer or a Clip may mean to clip a share; a quarter more of it is chance, and so are a few values.
        """
        few = FEW_VALUES / max(1, self.unseen_values)
        return max(0.0, self.unseen_clipped - (1.0 + CHANCE) * self.seen_clipped - few)


@dataclass(frozen=True)
class Adequacy:
    """The judgement over all tensors; ``text`` says it with numbers."""

    samples: int
    unseen: int
    tensors: tuple[TensorAdequacy, ...]
    enough: bool
    text: str


def judge(samples: int, unseen: int, tensors: tuple[TensorAdequacy, ...]) -> Adequacy:
    """Whether ``samples`` calibration samples were enough, by ``unseen`` samples that calibration did not see.

    Not enough when more than :data:`CLIPPED_AT_MOST` of some tensor's unseen values are clipped unmeant, or the
    extremes of the middle tensor grew by more than :data:`GROWTH_AT_MOST` in the last doubling. Raises ``ValueError``
    without tensors.
    """
    if not tensors:
        raise ValueError("there is no tensor to judge by")
    worst = max(tensors, key=lambda t: t.excess)
    growths = [t.growth for t in tensors if t.growth is not None]
    growth = median(growths) if growths else None
    reasons = []
    if worst.excess > CLIPPED_AT_MOST:
        reasons.append(f"{worst.excess:.2%} of the unseen values of '{worst.name}' lie outside its range")
    if growth is not None and growth > GROWTH_AT_MOST:
        reasons.append(f"ranges still grew by {growth:.0%} with the last doubling")
    if reasons:
        text = f"calibrating with {samples} samples was not enough: {' and '.join(reasons)}; add samples"
        return Adequacy(samples, unseen, tensors, False, text)
    steady = "" if growth is None else f", and ranges grew by {growth:.1%} with the last doubling"
    text = f"{samples} samples are enough: at most {worst.excess:.3%} of a tensor's values in {unseen} unseen samples"
    return Adequacy(samples, unseen, tensors, True, f"{text} lie outside its range{steady}")


def tensor(name: str, halves: Sequence[Outside], seen: Outside, unseen: Outside) -> TensorAdequacy:
    """One tensor from what its grid leaves out; each of ``halves`` (none: growth is not measured) saw half of what
    ``seen`` saw, and the growth is from their mean width, so that it does not hang on where one extreme happens to lie.
    """
    growth = None
    if halves and (width := _width(seen)) > 0:
        growth = 1.0 - sum(map(_width, halves)) / len(halves) / width
    return TensorAdequacy(name, _share(seen), _share(unseen), growth, int(unseen.arrays["count"]))


def look(model: Model, world: World, unseen: Samples) -> Adequacy | None:
    """Run the quantized ``model`` on calibration and on unseen samples and judge. ``None`` when it has no fixed grids.

    At most :data:`LOOK_AT` unseen samples are run, and at most twice as many of the calibration data.
    """
    grids = limits(model)
    samples = world.samples
    if not grids or not isinstance(samples, Samples) or len(samples) < 2 or not len(unseen):
        return None
    whole = len(samples) <= 2 * LOOK_AT
    middle = len(samples) // 2 if whole else LOOK_AT

    def outside(of: Samples) -> dict[str, Outside]:
        asked: Mapping[str, Reducer] = {name: Outside(low, high) for name, (low, high) in grids.items()}
        told = dataclasses.replace(world, samples=of, answered=[]).stats(model, asked)
        return {name: reducer for name, reducer in told.items() if isinstance(reducer, Outside)}

    parts = [outside(samples.take(np.arange(middle)))]
    if whole:
        parts.append(outside(samples.take(np.arange(middle, len(samples)))))
    seen = {name: _joined([part[name] for part in parts]) for name in grids}
    held = unseen.take(np.arange(min(LOOK_AT, len(unseen))))
    new = outside(held)
    tensors = tuple(tensor(n, [p[n] for p in parts] if whole else [], seen[n], new[n]) for n in grids)
    return judge(len(samples), len(held), tensors)


def limits(model: Model) -> dict[str, tuple[float, float]]:
    """The smallest and largest real number that has an integer, for every value that a QuantizeLinear of the main graph
    takes and whose scale and zero point are constants of the whole tensor."""
    found: dict[str, tuple[float, float]] = {}
    for node in model.fork().graph:
        if node.op_type != "QuantizeLinear" or len(node.inputs) < 3 or node.inputs[0] is None:
            continue
        scale, zero = (constant(node.inputs[i]) for i in (1, 2))
        if scale is None or zero is None or scale.size != 1 or zero.dtype.kind not in "iu":
            continue
        ends, step, middle = np.iinfo(zero.dtype), float(scale.reshape(-1)[0]), int(zero.reshape(-1)[0])
        # Half a step beyond the ends still rounds to them; a grid that starts at zero may stand for a Relu.
        low = float(np.finfo(np.float32).min) if middle == ends.min else (ends.min - middle - 0.5) * step
        high = (ends.max - middle + 0.5) * step
        found[str(node.inputs[0].name)] = (low, high)
    return found


def _joined(parts: Sequence[Outside]) -> Outside:
    whole = Outside(parts[0].floor, parts[0].ceiling)
    for part in parts:
        whole.merge(part)
    return whole


def _share(seen: Outside) -> float:
    count = int(seen.arrays["count"])
    return (int(seen.arrays["below"]) + int(seen.arrays["above"])) / count if count else 0.0


def _width(seen: Outside) -> float:
    return max(0.0, seen.high - seen.low) if int(seen.arrays["count"]) else 0.0
