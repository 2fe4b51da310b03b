"""The manifest: what an artifact is and how to make it again. Nothing measured, no dates, no names of machines."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from optimizer import __version__
from optimizer.package.golden import GoldenPair, tolerances
from optimizer.package.receiver.words import MANIFEST, MODEL, SCHEMA, SCHEMA_FAMILY
from passes.kit.model import Model, Port
from passes.kit.recipe import Recipe
from passes.kit.target import Target

_QUANTIZED = ("QuantizeLinear", "DynamicQuantize", "QLinear", "Integer", "MatMulNBits", "QGemm", "QAttention")
_LICENCE_WORDS = ("license", "licence", "copyright", "author")


@dataclass(frozen=True)
class SourceIdentity:
    """Where the model came from. ``kind`` is onnx, torch or sample; ``digest`` the SHA-256 of what was opened.

    ``options`` shape what an export gives, ``parents`` are artifacts that it was taken out of (:func:`parents_of`).
    """

    name: str
    kind: str
    digest: str
    options: Mapping[str, Any] = field(default_factory=dict)
    parents: Sequence[Mapping[str, str]] = ()


def build(
    *,
    model: Model,
    source: SourceIdentity,
    recipe: Recipe,
    target: Target,
    provider: str,
    seed: int,
    packages: Mapping[str, str],
    data: Mapping[str, str] | None = None,
    metric: str | None = None,
    budget: Sequence[str] = (),
    lossy: bool = False,
    golden: Sequence[GoldenPair] = (),
    golden_origin: str = "synthetic",
    runs_at: Mapping[str, int] | None = None,
    custom_ops: Mapping[str, str] | None = None,
    code: str = "",
    licence: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The manifest of ``model`` as plain data; :func:`optimizer.package.artifact.write` adds ``files``.

    ``data`` holds one digest per split, ``packages`` the versions of whatever shapes the bytes, ``runs_at`` the batch
    size and threads that speed was measured at, ``custom_ops`` the digests of libraries that the model needs, ``code``
    the digest of the passes' sources, ``licence`` what is known of the terms (see :func:`licence_of`). ``lossy`` says
    that the recipe spends quality. The same arguments give the same bytes: everything measured belongs into the
    evidence.
    """
    loose = lossy or is_quantized(model)
    opsets = {domain or "ai.onnx": version for domain, version in model.ir.opset_imports.items()}
    requires = {
        "cpu_features_any": list(target.requires) if loose else [],
        "providers": [provider.partition(":")[0].strip()],
        "opsets": opsets,
        "ir": model.ir.ir_version,
    }
    return {
        "schema": SCHEMA,
        "tool": {"name": "lathe", "version": __version__, "code": code},
        "source": {
            "name": _public_name(source),
            "kind": source.kind,
            "digest": source.digest,
            "options": dict(source.options),
            "parents": [dict(parent) for parent in source.parents],
        },
        "licence": dict(licence or {}),
        "recipe": {
            "text": recipe.text(),
            "steps": [{"name": s.name, "options": _plain(s.options)} for s in recipe.steps],
        },
        "target": {
            "name": target.name,
            "digest": digest_of(dataclasses.asdict(target)),
            "definition": _definition(target),
        },
        "provider": provider,
        "requires": requires | ({"custom_ops": dict(custom_ops)} if custom_ops else {}),
        "data": dict(data or {}),
        "metric": metric,
        "budget": list(budget),
        "seed": seed,
        "runs_at": dict(runs_at or {"batch": 1, "threads": 1}),
        "packages": dict(packages),
        "model": {
            "digest": model.digest(),
            "opsets": opsets,
            "ir": model.ir.ir_version,
            "quantized": is_quantized(model),
        },
        "signature": signature_of(model),
        "golden": {
            "origin": golden_origin if golden else "none",
            "pairs": len(golden),
            "tolerance": {n: dataclasses.asdict(t) for n, t in tolerances(golden, lossy=loose).items()},
        },
    }


def licence_of(model: Model, stated: str | None = None) -> dict[str, str]:
    """What is known of the model's terms: the licence, copyright and author notes among its metadata, by their keys,
    and under ``license`` what the user ``stated``."""
    notes = {k: v for k, v in model.ir.metadata_props.items() if any(word in k.lower() for word in _LICENCE_WORDS)}
    return notes | ({"license": stated} if stated else {})


def parents_of(place: Path) -> tuple[dict[str, str], ...]:
    """The artifact that ``place`` is, or is the model of: its name, the SHA-256 of its manifest and its model's digest.
    Empty for anything else."""
    folder = place if place.is_dir() else place.parent
    try:
        data = (folder / MANIFEST).read_bytes()
        tree = json.loads(data)
        if not str(tree["schema"]).startswith(SCHEMA_FAMILY) or not (place.is_dir() or place.name == MODEL):
            return ()
        model = str(tree["model"]["digest"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ()
    return ({"name": folder.resolve().name, "manifest": hashlib.sha256(data).hexdigest(), "model": model},)


def signature_of(model: Model) -> dict[str, list[dict[str, Any]]]:
    """Inputs and outputs as plain data: name, type and dims (a number, a name, or null where it is open)."""
    ports = model.signature
    return {"inputs": [_port(p) for p in ports.inputs], "outputs": [_port(p) for p in ports.outputs]}


def is_quantized(model: Model) -> bool:
    """Whether any operator computes with, or rounds to, quantized integers."""
    return any(any(word in node.op_type for word in _QUANTIZED) for node in model.nodes())


def to_text(tree: Mapping[str, Any]) -> str:
    """JSON with sorted keys, readable, the same for the same tree. Raises ``ValueError`` for NaN and infinities."""
    return json.dumps(tree, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def digest_of(tree: Any) -> str:
    """SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True, default=str).encode()).hexdigest()


def _definition(target: Target) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(target).items()}


def _port(port: Port) -> dict[str, Any]:
    return {"name": port.name, "type": port.type, "dims": None if port.dims is None else list(port.dims)}


def _plain(options: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in options}


def _public_name(source: SourceIdentity) -> str:
    """The name without its folder, in either system's spelling: folders say things about people's machines."""
    if source.kind == "torch":
        return source.name  # package.module:factory
    return PurePosixPath(PureWindowsPath(source.name).name).name or source.name
