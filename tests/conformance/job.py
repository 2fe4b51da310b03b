"""The harness's child: one case through the product's own road, pass by pass and alone, or through another optimizer.

Loaded by path in a process that is warm from the case before. Everything that it returns is plain data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from optimizer.data.readers import read
from optimizer.data.samples import Samples
from optimizer.faults import Fault
from optimizer.plan import PROVIDERS
from optimizer.runtime import hardware, providers
from optimizer.runtime.answers import World
from optimizer.runtime.sessions import Site
from optimizer.source import onnx_file
from optimizer.store.store import Store, key_of
from optimizer.verify.apply import Builder, Candidate
from optimizer.verify.verifier import Check, Verifier
from optimizer.workers import pool
from passes import catalogue
from passes.kit.context import NoData
from passes.kit.contract import Exactness
from passes.kit.model import Model
from passes.kit.recipe import Recipe, Step
from passes.kit.target import Target
from tests.conformance.cases import Case
from tests.conformance.judge import PASSES, Bench, Verdict

pool.PRELOAD = (*pool.PRELOAD, "onnxsim")
"""What simplify imports in every worker costs three seconds; here it is paid once."""

LEVEL = "-O1"


def trial_names() -> list[str]:
    """The lossless preset, and every pass of the catalogue that is not lossy, by itself."""
    return [LEVEL, *(name for name in catalogue.names() if catalogue.find(name).exactness is not Exactness.LOSSY)]


class Trusting(Verifier):
    """A verifier that believes everything: what a pass does is then judged by what the case expects, and nothing else
    stands in its way."""

    def digest(self) -> str:
        return "trusting"

    def check(self, before: Model, after: Model, exactness: Exactness) -> Check:
        return Check("")

    def first_fault(self, chain: Sequence[Model], exactness: Exactness) -> int | None:
        return None


@dataclass(frozen=True)
class _Place:
    """What does not differ between cases."""

    target: Target
    site: Site
    store: Store


@cache
def _place(scratch: str) -> _Place:
    provider = providers.require(PROVIDERS["cpu"])
    site = Site(provider, 1, str(providers.runtime().__version__))
    return _Place(hardware.detect_target(provider), site, Store(Path(scratch)))


def run_case(case: dict[str, Any], scratch: str, trials: list[str]) -> dict[str, Any]:
    """Take one case through ``trials`` (names of :func:`trial_names`) and judge each result."""
    place = _place(scratch)
    with _bench(Case(**case), place.site) as bench:
        told = {"runtime": bench.runtime, "why": bench.why, "reference": bench.reference, "trials": {}}
        try:
            model = onnx_file.load(bench.case.model, place.target).model
        except Fault as fault:
            told["trials"] = {LEVEL: Verdict("refused", str(fault)).plain()}
            return told
        samples = _samples(bench.case, model, place)
        for name in trials:
            told["trials"][name] = _try(name, model, bench, place, samples)
    return told


def run_peer(case: dict[str, Any], scratch: str, peer: str) -> dict[str, Any]:
    """Take one case that onnxruntime passes through another optimizer and judge what it made."""
    from tests.conformance.peers import PEERS

    place = _place(scratch)
    with _bench(Case(**case), place.site) as bench:
        told = {"runtime": bench.runtime, "why": bench.why, "reference": bench.reference}
        if bench.runtime != PASSES:
            return {**told, "trials": {}}
        out = Path(scratch) / "peer.onnx"
        try:
            changed = PEERS[peer].run(bench.case.model, out)
        except Exception as error:
            verdict = Verdict("raises", f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}")
        else:
            verdict = bench.judge(out, changed=changed)
        return {**told, "trials": {peer: verdict.plain()}}


@contextmanager
def _bench(case: Case, site: Site) -> Iterator[Bench]:
    bench = Bench(case, site)
    try:
        bench.prepare()
        yield bench
    finally:
        bench.close()


def _samples(case: Case, model: Model, place: _Place) -> Samples | None:
    """The case's inputs as calibration data, where the product reads them."""
    try:
        return read(Path(case.folder), model.signature.inputs, scratch=place.store.scratch, nan_ok=True)
    except Fault:
        return None


def _try(name: str, model: Model, bench: Bench, place: _Place, samples: Samples | None) -> dict[str, Any]:
    """One trial: -O1 with its verification, a pass alone without."""
    real = name == LEVEL and bench.runs
    kind = Verifier if real else Trusting
    verifier = kind(place.site, place.store, bench.feeds)
    world = World(place.target, 0, place.site, place.store, key_of, samples)
    recipe = catalogue.LOSSLESS if name == LEVEL else Recipe((Step(name),))
    try:
        candidate = Builder(world, verifier, place.store, {}).build(model, recipe)
    except NoData as error:
        return Verdict("no data", str(error)).plain()
    except Fault as fault:
        return Verdict("refused", str(fault)).plain()
    except Exception as error:
        return Verdict("untyped error", f"{type(error).__name__}: {str(error)[:300]}").plain()
    finally:
        verifier.close()
    verdict = bench.judge(candidate.path, changed=candidate.model.digest() != model.digest())
    return {**verdict.plain(), "changes": _changes(candidate), "faults": list(candidate.fault_lines())}


def _changes(candidate: Candidate) -> dict[str, int]:
    """How many rewrites each pass made that stayed."""
    found: dict[str, int] = {}
    for note in candidate.notes:
        if note.changes and not note.fault:
            found[note.name] = found.get(note.name, 0) + note.changes
    return found
