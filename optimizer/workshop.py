"""Everything a compile needs on the bench before it starts: target, site, store, source, data, metric, verifier."""

from __future__ import annotations

import dataclasses
import importlib.util
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.boundary import pictures
from optimizer.boundary import text as boundary
from optimizer.boundary.graph import wrap
from optimizer.data.checks import from_arrays
from optimizer.data.metrics import METRICS, Metric, choose, user_metric, user_spec
from optimizer.data.npz import unpack
from optimizer.data.readers import read
from optimizer.data.samples import Samples
from optimizer.data.split import Splits, split
from optimizer.data.synthetic import guesses, like
from optimizer.decide.budget import Budget
from optimizer.faults import Fault, bad_input, cannot, usage
from optimizer.measure.scales import EVALUATOR, Evaluator, Scales, Weighed
from optimizer.plan import GOALS, GOLDEN, LEVELS, RECOVERIES, DataRequest, Settings
from optimizer.progress import Watcher
from optimizer.recover.slopes import gradients
from optimizer.runtime import hardware, providers, sessions
from optimizer.runtime.answers import World
from optimizer.runtime.sessions import Site
from optimizer.source.open import Source, open_source, unused
from optimizer.source.user_code import UserFunction
from optimizer.store.store import Store, key_of
from optimizer.verify.adversaries import adversaries
from optimizer.verify.apply import Builder, Candidate
from optimizer.verify.verifier import Verifier
from optimizer.workers.pool import warm_up
from passes import catalogue
from passes.kit.contract import Pass
from passes.kit.model import Model
from passes.kit.recipe import Recipe, RecipeError
from passes.kit.target import Target

Array = np.ndarray[Any, Any]

SYNTHETIC_SAMPLES = 8
PROBE_SAMPLES = 3
EXAMPLE_ROWS = 4
INPUTS_TOLD = 4
EVALUATED = user_metric(EVALUATOR, lambda outputs, labels: 0.0)
"""What a budget's drop speaks of when the user's own evaluation judges; only its name and direction matter."""

THROUGHPUT_BATCH = 8
"""The batch that throughput is judged at when ``--batch`` leaves it at one."""


@dataclass(frozen=True)
class Bench:
    """The opened workshop. Without data ``splits`` and ``metric`` are ``None``; ``synthetic`` says that feeds are made
    up. ``judged`` says whether quality is measured at all."""

    settings: Settings
    watch: Watcher
    target: Target
    site: Site
    store: Store
    source: Source
    splits: Splits | None
    bare: Samples
    synthetic: bool
    metric: Metric | None
    evaluator: Evaluator | None
    budget: Budget
    recipe: Recipe | None
    feed: dict[str, Array]
    builder: Builder
    warnings: tuple[str, ...]

    @property
    def judged(self) -> bool:
        return self.splits is not None and (self.metric is not None or self.evaluator is not None)

    @property
    def calibrated(self) -> bool:
        """Whether passes may ask for activations."""
        return self.builder.world.samples is not None

    def scales(self) -> Scales:
        """Scales with the source as the baseline, and a journal that the same compile finds again."""
        model = self.source.model
        baseline = Weighed(self.store.put_model(model), model.digest(), self.source.size_bytes)
        asked = dataclasses.replace(self.settings, output=None, overwrite=False, time_limit=None)
        journal = key_of("journal", model.digest(), str(asked), self.site.runtime, hardware.host().cpu)
        return Scales(
            baseline, self.site, self.store, self.feed, self.settings.seed, journal, self.metric, self.evaluator
        )


