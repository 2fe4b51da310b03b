"""The harness itself: what it takes for wrong, and what it does when a process dies, hangs, or is cut off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest

from tests.conformance import report
from tests.conformance.cases import Case
from tests.conformance.compare import mismatch, signature_change
from tests.conformance.harness import LATHE, Harness

F = np.array([1.0, 2.0, np.nan, np.inf], np.float32)


@pytest.mark.parametrize(
    ("found", "wanted", "says"),
    [
        (F * np.float32(1.0005), F, ""),
        (F * np.float32(1.01), F, "values off, the first 1.01 for 1.0"),
        (np.nan_to_num(F), F, "2 of 4"),
        (F.astype(np.float64), F, "is float64 instead of float32"),
        (F[None], F, "has shape [1, 4] instead of [4]"),
        ([F], [F, F], "is not a sequence of 2"),
        ([F, F + 1], [F, F], "values off"),
        (None, F, "is NoneType instead of ndarray"),
        (np.array(["a"], object), np.array([b"a"], object), ""),
        (np.array(["a"], object), np.array(["b"], object), "holds other text"),
        (F.astype(ml_dtypes.bfloat16), F.astype(ml_dtypes.bfloat16), ""),
        (np.array([1], ml_dtypes.int4), np.array([-1], ml_dtypes.int4), "1 of 1"),
        (np.array([56], np.uint8), np.array([1], ml_dtypes.float8_e4m3fn), ""),
    ],
)
def test_outputs_are_held_to_the_tolerance_of_the_case(found: Any, wanted: Any, says: str) -> None:
    told = mismatch({"y": found}, {"y": wanted}, rtol=1e-3, atol=1e-7)
    assert (says in told) if says else not told
    assert mismatch({}, {"y": wanted}, 1e-3, 1e-7) == "output 'y' is missing"


@pytest.mark.parametrize(
    ("after", "says"),
    [
        ("g (float[n] x) => (float[n] y) { z = Neg(x) y = Neg(z) }", ""),
        ("g (float[n] x) => (float[n] z) { z = Neg(x) }", "y: tensor 1 ['n'] is now z: tensor 1 ['n']"),
        ("g (float[m] x) => (float[n] y) { y = Neg(x) }", "the inputs changed"),
        ("g (float16[n] x) => (float16[n] y) { y = Neg(x) }", "the inputs changed"),
    ],
)
def test_a_signature_is_names_types_and_dimensions(after: str, says: str) -> None:
    head = '<ir_version: 8, opset_import: ["" : 17]> '
    before = onnx.parser.parse_model(head + "g (float[n] x) => (float[n] y) { y = Neg(x) }")
    told = signature_change(before, onnx.parser.parse_model(head + after))
    assert (says in told) if says else not told


JOB = """
import os, signal, time
from pathlib import Path

def trial_names():
    return ["-O1", "good", "bad"]

def run_case(case, scratch, trials):
    log = Path({folder!r}) / "log"
    with log.open("a") as file:
        file.write(case["id"] + chr(10))
    first = log.read_text().split().count(case["id"]) == 1
    if (case["id"] == "once" and first) or (case["id"] == "always" and "bad" in trials):
        os.kill(os.getpid(), signal.SIGSEGV)
    if case["id"] == "broken":
        raise ValueError("no such thing")
    if case["id"] == "slow" and "bad" in trials:
        time.sleep(60)
    fine = {{"word": "same", "why": "", "by": "runtime"}}
    return {{"runtime": "passes", "why": "", "reference": "", "trials": {{t: fine for t in trials}}}}
"""


@pytest.fixture
def harness(tmp_path: Path) -> Harness:
    (tmp_path / "job.py").write_text(JOB.format(folder=str(tmp_path)))
    return Harness(LATHE, tmp_path, jobs=2, seconds=2.0, job=str(tmp_path / "job.py"), tell=lambda text: None)


def test_a_death_is_tried_again_alone_and_blamed_on_what_dies(harness: Harness) -> None:
    found = {r["case"]: r for r in harness.run([Case(name, "", 0, 0) for name in ("a", "once", "always", "b")])}
    assert {t["word"] for name in ("a", "b", "once") for t in found[name]["trials"].values()} == {"same"}
    words = {name: t["word"] for name, t in found["always"]["trials"].items()}
    assert words == {"-O1": "same", "good": "same", "bad": "dead"}
    assert "SIGSEGV" in found["always"]["trials"]["bad"]["why"]
    (missed,) = report.missed(list(found.values()))
    assert missed.text == "process deaths"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_of_the_harness_itself_does_not_pass_for_a_result(harness: Harness) -> None:
    with pytest.raises(RuntimeError, match="1 cases gave no result, broken among them"):
        harness.run([Case("a", "", 0, 0), Case("broken", "", 0, 0)])


def test_a_case_that_takes_too_long_is_a_death(harness: Harness) -> None:
    (result,) = harness.run([Case("slow", "", 0, 0)])
    assert {name: t["why"] for name, t in result["trials"].items()} == {
        "-O1": "",
        "good": "",
        "bad": "no answer within 2 s",
    }


def test_a_run_that_was_cut_off_goes_on(harness: Harness, tmp_path: Path) -> None:
    cases = [Case(name, "", 0, 0) for name in ("a", "b", "c")]
    harness.run(cases[:2])
    (kept,) = tmp_path.glob("results-lathe-*.jsonl")
    kept.write_text(kept.read_text() + '{"case": "c", "tri')  # killed in the middle of a line
    assert [r["case"] for r in Harness(**_same(harness)).run(cases)] == ["a", "b", "c"]
    assert sorted((tmp_path / "log").read_text().split()) == ["a", "b", "c"]


def _same(harness: Harness) -> dict[str, Any]:
    return {name: getattr(harness, name) for name in ("subject", "cache", "jobs", "seconds", "job", "tell")}


def test_every_requirement_is_missed_by_what_breaks_it() -> None:
    def result(word: str, trial: str = "-O1", **more: Any) -> report.Result:
        verdict = {"word": word, "why": "why", "by": "", **more}
        return {"case": "c", "runtime": "passes", "why": "", "reference": "", "trials": {trial: verdict}}

    breaking = [result(w) for w in ("dead", "untyped error", "wrong", "does not load", "checker rejects")]
    breaking += [result("wrong", "tidy"), result("signature changed"), result("refused")]
    found = {r.text for one in breaking for r in report.missed([one])}
    left_out = [{**result("same", faults=["tidy was left out"]), "case": str(i)} for i in range(6)]
    assert not report.missed(left_out[:5])
    found |= {r.text for r in report.missed(left_out)}
    assert found == {r.text for r in report.REQUIREMENTS}
    assert "MISSED" in report.summary(left_out)
