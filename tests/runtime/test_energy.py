"""Counters of energy, on made-up machines: files of the kernel, and a stand-in for NVML."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from optimizer.plan import PROVIDERS
from optimizer.runtime import energy

CPU, CUDA = PROVIDERS["cpu"], PROVIDERS["cuda"]


def zone(root: Path, name: str, kind: str, microjoules: str) -> Path:
    place = root / name
    place.mkdir(parents=True)
    for file, text in (("name", kind), ("energy_uj", microjoules), ("max_energy_range_uj", "262143328850")):
        (place / file).write_text(f"{text}\n")
    return place


def test_packages_are_counted_and_nothing_twice(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", "5000000")
    second = zone(tmp_path, "intel-rapl:1", "package-1", "7000000")
    zone(tmp_path, "intel-rapl:0:0", "core", "1000000")  # a part of the first
    zone(tmp_path, "intel-rapl:2", "psys", "99000000")  # the whole machine
    found = energy.meter(CPU, tmp_path)
    assert found is not None and found.read() == [5.0, 7.0] and "RAPL" in found.says
    before = found.read()
    (second / "energy_uj").write_text("9500000\n")
    assert energy.used(before, found.read(), found.spans()) == pytest.approx(2.5)


def test_a_counter_may_begin_again() -> None:
    assert energy.used([262.0, 1.0], [3.0, 2.0], [262.5, 262.5]) == pytest.approx(3.5 + 1.0)


def test_without_a_counter_that_can_be_read_there_is_none(tmp_path: Path) -> None:
    assert energy.meter(CPU, tmp_path) is None and energy.meter(CPU, tmp_path / "nowhere") is None
    (zone(tmp_path, "intel-rapl:0", "package-0", "5") / "energy_uj").unlink()
    zone(tmp_path, "amd-rapl:1", "package-0", "no number")
    assert energy.meter(CPU, tmp_path) is None


class NVMLError(Exception):
    pass


def library(millijoules: list[int], *, broken: bool = False) -> SimpleNamespace:
    def init() -> None:
        if broken:
            raise NVMLError("no driver")

    return SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=init,
        nvmlDeviceGetHandleByIndex=lambda i: f"gpu{i}",
        nvmlDeviceGetTotalEnergyConsumption=lambda device: millijoules.pop(0),
    )


def test_a_gpu_is_counted_by_nvml(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", "5000000")
    monkeypatch.setitem(sys.modules, "pynvml", library([1000, 5000, 8500]))
    found = energy.meter(f"{CUDA}:device_id=0", tmp_path)
    assert found is not None and "NVML" in found.says
    assert energy.used(found.read(), found.read(), found.spans()) == pytest.approx(3.5)
    monkeypatch.setitem(sys.modules, "pynvml", library([], broken=True))
    assert energy.meter(CUDA, tmp_path) is None, "the processor's counter says nothing of a GPU"
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert energy.meter(CUDA, tmp_path) is None