@contextmanager
def open_bench(settings: Settings, watch: Watcher) -> Iterator[Bench]:
    """Prepare everything; workers and scratch files end with the block.

    Raises a Fault when the model or the data cannot be used.
    """
    check_settings(settings)
    warm_up()
    recipe = parse_recipe(settings.recipe) if settings.recipe is not None else None
    extra = plugins(settings)
    check_recipe(recipe, extra)
    with ExitStack() as stack:
        target, site = choose_target(settings), open_site(settings.provider, settings.threads, settings.custom_ops)
        store = Store(settings.cache_dir)
        watch.stage("opening the model")
        source = open_model(settings, target, store, site, stack.enter_context(scratch_folder(store)))
        check_edges(settings, source, target, site)
        watch.stage("reading the data")
        splits, notes = gather_data(settings, source, store, stack)
        made_up = splits is None
        if splits is not None:
            bare = like(splits.select, SYNTHETIC_SAMPLES, settings.seed)
        else:
            bare = made_up_samples(source.model, settings.seed, store, site)
            notes = bare.warnings
        if splits is None and settings.allow_random_data:
            splits = Splits(bare, bare, bare, ("random data stands in for real data: nothing about quality is proven",))
        judging = splits.select if splits else None
        metric = None if settings.evaluator else choose_metric(settings, source.model, judging, stack)
        samples = splits.calibrate if splits is not None and len(splits.calibrate) else None
        slopes = partial(gradients, site=site, store=store)
        world = World(target, settings.seed, site, store, key_of, samples, slopes=slopes)
        verifier = Verifier(site, store, probes(source, judging, bare, store, site))
        stack.callback(verifier.close)
        add_adversaries(verifier, source.model, settings.seed)
        most, from_file = settings.source.caps.folded_bytes, source.kind == "onnx"
        builder = Builder(world, verifier, store, extra, most, isolate=from_file)
        stack.callback(builder.close)
        yield Bench(
            settings=settings,
            watch=watch,
            target=target,
            site=site,
            store=store,
            source=source,
            splits=splits,
            bare=bare,
            synthetic=made_up,
            metric=metric,
            evaluator=user_evaluator(settings, site, stack),
            budget=Budget.parse(settings.budget, EVALUATED if settings.evaluator else metric),
            recipe=recipe,
            feed=next(iter((judging or bare).feeds(timing_batch(settings))))[0],
            builder=builder,
            warnings=tuple(
                dict.fromkeys(
                    (*source.warnings, *_of_custom_ops(site), *notes, *_of_splits(splits), *_of_metric(metric))
                )
            ),
        )


def _of_custom_ops(site: Site) -> tuple[str, ...]:
    if not site.custom_ops:
        return ()
    return (f"code of {', '.join(Path(p).name for p in site.custom_ops)} ran in the workers (--custom-ops)",)


def _of_splits(splits: Splits | None) -> tuple[str, ...]:
    return splits.warnings if splits else ()


def _of_metric(metric: Metric | None) -> tuple[str, ...]:
    return (metric.note,) if metric and metric.note else ()


# -- the site ----------------------------------------------------------------------------------------------------------
def open_site(provider: str, threads: int, custom_ops: Sequence[Path] = ()) -> Site:
    """Where models will run. Raises a Fault when the provider is not here, or a library of custom operators is not."""
    return _site(providers.require(provider), threads, custom_ops)


def choose_site(provider: str, threads: int) -> Site:
    """Where models can be run and timed, by any engine. Raises a Fault when the provider is not here."""
    return _site(providers.choose(provider), threads)


def _site(full: str, threads: int, custom_ops: Sequence[Path] = ()) -> Site:
    for path in custom_ops:
        if not path.is_file():
            raise bad_input("there is no such library of custom operators", where=str(path), code="missing")
    return Site(full, threads, providers.version_of(full), tuple(str(p.resolve()) for p in custom_ops))


def choose_target(settings: Settings) -> Target:
    """The named target, else the one that fits this machine, with the ceilings of ``--runtime``."""
    named = settings.target
    fitting = hardware.load_target(named) if named else hardware.detect_target(providers.named(settings.provider))
    return hardware.with_runtime(fitting, settings.runtime)


def timing_batch(settings: Settings) -> int:
    """The batch that latency, or throughput, is measured at."""
    return THROUGHPUT_BATCH if settings.goal == "throughput" and settings.batch == 1 else settings.batch


@contextmanager
def scratch_folder(store: Store) -> Iterator[Path]:
    """A folder for exports, which the source may stay mapped to until the compile ends.

    It lies in the cache, where pruning finds what a killed run could not clean up.
    """
    folder = tempfile.mkdtemp(prefix="export-", dir=store.scratch)
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# -- the model and the recipe ------------------------------------------------------------------------------------------
def open_model(settings: Settings, target: Target, store: Store, site: Site, scratch: Path) -> Source:
    """Open MODEL, exporting it first when it is PyTorch; parity is measured with our own runtime."""

    def run(model: Model, feeds: Sequence[Mapping[str, Array]]) -> Sequence[Mapping[str, Array]]:
        with sessions.worker() as worker:
            return sessions.run(worker, store.put_model(model), [dict(f) for f in feeds], site)

    example = example_rows(settings.data, store)
    source = open_source(settings.source, target=target, scratch=scratch, run=run, example=example)
    idle = unused(settings.source)
    if settings.student is None or not set(idle) <= set(source.warnings):
        return source
    alone = dataclasses.replace(settings.source, example=None, dynamic=(), shapes=(), opset=None)  # the student's
    return dataclasses.replace(source, warnings=(*(w for w in source.warnings if w not in idle), *unused(alone)))


