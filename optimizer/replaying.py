"""``lathe replay``: an artifact made again from its manifest, and whether the same bytes come out."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from optimizer import ship
from optimizer.faults import bad_input, cannot
from optimizer.package import artifact, manifest
from optimizer.package.artifact import REPORT, SCRIPT
from optimizer.package.formats.base import open_artifact
from optimizer.package.receiver.words import EVIDENCE, MANIFEST
from optimizer.plan import Settings
from optimizer.progress import Watcher
from optimizer.recover.distill import STEP
from optimizer.report.nouns import Differing, Replayed
from optimizer.report.pages import spell_toml
from optimizer.store.store import Store
from optimizer.verify.apply import code_digest
from optimizer.workshop import Bench, open_bench, plugins, scratch_folder
from passes import catalogue
from passes.kit.recipe import Recipe

PER_VERSION = {SCRIPT}
"""Files that follow the version of Lathe, not the recipe."""


def replay(folder: Path, settings: Settings, output: Path | None, watch: Watcher) -> Replayed:
    """Make the artifact in ``folder`` again and compare: every file that its manifest lists, and the manifest itself.

    ``settings`` say where the model and the data are; everything else is the manifest's. ``output`` keeps what was
    made, with the evidence and the report of the original. Raises :class:`~optimizer.faults.Fault`: environment when
    the model or the data is not here (the digest is named), bad input when another model was given.
    """
    before = open_artifact(folder).manifest
    _require_passes(before, settings)
    _require_model(before, settings)
    with ExitStack() as stack:
        store = Store(settings.cache_dir)
        scratch = stack.enter_context(scratch_folder(store))
        asked = as_asked(before, settings, scratch)
        bench = stack.enter_context(open_bench(asked, watch))
        _same_inputs(before, settings, bench)
        watch.stage("applying the recipe")
        place = output if output is not None else scratch / "replayed"
        _make(before, bench, folder, place)
        return _compared(folder, before, place, output)


def as_asked(before: Mapping[str, Any], settings: Settings, scratch: Path) -> Settings:
    """The settings that the manifest tells, with the model and data of ``settings``."""
    source, options = settings.source, before["source"].get("options", {})
    model = source.model or str(before["source"]["name"])
    target = scratch / "target.toml"
    definition = before["target"]["definition"]
    target.write_text("".join(f"{k} = {spell_toml(v)}\n" for k, v in definition.items()), encoding="utf-8")
    request = dataclasses.replace(
        source,
        model=model,
        example=options.get("example"),
        dynamic=tuple(options.get("dynamic", ())),
        shapes=tuple(options.get("shapes", ())),
        opset=options.get("opset"),
        fix_training=bool(options.get("fix_training", False)),
    )
    if options.get("weights") and source.weights is None:
        raise cannot(f"replay needs the weights with SHA-256 {options['weights']}", hint="Name them with --weights.")
    metric = before["metric"] if before["metric"] and ":" not in before["metric"] else None
    given = settings.data.given() or before["source"]["kind"] == "sample"
    return settings.but(
        source=request,
        metric=metric if given else None,
        recipe=before["recipe"]["text"],
        target=str(target),
        provider=before["provider"],
        seed=before["seed"],
        golden=before["golden"]["origin"],
        allow_random_data=not given and bool(before["data"]),
        level=1,
        **before["runs_at"],
    )


def _require_passes(before: Mapping[str, Any], settings: Settings) -> None:
    """Raises a Fault for a step that no pass makes: what was trained, or a pass of the user's that was not named."""
    if any(step["name"] == STEP for step in before["recipe"]["steps"]):
        message = "replay cannot make this artifact again, because its weights were trained"
        hint = "They hang on how many steps were planned and on PyTorch's rounding, which the recipe does not tell."
        raise cannot(message, hint=f"{hint} `lathe verify` holds it to its golden pairs.", code="trained")
    known = {*catalogue.names(), *plugins(settings)}
    strange = [step["name"] for step in before["recipe"]["steps"] if step["name"] not in known]
    if strange:
        hint = "If it is a pass of yours, name it with --pass."
        raise cannot(f"replay cannot make '{strange[0]}' again: it is no pass that is here", hint=hint, code="no-pass")


