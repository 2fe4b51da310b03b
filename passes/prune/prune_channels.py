"""The pass ``prune-channels``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from passes.prune.groups import Group
from passes.prune.structured import Structured


@dataclass(frozen=True)
class PruneChannels(Structured):
    """Take out the channels and hidden units that matter least, with everything that is coupled to them.

    What it does
        Finds which channels hang together through convolutions (grouped and depthwise ones too), normalization,
        products, sums, joins, splits and reshapes; ranks those of each group; and takes out as many as the goal asks
        for, where they do least damage: each group is narrowed alone and its effect on the outputs measured on
        calibration samples, and the steps that do least damage for what they save are taken first. A latency goal
        reads what each group saves from tables measured on the target. `obs` ranks by what the layers behind are
        left with when their other weights are fitted anew, so run `refit` next. Widths stay multiples of what the
        target's kernels like.

    When it applies
        To groups of channels between layers with constant weights: residual streams as a whole, what lies inside of a
        block, hidden units of plain and gated perceptrons, rows of embeddings' widths where nothing normalizes over
        them. `prune-heads` takes the heads of attentions.

    When it refuses
        Channels that reach an input or an output of the model, that something normalizes or sums over, that are
        picked by number, read inside the body of an If, Loop or Scan, or go through an operator that is not
        understood: each with its reason. A goal out of reach changes nothing and says what is in reach.

    Exactness
        LOSSY. The result computes what the model would compute if the weights that read these channels were zero.
    """

    name: ClassVar[str] = "prune-channels"

    def wants(self, group: Group) -> bool:
        return not group.heads
