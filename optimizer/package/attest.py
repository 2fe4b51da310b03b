"""What is attested of an artifact: how it was made (in-toto, SLSA provenance) and what it is made of (CycloneDX).

Both are written from the manifest and the evidence, and say nothing that does not stand there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from optimizer import __version__
from optimizer.package.artifact import BOM, PROVENANCE
from optimizer.package.formats.base import Artifact
from optimizer.package.receiver.files import describe_file
from optimizer.package.receiver.words import EVIDENCE, MANIFEST, SIGNATURE, SUMS

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:lathe:compile:1"
BUILDER = "urn:lathe:local"
"""Who built it: whoever ran Lathe, on a machine of their own. That is SLSA's build level 0, or 1 with a signature."""


def provenance(artifact: Artifact) -> dict[str, Any]:
    """An in-toto statement (v1) with SLSA provenance (v1) about every file of the artifact."""
    manifest = artifact.manifest
    source = manifest["source"]
    taken = [
        {"name": source["name"], "digest": {"latheModel": source["digest"]}, "annotations": {"kind": source["kind"]}},
        *({"name": f"data/{split}", "digest": {"latheSamples": d}} for split, d in sorted(manifest["data"].items())),
        *({"name": p["name"], "digest": {"sha256": p["manifest"]}} for p in source["parents"]),
        *({"name": n, "digest": {"sha256": d}} for n, d in manifest["requires"].get("custom_ops", {}).items()),
    ]
    packages = [{"uri": f"pkg:pypi/{n}@{v}", "name": n} for n, v in sorted(manifest["packages"].items())]
    asked = ("recipe", "target", "provider", "metric", "budget", "seed", "runs_at")
    return {
        "_type": STATEMENT,
        "subject": [{"name": n, "digest": {"sha256": d}} for n, d in sorted(_digests(artifact).items())],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {key: manifest[key] for key in asked} | {"options": source["options"]},
                "internalParameters": {"passes": manifest["tool"]["code"]},
                "resolvedDependencies": [*taken, *packages],
            },
            "runDetails": {"builder": {"id": BUILDER, "version": {"lathe": manifest["tool"]["version"]}}},
        },
    }


def _digests(artifact: Artifact) -> dict[str, str]:
    """SHA-256 of every file that was there before anything was attested."""
    files = [p for p in artifact.folder.rglob("*") if p.is_file()]
    names = {p.relative_to(artifact.folder).as_posix(): p for p in files}
    return {n: describe_file(p)["sha256"] for n, p in names.items() if n not in (SUMS, SIGNATURE, PROVENANCE, BOM)}


def bill_of_materials(artifact: Artifact) -> dict[str, Any]:
    """A CycloneDX 1.6 bill of materials with a machine-learning component: the model with its lineage, its metrics in
    its model card, and the packages that shaped its bytes."""
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6
    from packageurl import PackageURL

    manifest = artifact.manifest
    digest = manifest["files"]["model.onnx"]["sha256"]
    notes = _lineage(artifact)
    model = Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name=artifact.name,
        version=manifest["model"]["digest"][:12],
        bom_ref="model",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest)],
        properties=[Property(name=f"lathe:{key}", value=value) for key, value in notes.items()],
    )
    packages = [
        Component(
            type=ComponentType.LIBRARY, name=name, version=str(version), bom_ref=f"pkg:{name}",
            purl=PackageURL("pypi", None, name, str(version)),
        )
        for name, version in {**manifest["packages"], "lathe": __version__}.items()
    ]  # fmt: skip
    bom = Bom(components=packages, serial_number=None)
    bom.metadata.component = model
    bom.register_dependency(model, packages)
    tree: dict[str, Any] = json.loads(JsonV1Dot6(bom).output_as_string())
    tree.pop("serialNumber", None)  # a new one every time: the same artifact must give the same bytes
    tree["metadata"].pop("timestamp", None)
    tree["metadata"]["component"] |= {"modelCard": _card(artifact)} | _licences(manifest)
    return tree


def _lineage(artifact: Artifact) -> dict[str, str]:
    manifest = artifact.manifest
    source = manifest["source"]
    told = {
        "manifest": describe_file(artifact.folder / MANIFEST)["sha256"],
        "source": f"{source['name']} ({source['kind']}) {source['digest']}",
        "recipe": manifest["recipe"]["text"],
        "target": manifest["target"]["name"],
        "provider": manifest["provider"],
        **{f"data:{split}": digest for split, digest in sorted(manifest["data"].items())},
        **{f"parent:{i}": f"{p['name']} {p['manifest']}" for i, p in enumerate(source["parents"])},
    }
    return {key: value for key, value in told.items() if value}


def _card(artifact: Artifact) -> dict[str, Any]:
    """CycloneDX's modelCard, which the library has no class for: inputs and outputs, and what was measured."""
    evidence = json.loads((artifact.folder / EVIDENCE).read_text("utf-8"))
    final = evidence.get("final") or {}
    metrics = []
    if quality := final.get("quality"):
        interval = {"lowerBound": str(quality["low"]), "upperBound": str(quality["high"])}
        metrics.append({"type": quality["metric"], "value": str(quality["value"]), "confidenceInterval": interval})
    if latency := final.get("latency_ms"):
        bounds = {k: str(latency[s]) for k, s in (("lowerBound", "low"), ("upperBound", "high")) if s in latency}
        metrics.append({"type": "latency in ms, p50", "value": str(latency["p50"])} | _if("confidenceInterval", bounds))
    if drop := evidence.get("quality_drop"):
        metrics.append({"type": "quality drop against the source", "value": str(drop["value"])})
    ports = {
        k: [{"format": f"{p['name']}: {p['type'].lower()}"} for p in artifact.ports(k)] for k in ("inputs", "outputs")
    }
    return {"modelParameters": ports} | _if("quantitativeAnalysis", _if("performanceMetrics", metrics))


def _if(key: str, value: Any) -> dict[str, Any]:
    return {key: value} if value else {}


def _licences(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """``licenses`` of the component, from what the user stated or else what the source's metadata says."""
    said = manifest["licence"]
    stated = said.get("license") or next((v for k, v in said.items() if "licen" in k.lower()), "")
    return {"licenses": [{"license": {"name": stated}}]} if stated else {}
