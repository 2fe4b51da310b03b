"""Opening ONNX files that may be anything: a probe in a child process first, then the real thing, memory-mapped."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from optimizer.faults import Exit, Fault, bad_input, broken
from optimizer.source import training
from optimizer.source.external import BROKEN, UNSAFE, byte_size, confine, is_external, tensors_in
from optimizer.source.looks import closest_file, not_onnx
from optimizer.workers.child import limit_address_space
from optimizer.workers.pool import CallFailed, Worker, WorkerDied
from passes.kit.model import Model
from passes.kit.target import Target

OLDEST_IR = 3
PROBE = "optimizer.source.onnx_file:probe_file"
LARGEST_FILE_BYTES = 2**31 - 1
"""protobuf cannot hold more in one message."""

PARSE_FACTOR, PARSE_SLACK_BYTES = 6, 2**30
"""Address space that reading may take: a multiple of the file (bytes, message, graph) and a fixed part."""

PROBE_SECONDS, PROBE_BYTES_PER_SECOND = 60.0, 10e6


@dataclass(frozen=True)
class Loaded:
    """An ONNX file, opened. ``size_bytes`` counts the file and the external bytes its tensors refer to; ``beyond``
    says why the model must pass through untouched (newer than the runtime), empty when it need not."""

    model: Model
    size_bytes: int
    warnings: tuple[str, ...] = ()
    beyond: str = ""


def load(path: Path, target: Target, *, fix_training: bool = False, refuse_training: bool = False) -> Loaded:
    """Open ``path``. External data is memory-mapped; nothing that the file says is trusted before it is checked.

    Raises :class:`Fault` (exit 3): ``model-missing``, ``not-onnx``, ``broken-model``, ``unsafe-model``,
    ``training-mode`` (only with ``refuse_training``).
    """
    size = look(path)
    told = _probe(path, size)
    proto = onnx.ModelProto()
    proto.ParseFromString(path.read_bytes())
    notes = _normalize(proto)
    model = to_model(proto, path.parent)
    beyond = _beyond(model, target)
    notes += [beyond] if beyond else []
    notes += _training_notes(model, path, fix_training, refuse_training)
    notes += _unnamed_note(model)
    return Loaded(model, size + int(told["external_bytes"]), tuple(notes), beyond)


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


def _probe(path: Path, size: int) -> dict[str, int]:
    """Parse the file in a child, so that a crash or a memory bomb costs the child alone."""
    seconds = PROBE_SECONDS + size / PROBE_BYTES_PER_SECOND
    try:
        with Worker.ours() as worker:
            return _call(worker, path, seconds)
    except Fault as fault:
        fault.where = fault.where or str(path)
        raise
    except WorkerDied as death:
        raise bad_input(f"reading the file ended the reader: {death}", where=str(path), code=BROKEN) from death
    except CallFailed as failure:
        if failure.kind == "MemoryError":
            message = "the file unpacks to far more memory than its size explains"
            raise bad_input(message, where=str(path), code=UNSAFE) from failure
        message = f"the file cannot be read as a model ({failure.kind}: {str(failure)[:200]})"
        raise bad_input(message, where=str(path), code=BROKEN) from failure


def _call(worker: Worker, path: Path, seconds: float) -> dict[str, int]:
    told: dict[str, int] = worker.call(PROBE, timeout=seconds, path=str(path))
    return told


def probe_file(path: str) -> dict[str, int]:
    """Parse ``path`` and check it as far as loading needs; runs in a worker of ours, which it limits for good.

    Returns ``external_bytes``. Raises :class:`Fault`, or whatever the libraries raise on what they cannot read.
    """
    size = Path(path).stat().st_size
    limit_address_space(PARSE_FACTOR * size + PARSE_SLACK_BYTES)
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(Path(path).read_bytes())
    except DecodeError:
        hint = "It is truncated or damaged: export or download it again"
        raise bad_input("the file is not a complete ONNX model", hint=hint, code="not-onnx") from None
    _check_header(proto)
    stretches = confine(proto, Path(path).parent)
    _check_data(proto)
    _check_names(proto.graph, set())
    _normalize(proto)
    to_model(proto, Path(path).parent)
    return {"external_bytes": sum(s.length for s in stretches)}


def _check_header(proto: onnx.ModelProto) -> None:
    if not proto.HasField("graph"):
        message = "the file parses as a message but holds no graph"
        raise bad_input(message, code="not-onnx", hint="Is this a tensor (.pb of a test data set) or another format?")
    if proto.ir_version < OLDEST_IR:
        message = f"the model has IR version {proto.ir_version}; {OLDEST_IR} is the oldest that runtimes load"
        raise bad_input(message, code=BROKEN, hint="Export it again")
    if not proto.opset_import:
        raise bad_input("the model does not say which opset it uses", code=BROKEN, hint="It may be truncated")


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


def _check_names(graph: onnx.GraphProto, outer: set[str]) -> None:
    """Every name that is read is written somewhere, and written once."""
    known = set(outer)
    known.update(v.name for v in graph.input)
    known.update(t.name for t in graph.initializer)
    known.update(t.values.name for t in graph.sparse_initializer)
    written: set[str] = set()
    for node in graph.node:
        for name in filter(None, node.output):
            if name in written:
                raise bad_input(f"two nodes write the value '{name}'", code=BROKEN)
            written.add(name)
    known |= written
    for node in graph.node:
        for name in node.input:
            if name and name not in known:
                raise bad_input(f"node '{node.name or node.op_type}' reads '{name}', which nothing writes", code=BROKEN)
        for nested in _bodies(node):
            _check_names(nested, known)
    for value in graph.output:
        if value.name not in known:
            raise bad_input(f"nothing writes the output '{value.name}'", code=BROKEN)


def _bodies(node: onnx.NodeProto) -> Iterable[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


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
        for nested in _bodies(node):
            yield from _initializers(nested)


def _normalize(proto: onnx.ModelProto) -> list[str]:
    """One import for each domain, ``ai.onnx`` under its short name; says what was ambiguous."""
    notes = _one_import_each(proto, "the model")
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
