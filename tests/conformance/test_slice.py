"""A slice of the conformance cases, the same in every run, meets what the whole does (`make conformance`)."""

from __future__ import annotations

import zlib
from pathlib import Path

from tests.conformance import report
from tests.conformance.cases import Case, collect
from tests.conformance.harness import LATHE, Harness

EVERY = 400
ONCE_WRONG = {
    "node/test_affine_grid_2d_expanded",  # Range refused a list, once a copy was gone
    "node/test_cast_FLOAT8E5M2_to_FLOAT",  # its input could not be sent to a worker
    "node/test_castlike_BFLOAT16_to_FLOAT_expanded",  # its input could not be fed
    "node/test_identity_opt",  # verification took every input for an array
    "node/test_sequence_insert_at_front",
}


def chosen(case: Case) -> bool:
    """One case in :data:`EVERY` by a hash of its name, and those that ever failed; light models take too long."""
    return case.id in ONCE_WRONG or (zlib.crc32(case.id.encode()) % EVERY == 0 and not case.id.startswith("real/"))


def test_a_slice_of_the_cases_meets_every_requirement(tmp_path: Path) -> None:
    cases = [case for case in collect() if chosen(case)]
    assert {case.id for case in cases} >= ONCE_WRONG
    results = Harness(LATHE, tmp_path, jobs=1, tell=lambda text: None).run(cases)
    assert len(results) == len(cases)
    told = report.summary(results)
    assert not report.missed(results), told
    assert not any(report.left_out(result) for result in results), told
    assert any(t["word"] == "changed, right" for r in results for t in r["trials"].values()), "nothing was changed"
