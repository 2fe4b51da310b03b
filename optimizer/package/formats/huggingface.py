"""``--to huggingface``: the folder that Optimum and the Hub expect, with a model card filled from the manifest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from optimizer.package.formats.base import Artifact
from optimizer.package.receiver.words import EVIDENCE, MANIFEST, MODEL

_HUB_LICENCES = frozenset(
    ("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "gpl-3.0")
)


class HuggingFace:
    """``model.onnx`` at the top as Optimum loads it, ``config.json``, ``README.md`` and the evidence."""

    name: ClassVar[str] = "huggingface"
    summary: ClassVar[str] = "a folder for Optimum and the Hugging Face Hub, with a model card"
    needs: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = "huggingface"

    def write(self, artifact: Artifact, folder: Path) -> tuple[str, ...]:
        artifact.copy_model(folder)
        (folder / "config.json").write_text(_config(artifact), encoding="utf-8")
        (folder / "README.md").write_text(card(artifact), encoding="utf-8")
        (folder / "lathe").mkdir()
        for name in (MANIFEST, EVIDENCE):
            shutil.copyfile(artifact.folder / name, folder / "lathe" / name)
        return ("config.json names no architecture: put the original's config, tokenizer and preprocessor beside it",)


def _config(artifact: Artifact) -> str:
    tree = {"lathe": {"model": artifact.manifest["model"]["digest"], "recipe": artifact.manifest["recipe"]["text"]}}
    return json.dumps(tree, indent=2, sort_keys=True) + "\n"


def card(artifact: Artifact) -> str:
    """The model card: metadata for the Hub, then what it is, how it was made, what was measured, how to load it."""
    manifest = artifact.manifest
    evidence = json.loads((artifact.folder / EVIDENCE).read_text("utf-8"))
    head = "\n".join(f"{key}: {json.dumps(value)}" for key, value in _metadata(manifest).items())
    ports = "\n".join(
        f"| {kind[:-1]} | `{p['name']}` | {p['type'].lower()} | {_dims(p['dims'])} |"
        for kind in ("inputs", "outputs")
        for p in artifact.ports(kind)
    )
    data = ", ".join(f"{split} `{digest[:12]}`" for split, digest in sorted(manifest["data"].items())) or "none"
    return f"""---
{head}
---

# {artifact.name}

ONNX model made from `{manifest["source"]["name"]}` by Lathe {manifest["tool"]["version"]} for
{manifest["target"]["name"]} ({manifest["provider"]}). The whole manifest and everything measured are in `lathe/`.

| | name | type | shape |
|---|---|---|---|
{ports}

## How it was made

Recipe: `{manifest["recipe"]["text"] or "none: this is the source itself"}`. Budget:
{", ".join(f"`{text}`" for text in manifest["budget"]) or "none"}. Data (SHA-256): {data}.

## What was measured

{_measured(evidence, manifest)}

## How to load it

```python
from optimum.onnxruntime import ORTModelForCustomTasks
from transformers import PretrainedConfig

model = ORTModelForCustomTasks.from_pretrained(FOLDER, config=PretrainedConfig.from_pretrained(FOLDER))
```

or, without Optimum, `onnxruntime.InferenceSession("{MODEL}")`.
"""


def _metadata(manifest: Mapping[str, Any]) -> dict[str, Any]:
    tags = ["onnx", "onnxruntime", *(["quantized"] if manifest["model"]["quantized"] else []), "lathe"]
    stated = str(manifest.get("licence", {}).get("license", ""))
    if stated.lower() in _HUB_LICENCES:
        return {"license": stated.lower(), "library_name": "onnx", "tags": tags}
    named = {"license": "other", "license_name": stated} if stated else {}
    return {**named, "library_name": "onnx", "tags": tags}


def _dims(dims: list[Any] | None) -> str:
    return "open" if dims is None else " × ".join("?" if d is None else str(d) for d in dims) or "one value"


def _measured(evidence: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    """A table of source and model; only what the evidence holds."""
    rows = []
    before, after = evidence.get("baseline") or {}, evidence.get("final") or {}
    if after.get("quality") and before.get("quality"):
        rows.append(
            (after["quality"]["metric"], f"{before['quality']['value']:.4g}", f"{after['quality']['value']:.4g}")
        )
    if after.get("latency_ms") and before.get("latency_ms"):
        what = f"latency, batch {manifest['runs_at']['batch']}, {manifest['runs_at']['threads']} thread(s)"
        rows.append((what, f"{before['latency_ms']['p50']:.3g} ms", f"{after['latency_ms']['p50']:.3g} ms"))
    if after.get("size_bytes") and before.get("size_bytes"):
        rows.append(("size", f"{before['size_bytes'] / 1e6:.3g} MB", f"{after['size_bytes'] / 1e6:.3g} MB"))
    if not rows:
        return "Nothing."
    table = "\n".join(f"| {name} | {a} | {b} |" for name, a, b in rows)
    cpu = (evidence.get("environment") or {}).get("cpu", "an unnamed CPU")
    sure = evidence.get("confidence", "unproven")
    return f"On {cpu}; quality is {sure}.\n\n| | source | this model |\n|---|---|---|\n{table}"
