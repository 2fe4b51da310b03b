"""CPU seconds of the commands that should answer at once: median of several runs."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys

RUNS = 7
START = "from optimizer.cli.main import main; main()"


def cpu_seconds(*arguments: str) -> float:
    """Median CPU seconds (user and system) of ``lathe ARGUMENTS`` in a fresh interpreter."""
    taken = []
    for _ in range(RUNS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", START, *arguments], stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    return statistics.median(taken)


if __name__ == "__main__":
    for command in ("--help", "--version", "passes"):
        print(f"lathe {command}: {cpu_seconds(command):.2f} s CPU")
