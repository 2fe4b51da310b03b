"""A short slice of ``make fuzz-files``, and every input that once did harm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from optimizer.source import onnx_file
from tests.redteam import fuzz
from tests.redteam.mutate import mutant
from tests.redteam.seeds import MOST_BYTES, WEIGHTS, WEIGHTS_FILE, seeds
from tests.support.runtime import target

ONCE_HARMFUL = {2643: "unsafe-model"}
"""Number and what must become of it. 2643: shape inference unrolled a vector of 10**18 elements, without end, in the
process that opened the file."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / WEIGHTS_FILE).write_bytes(WEIGHTS)
    return tmp_path


def test_seeds_open_and_passes_take_them(folder: Path) -> None:
    assert len(seeds()) >= 15 and all(len(data) <= MOST_BYTES for data in seeds())
    for data in seeds():
        told: dict[str, Any] = {"seconds": 0.0, "faults": []}
        (folder / "m.onnx").write_bytes(data)
        fuzz.run_passes(onnx_file.load(folder / "m.onnx", target()).model, told, native=False)
        assert not told["faults"]


def test_mutants_are_the_same_for_a_number_and_about_half_of_them_parse() -> None:
    assert mutant(7) == mutant(7)
    share = sum(fuzz._parses(mutant(n)) for n in range(600)) / 600
    assert 0.3 <= share <= 0.7


def test_a_slice_of_mutants_is_refused_or_harmless(folder: Path) -> None:
    tally = fuzz.Tally()
    fuzz.attempt(0, folder)  # starts the nursery
    for number in range(20_000_000, 20_000_040):
        tally.add(fuzz.attempt(number, folder, native=False))
    assert not [f for f in tally.failures if " took " not in f], "times are the long run's to judge"
    assert tally.opened >= 5 and sum(tally.refusals.values()) >= 5


@pytest.mark.parametrize("number", ONCE_HARMFUL)
def test_what_once_did_harm_does_none(folder: Path, number: int) -> None:
    told = fuzz.attempt(number, folder, native=False)
    assert told["outcome"] == ONCE_HARMFUL[number]
