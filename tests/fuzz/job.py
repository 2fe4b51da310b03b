"""The campaign's child: a few seeds judged, told in plain data. Loaded by path in a process that stays warm."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import onnxruntime

from tests.fuzz.judge import judge

onnxruntime.set_default_logger_severity(4)
gc.freeze()
gc.disable()  # most of what a pass makes is gone by counting; the rest is swept between batches


def judge_seeds(seeds: Sequence[int]) -> list[dict[str, Any]]:
    """The verdict on each seed."""
    found = [asdict(judge(seed)) for seed in seeds]
    gc.collect()
    return found
