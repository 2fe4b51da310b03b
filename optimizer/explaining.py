"""Explaining a model: what quantization costs layer by layer, what the runtime makes of it, and what to try next."""

from __future__ import annotations

import json
import math
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.data.samples import Samples
from optimizer.decide.advise import advice
from optimizer.decide.space import DYNAMIC, STATIC, offered
from optimizer.faults import Fault, bad_input
from optimizer.measure import explain as nouns
from optimizer.measure.explain import Explanation, Layer
from optimizer.measure.explain_graph import Kernel, by_op, islands, kernels, layer_kernels, unfused
from optimizer.measure.explain_layers import layer_errors, output_sqnr, sqnr
from optimizer.measure.explain_twin import float_twin
from optimizer.measure.sweep import sweep
from optimizer.package.receiver.words import MANIFEST
from optimizer.plan import Settings
from optimizer.progress import Watcher
from optimizer.report.inspection import inspect_model
from optimizer.runtime import sessions
from optimizer.workers.pool import CallFailed, WorkerDied
from optimizer.workshop import Bench, made_up_samples, open_bench
from passes import catalogue
from passes.catalogue import LOSSLESS
from passes.kit.contract import Exactness
from passes.kit.model import Model
from passes.kit.recipe import Recipe, RecipeError
from passes.kit.recipe import Step as Part

SAMPLES = 16
SLOWEST = 8


@dataclass(frozen=True)
class Pair:
    """A quantized model and the float model that it is compared with; ``whole`` says that the reference holds the
    source's own weights, not what is left of them; ``samples`` came with the source."""

    quantized: Model
    reference: Model
    words: str
    recipe: str
    whole: bool
    warnings: tuple[str, ...] = ()
    samples: Samples | None = None


def explain_settings(settings: Settings, against: str | None, watch: Watcher) -> Explanation:
    """Explain the model that ``settings`` name: an artifact's folder, a quantized model, or a float one.

    A quantized model is compared with its source (``against``), else with its float twin; a float model with what
    plain int8 would make of it. Without data, made-up inputs are used and the words say so. Raises a Fault.
    """
    with ExitStack() as stack:
        bench = stack.enter_context(open_bench(settings.but(level=1), watch))
        made = manifest_of(settings.source.model)
        pair = paired(bench, made, against, stack, watch)
        samples = samples_of(bench, pair)
        watch.stage("comparing layers")
        found = compared(bench, pair, samples, settings.source.model)
        told = bench.warnings if pair.samples is None else ()
        warnings = (*told, *pair.warnings, *unsure(pair))
        found = replace(found, warnings=tuple(dict.fromkeys(warnings)))
        return replace(found, advice=advice(found, offered()))


