"""Results files: they read back, and what is not one is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimizer.faults import Exit, Fault
from optimizer.package import baseline
from optimizer.package.baseline import Results, Rows

ROWS = np.array([[1.0, 0.5], [0.0, np.nan], [1.0, -2.0]])
SIGNATURE = {"inputs": [{"name": "x", "type": "FLOAT", "dims": [1]}], "outputs": []}
RESULTS = Results("a", "ab" * 32, 1234, SIGNATURE, Rows("top1", "cd" * 32, ROWS), {"latency_ms": None})


def test_it_reads_back_and_the_text_is_the_same_every_time(tmp_path: Path) -> None:
    path = tmp_path / "base.json"
    path.write_text(RESULTS.text())
    found = baseline.read(path)
    assert found.rows is not None and np.array_equal(found.rows.values, ROWS, equal_nan=True)
    assert (found.name, found.size_bytes, found.signature, found.rows.data) == ("a", 1234, SIGNATURE, "cd" * 32)
    assert found.text() == RESULTS.text()
    assert Results("a", "", 1, SIGNATURE, None, {}).text().count("null") == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.update(schema="lathe.baseline/9"),
        lambda t: t.pop("signature"),
        lambda t: t.update(size_bytes="large"),
        lambda t: t["rows"].update(shape=[3, 3]),
        lambda t: t["rows"].update(shape=[10**9, 10**9]),
        lambda t: t["rows"].update(shape=[-3, 2]),
        lambda t: t["rows"].update(float64="!"),
        lambda t: t["rows"].update(float64="AAAA"),
        lambda t: t.update(rows=[1]),
    ],
)
def test_what_is_garbled_is_refused(change: Callable[[dict[str, Any]], object], tmp_path: Path) -> None:
    tree = json.loads(RESULTS.text())
    change(tree)
    (tmp_path / "base.json").write_text(json.dumps(tree))
    with pytest.raises(Fault) as caught:
        baseline.read(tmp_path / "base.json")
    assert caught.value.exit is Exit.BAD_INPUT and caught.value.where.endswith("base.json")


def test_no_file_and_no_json(tmp_path: Path) -> None:
    with pytest.raises(Fault) as caught:
        baseline.read(tmp_path / "none.json")
    assert caught.value.exit is Exit.BAD_INPUT
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(Fault, match="not readable JSON"):
        baseline.read(tmp_path / "text.json")
