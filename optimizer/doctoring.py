"""What this machine can run, what mends what is missing, and what it can do at most."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path

from optimizer import __version__
from optimizer.faults import Fault
from optimizer.measure import ceilings
from optimizer.plan import default_cache_dir
from optimizer.progress import Silent, Watcher
from optimizer.records import Ceilings
from optimizer.report.nouns import Doctor, Problem
from optimizer.runtime import hardware, providers, sessions
from optimizer.store.store import Store
from optimizer.workshop import open_site

EXTRAS = {"onnxruntime": "cpu", "torch": "torch", "matplotlib": "report", "openvino": "openvino-runtime"}


def doctor(*, measure: bool = False, cache_dir: Path | None = None, watch: Watcher | None = None) -> Doctor:
    """What this machine can run, and what is missing with the line that mends it.

    With ``measure`` it is also measured what it can do at most, with one thread and with all, which takes half a
    minute; the answer is kept in the cache, for benchmarks and reports.
    """
    machine = hardware.host()
    problems: list[Problem] = []
    here: tuple[str, ...] = ()
    try:
        here = providers.everywhere()
    except Fault as fault:
        problems.append(Problem(fault.message, fault.hint))
    target = None
    try:
        target = hardware.detect_target().name
    except Fault as fault:
        problems.append(Problem(fault.message, fault.hint))
    wanted = {f for name in hardware.target_names() for f in hardware.load_target(name).requires}
    missing = tuple(
        f"{package}: pip install 'lathe[{extra}]'"
        for package, extra in EXTRAS.items()
        if importlib.util.find_spec(package) is None
    )
    flavours = [d.metadata["Name"] for d in importlib.metadata.distributions() if _is_runtime(d.metadata["Name"])]
    if len(set(flavours)) > 1:
        fix = "pip uninstall all of them, then install the one flavour that you need"
        problems.append(
            Problem(f"several onnxruntime flavours overwrite each other: {', '.join(sorted(flavours))}", fix)
        )
    return Doctor(
        __version__,
        platform.python_version(),
        machine.system,
        machine.cpu,
        machine.cores,
        machine.memory_bytes,
        tuple(sorted(wanted & machine.features)),
        target,
        hardware.environment()["packages"],
        here,
        tuple(problems),
        (*missing, *_idle_providers(here)),
        _ceilings(measure, cache_dir, watch or Silent()) if here else None,
    )


def _idle_providers(here: Sequence[str]) -> Iterator[str]:
    """Providers that are installed but do not start, and a GPU that nothing here can use, with the way out."""
    cuda = providers.full_name("cuda")
    if hardware.nvidia_driver() and here and cuda not in here:
        yield f"an NVIDIA GPU: {providers.INSTALLS[cuda]}"
    for name in here:
        if name not in providers.REMOTE and (reason := sessions.does_not_start(name)):
            yield f"{name} is installed but does not start: {reason}"


def _ceilings(measure: bool, cache_dir: Path | None, watch: Watcher) -> Ceilings | None:
    """The ceilings of this machine: measured now, or kept from before."""
    folder = cache_dir or default_cache_dir()
    counts = dict.fromkeys((1, hardware.host().cores))
    sites = [open_site("cpu", threads) for threads in counts]
    if measure:
        watch.stage("measuring what this machine can do")
        return ceilings.measure(Store(folder), sites, watch.note)
    return ceilings.kept(Store(folder), sites[0]) if folder.is_dir() else None


def _is_runtime(name: str | None) -> bool:
    return name is not None and name.lower().startswith("onnxruntime") and "extensions" not in name.lower()
