"""The pass ``prune-heads``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from passes.prune.groups import Group
from passes.prune.structured import Structured


@dataclass(frozen=True)
class PruneHeads(Structured):
    """Take out the attention heads that matter least, each whole: its queries, keys, values and outputs.

    What it does
        Finds heads as what the batch axes of products of two computed values hang on, so joint and separate
        projections, and keys and values that several heads share, need no patterns; ranks them by what the
        projection behind is left with (Michel et al. 2019, "Are Sixteen Heads Really Better than One?",
        arXiv 1905.10650, showed that many can go), and takes out as many as the goal asks for, as `prune-channels`
        does.

    When it applies
        To attentions written in ONNX's own operators, with fixed and with named dimensions.

    When it refuses
        Heads that cannot be told apart in a reshape, fused attention operators, and whatever `prune-channels` refuses.

    Exactness
        LOSSY. The result computes what the model would compute if the weights that read these heads were zero.
    """

    name: ClassVar[str] = "prune-heads"

    def wants(self, group: Group) -> bool:
        return group.heads
