"""Counters of energy: RAPL for Intel and AMD processors on Linux, NVML for NVIDIA's GPUs. None where there is none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from optimizer.plan import PROVIDERS, ProviderText

POWERCAP = Path("/sys/class/powercap")
ON_NVIDIA = frozenset((PROVIDERS["cuda"], PROVIDERS["tensorrt"]))


class Meter(Protocol):
    """Something that counts energy. ``says`` tells in words whose energy it is."""

    @property
    def says(self) -> str: ...

    def read(self) -> list[float]:
        """Joules since some time in the past, one number for each counter."""

    def spans(self) -> list[float]:
        """Joules after which each counter begins again at 0; infinity for never."""


@dataclass(frozen=True)
class Rapl:
    """The processor packages of this machine. Whatever else runs on them, and their idling, counts too."""

    zones: tuple[Path, ...]

    @property
    def says(self) -> str:
        return "RAPL, the whole processor with its idling"

    def read(self) -> list[float]:
        return [int((zone / "energy_uj").read_text()) / 1e6 for zone in self.zones]

    def spans(self) -> list[float]:
        return [int((zone / "max_energy_range_uj").read_text()) / 1e6 for zone in self.zones]


@dataclass(frozen=True)
class Nvml:
    """The first GPU of this machine, with whatever else it does."""

    library: Any
    device: Any

    @property
    def says(self) -> str:
        return "NVML, the whole GPU with its idling"

    def read(self) -> list[float]:
        return [self.library.nvmlDeviceGetTotalEnergyConsumption(self.device) / 1e3]

    def spans(self) -> list[float]:
        return [float("inf")]


def meter(provider: str, powercap: Path = POWERCAP) -> Meter | None:
    """What counts the energy of runs on ``provider``, or ``None``. A GPU's host is not counted."""
    return _nvml() if ProviderText.parse(provider).name in ON_NVIDIA else _rapl(powercap)


def _rapl(powercap: Path) -> Rapl | None:
    zones = []
    for zone in sorted(powercap.glob("*-rapl:*")):
        try:
            if zone.name.count(":") == 1 and (zone / "name").read_text().startswith("package"):
                Rapl((zone,)).read()  # only root may read it on most systems
                Rapl((zone,)).spans()
                zones.append(zone)
        except (OSError, ValueError):
            continue
    return Rapl(tuple(zones)) if zones else None


def _nvml() -> Nvml | None:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        found = Nvml(pynvml, pynvml.nvmlDeviceGetHandleByIndex(0))
        found.read()
    except pynvml.NVMLError:
        return None
    return found


def used(before: list[float], after: list[float], spans: list[float]) -> float:
    """Joules between two readings of one meter, whose counters may have begun again once."""
    return sum(b - a if b >= a else b - a + span for a, b, span in zip(before, after, spans, strict=True))