def _require_model(before: Mapping[str, Any], settings: Settings) -> None:
    """Raises a Fault that names the digest to look for when the file that the manifest names is not here."""
    source = before["source"]
    if settings.source.model or source["kind"] != "onnx" or (settings.source.folder / source["name"]).exists():
        return
    hint = f"Name it with --model; its digest is {source['digest']}."
    raise cannot(f"replay needs the model '{source['name']}', which is not here", hint=hint, code="missing-model")


def _same_inputs(before: Mapping[str, Any], settings: Settings, bench: Bench) -> None:
    found, wanted = bench.source.digest, before["source"]["digest"]
    if found != wanted and bench.source.kind == "onnx":
        message = f"this is another model: its digest is {found}, the artifact was made from {wanted}"
        raise bad_input(message, where=bench.source.where, code="other-model")
    here = ship.data_digests(bench)
    for split, digest in sorted(before["data"].items()):
        if here.get(split) != digest:
            got = f"; what was given has {here[split]}" if settings.data.given() and split in here else ""
            message = f"replay needs the data of which {split} has the digest {digest}{got}"
            raise cannot(message, hint="Name it with --data, as at the making.", code="missing-data")


def _make(before: Mapping[str, Any], bench: Bench, folder: Path, place: Path) -> None:
    """The artifact again: the recipe applied and verified, golden pairs, manifest; what was measured is copied."""
    candidate = bench.builder.build(bench.source.model, bench.recipe or Recipe())
    pairs = ship.golden_pairs(bench, candidate.model)
    source = manifest.SourceIdentity(
        before["source"]["name"],
        bench.source.kind,
        bench.source.digest,
        before["source"]["options"],
        before["source"]["parents"],
    )
    tree = manifest.build(
        model=candidate.model,
        source=source,
        recipe=candidate.recipe,
        target=bench.target,
        provider=bench.site.provider,
        seed=bench.settings.seed,
        packages=ship.shaping_packages(),
        data=before["data"],
        metric=before["metric"],
        budget=before["budget"],
        lossy=candidate.lossy,
        golden=pairs,
        golden_origin=bench.settings.golden,
        custom_ops=before["requires"].get("custom_ops"),
        runs_at=before["runs_at"],
        code=code_digest("passes."),
        licence=before["licence"],
    )
    evidence = json.loads((folder / EVIDENCE).read_text("utf-8"))
    report = (folder / REPORT).read_text("utf-8")
    artifact.write(place, artifact.Contents(candidate.model, tree, evidence, report, pairs))


def _compared(folder: Path, before: Mapping[str, Any], place: Path, output: Path | None) -> Replayed:
    after = json.loads((place / MANIFEST).read_text("utf-8"))
    files = {n: d["sha256"] for n, d in before["files"].items()}
    again = {n: d["sha256"] for n, d in after["files"].items()}
    wrong = [n for n in sorted({*files, *again}) if files.get(n) != again.get(n) and n not in PER_VERSION]
    found = [Differing(n, files.get(n, "missing"), again.get(n, "missing")) for n in wrong]
    notes = [d for key in ("tool", "packages", "recipe", "model", "signature") for d in _parted(key, before, after)]
    same = not wrong and (folder / MANIFEST).read_bytes() == (place / MANIFEST).read_bytes()
    if output is None:
        shutil.rmtree(place)
    return Replayed(str(folder), not wrong, same, tuple(found), tuple(notes), str(output) if output else "")


def _parted(key: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Differing]:
    """Members of one member of the manifest that differ."""
    a, b = before[key], after[key]
    return [Differing(f"{key}.{k}", str(a.get(k)), str(b.get(k))) for k in sorted({*a, *b}) if a.get(k) != b.get(k)]
