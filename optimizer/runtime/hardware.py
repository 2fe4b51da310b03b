"""What this machine is, and which target describes it."""

from __future__ import annotations

import os
import platform
import time
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from optimizer.faults import Fault, bad_input, cannot, usage
from optimizer.plan import PROVIDERS
from passes.kit.options import closest
from passes.kit.target import Target

TARGETS = Path(__file__).parents[1] / "targets"

# What an onnxruntime release is sure to load: opset of the default domain and IR version. A release in between has
# the row before it. Source: onnxruntime's docs/Versioning.md with onnx's own table of opset and IR per release,
# read conservatively; the last row was measured.
_RUNTIME_CEILINGS: Mapping[str, tuple[int, int]] = {
    "1.12": (16, 8),
    "1.14": (18, 8),
    "1.16": (19, 9),
    "1.17": (20, 9),
    "1.18": (21, 10),
    "1.21": (22, 10),
    "1.23": (23, 11),
    "1.31": (26, 13),
}


@dataclass(frozen=True)
class Host:
    """The machine at hand. ``features`` are CPU flags as Linux names them, memory is in bytes."""

    cpu: str
    architecture: str
    features: frozenset[str]
    cores: int
    memory_bytes: int
    system: str


@cache
def host() -> Host:
    """Read this machine's description."""
    info = _cpuinfo()
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, AttributeError, OSError):
        memory = 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    name = info.get("model name") or info.get("Processor") or platform.processor() or "unknown CPU"
    flags = frozenset((info.get("flags") or info.get("Features") or "").split())
    return Host(name, platform.machine(), flags, cores, memory, f"{platform.system()} {platform.release()}")


def target_names() -> tuple[str, ...]:
    """Names of the targets that come with Lathe."""
    return tuple(sorted(p.stem for p in TARGETS.glob("*.toml")))


def load_target(name: str) -> Target:
    """A target by name or by the path of a TOML file. Raises a Fault that says what is wrong with it."""
    path = TARGETS / f"{name}.toml" if name in target_names() else Path(name)
    if path.suffix != ".toml":
        raise usage(f"no target '{name}'{closest(name, target_names())}", hint=f"Known: {', '.join(target_names())}.")
    try:
        return Target.from_toml(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise bad_input(f"cannot read the target file: {error.strerror}", where=str(path)) from error
    except (tomllib.TOMLDecodeError, ValueError, TypeError) as error:
        raise bad_input(f"not a target file: {error}", where=str(path)) from error


def detect_target(provider: str = PROVIDERS["cpu"]) -> Target:
    """The target that fits this machine under ``provider`` (full name), else under the CPU's: the highest ranked.

    Raises a Fault (exit 4) when none does.
    """
    known = [load_target(name) for name in target_names()]
    for wanted in dict.fromkeys((provider, PROVIDERS["cpu"])):
        fitting = [t for t in known if t.provider == wanted and fits(t, host().features)]
        if fitting:
            return max(fitting, key=lambda t: t.rank)
    hint = f"Name the deployment site with --target ({', '.join(target_names())})."
    raise cannot(f"no target describes this machine ({host().cpu})", hint=hint, code="no-target")


def fits(target: Target, features: Collection[str]) -> bool:
    """Whether a host with these CPU features has one of those that ``target`` asks for (all hosts do when it asks
    for none)."""
    return not target.requires or not set(target.requires).isdisjoint(features)


def loosest_target() -> Target:
    """Any target, for work that only needs ceilings: the one that fits this machine, else the first that there is."""
    try:
        return detect_target()
    except Fault:
        return load_target(target_names()[0])


def with_runtime(target: Target, requirement: str | None) -> Target:
    """``target`` with the opset and IR ceilings of an older consumer, given as ``onnxruntime==1.18``."""
    from dataclasses import replace

    if requirement is None:
        return target
    name, _, version = requirement.partition("==")
    release = ".".join(version.split(".")[:2])
    if name.strip() != "onnxruntime" or not release.replace(".", "").isdigit():
        raise usage(f"cannot read the runtime '{requirement}'", hint="Write it as onnxruntime==1.18.")
    fitting = [row for row in _RUNTIME_CEILINGS if _release(row) <= _release(release)]
    if not fitting:
        raise usage(f"onnxruntime {release} is older than the oldest known, {next(iter(_RUNTIME_CEILINGS))}")
    opset, ir = _RUNTIME_CEILINGS[fitting[-1]]
    ceiling = min(opset, target.max_opset)
    return replace(
        target, max_opset=ceiling, max_ir=min(ir, target.max_ir), export_opset=min(ceiling, target.export_opset)
    )


def _release(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def _cpuinfo() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    first: dict[str, str] = {}
    for line in text.split("\n\n")[0].splitlines():
        key, _, value = line.partition(":")
        first[key.strip()] = value.strip()
    return first


LOOK_SECONDS = 0.05
"""How long the cores are watched to find the idlest: several ticks of the kernel's accounting."""


def idlest_core() -> int | None:
    """The core, of those that this process may use, that idles most at the moment; ``None`` where nobody can say."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    mine = os.sched_getaffinity(0)
    before = _idle_ticks()
    time.sleep(LOOK_SECONDS)
    idled = {core: ticks - before[core] for core, ticks in _idle_ticks().items() if core in mine and core in before}
    return max(idled, key=lambda core: (idled[core], core), default=None)


def _idle_ticks() -> dict[int, int]:
    """Idle time of each core since the start, in the kernel's ticks; waiting for disks counts as idle."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return {}
    rows = [line.split() for line in lines if line.startswith("cpu") and line[3:4].isdigit()]
    return {int(row[0][3:]): int(row[4]) + int(row[5]) for row in rows}


@dataclass(frozen=True)
class Spent:
    """Seconds that all cores have been at work since the machine started, and those of them that were ours."""

    everyone: float
    ours: float
    moment: float


def spent(pids: Collection[int]) -> Spent | None:
    """What is spent by now; ours is this process and ``pids``. ``None`` where nobody can say."""
    try:
        columns = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        children = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13] for pid in pids]
    except OSError:
        return None
    ticks = [int(c) for c in columns]
    tick = 1 / os.sysconf("SC_CLK_TCK")
    ours = time.process_time() + sum(int(t) for child in children for t in child) * tick
    return Spent((sum(ticks) - ticks[3] - ticks[4]) * tick, ours, time.monotonic())


