"""A benchmark that travels: models, feeds, settings and the runner in one zip, to be measured on another machine."""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from optimizer import __version__
from optimizer.data.samples import Samples
from optimizer.faults import bad_input, usage
from optimizer.measure.latency import Effort
from optimizer.package.artifact import disk_fault, write_model_file
from optimizer.package.manifest import to_text
from optimizer.runtime import elsewhere
from passes.kit.model import Model

Array = np.ndarray[Any, Any]

SCHEMA, JOB, RUNNER = elsewhere.JOB_SCHEMA, elsewhere.JOB, elsewhere.RUNNER
MAIN = "import sys\n\nfrom runner import main\n\nsys.exit(main())\n"
LARGEST_TEXT = 16 * 2**20
MOST_MEMBERS = 10_000
EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Cargo:
    """A model that travels: what it is called, and samples that fit it."""

    name: str
    model: Model
    size_bytes: int
    samples: Samples


def runner_text() -> bytes:
    """The runner as it goes into a job."""
    return Path(elsewhere.__file__).read_bytes()


def write(
    place: Path,
    cargo: Sequence[Cargo],
    providers: Sequence[str],
    batches: Sequence[int],
    threads: Sequence[int],
    effort: Effort,
    *,
    overwrite: bool = False,
) -> int:
    """Write a job and return its bytes; the same content gives the same file. It appears whole or not at all.

    Raises a :class:`~optimizer.faults.Fault`: usage when the file exists, bad input for feeds that an ``.npz`` cannot
    hold, fault when the disk refuses.
    """
    if place.is_dir() or (place.exists() and not overwrite):
        raise usage("the file exists", where=str(place), hint="Name another --export-job, or remove it.")
    partial = place.with_name(f".{place.name}.partial")
    try:
        with tempfile.TemporaryDirectory(prefix="lathe-job-", dir=place.absolute().parent) as text:
            folder = Path(text)
            members = {"runner.py": _put(folder / "runner.py", runner_text())}
            members["__main__.py"] = _put(folder / "__main__.py", MAIN.encode())
            models = [_model(folder, c, batches, members) for c in cargo]
            sites = [{"provider": p, "threads": t, "batch": b} for p in providers for t in threads for b in batches]
            settings = {**protocol(effort), "sites": sites}
            job = {"schema": SCHEMA, "lathe": __version__, "models": models, "settings": settings}
            members[JOB] = _put(folder / JOB, to_text(job).encode())
            _zip(partial, members)
        partial.replace(place)
    except OSError as error:
        raise disk_fault(error, place) from error
    finally:
        partial.unlink(missing_ok=True)
    return place.stat().st_size


def protocol(effort: Effort) -> dict[str, Any]:
    """How long and in how many pieces the runner measures."""
    return {
        "restarts": effort.restarts,
        "seconds": effort.seconds,
        "block_ms": effort.block_ms,
        "warm_up_ms": effort.warm_up_ms,
        "least_blocks": effort.least,
    }


def _put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def _model(folder: Path, cargo: Cargo, batches: Sequence[int], members: dict[str, Path]) -> dict[str, Any]:
    """Put one model and its feeds into ``folder``; what the job says of them."""
    home = f"models/{cargo.model.digest()[:32]}"
    place = folder / home / "model.onnx"
    if not place.exists():
        place.parent.mkdir(parents=True)
        write_model_file(place, cargo.model)
    written = sorted(p for p in place.parent.iterdir() if p.is_file())
    files = [_named(folder, p, members) for p in written]
    feeds = []
    for batch in dict.fromkeys(batches):
        feed = next(iter(cargo.samples.feeds(batch)))[0]
        held = _put(folder / "feeds" / f"{len(members)}.npz", _npz(feed, cargo.name))
        feeds.append({**_named(folder, held, members), "batch": batch, "samples": cargo.samples.fed(batch)})
    return {
        "name": PurePath(cargo.name).name or cargo.name,
        "digest": cargo.model.digest(),
        "size_bytes": cargo.size_bytes,
        "file": f"{home}/model.onnx",
        "files": files,
        "feeds": feeds,
    }


def _named(folder: Path, path: Path, members: dict[str, Path]) -> dict[str, str]:
    name = path.relative_to(folder).as_posix()
    members[name] = path
    return {"file": name, "sha256": digest_of(path)}


def _npz(feed: Mapping[str, Array], name: str) -> bytes:
    for key, array in feed.items():
        if array.dtype.hasobject or array.dtype.isbuiltin != 1:
            kind = "text" if array.dtype.hasobject else array.dtype.name
            hint = "Only inputs of numpy's own number types can travel"
            raise bad_input(f"input '{key}' is {kind}, which an .npz cannot hold", where=name, hint=hint)
    stream = io.BytesIO()
    np.savez(stream, **feed)  # type: ignore[arg-type]
    return stream.getvalue()


def digest_of(path: Path) -> str:
    """SHA-256 of a file."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(elsewhere.PIECE):
            total.update(piece)
    return total.hexdigest()


def _zip(place: Path, members: Mapping[str, Path]) -> None:
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(members):
            info = zipfile.ZipInfo(name, EPOCH)
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            with members[name].open("rb") as source, archive.open(info, "w", force_zip64=True) as target:
                while piece := source.read(elsewhere.PIECE):
                    target.write(piece)


# -- reading -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Told:
    """What a job says, without its models: the text of ``job.json``, and the digest of its runner."""

    text: bytes
    runner: str


def read(place: Path) -> Told:
    """The description of a job. Nothing is unpacked to the disk. Raises a bad-input Fault for what is no job, and for a
    description that would unpack to too much."""
    where = str(place)
    try:
        with zipfile.ZipFile(place) as archive:
            if len(archive.infolist()) > MOST_MEMBERS:
                raise bad_input("this holds too many files to be a job", where=where, code="bad-job")
            return Told(_small(archive, JOB, where), hashlib.sha256(_small(archive, RUNNER, where)).hexdigest())
    except FileNotFoundError as error:
        raise usage("there is no such job", where=where, hint="--export-job writes one") from error
    except (OSError, zipfile.BadZipFile, KeyError, RuntimeError, NotImplementedError, EOFError, ValueError) as error:
        hint = "lathe benchmark --export-job FILE writes one"
        raise bad_input(f"this is not a job: {' '.join(str(error).split())[:200]}", where=where, hint=hint,
                        code="bad-job") from error  # fmt: skip


def _small(archive: zipfile.ZipFile, name: str, where: str) -> bytes:
    """A member of no more than :data:`LARGEST_TEXT` bytes, whatever its header says of its size."""
    with archive.open(name) as stream:
        found = stream.read(LARGEST_TEXT + 1)
    if len(found) > LARGEST_TEXT:
        raise bad_input(f"its {name} is too large", where=where, code="bad-job")
    return found


def parsed(text: bytes, where: str) -> dict[str, Any]:
    """``job.json`` as a tree. Raises a bad-input Fault."""
    try:
        tree = json.loads(text)
    except ValueError as error:
        raise bad_input(f"its {JOB} is not JSON", where=where, code="bad-job") from error
    if not isinstance(tree, dict) or tree.get("schema") != SCHEMA:
        raise bad_input(f"this is not a job of {SCHEMA}", where=where, code="bad-job")
    return tree