def open_student(bench: Bench) -> Model:
    """The module that ``--student`` names, exported as the source was. Raises a Fault as :func:`open_source` does."""
    assert bench.settings.student is not None
    request = dataclasses.replace(bench.settings.source, model=bench.settings.student, weights=None)
    scratch = bench.store.scratch / f"student-{key_of(bench.settings.student)}"
    scratch.mkdir(parents=True, exist_ok=True)
    return open_model(bench.settings.but(source=request), bench.target, bench.store, bench.site, scratch).model


def example_rows(wanted: DataRequest, store: Store) -> dict[str, Array] | None:
    """The first rows of the user's ``.npz``, as example inputs for an export."""
    text = wanted.data or wanted.calibrate or wanted.select or wanted.confirm
    if text is None or not text.endswith(".npz") or not Path(text).is_file():
        return None
    arrays = unpack(Path(text), store.scratch)
    return {name: a[:EXAMPLE_ROWS] if a.ndim else a for name, a in arrays.items()}


def check_settings(settings: Settings) -> None:
    """Refuse what the command line has no word for, but a script may say. Raises a usage Fault."""
    for name, known in (("goal", GOALS), ("golden", GOLDEN), ("level", LEVELS), ("recover", RECOVERIES)):
        if (given := getattr(settings, name)) not in known:
            raise usage(f"{name} cannot be {given!r}", hint=f"Known: {', '.join(map(str, known))}")
    if settings.preprocess is not None:
        boundary.preprocess(settings.preprocess)
    if settings.postprocess is not None:
        boundary.postprocess(settings.postprocess)
    for name, least in (("seed", 0), ("batch", 1), ("threads", 1)):
        if (given := getattr(settings, name)) < least:
            raise usage(f"{name} cannot be {given}", hint=f"The least is {least}")
    trains = settings.recover != "none" or settings.student is not None
    if trains and importlib.util.find_spec("torch") is None:
        raise cannot("training needs PyTorch", where="--recover", hint="pip install 'lathe[torch]'", code="no-torch")
    if not trains and (settings.steps is not None or settings.minutes is not None):
        raise usage("--steps and --minutes say how long to train", hint="Add --recover distill")


def check_edges(settings: Settings, source: Source, target: Target, site: Site) -> None:
    """Refuse steps before or after the network that do not fit the model, before any work is done."""
    before = boundary.preprocess(settings.preprocess) if settings.preprocess is not None else None
    after = boundary.postprocess(settings.postprocess) if settings.postprocess is not None else None
    if before is None and after is None:
        return
    if before is not None and before.decode:
        sessions.with_decoder(site)
    if before is not None:
        pictures.pillow()
    opset = wrap(source.model, before, after).opset
    if opset > target.max_opset:
        message = f"the steps need opset {opset}, and the target's runtime reads {target.max_opset} at most"
        raise usage(message, where=settings.preprocess or "", hint="Leave them out, or choose a newer --runtime")


def parse_recipe(text: str) -> Recipe:
    """A recipe from text or from a TOML file. Raises a usage Fault."""
    import tomllib

    path = Path(text)
    try:
        if path.suffix == ".toml":
            return Recipe.from_toml(tomllib.loads(path.read_text(encoding="utf-8")))
        return Recipe.parse(text)
    except OSError as error:
        raise bad_input(f"cannot read the recipe: {error.strerror}", where=text) from error
    except ValueError as error:  # RecipeError, TOMLDecodeError and bytes that are no text
        file = text if path.suffix == ".toml" else ""
        raise usage(f"cannot read the recipe: {error}", where=file, code="bad-recipe") from error


