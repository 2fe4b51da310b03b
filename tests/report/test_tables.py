"""Benchmarks, checks, doctor, cache and pass pages at 80 columns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from optimizer.package.check import Finding, VerifyReport
from optimizer.report import console, pages, tables
from optimizer.report.nouns import Doctor, Problem
from optimizer.store.store import Entry
from passes.kit.contract import Exactness, Pass
from passes.kit.options import option


def lines(shown: object) -> str:
    text = console.to_text(shown)
    assert max(map(len, text.splitlines())) <= 80
    return text


def test_verify() -> None:
    good = Finding("files", True, "7 files")
    slow = Finding("host", True, "this CPU has none of avx_vnni", warning=True)
    text = lines(tables.checked(VerifyReport(True, (good, slow), "a.lathe")))
    assert "note" in text and "a.lathe holds" in text
    bad = VerifyReport(False, (good, Finding("checksums", False, "changed: model.onnx")), "a.lathe")
    assert "does not hold: 1 of the checks failed" in lines(tables.checked(bad))


def test_doctor() -> None:
    found = Doctor("0.1", "3.12", "Linux", "A CPU", 2, 8 * 10**9, ("avx2",), None, {"onnx": "1.23"}, ("cpu",))
    assert "everything that Lathe needs is here" in lines(tables.doctor(found))
    mended = replace(found, problems=(Problem("onnxruntime is missing", "pip install 'lathe[cpu]'"),))
    text = lines(tables.doctor(mended))
    assert "onnxruntime is missing. To mend it: pip install 'lathe[cpu]'" in text and "everything" not in text


def test_cache() -> None:
    entries = [Entry(Path(f"/c/{i}"), "weights" if i else "graph", 1_000_000, 1.7e9 + i) for i in range(3)]
    text = lines(tables.cache(entries, "/c"))
    assert "/c: 3 files, 3.00 MB" in text and "2.00 MB" in text
    assert "0 files" in lines(tables.cache([], "/c"))


@dataclass(frozen=True)
class Sample(Pass):
    """Turn one thing
    into another.

    ## When
    Sometimes [always].

        A long line of prose that goes on in the next one, as house style has it,
        so it is joined.
    """

    name: ClassVar[str] = "sample-pass"
    exactness: ClassVar[Exactness] = Exactness.LOSSY
    amount: int = option(3, "how much of it", low=1, high=9)
    mode: str = option("a", "which way", choices=("a", "b"))


def wide(page: pages.PassPage) -> str:
    return console.to_text(pages.full(page), width=140)


def test_pass_pages() -> None:
    def find(name: str) -> type[Pass]:
        if name == "broken":
            raise ImportError("no module named torch")
        return Sample

    found = pages.gather(["sample-pass", "broken"], find)
    listing = lines(pages.listing(found))
    assert "Turn one thing into another." in listing and "cannot be loaded: no module named torch" in listing
    page = lines(pages.full(found[0]))
    assert "A long line of prose that goes on in the next one, as house style has it, so it is" in wide(found[0])
    assert "int, 1 to 9" in page and "a | b" in page and "Sometimes [always]." in page and "spends quality" in page
