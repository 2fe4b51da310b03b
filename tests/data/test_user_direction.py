"""Which way a user's metric goes."""

from __future__ import annotations

import pytest

from optimizer.data.metrics import user_spec
from optimizer.faults import Exit, Fault


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ("mine:score", ("mine:score", True)),
        ("mine:mae:lower", ("mine:mae", False)),
        ("mine:neg_mse:higher", ("mine:neg_mse", True)),
        ("a/b.py:quality:lower", ("a/b.py:quality", False)),
        ("loss.py:agreement", ("loss.py:agreement", True)),
        ("mine:lower", ("mine:lower", True)),
    ],
)
def test_the_ending_tells(spec: str, found: tuple[str, bool]) -> None:
    assert user_spec(spec) == found


@pytest.mark.parametrize("spec", ["mine:mae", "pkg.mod:word_error_rate", "m.py:meanLoss", "m:RMSE"])
def test_what_sounds_like_an_error_must_say_so(spec: str) -> None:
    with pytest.raises(Fault, match="less were better") as caught:
        user_spec(spec)
    assert caught.value.exit is Exit.USAGE and f"{spec}:lower" in caught.value.hint