def check_recipe(recipe: Recipe | None, extra: dict[str, type[Pass]]) -> None:
    """Refuse unknown passes and options before any work is done."""
    try:
        catalogue.build(recipe or Recipe(), extra)
    except RecipeError as error:
        raise usage(str(error), code="bad-recipe") from error


def plugins(settings: Settings) -> dict[str, type[Pass]]:
    """Passes given as ``module:Class``; the user's folder is looked into last, so that it hides nothing of ours."""
    folder = str(settings.source.folder)
    if settings.passes and folder not in sys.path:
        sys.path.append(folder)
    try:
        with redirect_stdout(sys.stderr):
            found = {cls.name: cls for cls in map(catalogue.load, settings.passes)}
    except RecipeError as error:
        raise usage(str(error), code="bad-pass") from error
    if taken := next((name for name in found if name in catalogue.names()), None):
        raise usage(f"the name '{taken}' of a pass of yours is taken already", code="bad-pass")
    return found


# -- data and metric ---------------------------------------------------------------------------------------------------
def gather_data(
    settings: Settings, source: Source, store: Store, stack: ExitStack
) -> tuple[Splits | None, tuple[str, ...]]:
    """The three splits: from one source by the rule, or from a source each. ``None`` without any data."""
    wanted = settings.data
    if not wanted.given() and source.data is not None:
        wanted = DataRequest(data=str(source.data))
    if not wanted.given():
        return None, ()
    parts = {
        field.name: read_samples(text, settings, source, store, stack)
        for field in dataclasses.fields(wanted)
        if (text := getattr(wanted, field.name))
    }
    notes = tuple(dict.fromkeys(w for samples in parts.values() for w in samples.warnings))
    return complete(parts, settings.seed), notes


