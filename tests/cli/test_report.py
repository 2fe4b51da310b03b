"""``lathe report``, and what ``lathe doctor`` measures."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from click.testing import Result

from optimizer.api import BenchmarkReport
from optimizer.package import evidence
from optimizer.records import Ceilings
from optimizer.report.nouns import Doctor
from tests.cli.conftest import one_object
from tests.report import pages
from tests.report.test_benchmark import ROW

Lathe = Callable[..., Result]


def test_doctor_measures(lathe: Lathe, api: SimpleNamespace) -> None:
    asked: list[Any] = []
    found = Doctor("0.1", "3.12", "Linux", "A CPU", 2, 8 * 10**9, (), None, {}, ("cpu",))
    machine = Ceilings(
        "A CPU", 2, "1.31", "CPUExecutionProvider", "2026-11-26", 1, (pages.CEILING, replace(pages.CEILING, threads=2))
    )
    api.doctor = lambda **given: asked.append(given) or replace(found, ceilings=machine)
    text = lathe("doctor", "--measure", "--cache-dir", "c").stdout
    assert asked[0]["measure"] is True and asked[0]["cache_dir"] == Path("c")
    assert "2 threads" in text and "45.0 G" in text and "12.0 GB" in text and "2026-11-26" in text
    assert "the machine was busy" not in text
    slow = replace(machine, at=(pages.CEILING, replace(pages.CEILING, threads=2, float_macs=pages.near(20e9))))
    api.doctor = lambda **given: replace(found, ceilings=slow)
    assert "the machine was busy" in " ".join(lathe("doctor").stdout.split())
    assert one_object(lathe("doctor", "--json").stdout)["ceilings"]["at"][1]["threads"] == 2


def test_report(lathe: Lathe, tmp_path: Path) -> None:
    folder = tmp_path / "net.lathe"
    folder.mkdir()
    (folder / "evidence.json").write_text(json.dumps(evidence.of(pages.full(), "x")))
    made = lathe("report", "net.lathe")
    assert made.exit_code == 0 and Path(made.stdout.strip()) == tmp_path / "net.html"
    assert "<!doctype html>" in (tmp_path / "net.html").read_text()
    again = lathe("report", "net.lathe")
    assert again.exit_code == 2 and "--overwrite" in again.stderr
    assert lathe("report", "net.lathe", "--overwrite", "-o", "net.html").exit_code == 0
    assert lathe("report", "net.lathe", "-o", "deep/er/net.md").exit_code == 0
    assert (tmp_path / "deep/er/net.md").read_text().startswith("# ")
    assert lathe("report", "net.lathe", "-o", "net.pdf").exit_code == 2
    assert one_object(lathe("report", "net.lathe", "--json").stdout)["schema"] == "lathe.record/1"
    nothing = lathe("report", str(tmp_path))
    assert nothing.exit_code == 3 and "not a Lathe artifact" in nothing.stderr


def test_evidence_whose_numbers_make_no_sense_is_refused(lathe: Lathe, tmp_path: Path) -> None:
    tree = evidence.of(pages.full(), "x")
    tree["final"]["roofline"]["bytes"] |= {"value": 0.0, "high": 0.0}
    (tmp_path / "evidence.json").write_text(json.dumps(tree))
    assert lathe("report", ".", "-o", "a.html").exit_code == 0, "a mark that has no place is left out"
    tree["final"]["roofline"]["bytes"]["low"] = None
    (tmp_path / "evidence.json").write_text(json.dumps(tree))
    broken = lathe("report", ".", "-o", "b.html")
    assert broken.exit_code == 3 and "the evidence cannot be shown" in broken.stderr
    assert not (tmp_path / "b.html").exists()


def test_a_benchmark_tells_more_when_asked(lathe: Lathe, api: SimpleNamespace) -> None:
    asked: list[Any] = []
    row = replace(ROW, profile=pages.profile(), roofline=pages.roofline(), per_million=pages.near(0.1))
    api.benchmark = lambda models, **given: asked.append(given) or BenchmarkReport((row,), {})
    text = lathe("benchmark", "a.onnx", "--profile", "--price-per-hour", "0.34", "--watts", "65").stdout
    assert [asked[0][n] for n in ("profile", "price_per_hour", "watts")] == [True, 0.34, 65.0]
    assert "compute-bound" in text and "outside of kernels" in text and "price of a million" in text
    assert lathe("benchmark", "a.onnx", "--price-per-hour", "0").exit_code == 2
