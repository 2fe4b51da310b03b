"""``--to openvino``: the intermediate representation, ``model.xml`` and ``model.bin``, in full precision."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import ClassVar

from optimizer.package.formats.base import Artifact, no_such_form
from optimizer.package.formats.converted import held_to_golden
from optimizer.package.receiver.words import MANIFEST
from optimizer.workers.pool import CallFailed, Worker, WorkerDied

CONVERT = "optimizer.runtime.engines.openvino_:write_ir"
SECONDS = 600.0


class OpenVino:
    """Converted by OpenVINO itself in a worker, and held to the golden pairs there."""

    name: ClassVar[str] = "openvino"
    summary: ClassVar[str] = "OpenVINO's model.xml and model.bin, compared on the golden pairs"
    needs: ClassVar[tuple[str, ...]] = ("openvino",)
    extra: ClassVar[str] = "openvino-runtime"

    def write(self, artifact: Artifact, folder: Path) -> tuple[str, ...]:
        feeds = [dict(pair.feeds) for pair in artifact.pairs]
        try:
            with Worker.ours() as worker:
                out = str(folder / "model.xml")
                given = worker.call(CONVERT, timeout=SECONDS, path=str(artifact.model), feeds=feeds, out=out)
        except (CallFailed, WorkerDied) as error:
            raise no_such_form("openvino", " ".join(str(error).split())[:300]) from error
        shutil.copyfile(artifact.folder / MANIFEST, folder / MANIFEST)
        return (held_to_golden(artifact, "OpenVINO", given),)
