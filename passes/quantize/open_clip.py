"""The pass ``open-clip``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from passes.kit.context import Context
from passes.kit.contract import Edit, Exactness, Pass, PassResult
from passes.kit.match import compute, is_op
from passes.kit.model import Model
from passes.kit.options import option
from passes.kit.reducers import MinMax
from passes.kit.shapes import Shapes
from passes.quantize.sites import clip_limits


@dataclass(frozen=True)
class OpenClip(Pass):
    """Replace a Clip from zero (ReLU6) by a Relu where calibration data hardly reach its upper limit.

    What it does
        ``Clip(x, 0, h)`` becomes ``Relu(x)`` when the largest x that was seen is at most ``reach`` times h. A limit
        that is the same for all channels stands in the way of ``equalize`` and ``smooth``; Nagel et al. 2019 (arXiv
        1906.04721, section 5.1.1) replace ReLU6 by ReLU for that reason, everywhere.

    When it applies
        To float32 Clips in the main graph whose lower limit is zero and whose upper limit is a positive constant.

    When it refuses
        Clips that the data push beyond the limit, and values that were never seen or are not finite.

    Exactness
        LOSSY. Data beyond the calibration samples may reach the limit.
    """

    name: ClassVar[str] = "open-clip"
    exactness: ClassVar[Exactness] = Exactness.LOSSY

    reach: float = option(1.0, "largest share of the limit that the data may reach", low=0.1, high=1e6)

    def apply(self, model: Model, context: Context) -> PassResult:
        fork = model.fork()
        edit, shapes = Edit(fork), Shapes(fork)
        clips = [n for n in fork.graph if _has_limit(n, shapes)]
        names = list(dict.fromkeys(n.inputs[0].name for n in clips if n.inputs[0] is not None and n.inputs[0].name))
        seen = context.stats(model, {name: MinMax() for name in names}) if names else {}
        for node in clips:
            assert node.inputs[0] is not None
            found = seen[node.inputs[0].name or ""]
            assert isinstance(found, MinMax)
            limit = clip_limits(node)[1] or 0.0
            if not int(found.arrays["count"]) or int(found.arrays["broken"]):
                edit.skip("open-clip", node, "its values were never seen, or are not finite")
            elif found.high > self.reach * limit:
                edit.skip("open-clip", node, f"the data reach {found.high:.4g}, its limit is {limit:.4g}")
            else:
                edit.change("open-clip", node, f"the data reach {found.high:.4g} of {limit:.4g}")
                compute(edit, node.outputs[0], "Relu", [node.inputs[0]])
        return PassResult(fork if edit.changes else model, tuple(edit.changes), tuple(edit.skips))


def _has_limit(node: ir.Node, shapes: Shapes) -> bool:
    if not is_op(node, "Clip") or shapes.dtype(node.inputs[0]) != ir.DataType.FLOAT:
        return False
    low, high = clip_limits(node)
    return low == 0.0 and high is not None and 0.0 < high < np.inf
