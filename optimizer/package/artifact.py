"""Writing an artifact: a folder that appears whole or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import onnx_ir as ir

from optimizer import __version__
from optimizer.faults import Fault, broken, usage
from optimizer.package import golden as pairs_file
from optimizer.package.golden import GoldenPair
from optimizer.package.manifest import to_text
from optimizer.package.receiver import script
from optimizer.package.receiver.files import describe_file
from optimizer.package.receiver.words import EVIDENCE, GOLDEN, MANIFEST, MODEL, SCHEMA_FAMILY, SIGNATURE, SUMS, WEIGHTS
from passes.kit.model import Model

REPORT = "report.md"
PAGE = "report.html"
FRONTIER = "frontier.svg"
WATCH = "watch.npz"
SCRIPT = "verify.py"
PROVENANCE = "provenance.json"
BOM = "bom.cdx.json"

_MADE = (MODEL, WEIGHTS, MANIFEST, EVIDENCE, REPORT, PAGE, FRONTIER, GOLDEN, WATCH, SUMS, SCRIPT)
_SIGNED = (SIGNATURE, PROVENANCE, BOM)
KNOWN = frozenset({*_MADE, *_SIGNED})

EXTERNAL_ABOVE_BYTES = 1_500_000_000
"""Weights beyond this stand beside the graph: one protobuf message cannot pass 2 GiB."""

_ALIGNMENT = 4096  # a page, so that a runtime can map each tensor
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_ABANDONED_SECONDS = 60.0


@dataclass(frozen=True)
class Contents:
    """What goes into an artifact. ``manifest`` is without ``files``, which writing adds; ``frontier`` is a drawing
    (SVG) that the report shows and ``page`` the same report for a browser, empty for none; ``watch`` is what the
    artifact remembers of its data."""

    model: Model
    manifest: Mapping[str, Any]
    evidence: Mapping[str, Any]
    report: str
    golden: Sequence[GoldenPair] = ()
    frontier: str = ""
    watch: bytes = b""
    page: str = ""


def write(
    folder: Path, contents: Contents, *, overwrite: bool = False, external_above: int = EXTERNAL_ABOVE_BYTES
) -> Path:
    """Write the artifact to ``folder`` and return its real path.

    Everything is written and synced beside it under a temporary name, then renamed; whatever goes wrong, Ctrl-C
    included, nothing is left behind and an artifact that was there stays. Raises :class:`~optimizer.faults.Fault`:
    usage when the output exists (see :func:`check_output`), broken when the disk is full, read-only or forbidden.
    """
    check_output(folder, overwrite=overwrite)
    with appearing(folder, overwrite=overwrite) as partial:
        _fill(partial, contents, external_above)
    return folder.absolute().resolve()


@contextlib.contextmanager
def appearing(folder: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A new folder to fill, which stands at ``folder`` when the block ends; nothing is left behind when it fails.

    Raises a broken :class:`~optimizer.faults.Fault` when the disk is full, read-only or forbidden.
    """
    place = folder.absolute().resolve()
    with _faults_at(place), _parents(place.parent), _partial(place) as partial:
        yield partial
        _put_in_place(partial, place, overwrite)


def write_model_file(path: Path, model: Model, *, external_above: int = EXTERNAL_ABOVE_BYTES) -> int:
    """Write one ONNX file (and ``NAME.data`` beside it when it is large); returns the bytes written.

    What was there is replaced when everything is on the disk; nothing half-written is left behind. Raises a broken
    :class:`~optimizer.faults.Fault` when the disk is full, read-only or forbidden.
    """
    place = path.absolute()
    with _faults_at(place), _parents(place.parent), _partial(place) as partial:
        names = _write_model(partial, place.name, model, external_above)
        size = sum((partial / n).stat().st_size for n in names)
        for name in reversed(names):  # weights first: a graph is never there without them
            (partial / name).replace(place.parent / name)
        _sync_folder(place.parent)
    return size


def write_text_file(path: Path, text: str, *, overwrite: bool = False) -> None:
    """Write one text file whole or not at all. Raises a usage Fault when it exists and ``overwrite`` was not given,
    a broken one when the disk is full, read-only or forbidden."""
    place = path.absolute()
    if place.is_dir():
        raise usage("this is a folder, not the name of a file", where=str(path), code="not-a-file")
    if place.exists() and not overwrite:
        raise _exists(path)
    with _faults_at(place), _parents(place.parent), _partial(place) as partial:
        write_text(partial / place.name, text)
        (partial / place.name).replace(place)
        _sync_folder(place.parent)


