"""npz archives as memory-mapped arrays: members cannot be mapped inside the zip, so they are unpacked once."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import shutil
import tempfile
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np

from optimizer.data.checks import NO_PICKLES
from optimizer.data.samples import CHUNK_BYTES, Array
from optimizer.faults import Fault, bad_input, broken

BOMB_BYTES, BOMB_RATIO = 2 * 10**9, 100
"""An archive that unpacks to more than so many bytes, and to more than so many times its size, is taken for a bomb."""

_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, NotImplementedError)
"""What zipfile raises for damaged, encrypted or oddly packed members, and numpy for a damaged header."""


def unpack(path: Path, scratch: Path) -> dict[str, Array]:
    """Every array of the archive, memory-mapped from ``scratch/<sha256 of the archive>``, which is filled once.

    Raises :class:`Fault`: BAD_INPUT when the archive is broken or holds Python objects, FAULT when the disk is full.
    """
    where = str(path)
    if not zipfile.is_zipfile(path):
        raise bad_input(_not_an_archive(path), where=where, hint="Save it again with numpy.savez", code="not-npz")
    names = _members(path)
    if not names:
        hint = "Save arrays with numpy.savez"
        raise bad_input("the archive holds no arrays", where=where, hint=hint, code="empty-data")
    folder = scratch / _digest(path)
    if not _whole(path, folder):
        shutil.rmtree(folder, ignore_errors=True)
        _fill(path, names, scratch, folder)
    return {name: load_npy(folder / f"{k}.npy", where) for k, name in enumerate(names)}


def load_npy(path: Path, where: str = "") -> Array:
    """The array in a ``.npy`` file, memory-mapped read-only. Raises :class:`Fault` when it is broken or pickled."""
    where = where or str(path)
    if path.stat().st_size == 0:
        raise bad_input("the file is empty", where=where, hint="Save the data again", code="empty-data")
    try:
        with path.open("rb") as file:
            shape, _, dtype = header(file)
            if dtype.hasobject:
                raise bad_input("it holds pickled Python objects", where=where, hint=NO_PICKLES, code="pickled-data")
            held, needed = path.stat().st_size - file.tell(), math.prod(shape) * dtype.itemsize
            if held < needed:
                raise ValueError(f"its {needed:,} bytes of data are not there: it holds {held:,}")
        empty = 0 in shape  # nothing to map
        array: Array = np.load(path, mmap_mode=None if empty else "r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        message = f"cannot be read as a numpy array: {_line(error)}"
        raise bad_input(message, where=where, hint="The file is damaged: save it again", code="bad-data") from None
    return array


def _not_an_archive(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(4)
    return "the archive is truncated" if head.startswith(b"PK") else "is not an npz archive"


def _members(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [i.filename.removesuffix(".npy") for i in archive.infolist() if i.filename.endswith(".npy")]
    except _BROKEN as error:
        raise _damaged(path, error) from None
    if len(set(names)) != len(names):
        raise bad_input("two arrays have the same name", where=str(path), hint="Save it again", code="doubled-array")
    return names


def _whole(path: Path, folder: Path) -> bool:
    """Whether everything is unpacked in ``folder`` and can be read: pruning takes single files away, disks fail."""
    with zipfile.ZipFile(path) as archive:
        infos = [i for i in archive.infolist() if i.filename.endswith(".npy")]
    files = [folder / f"{k}.npy" for k in range(len(infos))]
    try:
        for file, info in zip(files, infos, strict=True):
            if file.stat().st_size != info.file_size or _crc(file) != info.CRC:
                return False
            load_npy(file)
    except (OSError, Fault):
        return False
    return True


def _crc(path: Path) -> int:
    total = 0
    with path.open("rb") as file:
        while piece := file.read(CHUNK_BYTES):
            total = zlib.crc32(piece, total)
    return total


def _digest(path: Path) -> str:
    total = hashlib.sha256(b"lathe.npz/1")
    with path.open("rb") as file:
        while piece := file.read(CHUNK_BYTES):
            total.update(piece)
    return total.hexdigest()


def _fill(path: Path, names: list[str], scratch: Path, folder: Path) -> None:
    """Unpack beside the final place and rename: a reader never sees half a folder, whoever else unpacks it too."""
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=".unpack-", dir=scratch))
    except OSError as error:
        raise _no_room(scratch, error, 0) from None
    try:
        _unpack_into(path, names, building)
        building.rename(folder)
    except OSError as error:
        if not folder.is_dir():  # otherwise another process was first with the same content
            raise _no_room(scratch, error, path.stat().st_size) from None
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _unpack_into(path: Path, names: list[str], building: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        infos = [i for i in archive.infolist() if i.filename.endswith(".npy")]
        wanted, free = sum(i.file_size for i in infos), shutil.disk_usage(building).free
        if wanted > max(BOMB_BYTES, BOMB_RATIO * path.stat().st_size):
            message = f"it would unpack to {wanted / 1e9:.1f} GB, more than {BOMB_RATIO} times its size"
            hint = "If it is yours, save it with numpy.savez, which does not compress"
            raise bad_input(message, where=str(path), hint=hint, code="unsafe-data")
        if wanted > free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        for k, (name, info) in enumerate(zip(names, infos, strict=True)):
            try:
                with archive.open(info) as member:
                    if header(member)[2].hasobject:
                        message = f"array '{name}' holds pickled Python objects"
                        raise bad_input(message, where=str(path), hint=NO_PICKLES, code="pickled-data")
                with archive.open(info) as member, (building / f"{k}.npy").open("wb") as file:
                    shutil.copyfileobj(member, file, CHUNK_BYTES)
            except _BROKEN as error:
                raise _damaged(path, error, name) from None


def header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """(shape, fortran order, dtype) of a ``.npy`` stream. Raises ``ValueError`` when it is none."""
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, order, dtype = read(file)
    except (SyntaxError, tokenize.TokenError, MemoryError, RecursionError, OverflowError, TypeError) as error:
        raise ValueError(f"its header is no header ({type(error).__name__})") from error  # Python reads it as a literal
    if any(size < 0 for size in shape):
        raise ValueError(f"its shape is {shape}")
    return shape, order, dtype


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def _damaged(path: Path, error: BaseException, name: str = "") -> Fault:
    what = f"array '{name}' cannot be read" if name else "the archive cannot be read"
    hint = "The file is damaged or was cut short: copy or save it again"
    return bad_input(f"{what}: {_line(error)}", where=str(path), hint=hint, code="damaged-data")


def _no_room(scratch: Path, error: OSError, needed: int) -> Fault:
    reason = error.strerror or str(error)
    size = f" (about {needed / 1e6:.0f} MB or more)" if needed else ""
    hint = "Free some space or choose another cache folder"
    return broken(f"cannot unpack data there{size}: {reason}", where=str(scratch), hint=hint, code="no-room")
