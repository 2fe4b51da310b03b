"""Opening ONNX files that may be anything: a probe in a child process first, then the real thing, memory-mapped."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from optimizer.faults import Exit, Fault, bad_input, broken
from optimizer.plan import Caps
from optimizer.source import training
from optimizer.source.external import BROKEN, UNSAFE, byte_size, confine, is_external, tensors_in
from optimizer.source.looks import closest_file, not_onnx
from optimizer.source.structure import bodies, check_names, check_size, put_in_order
from optimizer.workers import limits
from optimizer.workers.pool import CallFailed, Worker, WorkerDied
from passes.kit.model import Model
from passes.kit.shapes import Shapes
from passes.kit.target import Target

OLDEST_IR = 3
DEFAULT_CAPS = Caps()
PROBE = "optimizer.source.onnx_file:probe_file"
LARGEST_FILE_BYTES = 2**31 - 1
"""protobuf cannot hold more in one message."""

PARSE_FACTOR, PARSE_SLACK_BYTES = 8, 320 * 2**20
"""Address space that reading may take: a multiple of the file (bytes, messages, graph) and a fixed part."""

PROBE_SECONDS, PROBE_BYTES_PER_SECOND = 60.0, 10e6


@dataclass(frozen=True)
class Loaded:
    """An ONNX file, opened. ``size_bytes`` counts the file and the external bytes its tensors refer to; ``beyond``
    says why the model must pass through untouched (newer than the runtime), empty when it need not."""

    model: Model
    size_bytes: int
    warnings: tuple[str, ...] = ()
    beyond: str = ""


def load(
    path: Path, target: Target, *, caps: Caps = DEFAULT_CAPS, fix_training: bool = False, refuse_training: bool = False
) -> Loaded:
    """Open ``path``. External data is memory-mapped; nothing that the file says is trusted before it is checked.

    Raises :class:`Fault` (exit 3): ``model-missing``, ``not-onnx``, ``broken-model``, ``unsafe-model``,
    ``over-limit`` (more than ``caps`` allow), ``training-mode`` (only with ``refuse_training``).
    """
    size = look(path)
    told = probe(path, size, caps)
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != told["sha256"]:
        raise bad_input("the file changed while it was opened", where=str(path), code=UNSAFE)
    proto = onnx.ModelProto()
    proto.ParseFromString(data)
    notes = [*told["notes"], *_normalize(proto)]
    model = to_model(proto, path.parent)
    _check_writable(model, path)
    beyond = _beyond(model, target)
    notes += [beyond] if beyond else []
    notes += _training_notes(model, path, fix_training, refuse_training)
    notes += _unnamed_note(model)
    return Loaded(model, size + int(told["external_bytes"]), tuple(notes), beyond)


def _check_writable(model: Model, path: Path) -> None:
    """What can be read but not written again has no digest, and no pass can hand it on."""
    try:
        model.digest()
    except Exception as error:
        inner = error
        while inner.__cause__ is not None:
            inner = inner.__cause__  # type: ignore[assignment]
        message = f"the model cannot be written again ({type(inner).__name__}: {str(inner)[:200]})"
        raise bad_input(message, where=str(path), code=BROKEN) from error


def look(path: Path) -> int:
    """Size of the file in bytes, once it is known to be a plain file that may be ONNX. Raises :class:`Fault`."""
    try:
        status = path.stat()
    except PermissionError:
        raise _unreadable(path) from None
    except OSError:
        message, hint = "there is no such file", closest_file(path)
        raise bad_input(message, where=str(path), hint=hint, code="model-missing") from None
    if stat.S_ISDIR(status.st_mode):
        raise bad_input("this is a folder, not an ONNX file", where=str(path), hint=closest_file(path / "model.onnx"))
    if not stat.S_ISREG(status.st_mode):
        raise bad_input("this is not a plain file", where=str(path), code=UNSAFE)
    if status.st_size == 0:
        raise bad_input("the file is empty", where=str(path), code="not-onnx", hint="Export or download it again")
    try:
        with path.open("rb") as file:
            reason = not_onnx(file.read(4096), path)
    except PermissionError:
        raise _unreadable(path) from None
    if reason:
        raise bad_input(f"this is not an ONNX file: {reason[0]}", where=str(path), hint=reason[1], code="not-onnx")
    if status.st_size > LARGEST_FILE_BYTES:
        hint = "Save the model with its weights as external data"
        raise bad_input("the file is larger than 2 GiB, which ONNX cannot be", where=str(path), hint=hint, code=BROKEN)
    return status.st_size


def _unreadable(path: Path) -> Fault:
    return broken("no permission to read the file", where=str(path), code="permission")


def probe(path: Path, size: int, caps: Caps) -> dict[str, Any]:
    """Parse the file of ``size`` bytes in a child, so that a crash or a memory bomb costs the child alone.

    Returns what :func:`probe_file` does and raises :class:`Fault` for whatever becomes of it.
    """
    seconds = PROBE_SECONDS + size / PROBE_BYTES_PER_SECOND
    try:
        with Worker.ours() as worker:
            told = _call(worker, path, seconds, caps)
    except Fault as fault:
        fault.where = fault.where or str(path)
        raise
    except WorkerDied as death:
        raise bad_input(f"reading the file ended the reader: {death}", where=str(path), code=BROKEN) from death
    except CallFailed as failure:
        if failure.kind in _OUT_OF_MEMORY:
            message = "the file unpacks to far more memory than its size explains"
            raise bad_input(message, where=str(path), code=UNSAFE) from failure
        message = f"the file cannot be read as a model ({failure.kind}: {str(failure)[:200]})"
        raise bad_input(message, where=str(path), code=BROKEN) from failure
    if lacks := limits.missing():
        told["notes"].append(f"this system cannot limit {' and '.join(lacks)}: open files from strangers elsewhere")
    return told


_OUT_OF_MEMORY = ("MemoryError", "_ArrayMemoryError", "bad_alloc")


def _call(worker: Worker, path: Path, seconds: float, caps: Caps) -> dict[str, Any]:
    told: dict[str, Any] = worker.call(PROBE, timeout=seconds, path=str(path), seconds=seconds, caps=asdict(caps))
    return told


def probe_file(path: str, seconds: float, caps: dict[str, int]) -> dict[str, Any]:
    """Parse ``path`` and check it as far as loading and the passes need; runs in a worker, which it limits for good.

    Returns ``external_bytes``, ``sha256`` of what was read and ``notes``. Raises :class:`Fault`, or whatever the
    libraries raise on what they cannot read.
    """
    file = Path(path)
    size = file.stat().st_size
    limits.hold(extra_address_bytes=PARSE_FACTOR * size + PARSE_SLACK_BYTES, cpu_seconds=seconds, file_bytes=0)
    objection = _objection(path)
    data = file.read_bytes()
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError:
        hint = "It is truncated or damaged: export or download it again"
        raise bad_input("the file is not a complete ONNX model", hint=hint, code="not-onnx") from None
    _check_header(proto)
    external = sum(s.length for s in confine(proto, file.parent))
    if any(word in objection for word in _OF_EXTERNAL_DATA):
        raise bad_input(f"onnx.checker refuses its external data: {objection}", code=UNSAFE)
    _check_bytes(size + external, Caps(**caps))
    check_size(proto, Caps(**caps))
    _check_data(proto)
    check_names(proto.graph)
    notes = [f"onnx.checker objects to this file: {objection}"] if objection else []
    _normalize(proto)
    model = to_model(proto, file.parent)
    Shapes(model).dtype(next(iter(model.graph.outputs), None))  # native code that the passes rely on: let it crash here
    return {"external_bytes": external, "sha256": hashlib.sha256(data).hexdigest(), "notes": notes}


_RANKLESS = "Field 'shape' of 'type' is required but missing"
"""Runtimes take values of unknown rank, and many exporters write them."""

_OF_EXTERNAL_DATA = ("external data", "Location of external", "should be stored in", "data_location", "hardlink")


def _objection(path: str) -> str:
    """What ``onnx.checker`` has against the file, on its path, where it looks at external data too."""
    try:
        onnx.checker.check_model(path)
    except MemoryError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        return "" if _RANKLESS in text else text or type(error).__name__
    return ""


def _check_bytes(total: int, caps: Caps) -> None:
    if total > caps.model_bytes:
        message = f"the model takes {total:,} bytes with its external data, more than the {caps.model_bytes:,} allowed"
        raise bad_input(message, code="over-limit", hint="--max-model-bytes allows more")


def _check_header(proto: onnx.ModelProto) -> None:
    if not proto.HasField("graph"):
        message = "the file parses as a message but holds no graph"
        raise bad_input(message, code="not-onnx", hint="Is this a tensor (.pb of a test data set) or another format?")
    if proto.ir_version < OLDEST_IR:
        message = f"the model has IR version {proto.ir_version}; {OLDEST_IR} is the oldest that runtimes load"
        raise bad_input(message, code=BROKEN, hint="Export it again")
    if not proto.opset_import:
        raise bad_input("the model does not say which opset it uses", code=BROKEN, hint="It may be truncated")
    if odd := next((o for o in proto.opset_import if o.version < 1), None):
        raise bad_input(f"the model uses opset {odd.version} of '{odd.domain or 'ai.onnx'}'", code=BROKEN)


def _check_data(proto: onnx.ModelProto) -> None:
    """Inline tensors hold as many bytes as their shape says; kernels would read past the end otherwise."""
    for tensor in tensors_in(proto):
        if is_external(tensor) or tensor.data_type == onnx.TensorProto.STRING:
            continue
        needed = byte_size(tensor)
        if tensor.HasField("raw_data"):
            held = len(tensor.raw_data)
        else:
            held = needed if _typed_count(tensor) or not needed else 0
        if held != needed:
            message = f"tensor '{tensor.name}' of shape {list(tensor.dims)} holds {held:,} bytes instead of {needed:,}"
            raise bad_input(message, code=BROKEN, hint="The file is damaged")


def _typed_count(tensor: onnx.TensorProto) -> int:
    fields = (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data, tensor.uint64_data)
    return sum(len(field) for field in fields)


def to_model(proto: onnx.ModelProto, folder: Path) -> Model:
    """The handle, with the weights of its graphs memory-mapped from ``folder`` and other external tensors read in."""
    mapped = list(_initializers(proto.graph))  # kept alive, because identity is what tells them apart
    identities = {id(tensor) for tensor in mapped}
    for tensor in tensors_in(proto):
        if is_external(tensor) and id(tensor) not in identities:
            onnx.external_data_helper.load_external_data_for_tensor(tensor, str(folder))
            tensor.ClearField("external_data")
            tensor.data_location = onnx.TensorProto.DEFAULT
    return Model.from_proto(proto, os.fspath(folder))


def _initializers(graph: onnx.GraphProto) -> Iterable[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for nested in bodies(node):
            yield from _initializers(nested)


def _normalize(proto: onnx.ModelProto) -> list[str]:
    """One import for each domain, ``ai.onnx`` under its short name, and nodes in order; says what was not so."""
    notes = _one_import_each(proto, "the model")
    moved = [put_in_order(owner) for owner in (proto.graph, *proto.functions)]
    if any(moved):
        notes.append("nodes stood before what they read; they were put in order")
    for function in proto.functions:
        notes += _one_import_each(function, f"function '{function.name}'")
    if len(proto.training_info):
        notes.append("the file holds training information, which an artifact for inference leaves out")
    return notes


def _one_import_each(proto: onnx.ModelProto | onnx.FunctionProto, what: str) -> list[str]:
    versions: dict[str, list[int]] = {}
    for entry in proto.opset_import:
        versions.setdefault("" if entry.domain == "ai.onnx" else entry.domain, []).append(entry.version)
    if len(versions) == len(proto.opset_import) and all(e.domain != "ai.onnx" for e in proto.opset_import):
        return []
    del proto.opset_import[:]
    # onnxruntime executes such a model by the last entry, so that is what the author has seen it do.
    proto.opset_import.extend(onnx.helper.make_opsetid(domain, found[-1]) for domain, found in versions.items())
    return [
        f"{what} imports the opset of '{domain or 'ai.onnx'}' {len(found)} times ({', '.join(map(str, found))}): "
        f"{found[-1]} is kept, by which onnxruntime executes it"
        for domain, found in versions.items()
        if len(set(found)) > 1
    ]


def _beyond(model: Model, target: Target) -> str:
    """Why the target's runtime cannot take this model, or nothing."""
    reasons = []
    if model.opset > target.max_opset:
        reasons.append(f"opset {model.opset} is above {target.max_opset}")
    if model.ir.ir_version > target.max_ir:
        reasons.append(f"IR version {model.ir.ir_version} is above {target.max_ir}")
    if not reasons:
        return ""
    return f"{' and '.join(reasons)}, the newest that the runtime takes: the model passes through untouched"


def _training_notes(model: Model, path: Path, fix: bool, refuse: bool) -> list[str]:
    signs = training.find(model)
    if not signs:
        return []
    if refuse:
        message = f"the model is in training mode: {training.summary(signs)}"
        hint = "Export it in eval mode, or use --fix-training"
        raise Fault("training-mode", message, Exit.BAD_INPUT, str(path), hint)
    if not fix:
        return [f"the model is in training mode: {training.summary(signs)}; --fix-training rewrites it"]
    notes = []
    if done := training.fix(model):
        notes.append(f"rewritten to inference form: {training.summary(done)}")
    if left := training.find(model):
        notes.append(f"still in training mode, and no inference form is known: {training.summary(left)}")
    return notes


def _unnamed_note(model: Model) -> list[str]:
    free = [
        f"{port.name} axis {axis}"
        for port in model.signature.inputs
        for axis, dim in enumerate(port.dims or ())
        if dim is None
    ]
    return [f"dynamic dimensions without a name ({', '.join(free[:6])}): each is taken as free"] if free else []
