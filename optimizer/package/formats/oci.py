"""``--to oci``: an image-layout folder, as the OCI image specification 1.1 lays it out, with the artifact in /models.

A registry takes it as it is (``skopeo copy oci:DIR:latest docker://...``). KServe mounts /models of such an image as a
modelcar; its sidecar also wants a shell in the image, so put the layer over a base that has one, or use Kubernetes'
image volumes, which want none.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any, ClassVar

from optimizer import __version__
from optimizer.package.formats.base import Artifact
from optimizer.package.receiver.files import describe_file

MEDIA = "application/vnd.oci.image."
CREATED = "1970-01-01T00:00:00Z"
"""Images carry a date; the same artifact must give the same digests."""


class Oci:
    """One image of one layer, whose digests depend on the artifact alone."""

    name: ClassVar[str] = "oci"
    summary: ClassVar[str] = "an OCI image-layout folder with the artifact in /models (a KServe modelcar)"
    needs: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = ""

    def write(self, artifact: Artifact, folder: Path) -> tuple[str, ...]:
        blobs = folder / "blobs" / "sha256"
        blobs.mkdir(parents=True)
        layer = _layer(artifact, blobs)
        config = {
            "architecture": "amd64",
            "os": "linux",
            "created": CREATED,
            "config": {"Labels": {"lathe.manifest": describe_file(artifact.folder / "manifest.json")["sha256"]}},
            "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
            "history": [{"created": CREATED, "created_by": f"lathe package --to oci ({__version__})"}],
        }
        image = {
            "schemaVersion": 2,
            "mediaType": f"{MEDIA}manifest.v1+json",
            "config": _blob(blobs, config, f"{MEDIA}config.v1+json"),
            "layers": [layer],
            "annotations": _annotations(artifact),
        }
        described = _blob(blobs, image, f"{MEDIA}manifest.v1+json")
        named = {
            **described,
            "annotations": {"org.opencontainers.image.ref.name": "latest"},
            "platform": {"architecture": "amd64", "os": "linux"},
        }
        index = {"schemaVersion": 2, "mediaType": f"{MEDIA}index.v1+json", "manifests": [named]}
        (folder / "index.json").write_bytes(_json(index))
        (folder / "oci-layout").write_bytes(_json({"imageLayoutVersion": "1.0.0"}))
        return (f"image {described['digest']}; the artifact lies in /models",)


def _layer(artifact: Artifact, blobs: Path) -> dict[str, Any]:
    """The artifact under /models as an uncompressed tar without dates and owners, named after its digest."""
    draft = blobs / "layer"
    with tarfile.open(draft, "w", format=tarfile.PAX_FORMAT) as tar:
        for path in [artifact.folder, *sorted(artifact.folder.rglob("*"))]:
            name = Path("models") / path.relative_to(artifact.folder)
            info = tarfile.TarInfo(name.as_posix())
            info.type, info.mode = (tarfile.DIRTYPE, 0o755) if path.is_dir() else (tarfile.REGTYPE, 0o644)
            info.size = 0 if path.is_dir() else path.stat().st_size
            with io.BytesIO() if path.is_dir() else path.open("rb") as stream:
                tar.addfile(info, None if path.is_dir() else stream)
    found = describe_file(draft)
    draft.rename(blobs / found["sha256"])
    return _described(f"{MEDIA}layer.v1.tar", found["sha256"], found["size"])


def _blob(blobs: Path, tree: dict[str, Any], media: str) -> dict[str, Any]:
    data = _json(tree)
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    return _described(media, digest, len(data))


def _described(media: str, digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": media, "digest": f"sha256:{digest}", "size": size}


def _annotations(artifact: Artifact) -> dict[str, str]:
    licence = artifact.manifest.get("licence", {}).get("license")
    known = {"title": artifact.name, "description": "Model made by Lathe, with its evidence", "licenses": licence}
    return {f"org.opencontainers.image.{key}": value for key, value in known.items() if value}


def _json(tree: dict[str, Any]) -> bytes:
    return json.dumps(tree, indent=2, sort_keys=True).encode()
