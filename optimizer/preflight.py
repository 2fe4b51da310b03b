"""The plan of a compile before it is made: what would be tried, and what it would cost in time, disk and memory."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from typing import Any

from optimizer.decide import ladder
from optimizer.decide.judge import CONFIRM_AT_MOST
from optimizer.faults import broken
from optimizer.measure.latency import quick, thorough
from optimizer.measure.stats import CONFIDENCE, USUAL_SHARE, corrected_alpha, detectable
from optimizer.package import artifact
from optimizer.plan import Settings
from optimizer.progress import Silent
from optimizer.records import to_plain
from optimizer.report.words import can_show
from optimizer.runtime import hardware, sessions
from optimizer.runtime.providers import named
from optimizer.verify.apply import WORKING_COPIES
from optimizer.workshop import Bench, open_bench
from passes.kit.recipe import Recipe
from passes.quantize.layers import quantizable, quantizable_at_run_time

PASS_SECONDS_PER_MB = 0.05
PASS_SECONDS = 0.5
SESSION_SECONDS = 0.3
COPIES_ON_DISK = 3
"""The store keeps the source, the lossless model and quantized ones; tensors that they share are kept once."""


@dataclass(frozen=True)
class Rehearsal:
    """One rung of the plan and the seconds it should take."""

    label: str
    recipe: str
    seconds: float


@dataclass(frozen=True)
class PlanReport:
    """What a compile would do. Estimates are rough: within a factor of two or three on models of ordinary size.

    ``detectable`` is the smallest drop of a 0/1 metric that the confirm samples can show with 80 % power when all
    candidates that are confirmed share the error, and 2 % of the outcomes differ; ``None`` for other metrics.
    """

    model: str
    target: str
    provider: str
    metric: str | None
    budget: tuple[str, ...]
    samples: dict[str, int]
    rungs: tuple[Rehearsal, ...]
    seconds: float
    disk_bytes: int
    memory_bytes: int
    disk_free_bytes: int
    memory_free_bytes: int
    warnings: tuple[str, ...]
    detectable: float | None = None

    def as_json(self) -> dict[str, Any]:
        """The object that ``--dry-run --json`` prints."""
        return {"schema": "lathe.plan/1", **to_plain(self)}

    def lines(self) -> list[str]:
        """The plan for people, one line each."""
        split = ", ".join(f"{n} {name}" for name, n in self.samples.items()) or "no data"
        head = [
            f"model     {self.model}",
            f"target    {self.target} on {self.provider}",
            f"judged by {self.metric or 'nothing: without data only lossless passes are tried'}",
            f"budget    {', '.join(self.budget) or 'none'}",
            f"samples   {split}",
        ]
        if self.detectable is not None and self.metric is not None:
            head.append(f"proof     {can_show(self.samples['confirm'], self.metric, self.detectable, USUAL_SHARE)}")
        rungs = [f"try       {r.label}: {r.recipe or 'nothing'} (about {r.seconds:.0f} s)" for r in self.rungs]
        cost = [
            f"time      about {self.seconds:.0f} s; more if layers have to be left in float",
            f"disk      about {_mb(self.disk_bytes)} in the cache, {_mb(self.disk_free_bytes)} free",
            f"memory    about {_mb(self.memory_bytes)} at most, {_mb(self.memory_free_bytes)} free",
        ]
        return [*head, *rungs, *cost, *(f"warning   {w}" for w in self.warnings)]


def plan(settings: Settings) -> PlanReport:
    """Open everything, time one run, and estimate the rest. Nothing is optimized and no artifact is written.

    Raises a Fault for whatever would stop the compile itself at the start.
    """
    if settings.output is not None:
        artifact.check_output(settings.output, overwrite=settings.overwrite)
    with open_bench(settings, Silent()) as bench:
        rungs = planned(bench)
        run = one_run(bench)
        estimates = tuple(Rehearsal(r.label, r.recipe.text(), seconds_of(bench, r.recipe, run)) for r in rungs)
        weights = bench.source.model.weight_bytes()
        confirm = thorough(settings.seconds).seconds * 2 + run * len(bench.splits.confirm if bench.splits else ()) * 2
        return PlanReport(
            model=settings.source.model,
            target=bench.target.name,
            provider=bench.site.provider,
            metric=bench.metric.name if bench.metric else None,
            budget=bench.budget.texts(),
            samples={n: len(getattr(bench.splits, n)) for n in ("calibrate", "select", "confirm")}
            if bench.splits
            else {},
            rungs=estimates,
            seconds=sum(r.seconds for r in estimates) + confirm,
            disk_bytes=COPIES_ON_DISK * weights,
            memory_bytes=WORKING_COPIES * weights,
            disk_free_bytes=shutil.disk_usage(bench.store.root).free,
            memory_free_bytes=hardware.available_memory(),
            warnings=bench.warnings,
            detectable=provable(bench),
        )


def provable(bench: Bench) -> float | None:
    """The smallest drop of a 0/1 metric that the confirm samples can show; ``None`` for other metrics."""
    if bench.splits is None or bench.metric is None or not bench.metric.binary or bench.metric.function is not None:
        return None
    return detectable(len(bench.splits.confirm), USUAL_SHARE, corrected_alpha(1 - CONFIDENCE, CONFIRM_AT_MOST))


def proof(bench: Bench) -> str:
    """What the confirm samples will be able to show, in brackets; empty for metrics that are not 0/1."""
    least = provable(bench)
    if least is None or bench.splits is None or bench.metric is None:
        return ""
    return f" ({can_show(len(bench.splits.confirm), bench.metric.name, least, USUAL_SHARE)})"


def require_room(bench: Bench) -> None:
    """Refuse a compile that the disk cannot hold, before it starts."""
    needed = COPIES_ON_DISK * bench.source.model.weight_bytes()
    free = shutil.disk_usage(bench.store.root).free
    if needed > free:
        text = f"about {_mb(needed)} are needed in the cache and {_mb(free)} are free"
        hint = "Free some space, or name another folder with --cache-dir"
        raise broken(text, where=str(bench.store.root), hint=hint, code="disk-full")


def planned(bench: Bench) -> list[ladder.Rung]:
    """The rungs that are certain to be tried. What the lossless passes leave is not known yet, so it is guessed."""
    settings = bench.settings
    if bench.recipe is not None:
        return [ladder.lossless(), ladder.Rung("your recipe", bench.recipe)]
    if settings.level == 0:
        return [ladder.Rung("nothing", Recipe())]
    if settings.level == 1 or bench.splits is None:
        return [ladder.lossless()]
    model, target = bench.source.model, bench.target
    layers = quantizable(model, target) if bench.calibrated else ()
    dynamic = quantizable_at_run_time(model, target)
    facts = ladder.Facts(settings.level, bench.calibrated, layers, dynamic, computes_in_float16(bench))
    return [ladder.lossless(), *ladder.bold(facts)]


def computes_in_float16(bench: Bench) -> bool:
    """Whether float16 is the fastest floating type of the target, and the provider at hand is the target's: a CPU says
    nothing about its speed, and computes it in float32."""
    return bench.target.float_types[0] == "float16" and named(bench.site.provider) == bench.target.provider


def one_run(bench: Bench) -> float:
    """Seconds of one run of the source, session already open."""
    path = bench.store.put_model(bench.source.model)
    with sessions.worker() as worker:
        sessions.run(worker, path, [bench.feed], bench.site)
        start = time.monotonic()
        sessions.run(worker, path, [bench.feed], bench.site)
        return time.monotonic() - start


def seconds_of(bench: Bench, recipe: Recipe, run: float) -> float:
    """Passes and their checks, quality on the select split, a quick race against the baseline."""
    race = quick(bench.settings.seconds)
    weight = bench.source.model.weight_bytes() / 1e6 * PASS_SECONDS_PER_MB
    per_pass = PASS_SECONDS + weight + SESSION_SECONDS + run * 4 * len(bench.builder.verifier.all_probes())
    judged = len(bench.splits.select) * run if bench.splits and bench.judged else 0.0
    calibrated = len(bench.splits.calibrate) * run if bench.splits and "static" in recipe.text() else 0.0
    return len(recipe.steps) * per_pass + judged + calibrated + 2 * race.seconds + 2 * race.restarts * SESSION_SECONDS


def _mb(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
