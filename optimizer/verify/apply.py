"""A recipe applied pass by pass: every pass's output is verified against its input, faulty passes are left out."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from optimizer.faults import Fault
from optimizer.plan import Caps
from optimizer.records import PassNote
from optimizer.runtime import sessions
from optimizer.runtime.answers import World
from optimizer.runtime.hardware import available_memory
from optimizer.runtime.jobs import ASKS_THE_WORLD
from optimizer.runtime.sessions import JOBS
from optimizer.store.store import Store, key_of
from optimizer.verify.culprits import Culprit, without_culprits
from optimizer.verify.proofs import Counts, count
from optimizer.verify.reduce import TOLERANCE, reduce
from optimizer.verify.reproduce import folder_name, write
from optimizer.verify.verifier import Verifier
from optimizer.workers.pool import CallFailed, Worker, WorkerDied
from passes import catalogue
from passes.kit.context import NoData, Site, Without
from passes.kit.contract import Change, Exactness, Pass, PassResult, Skip
from passes.kit.model import LARGEST_PROTO_BYTES, Model
from passes.kit.recipe import Recipe

NATIVE_SECONDS = 600.0
REPRODUCERS = "reproducers"
WORKING_COPIES = 4
"""Copies of the weights that a pass may hold at once: input, fork, float64 arithmetic, serialized form."""

ISOLATED_SLACK_BYTES = 640 * 2**20
"""Address space, beside copies of the weights, of the worker that runs our passes on a file."""


@dataclass(frozen=True)
class Candidate:
    """What a recipe made of the source. ``recipe`` leaves out the passes that faulted; ``path`` can be run."""

    model: Model
    recipe: Recipe
    notes: tuple[PassNote, ...]
    path: Path
    lossy: bool
    answers: tuple[str, ...] = ()

    @property
    def faults(self) -> tuple[PassNote, ...]:
        """Notes of the passes that were left out because they broke something."""
        return tuple(n for n in self.notes if n.fault)

    def fault_lines(self) -> tuple[str, ...]:
        """One line for each pass, and for each single rewrite, that was left out."""
        single = tuple(f"{n.name} was kept without {text}" for n in self.notes for text in n.left_out)
        return (*(f"{n.name} was left out: {n.fault}" for n in self.faults), *single)


@dataclass(frozen=True)
class _Link:
    """One pass of a chain: the model after it and what is told of it."""

    model: Model
    note: PassNote
    exactness: Exactness


@dataclass(frozen=True)
class _Attempt:
    """What became of one pass: its result, or the model as it was with the fault in words."""

    result: PassResult
    fault: str = ""
    worst: float | None = None
    left_out: tuple[str, ...] = ()


@dataclass
class Builder:
    """Applies recipes to one source. Prefixes that were applied before come from the store.

    ``isolate`` runs our own lossless passes in a worker too, because the source is a file that may have been made to
    exhaust memory or time in the libraries that they use. Call :meth:`close` at the end.
    """

    world: World
    verifier: Verifier
    store: Store
    extra: dict[str, type[Pass]]
    most_folded_bytes: int = Caps().folded_bytes
    isolate: bool = False
    _worker: Worker | None = None

    def build(self, source: Model, recipe: Recipe) -> Candidate:
        """Apply ``recipe`` to ``source``. Raises :class:`NoData` when a pass needs data that is not there."""
        subjects = catalogue.build(recipe, self.extra)
        start = len(self.world.answered)
        self.world.original = source
        dropped: set[int] = set()
        links = self._chain(source, recipe, subjects, dropped)
        while (guilty := self._drifted(source, links)) is not None:
            fault = f"together with the passes before it, it moves the outputs: {links[guilty].note.name}"
            dropped.add(guilty)
            links = self._chain(source, recipe, subjects, dropped, {guilty: fault})
        kept = tuple(s for s, link in zip(recipe.steps, links, strict=True) if not link.note.fault)
        lossy = any(link.exactness is Exactness.LOSSY and link.note.changes for link in links)
        model = links[-1].model if links else source
        return Candidate(
            model,
            Recipe(kept),
            tuple(link.note for link in links),
            self.store.put_model(model),
            lossy,
            tuple(self.world.answered[start:]),
        )

    def _chain(
        self,
        source: Model,
        recipe: Recipe,
        subjects: Sequence[Pass],
        dropped: set[int],
        reasons: dict[int, str] | None = None,
    ) -> list[_Link]:
        links: list[_Link] = []
        model = source
        for i, (step, subject) in enumerate(zip(recipe.steps, subjects, strict=True)):
            if i in dropped:
                note = PassNote(subject.name, subject.exactness.value, 0, 0.0, fault=(reasons or {}).get(i, "drifts"))
            else:
                model, note = self._one(model, step.text(), subject)
            links.append(_Link(model, note, subject.exactness))
        return links

    def _drifted(self, source: Model, links: Sequence[_Link]) -> int | None:
        """Index of the lossless pass at which the chain as a whole left its tolerance, or ``None``."""
        lossless = [i for i, link in enumerate(links) if link.exactness is not Exactness.LOSSY]
        if not lossless or (first_lossy := _first_lossy(links)) == 0:
            return None
        chain = [source, *(link.model for link in links[:first_lossy])]
        found = self.verifier.first_fault(chain, Exactness.NUMERIC)
        return None if found is None else found - 1

    def _one(self, model: Model, text: str, subject: Pass) -> tuple[Model, PassNote]:
        key = self._key(model, text, subject)
        kept = self.store.get_answer(key)
        if kept is not None and (known := self._recall(kept, model)) is not None:
            return known
        start, asked = time.monotonic(), len(self.world.answered)
        done = self._attempt(model, text, subject)
        result = done.result
        counted = count(model, result) if subject.exactness is not Exactness.LOSSY and result.changes else Counts()
        note = PassNote(
            subject.name,
            subject.exactness.value,
            len(result.changes),
            time.monotonic() - start,
            tuple(f"{s.where}: {s.reason}" for s in result.skips),
            done.fault,
            done.worst,
            done.left_out,
            counted.proved,
            counted.tested,
            counted.unreached,
        )
        self.store.put_model(result.model)
        answered = self.world.answered[asked:]
        self.store.put_answer(key, {"model": result.model.digest(), "note": asdict(note), "answered": answered})
        return result.model, note

    def _attempt(self, model: Model, text: str, subject: Pass) -> _Attempt:
        """The pass's result, or the model as it was with the fault in words."""
        needed = WORKING_COPIES * model.weight_bytes()
        if needed > available_memory():
            free = f"{available_memory() / 2**30:.1f} GiB are free"
            return _Attempt(PassResult(model), f"it needs about {needed / 2**30:.1f} GiB of memory and {free}")
        try:
            result = self._applied(model, text, subject)
        except NoData:
            raise
        except Exception as error:
            return _Attempt(PassResult(model), _words(error))
        if not result.changes:
            return _Attempt(result)
        grown = result.model.weight_bytes() - model.weight_bytes()
        if grown > self.most_folded_bytes:
            fault = f"it adds {grown:,} bytes to the weights; --max-folded-bytes allows more"
            return _Attempt(PassResult(model), fault)
        check = self.verifier.check(model, result.model, subject.exactness)
        if check.fault:
            whole = _Attempt(PassResult(model), check.fault, check.worst)
            return self._rescued(model, text, subject, result, whole)
        return _Attempt(result, worst=check.worst)

    def _rescued(self, model: Model, text: str, subject: Pass, faulty: PassResult, whole: _Attempt) -> _Attempt:
        """What the pass gives without its wrong rewrites, each with a reproducer; ``whole`` when they are not found.

        Native code has no sites to leave out, and where a pass spends quality its layers are the search's to choose.
        """
        if subject.native or subject.exactness is Exactness.LOSSY:
            return whole

        def run(sites: frozenset[Site]) -> PassResult:
            return self._applied(model, text, subject, sites)

        def fails(after: Model) -> str:
            return self.verifier.check(model, after, subject.exactness).fault

        try:
            found = without_culprits(run, fails, faulty)
        except Exception as error:
            return replace(whole, fault=f"{whole.fault}; without some of its rewrites: {_words(error)}")
        if found is None:
            return whole
        result, culprits = found
        told = tuple(f"{c}{self._reproduced(model, subject, c)}" for c in culprits)
        worst = self.verifier.check(model, result.model, subject.exactness).worst if result.changes else None
        return _Attempt(result, worst=worst, left_out=told)

    def _reproduced(self, model: Model, subject: Pass, culprit: Culprit) -> str:
        """Where the reduced fault was written, in words; nothing when it cannot be shown on a small model."""
        probe = self.verifier.check(model, culprit.shown_by, subject.exactness).probe
        if probe is None:
            return ""
        feed = self.verifier.all_probes()[probe].feed
        tolerance = 0.0 if subject.exactness is Exactness.EXACT else TOLERANCE
        try:
            pair = reduce(model, culprit.shown_by, feed, self._values, tolerance)
            if pair is None:
                return ""
            name = folder_name(subject.name, culprit.site, pair)
            write(self.store.root / REPRODUCERS / name, pair, f"{subject.name}, {culprit}", tolerance)
        except Exception as error:
            return f" (no reproducer: {_words(error)})"  # the verdict stands without the folder
        return f" (reproducer: {REPRODUCERS}/{name} in the cache folder, {pair.nodes} nodes)"

    def _values(self, model: Model, feed: Mapping[str, Any], names: Sequence[str]) -> Mapping[str, Any]:
        return self.world.run(model, [feed], names)[0]

    def _applied(self, model: Model, text: str, subject: Pass, forbidden: frozenset[Site] = frozenset()) -> PassResult:
        """What the pass gives. One that wraps native code or is not ours runs in a worker, where it may crash, exit
        and print; unless it asks for something that only this process can answer."""
        context = Without(self.world, forbidden) if forbidden else self.world
        ours = not subject.native and _is_ours(type(subject).__module__)
        apart = self.isolate and subject.exactness is not Exactness.LOSSY and model.weight_bytes() < LARGEST_PROTO_BYTES
        if ours and not apart:
            return subject(model, context)
        try:
            return self._native(model, text, type(subject), forbidden, self._kept(model) if ours else None)
        except CallFailed as failure:
            if subject.native or failure.kind != ASKS_THE_WORLD:
                raise
        with contextlib.redirect_stdout(sys.stderr):
            return subject(model, context)

    def _kept(self, model: Model) -> Worker:
        """The worker for our own passes, started again should it have died. It may take so much memory and no more."""
        if self._worker is None or not self._worker.alive:
            self._worker = sessions.worker()
            room = ISOLATED_SLACK_BYTES + 2 * WORKING_COPIES * model.weight_bytes()
            self._worker.call("optimizer.workers.limits:hold", extra_address_bytes=room)
        return self._worker

    def close(self) -> None:
        """End the worker."""
        if self._worker is not None:
            self._worker.close()

    def _native(
        self, model: Model, text: str, cls: type[Pass], forbidden: frozenset[Site], kept: Worker | None = None
    ) -> PassResult:
        """Run a pass in a worker (``kept``, else a fresh one), so that a crash there costs the pass alone."""
        out = self.store.scratch / f"native-{key_of(model.digest(), text)}.onnx"
        try:
            with contextlib.nullcontext(kept) if kept else sessions.worker() as worker:
                answer = worker.call(
                    JOBS + "apply_native",
                    timeout=NATIVE_SECONDS,
                    path=str(self.store.put_model(model)),
                    recipe=text,
                    target=asdict(self.world.target),
                    seed=self.world.seed,
                    out=str(out),
                    home=f"{cls.__module__}:{cls.__qualname__}",
                    folders=[p for p in sys.path if p],
                    forbidden=sorted(map(list, forbidden)),
                )
            changed = self._mapped(Model.from_bytes(out.read_bytes())) if answer["changes"] else model
        finally:
            out.unlink(missing_ok=True)
        changes = tuple(Change(*c) for c in answer["changes"])
        return PassResult(changed, changes, tuple(Skip(*s) for s in answer["skips"]))

    def _mapped(self, model: Model) -> Model:
        """The same model with its weights mapped from the store, where candidates share them."""
        self.store.put_model(model)
        return self.store.get_model(model.digest()) or model

    def _key(self, model: Model, text: str, subject: Pass) -> str:
        lossy = subject.exactness is Exactness.LOSSY
        data = self.world.samples.digest() if self.world.samples and lossy else ""
        original = self.world.original.digest() if self.world.original is not None and lossy else ""
        target = key_of(asdict(self.world.target))
        code = code_digest(type(subject).__module__)
        runtime, probes = self.world.site.runtime, self.verifier.digest()
        told = (target, self.world.seed, data, original, code, runtime, probes, self.most_folded_bytes)
        return key_of("pass", model.digest(), text, *told)

    def _recall(self, kept: dict[str, Any], model: Model) -> tuple[Model, PassNote] | None:
        found = model if kept["model"] == model.digest() else self.store.get_model(kept["model"])
        if found is None:
            return None
        self.world.answered.extend(kept["answered"])
        note = {**kept["note"], **{k: tuple(kept["note"][k]) for k in ("skips", "left_out")}}
        return found, PassNote(**note)


def _first_lossy(links: Sequence[_Link]) -> int:
    return next((i for i, link in enumerate(links) if link.exactness is Exactness.LOSSY), len(links))


def _words(error: Exception) -> str:
    if isinstance(error, Fault):
        return error.message
    if isinstance(error, WorkerDied):
        return str(error)
    kind = error.kind if isinstance(error, CallFailed) else type(error).__name__
    return f"it raised {kind}: {str(error).splitlines()[0] if str(error) else ''}"


def _is_ours(module: str) -> bool:
    return module.startswith("passes.")


@cache
def code_digest(module: str) -> str:
    """Digest of the sources that shape what a pass does: the whole passes package, and the module of a plugin."""
    digest = hashlib.sha256()
    root = Path(inspect.getfile(catalogue)).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    if not _is_ours(module):
        digest.update(Path(inspect.getfile(sys.modules[module])).read_bytes())
    return digest.hexdigest()