def manifest_of(model: str) -> dict[str, Any]:
    """The manifest of an artifact, or nothing for anything else."""
    try:
        tree = json.loads((Path(model) / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}


def samples_of(bench: Bench, pair: Pair) -> Samples:
    """Real samples where there are any, else made-up ones; at most :data:`SAMPLES`."""
    found = bench.splits.select if bench.splits is not None else pair.samples
    if found is None:
        found = made_up_samples(bench.source.model, bench.settings.seed, bench.store, bench.site)
    return found.take(np.arange(min(SAMPLES, len(found))))


def unsure(pair: Pair) -> tuple[str, ...]:
    """What the reader must know about the comparison."""
    if pair.whole:
        return ()
    return ("the twin shares the rounded weights, so their error is not counted: name the source with --against",)


# -- what is compared with what ----------------------------------------------------------------------------------------
def paired(bench: Bench, made: dict[str, Any], against: str | None, stack: ExitStack, watch: Watcher) -> Pair:
    """The quantized model and its reference."""
    model, recipe = bench.source.model, str(made.get("recipe", {}).get("text", "") if made else "")
    quantized = inspect_model(model).quantized
    if against is not None:
        return against_source(bench, recipe, against, stack, watch)
    if quantized:
        twin = float_twin(model)
        if twin.stuck:
            hint = "Name the float model that it was made of with --against"
            raise bad_input(f"there is no float twin of {', '.join(twin.stuck)}", hint=hint, code="no-twin")
        if not twin.replaced:
            raise bad_input("nothing in this model can be dequantized", hint="Name its source with --against")
        return Pair(model, twin.model, "its float twin (rounding taken out)", recipe, False)
    return dry(bench)


def against_source(bench: Bench, recipe: str, against: str, stack: ExitStack, watch: Watcher) -> Pair:
    """The source, cleaned as the model was, so that its values have the same names."""
    settings = bench.settings.but(source=replace(bench.settings.source, model=against), level=1)
    other = stack.enter_context(open_bench(settings, watch))
    if [p.name for p in other.source.model.signature.inputs] != [p.name for p in bench.source.model.signature.inputs]:
        raise bad_input("the source has other inputs than the model", where=against, code="other-model")
    cleaned = other.builder.build(other.source.model, lossless_part(recipe) or LOSSLESS)
    own = other.splits.select if other.splits is not None else None
    return Pair(bench.source.model, cleaned.model, f"{against} as cleaned", recipe, True, samples=own)


def lossless_part(recipe: str) -> Recipe | None:
    """The passes of a recipe before the first one that spends quality."""
    kept = []
    try:
        for step in Recipe.parse(recipe).steps:
            if catalogue.find(step.name).exactness is Exactness.LOSSY:
                break
            kept.append(step)
    except RecipeError:
        return None
    return Recipe(tuple(kept)) if kept else None


def dry(bench: Bench) -> Pair:
    """What plain int8 would make of a float model: static with data, dynamic without."""
    form = STATIC if bench.calibrated else DYNAMIC
    recipe = LOSSLESS + Recipe((Part(form),))
    base = bench.builder.build(bench.source.model, LOSSLESS)
    made = bench.builder.build(bench.source.model, recipe)
    words = f"itself: it is not quantized, so this is what {form} would make of it"
    notes = made.fault_lines() if made.lossy else (f"{form} changes nothing", *made.fault_lines())
    return Pair(made.model, base.model, words, recipe.text(), True, notes)


# -- measuring ---------------------------------------------------------------------------------------------------------
def compared(bench: Bench, pair: Pair, samples: Samples, name: str) -> Explanation:
    """Everything that is measured of a pair."""
    store, site = bench.store, bench.site
    paths = [store.put_model(m) for m in (pair.reference, pair.quantized)]
    before, after = (kernels(path, bench.feed, site) for path in paths)
    inspected = inspect_model(pair.quantized)
    return Explanation(
        name=name,
        quantized=inspected.quantized,
        reference=pair.words,
        recipe=pair.recipe,
        provider=site.provider,
        samples=len(samples),
        output_db=output_sqnr(pair.reference, pair.quantized, samples, site, store),
        runtime_db=moved_by_runtime(bench, paths[1], samples),
        layers=layers_of(bench, pair, samples, before, after),
        unfused=unfused(after),
        islands=islands(after),
        before=by_op(before),
        after=by_op(after),
        slowest=tuple(sorted(after, key=lambda k: -k.ms)[:SLOWEST]),
        signed=nouns.has_signed_activations(pair.quantized),
    )


def layers_of(
    bench: Bench, pair: Pair, samples: Samples, before: tuple[Kernel, ...], after: tuple[Kernel, ...]
) -> tuple[Layer, ...]:
    """Every layer with its form, errors, times and, where it is float, the reason."""
    forms = nouns.forms(pair.reference, pair.quantized)
    errors = {e.layer: e for e in layer_errors(pair.reference, pair.quantized, samples, bench.site, bench.store)}
    try:
        alone = sweep(pair.reference, pair.quantized, samples, bench.site, bench.store)
    except (Fault, WorkerDied, CallFailed) as trouble:
        bench.watch.note(f"layers could not be switched one by one: {trouble}")
        alone = {}
    was, now = layer_kernels(pair.reference, before, list(forms)), layer_kernels(pair.quantized, after, list(forms))
    why = reasons(bench, pair)
    rows = []
    for name, (op, form) in forms.items():
        error, damage = errors.get(name), alone.get(name)
        rows.append(
            Layer(
                name,
                op,
                form,
                now[name].plain if name in now else "",
                error.sqnr_db if error else None,
                error.cosine if error else None,
                None if damage is None else sqnr(1.0, damage),
                was[name].ms if name in was else None,
                now[name].ms if name in now else None,
                why.get(name, "") if form == nouns.FLOAT else "",
            )
        )
    return tuple(rows)


def reasons(bench: Bench, pair: Pair) -> dict[str, str]:
    """Why layers are float: what the recipe leaves out, and what the quantizing passes refuse."""
    found = nouns.reasons(pair.reference, bench.target.static_ops)
    try:
        steps = Recipe.parse(pair.recipe).steps
    except RecipeError:
        return found
    for step in steps:
        left = dict(step.options).get("exclude", ()) if step.name.startswith("quantize-") else ()
        found |= dict.fromkeys(left, f"the recipe leaves it out ({step.name})")
    if steps and not any(s.name.startswith("quantize-static") for s in steps):
        ops = set(bench.target.static_ops) - set(bench.target.dynamic_ops)
        skipped = {n: op for n, (op, _) in nouns.forms(pair.reference, pair.quantized).items() if op in ops}
        found |= {n: f"{op} is not quantized by this recipe" for n, op in skipped.items() if n not in found}
    return found


def moved_by_runtime(bench: Bench, path: Path, samples: Samples) -> float | None:
    """Signal over noise, in dB, between the model as it is written and as the runtime's optimizer runs it.

    Fusing integers moves results by a step here and there; much less than that says that the runtime computes
    something else than the file.
    """
    signal = noise = 0.0
    with sessions.worker() as worker:
        for feed, _ in samples.feeds(1):
            (plain,), (fused,) = (sessions.run(worker, path, [feed], bench.site, optimize=o) for o in (False, True))
            for name, value in plain.items():
                if isinstance(value, np.ndarray) and value.dtype.kind == "f":
                    a, b = (np.asarray(v, np.float64).reshape(-1) for v in (value, fused[name]))
                    good = np.isfinite(a) & np.isfinite(b)
                    signal, noise = signal + float(a[good] @ a[good]), noise + float(((a - b)[good] ** 2).sum())
    return sqnr(signal, noise) if signal > 0 and math.isfinite(noise) else None
