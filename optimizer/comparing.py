"""``lathe diff``: how two artifacts or models differ, from what they are and what was measured of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from optimizer.package.manifest import signature_of
from optimizer.package.receiver.words import EVIDENCE, MANIFEST, SCHEMA_FAMILY
from optimizer.plan import Settings
from optimizer.report.nouns import Difference, Differing
from optimizer.runtime import hardware
from optimizer.store.store import Store
from optimizer.workshop import open_model, open_site, scratch_folder
from passes.kit.model import Model, tensor_digest

NAMED = 5
"""Weights that are named one by one; more are counted."""

_MADE = ("tool", "source", "target", "provider", "requires", "data", "metric", "budget", "seed", "runs_at", "packages")
_MEASURED = (
    ("quality", ("final", "quality", "value")),
    ("quality drop", ("quality_drop", "value")),
    ("latency, ms", ("final", "latency_ms", "p50")),
    ("speed-up", ("speedup", "value")),
    ("size, bytes", ("final", "size_bytes")),
    ("confidence", ("confidence",)),
)


def compare(left: str, right: str, settings: Settings) -> Difference:
    """How ``right`` differs from ``left``; both are any MODEL texts or artifacts' folders. Raises a Fault when one
    cannot be opened."""
    with ExitStack() as stack:
        store, site = Store(settings.cache_dir), open_site(settings.provider, 1)
        scratch = stack.enter_context(scratch_folder(store))
        target = hardware.loosest_target()
        a, b = (
            open_model(settings.but(source=replace(settings.source, model=m)), target, store, site, scratch).model
            for m in (left, right)
        )
        (first, measured), (second, measured_too) = (_papers(Path(m), settings.source.folder) for m in (left, right))
        return Difference(
            left,
            right,
            a.digest() == b.digest(),
            recipe=_recipe(first, second),
            made=_made(first, second),
            signature=tuple(_parted("signature", _ports(a), _ports(b))),
            operators=_counted(_operators(a), _operators(b)),
            weights=_weights(a, b),
            measured=_numbers(measured, measured_too),
        )


def _papers(place: Path, folder: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Manifest and evidence of an artifact, empty for a bare model."""
    found: list[Mapping[str, Any]] = []
    for name, family in ((MANIFEST, SCHEMA_FAMILY), (EVIDENCE, "lathe.evidence/")):
        try:
            tree = json.loads((folder / place / name).read_text("utf-8"))
        except (OSError, ValueError):
            tree = None
        known = isinstance(tree, dict) and str(tree.get("schema", "")).startswith(family)
        found.append(tree if known else {})
    return found[0], found[1]


def _made(left: Mapping[str, Any], right: Mapping[str, Any]) -> tuple[Differing, ...]:
    """What two artifacts were made from and for; nothing when one of them is a bare model."""
    if not left or not right:
        return ()
    return tuple(d for key in _MADE for d in _parted(key, left.get(key), right.get(key)))


def _recipe(left: Mapping[str, Any], right: Mapping[str, Any]) -> tuple[Differing, ...]:
    """Steps that only one of them has, and those whose options differ."""
    if not left or not right:
        return ()
    a, b = ({s["name"]: s["options"] for s in tree["recipe"]["steps"]} for tree in (left, right))
    steps = [Differing(n, _step(a.get(n)), _step(b.get(n))) for n in dict.fromkeys((*a, *b)) if a.get(n) != b.get(n)]
    if not steps and left["recipe"]["text"] != right["recipe"]["text"]:
        return (Differing("order", left["recipe"]["text"], right["recipe"]["text"]),)
    return tuple(steps)


def _step(options: Mapping[str, Any] | None) -> str:
    if options is None:
        return "absent"
    return json.dumps(options, sort_keys=True) if options else "present"


def _parted(key: str, left: Any, right: Any) -> list[Differing]:
    """Leaves at which two trees differ."""
    if left == right:
        return []
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return [d for k in sorted({*left, *right}) for d in _parted(f"{key}.{k}", left.get(k), right.get(k))]
    return [Differing(key, _text(left), _text(right))]


def _text(value: Any) -> str:
    return "absent" if value is None else value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _ports(model: Model) -> dict[str, dict[str, str]]:
    return {kind: {p["name"]: f"{p['type']} {p['dims']}" for p in ports} for kind, ports in signature_of(model).items()}


def _operators(model: Model) -> Counter[str]:
    named = (n.op_type if n.domain in ("", "ai.onnx") else f"{n.domain}.{n.op_type}" for n in model.nodes())
    return Counter(named)


def _counted(left: Counter[str], right: Counter[str]) -> tuple[Differing, ...]:
    return tuple(
        Differing(op, str(left[op]), str(right[op])) for op in sorted({*left, *right}) if left[op] != right[op]
    )


def _weights(left: Model, right: Model) -> tuple[Differing, ...]:
    """Totals, then weights of one name whose values differ, the first few by name."""
    a, b = ({name: (tensor_digest(t), t) for name, t in _tensors(m)} for m in (left, right))
    both = a.keys() & b.keys()
    changed = [n for n in sorted(both) if a[n][0] != b[n][0]]
    rows = [
        Differing("bytes", f"{left.weight_bytes():,}", f"{right.weight_bytes():,}"),
        Differing("tensors of one side only", str(len(a) - len(both)), str(len(b) - len(both))),
        *(Differing(n, _tensor(a[n][1]), _tensor(b[n][1])) for n in changed[:NAMED]),
    ]
    more = len(changed) - NAMED
    rows += [Differing("more that changed", str(more), str(more))] if more > 0 else []
    return tuple(r for r in rows if r.left != r.right or r.what in changed or r.what.startswith("more"))


def _tensors(model: Model) -> list[tuple[str, Any]]:
    held = [(n, v.const_value) for g in model.graphs() for n, v in g.initializers.items()]
    return [(n, t) for n, t in held if t is not None]


def _tensor(tensor: Any) -> str:
    return f"{tensor.dtype.name} {list(tensor.shape.numpy())} {tensor_digest(tensor)[:8]}"


def _numbers(left: Mapping[str, Any], right: Mapping[str, Any]) -> tuple[Differing, ...]:
    rows = []
    for name, path in _MEASURED:
        a, b = (_at(tree, path) for tree in (left, right))
        if a != b and not (a is None and b is None):
            rows.append(Differing(name, _number(a), _number(b)))
    return tuple(rows)


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _number(value: Any) -> str:
    return "not measured" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