def cores_of_others(before: Spent | None, after: Spent | None) -> float | None:
    """How many cores other processes kept busy in between, on average; time that a hypervisor took counts as busy."""
    if before is None or after is None or after.moment <= before.moment:
        return None
    others = (after.everyone - before.everyone) - (after.ours - before.ours)
    return max(0.0, others / (after.moment - before.moment))


PACKAGES = (
    "onnx", "onnx-ir", "onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "openvino", "onnxsim", "onnxscript",
    "torch", "numpy",
)  # fmt: skip


def environment() -> dict[str, Any]:
    """Machine and package versions, and how busy the machine is, for the evidence.

    ``governor`` is how the kernel chooses the clock rate, ``load`` the number of runnable processes over the last
    minute; ``None`` where the system does not say.
    """
    import importlib.metadata

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    machine = host()
    return {
        "cpu": machine.cpu,
        "cores": machine.cores,
        "memory_bytes": machine.memory_bytes,
        "system": machine.system,
        "governor": _governor(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "packages": versions,
    }


def _governor() -> str | None:
    try:
        return Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text().strip()
    except OSError:
        return None


def nvidia_driver() -> bool:
    """Whether the driver of an NVIDIA GPU is loaded here."""
    return Path("/proc/driver/nvidia/version").exists()


def available_memory() -> int:
    """Bytes of memory that could be used now without swapping (a large number where the system does not say)."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return host().memory_bytes or 1 << 62
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("MemAvailable")), 1 << 62)


def last_cache_bytes() -> int:
    """Size of the last-level cache (shared with other cores, or other guests of the host); 0 where nobody says."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    sizes = [0]
    for place in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            text = (place / "size").read_text().strip()
            sizes.append(int(text[:-1]) * units[text[-1]])
        except (OSError, ValueError, KeyError, IndexError):
            continue
    return max(sizes)