def check_output(folder: Path, *, overwrite: bool) -> None:
    """Whether an artifact may be written there, asked before any work is done.

    Raises a usage :class:`~optimizer.faults.Fault` when something exists there and ``overwrite`` was not given, or
    when what is there is not an artifact of ours and nothing else (overwriting deletes it); for a new place see
    :func:`check_parent`.
    """
    if not os.path.lexists(folder):
        check_parent(folder)
        return
    if not overwrite:
        raise _exists(folder)
    if folder.exists() and not _is_artifact(folder):
        raise usage(
            "this exists and is not a Lathe artifact, so it is not overwritten",
            where=str(folder),
            hint="Choose another --output, or remove it yourself.",
            code="not-an-artifact",
        )
    extra = sorted({p.name for p in folder.iterdir()} - KNOWN) if folder.exists() else []
    if extra:
        raise usage(
            f"the artifact there also holds '{extra[0]}', which overwriting would delete",
            where=str(folder),
            hint="Move it away, or choose another --output.",
            code="output-has-extras",
        )


def check_parent(place: Path) -> None:
    """Whether something new can be written at ``place``, asked before any work is done.

    Raises a :class:`~optimizer.faults.Fault` when a file lies in the way, or the folder is read-only or forbidden.
    """
    parent = next(p for p in place.absolute().parents if p.exists())
    if not parent.is_dir():
        raise usage("this is a file, so nothing can be written below it", where=str(parent), code="not-a-folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        read_only = hasattr(os, "statvfs") and os.statvfs(parent).f_flag & os.ST_RDONLY
        raise disk_fault(OSError(errno.EROFS if read_only else errno.EACCES, ""), place)


def _exists(folder: Path) -> Fault:
    return usage(
        "the output exists already",
        where=str(folder),
        hint="Choose another --output, or add --overwrite.",
        code="output-exists",
    )


def _is_artifact(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    if not any(folder.iterdir()):
        return True  # an empty folder has nothing to lose
    try:
        schema = json.loads((folder / MANIFEST).read_text("utf-8"))["schema"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return str(schema).startswith(SCHEMA_FAMILY)


# -- a place to write ------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def _partial(place: Path) -> Iterator[Path]:
    """A new folder beside ``place`` to write in; gone when the block ends, unless it was renamed.

    Folders that killed runs left behind are removed first: those that nobody holds a lock on.
    """
    for left in place.parent.glob(f".{glob.escape(place.name)}.*.partial"):
        with contextlib.suppress(OSError), _locked(left):
            if time.time() - left.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(left)
    partial = place.parent / f".{place.name}.{secrets.token_hex(4)}.partial"
    try:
        partial.mkdir()
        with _locked(partial):
            yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which ends with the process at the latest. Raises ``OSError`` when another holds it."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(PermissionError):  # some network file systems have no locks
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


# -- filling the folder ------------------------------------------------------------------------------------------------
def _fill(folder: Path, contents: Contents, external_above: int) -> None:
    names = _write_model(folder, MODEL, contents.model, external_above)
    names += _write_golden(folder, contents.golden)
    write_text(folder / SCRIPT, script(__version__))
    names.append(SCRIPT)
    # Outputs and measurements differ between machines, so the manifest lists only what a replay gives again.
    replayed = [n for n in names if not n.endswith("_output.npz")]
    manifest = {**contents.manifest, "files": {n: describe_file(folder / n) for n in replayed}}
    write_text(folder / MANIFEST, to_text(manifest))
    write_text(folder / EVIDENCE, to_text(contents.evidence))
    write_text(folder / REPORT, contents.report)
    names += [MANIFEST, EVIDENCE, REPORT]
    for name, text in ((FRONTIER, contents.frontier), (PAGE, contents.page)):
        if text:
            write_text(folder / name, text)
            names.append(name)
    if contents.watch:
        with _create(folder / WATCH) as stream:
            stream.write(contents.watch)
        names.append(WATCH)
    write_sums(folder, names)
    for inner in (folder / GOLDEN, folder):
        _sync_folder(inner)


def write_sums(folder: Path, names: Sequence[str]) -> None:
    """``SHA256SUMS`` over these files of ``folder``."""
    write_text(folder / SUMS, "".join(f"{describe_file(folder / n)['sha256']}  {n}\n" for n in sorted(names)))


def _write_model(folder: Path, name: str, model: Model, external_above: int) -> list[str]:
    if model.weight_bytes() <= external_above:
        with _create(folder / name) as stream:
            stream.write(model.to_bytes())
        return [name]
    weights = f"{name}.data"
    with _create(folder / weights) as stream:
        proto = model.to_proto(_Weights(stream, weights).place)
    with _create(folder / name) as stream:
        stream.write(proto.SerializeToString(deterministic=True))
    return [name, weights]


class _Weights:
    """The external data file: tensors in graph order, each on its own page, equal tensors once."""

    def __init__(self, stream: IO[bytes], name: str) -> None:
        self._stream, self._name = stream, name
        self._offsets: dict[str, int] = {}

    def place(self, tensor: ir.TensorProtocol, digest: str) -> ir.ExternalTensor:
        if digest not in self._offsets:
            self._stream.write(bytes(-self._stream.tell() % _ALIGNMENT))
            self._offsets[digest] = self._stream.tell()
            self._stream.write(tensor.tobytes())
        shape = ir.Shape(tensor.shape.numpy())
        return ir.ExternalTensor(self._name, self._offsets[digest], tensor.nbytes, tensor.dtype, shape=shape, name="")


def _write_golden(folder: Path, golden: Sequence[GoldenPair]) -> list[str]:
    names = []
    if golden:
        (folder / GOLDEN).mkdir()
    for i, pair in enumerate(golden):
        for kind, values in (("input", pair.feeds), ("output", pair.outputs)):
            names.append(f"{GOLDEN}/{i:04d}_{kind}.npz")
            with _create(folder / names[-1]) as stream:
                pairs_file.write(stream, values)
    return names


def write_text(path: Path, text: str) -> None:
    """A new file of text, on the disk when this returns."""
    with _create(path) as stream:
        stream.write(text.encode("utf-8"))


@contextlib.contextmanager
def _create(path: Path) -> Iterator[IO[bytes]]:
    """A new file, on the disk by the time the block ends."""
    with path.open("xb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    if sys.platform == "win32" or not folder.is_dir():
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# -- into place --------------------------------------------------------------------------------------------------------
def _put_in_place(partial: Path, place: Path, overwrite: bool) -> None:
    if place.exists() and overwrite:
        _swap(partial, place)
    else:
        try:
            partial.rename(place)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise _exists(place) from error
            raise
    _sync_folder(place.parent)


def _swap(partial: Path, place: Path) -> None:
    """Exchange the two folders in one step where the system can; else move the old one aside and back on failure.

    Afterwards ``partial`` holds the old artifact, or is gone.
    """
    if _exchange(partial, place):
        return
    aside = partial.with_suffix(".old")
    place.rename(aside)
    try:
        partial.rename(place)
    except BaseException:
        aside.rename(place)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Linux's ``renameat2(RENAME_EXCHANGE)``; false where it is missing or the file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    done: int = call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    return done == 0


# -- when it goes wrong ------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def _parents(folder: Path) -> Iterator[None]:
    """Make the folders that are missing on the way to the output; take them away again should the block fail."""
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for made in missing:
            with contextlib.suppress(OSError):
                made.rmdir()
        raise


@contextlib.contextmanager
def _faults_at(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise disk_fault(error, place) from error


def disk_fault(error: OSError, place: Path) -> Fault:
    """What the system refused, as a fault with the path and what to do about it."""
    hints = {
        errno.ENOSPC: ("disk-full", "the disk is full", "Free some space, or choose another --output."),
        errno.EDQUOT: ("disk-full", "the disk quota is used up", "Free some space, or choose another --output."),
        errno.EROFS: ("read-only", "the file system is read-only", "Choose another --output."),
        errno.EACCES: ("no-permission", "there is no permission to write here", "Choose another --output."),
        errno.EPERM: ("no-permission", "there is no permission to write here", "Choose another --output."),
    }
    reason = error.strerror or str(error)
    code, message, hint = hints.get(error.errno or 0, ("cannot-write", f"cannot be written: {reason}", ""))
    return broken(message, where=str(place), hint=hint, code=code)
