"""``--to ort``: onnxruntime's own format and the list of operators that a reduced build needs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import ClassVar

from optimizer.package.check import replay_in_worker
from optimizer.package.formats.base import Artifact, no_such_form
from optimizer.package.formats.converted import held_to_golden
from optimizer.package.receiver.words import MANIFEST
from optimizer.workers.pool import CallFailed, Worker, WorkerDied

CONVERT = "optimizer.runtime.jobs:save_ort"
SECONDS = 600.0


class Ort:
    """Written by onnxruntime in a worker, optimized but for layouts that tie it to one CPU."""

    name: ClassVar[str] = "ort"
    summary: ClassVar[str] = "onnxruntime's ORT format and the configuration of a reduced-operator build"
    needs: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = ""

    def write(self, artifact: Artifact, folder: Path) -> tuple[str, ...]:
        out = folder / "model.ort"
        try:
            with Worker.ours() as worker:
                arguments = {"path": str(artifact.model), "provider": artifact.provider}
                worker.call(CONVERT, timeout=SECONDS, **arguments, out=str(out))
        except (CallFailed, WorkerDied) as error:
            raise no_such_form("ort", " ".join(str(error).split())[:300]) from error
        feeds = [pair.feeds for pair in artifact.pairs]
        given = replay_in_worker(out, feeds, artifact.provider, artifact.threads) if feeds else []
        shutil.copyfile(artifact.folder / MANIFEST, folder / MANIFEST)
        return (held_to_golden(artifact, "the ORT format", given),)
