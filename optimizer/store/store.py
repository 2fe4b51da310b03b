"""The content-addressed cache: graphs without weights, tensor blobs by digest, answers, counts of looks.

Layout under the cache folder::

    graphs/DIGEST.onnx           a graph; tensors above 1 KiB point to blobs/ beside it, so the runtime loads it as is
    graphs/blobs/DIGEST          the bytes of one tensor, shared by every graph that holds it
    answers/DIGEST               a SHA-256, then one message of plain data and arrays (what was measured or asked)
    looks/DIGEST                 how often a confirm split has been looked at

Every file is written under a temporary name and renamed, so that a reader sees all of it or nothing. What a process
has not written itself it checks against its digest when it first meets it: disks lie, and other tools reach in.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import onnx
import onnx_ir as ir

from optimizer.faults import broken
from optimizer.workers import wire
from passes.kit.model import Model, tensor_digest

LIMIT_BYTES = 10 * 1024**3
_SUM = 32


@dataclass(frozen=True)
class Entry:
    """One file of the cache."""

    path: Path
    kind: str
    size_bytes: int
    used: float


class Store:
    """A bounded cache folder that several compiles may share."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._sound: set[str] = set()  # digests of models and tensors that this process wrote, or has looked at
        try:
            for name in ("graphs/blobs", "answers", "looks", "scratch"):
                (root / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            hint = "Name another with --cache-dir or LATHE_CACHE_DIR."
            raise broken(f"cannot use the cache folder: {error.strerror}", where=str(root), hint=hint) from error

    @property
    def scratch(self) -> Path:
        """A folder for unpacked data and exports."""
        return self.root / "scratch"

    # -- models --------------------------------------------------------------------------------------------------
    def put_model(self, model: Model) -> Path:
        """Keep ``model`` and return a path from which the runtime can load it."""
        digest = model.digest()
        path = self.root / "graphs" / f"{digest}.onnx"
        known = digest in self._sound and path.exists()
        if not known and self.get_model(digest) is None:
            proto = model.to_proto(self._place)
            _write(path, lambda stream: stream.write(proto.SerializeToString(deterministic=True)))
            self._sound.add(digest)
        return path

    def get_model(self, digest: str) -> Model | None:
        """The model with that digest, weights memory-mapped, or ``None``."""
        path = self.root / "graphs" / f"{digest}.onnx"
        try:
            proto = onnx.load(path, load_external_data=False)
            model = Model.from_proto(proto, base_dir=str(path.parent))
        except FileNotFoundError:
            return None
        except Exception:
            path.unlink(missing_ok=True)  # a damaged entry is a miss
            return None
        if not all(self._intact(tensor) for tensor in _external_tensors(model)):
            path.unlink(missing_ok=True)
            return None
        if digest not in self._sound and model.digest() != digest:
            for tensor in _external_tensors(model):
                self._blob(tensor).unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            return None
        self._sound.add(digest)
        _touch(path)
        return model

    def _place(self, tensor: ir.TensorProtocol, digest: str) -> ir.ExternalTensor:
        blob = self.root / "graphs" / "blobs" / digest
        if digest not in self._sound or not blob.exists():
            if not _holds(blob, tensor, digest):
                _write(blob, lambda stream: stream.write(tensor.tobytes()))
            self._sound.add(digest)
        shape = ir.Shape(tensor.shape.numpy())
        return ir.ExternalTensor(f"blobs/{digest}", 0, tensor.nbytes, tensor.dtype, shape=shape, name="")

    def _blob(self, tensor: ir.ExternalTensor) -> Path:
        return self.root / "graphs" / str(tensor.location)

    def _intact(self, tensor: ir.ExternalTensor) -> bool:
        blob = self._blob(tensor)
        try:
            size = blob.stat().st_size
        except OSError:
            return False
        _touch(blob)
        return size == tensor.length

    # -- answers -------------------------------------------------------------------------------------------------
    def put_answer(self, key: str, answer: Any) -> None:
        """Keep plain data and arrays under a key made by :func:`key_of`."""
        message = io.BytesIO()
        wire.send(message, answer)
        data = message.getvalue()
        _write(self.root / "answers" / key, lambda stream: stream.write(hashlib.sha256(data).digest() + data))

    def get_answer(self, key: str) -> Any | None:
        """What was kept under ``key``, or ``None``. A damaged answer is forgotten."""
        path = self.root / "answers" / key
        try:
            data = memoryview(path.read_bytes())
            if hashlib.sha256(data[_SUM:]).digest() != data[:_SUM]:
                raise ValueError("the answer is damaged")
            answer = wire.receive(io.BytesIO(data[_SUM:]))
        except FileNotFoundError:
            return None
        except Exception:
            path.unlink(missing_ok=True)
            return None
        _touch(path)
        return answer

    def drop_answer(self, key: str) -> None:
        """Forget one answer."""
        (self.root / "answers" / key).unlink(missing_ok=True)

    def look(self, data_digest: str) -> int:
        """Count one more look at a confirm split and return how many there have been."""
        path = self.root / "looks" / data_digest
        kept = path.read_bytes() if path.exists() else b""
        count = (int(kept) if kept.isdigit() else 0) + 1
        _write(path, lambda stream: stream.write(str(count).encode()))
        return count

    # -- housekeeping --------------------------------------------------------------------------------------------
    def entries(self) -> list[Entry]:
        """Every kept file, least recently used first. Counts of looks are never pruned and not listed."""
        kinds = {
            "graphs": "graph",
            "blobs": "weights",
            "answers": "answer",
            "scratch": "data",
            "reproducers": "reproducer",
        }
        found = []
        for path in self.root.rglob("*"):
            kind = kinds.get(path.relative_to(self.root).parts[0], "")
            with contextlib.suppress(OSError):
                if kind and path.is_file():
                    stat = path.stat()
                    kind = "weights" if path.parent.name == "blobs" else kind
                    found.append(Entry(path, kind, stat.st_size, stat.st_mtime))
        return sorted(found, key=lambda e: e.used)

    def prune(self, limit_bytes: int = LIMIT_BYTES) -> int:
        """Remove the least recently used files until the rest fits. Returns the bytes that were freed."""
        entries = self.entries()
        total, freed = sum(e.size_bytes for e in entries), 0
        for entry in entries:
            if total - freed <= limit_bytes:
                break
            with contextlib.suppress(OSError):
                entry.path.unlink()
                freed += entry.size_bytes
        return freed


def key_of(*parts: Any) -> str:
    """A digest of plain parts, the name of an answer."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _holds(blob: Path, tensor: ir.TensorProtocol, digest: str) -> bool:
    """Whether the file holds the tensor of that digest, bit for bit."""
    try:
        if blob.stat().st_size != tensor.nbytes:
            return False
        kept = ir.ExternalTensor(
            blob.name,
            0,
            tensor.nbytes,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name="",
            base_dir=blob.parent,
        )
        return tensor_digest(kept) == digest
    except OSError:
        return False


def _external_tensors(model: Model) -> Iterator[ir.ExternalTensor]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield value.const_value


def _touch(path: Path) -> None:
    with contextlib.suppress(OSError):
        os.utime(path, (now := time.time(), now))


def _write(path: Path, fill: Any) -> None:
    """Write a file whole or not at all. Raises a Fault when the disk is full or read-only."""
    temporary = ""
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".new-", delete=False) as handle:
            temporary = handle.name
            stream: BinaryIO = handle  # type: ignore[assignment]
            fill(stream)
        Path(temporary).replace(path)
    except BaseException as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            hint = "Free some space, or name another cache folder with --cache-dir."
            raise broken(f"cannot write to the cache: {error.strerror}", where=str(path.parent), hint=hint) from error
        raise