def complete(parts: Mapping[str, Samples], seed: int) -> Splits:
    """Named splits win; what is missing comes from ``--data``, else a third of the one judging split that there is."""
    whole = split(parts["data"], seed) if "data" in parts else None
    calibrate, select, confirm = (parts.get(n) for n in ("calibrate", "select", "confirm"))
    if whole is not None:
        return Splits(calibrate or whole.calibrate, select or whole.select, confirm or whole.confirm, whole.warnings)
    only = select or confirm
    if only is None:
        assert calibrate is not None
        halves = split(calibrate, seed)
        note = "only --calibrate was given, so it was split to select and confirm with too"
        return dataclasses.replace(halves, warnings=(*halves.warnings, note))
    calibrate = calibrate or only.take([])
    if select is not None and confirm is not None:
        return Splits(calibrate, select, confirm)
    order = np.random.default_rng(seed).permutation(len(only))
    third = max(1, len(only) // 3)
    note = "one source serves to select and to confirm: a third and the rest of it"
    return Splits(calibrate, only.take(np.sort(order[:third])), only.take(np.sort(order[third:])), (note,))


def read_unjudged(text: str, settings: Settings, source: Source, store: Store, stack: ExitStack) -> Samples:
    """Samples that models are only compared on: NaN and infinities are what they are."""
    if ":" in text and not Path(text).exists():
        return read_samples(text, settings, source, store, stack)
    return read(Path(text), source.model.signature.inputs, scratch=store.scratch, nan_ok=True)


def read_samples(text: str, settings: Settings, source: Source, store: Store, stack: ExitStack) -> Samples:
    """Samples from a path or from the user's reader."""
    inputs = source.model.signature.inputs
    nan_ok = any(domain == "ai.onnx.ml" for domain in source.model.ir.opset_imports)  # trees read NaN as missing
    if ":" in text and not Path(text).exists():
        found = stack.enter_context(UserFunction(text, settings.source.folder)).read()
        samples = from_arrays(found.arrays, inputs, where=text, nan_ok=nan_ok)
        return dataclasses.replace(samples, warnings=(*samples.warnings, *found.notes))
    steps = boundary.preprocess(settings.preprocess) if settings.preprocess is not None else None
    return read(Path(text), inputs, scratch=store.scratch, nan_ok=nan_ok, steps=steps)


def made_up_samples(model: Model, seed: int, store: Store, site: Site) -> Samples:
    """Seeded made-up inputs, to check and to time a model without data; a warning says so.

    Open dimensions get the first of a few sizes that the model runs with (the smallest when there is none: running the
    model will say what is wrong).
    """
    path = store.put_model(model)
    tried = guesses(model.signature.inputs, SYNTHETIC_SAMPLES, seed)
    first = next(tried)
    made = first
    if _open_dims(model):
        made = next((m for m in chain([first], tried) if accepts(path, _first_feed(m), site)), first)
    return dataclasses.replace(made, warnings=(*made.warnings, _made_up_note(_first_feed(made))))


def _first_feed(samples: Samples) -> dict[str, Array]:
    return next(iter(samples.feeds(1)))[0]


def _open_dims(model: Model) -> bool:
    return any(not isinstance(d, int) for port in model.signature.inputs for d in (port.dims or (None,)))


def _made_up_note(feed: Mapping[str, Array]) -> str:
    shapes = [f"{name} {list(array.shape)}" for name, array in feed.items()]
    told = ", ".join(shapes[:INPUTS_TOLD]) + (f" and {len(shapes) - INPUTS_TOLD} more" if shapes[INPUTS_TOLD:] else "")
    return (
        f"without data, inputs are made up ({told}), and what is measured holds for these: give real ones with --data"
    )


def choose_metric(settings: Settings, model: Model, samples: Samples | None, stack: ExitStack) -> Metric | None:
    """The metric asked for, else the one that fits the data. ``None`` without data."""
    spec = settings.metric
    if samples is None:
        if spec:
            raise usage(f"the metric '{spec}' needs data", hint="Name the data with --data")
        return None
    user: Callable[..., Any] | None = None
    if spec and ":" in spec and spec.partition(":")[0] not in METRICS:
        user = stack.enter_context(UserFunction(user_spec(spec)[0], settings.source.folder)).call
    return choose(spec, model.signature.outputs, samples, function=user)


def user_evaluator(settings: Settings, site: Site, stack: ExitStack) -> Evaluator | None:
    """The user's whole evaluation as a function of a model's path: higher is better."""
    if settings.evaluator is None:
        return None
    function = stack.enter_context(UserFunction(settings.evaluator, settings.source.folder))

    def evaluate(path: Path) -> float:
        with sessions.worker() as worker:
            try:
                told = function.evaluate(lambda feeds: sessions.run(worker, path, [dict(feeds)], site)[0])
            except Fault as fault:
                fault.where = fault.where or str(settings.evaluator)
                raise
        try:
            return float(told)
        except (TypeError, ValueError) as error:
            text = f"the evaluator returned {type(told).__name__}, not a number"
            raise bad_input(text, where=str(settings.evaluator)) from error

    return evaluate


def probes(source: Source, judging: Samples | None, bare: Samples, store: Store, site: Site) -> list[dict[str, Array]]:
    """Feeds for verification: a few real samples, alone and together, and synthetic ones that the model accepts.

    Raises a Fault when the source itself cannot run on them.
    """
    found: list[dict[str, Array]] = []
    if judging is not None:
        few = judging.take(np.arange(min(PROBE_SAMPLES, len(judging))))
        found = [next(iter(few.feeds(1)))[0], next(iter(few.feeds(len(few))))[0]]
    path = store.put_model(source.model)
    with sessions.worker() as worker:
        try:
            sessions.run(worker, path, found, site)
            made_up = [feed for feed, _ in bare.take(np.arange(2)).feeds(2)]
            found += [feed for feed in made_up if not found or accepts(path, feed, site)]
            sessions.run(worker, path, found[-1:], site)
        except Fault as fault:
            fault.where = fault.where or source.where
            raise
    return found


def add_adversaries(verifier: Verifier, source: Model, seed: int) -> None:
    """Give ``verifier`` the adversarial feeds that the source runs on."""
    ports, base = source.signature.inputs, verifier.probes[0]
    tried = adversaries(ports, base, seed, source.weight_bytes())
    verifier.adversaries, verifier.refused = verifier.tolerated(source, tried)


def accepts(path: Path, feed: dict[str, Array], site: Site) -> bool:
    """Whether the model runs on a made-up feed at all."""
    with sessions.worker() as worker:
        try:
            sessions.run(worker, path, [feed], site)
        except Fault:
            return False
    return True


def candidate_weight(candidate: Candidate) -> Weighed:
    """A candidate as something that the scales take."""
    return Weighed(candidate.path, candidate.model.digest(), candidate.model.file_bytes())
