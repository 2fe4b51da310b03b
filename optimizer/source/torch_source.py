"""A PyTorch module as a model: built and exported in a worker for user code, its parity measured here."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from optimizer.faults import Fault, bad_input, usage
from optimizer.plan import SourceRequest
from optimizer.source import onnx_file, parity
from optimizer.source.parity import Case, Parity, Run
from optimizer.source.user_code import Spec, UserWorker, parse
from passes.kit.model import LARGEST_PROTO_BYTES, Model
from passes.kit.target import Target

DYNAMO, OLDER = "dynamo", "older"
DYNAMO_OLDEST_OPSET = 18
OLDER_NEWEST_OPSET = 20
ANY_IR = 1000
"""Exporters write the IR version they know; it is lowered to the target's afterwards."""

EXPORT_SECONDS = 3600.0
"""How long building or exporting may take before it is given up."""

_DYNAMIC = re.compile(r"([^:]+):(\d+)=([A-Za-z_]\w*)")
_SHAPE = re.compile(r"([A-Za-z_]\w*):\[?(\d*(?:,\d+)*)\]?(?::([a-z]+\d*))?")
_SHAPE_DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")

Dims = dict[str, dict[int, str]]


@dataclass(frozen=True)
class Exported:
    """An export that was taken: the model without the exporter's notes, its size, and how it came about."""

    model: Model
    size_bytes: int
    exporter: str
    parity: Parity | None
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Attempt:
    """One way to export: with which exporter, at which opset, with which named dimensions."""

    exporter: str
    opset: int
    dims: Dims


@dataclass(frozen=True)
class Job:
    """What an export needs to know. ``roots`` are further folders that user code is imported from; ``file`` is a
    PyTorch file to load in place of a factory, which the user trusts to run code."""

    spec: Spec
    request: SourceRequest
    target: Target
    scratch: Path
    arrays: Mapping[str, np.ndarray[Any, Any]]
    run: Run | None
    roots: tuple[str, ...] = ()
    file: Path | None = None


def open_torch(job: Job) -> Exported:
    """Build the module that ``job.spec`` names, export it, and measure that the export computes the same.

    Raises :class:`Fault`: exit 2 for texts that name no input, exit 3 for a factory that fails or returns something
    else, an export that fails in both exporters (``export-failed``) or that differs (``parity``), exit 4 without torch.
    """
    with UserWorker(job.spec.root, job.spec.text) as worker:
        return export_in(worker, job)


def export_in(worker: UserWorker, job: Job) -> Exported:
    """What :func:`open_torch` does, in a worker that was started on the folder of ``job.spec``."""
    example = parse(job.request.example, job.request.folder, "--example") if job.request.example else None
    check_texts(job.request)
    roots = [str(example.root)] if example and example.root != job.spec.root else []
    roots += [root for root in job.roots if root != str(job.spec.root)]
    if job.file is not None:
        built = _ask(worker, "build_file", path=str(job.file), roots=roots)
    else:
        built = _ask(worker, "build", factory=job.spec.dotted, roots=roots, weights=_weights(job.request))
    prepared = _ask(
        worker,
        "prepare",
        example=example.dotted if example else None,
        wanted_shapes=list(job.request.shapes),
        arrays=dict(job.arrays),
        roots=roots,
    )
    notes = [*built["notes"], *prepared["notes"]]
    dims, asked = _dims(worker, job.request, prepared, notes)
    exported = _first_that_holds(worker, job, dims, asked)
    return replace(exported, warnings=(*notes, *exported.warnings))


def _ask(worker: UserWorker, op: str, **args: Any) -> Any:
    return worker.call(f"torch_worker.py:{op}", timeout=EXPORT_SECONDS, **args)


def _weights(request: SourceRequest) -> str | None:
    """Where the state dict is. Raises :class:`Fault` (exit 3) when there is no such file."""
    if request.weights is None:
        return None
    path = (request.folder / request.weights).expanduser().resolve()
    if not path.is_file():
        raise bad_input("there is no such file of weights", where=str(request.weights), code="weights-missing")
    return str(path)


def check_texts(request: SourceRequest) -> None:
    """Refuse ``--dynamic`` and ``--shape`` texts that cannot be read, with exit 2."""
    for text in request.dynamic:
        if not _DYNAMIC.fullmatch(text):
            raise usage(
                f"'{text}' is not of the form input:axis=name", where="--dynamic", hint="Example: input:0=batch"
            )
    for text in request.shapes:
        found = _SHAPE.fullmatch(text)
        if not found:
            hint = "Example: input:1,3,224,224 or ids:1,16:int64"
            raise usage(f"'{text}' is not of the form input:sizes", where="--shape", hint=hint)
        if found[3] and found[3] not in _SHAPE_DTYPES:
            raise usage(
                f"'{found[3]}' is no dtype for a shape", where="--shape", hint=f"Known: {', '.join(_SHAPE_DTYPES)}"
            )


# -- named dimensions --------------------------------------------------------------------------------------------
def _dims(worker: UserWorker, request: SourceRequest, prepared: Any, notes: list[str]) -> tuple[Dims, bool]:
    """The named dimensions, and whether someone asked for them (then they are not given up silently)."""
    if request.dynamic or prepared["dynamic"]:
        if request.dynamic:
            dims = parse_dynamic(request.dynamic, prepared["inputs"])
        else:
            dims = {name: dict(axes) for name, axes in prepared["dynamic"].items()}
        for dim, why in _ask(worker, "unmoved", dims=dims).items():
            message = f"the module runs at one size of '{dim}' only ({why})"
            raise bad_input(message, where=request.model, hint="Leave it out of --dynamic", code="export-failed")
        return dims, True
    told = _ask(worker, "default_dynamic")
    if told["reason"] and prepared["inputs"]:
        notes.append(f"exported with fixed shapes: {told['reason']}; --dynamic input:axis=name names what varies")
    return {name: dict(axes) for name, axes in told["dims"].items()}, False


def parse_dynamic(texts: tuple[str, ...], inputs: list[dict[str, Any]]) -> Dims:
    """``input:0=batch`` texts by input and axis. Raises :class:`Fault` (exit 2) for unknown inputs and axes."""
    ranks = {entry["name"]: len(entry["dims"]) for entry in inputs}
    dims: Dims = {}
    for text in texts:
        found = _DYNAMIC.fullmatch(text)
        assert found is not None, "checked by check_texts"
        name, axis = found[1], int(found[2])
        if name not in ranks:
            close = difflib.get_close_matches(name, ranks, n=1)
            hint = f"Did you mean '{close[0]}'?" if close else f"Inputs: {', '.join(ranks)}"
            raise usage(f"there is no input '{name}'", where=f"--dynamic {text}", hint=hint)
        if axis >= ranks[name]:
            raise usage(f"input '{name}' has {ranks[name]} axes, counted from 0", where=f"--dynamic {text}")
        dims.setdefault(name, {})[axis] = found[3]
    return dims


# -- attempts ----------------------------------------------------------------------------------------------------
def attempts(opset: int, dims: Dims, asked: bool) -> list[Attempt]:
    """Ways to export, best first: the newer exporter before the older, named dimensions before fixed shapes."""
    exporters = [DYNAMO, OLDER] if opset >= DYNAMO_OLDEST_OPSET else [OLDER]
    wanted: list[Dims] = [dims] if asked or not dims else [dims, {}]
    return [Attempt(e, min(opset, OLDER_NEWEST_OPSET) if e == OLDER else opset, d) for d in wanted for e in exporters]


def _first_that_holds(worker: UserWorker, job: Job, dims: Dims, asked: bool) -> Exported:
    opset = _opset(job)
    failures: list[tuple[Attempt, str]] = []
    faults: list[Fault] = []
    for number, attempt in enumerate(attempts(opset, dims, asked)):
        found = _try(worker, job, attempt, job.scratch / f"export-{number}" / "model.onnx", faults)
        if isinstance(found, Exported):
            told = _fallback_notes(attempt, opset, dims, failures)
            return replace(found, warnings=(*told, *found.warnings))
        failures.append((attempt, found))
    if faults:
        raise faults[0]
    reasons = {f"{attempt.exporter} exporter: {reason}": None for attempt, reason in failures[:2]}
    hint = "--dynamic may name a dimension that the module fixes" if asked and dims else ""
    raise bad_input("; ".join(reasons), where=job.spec.text, hint=hint, code="export-failed")


def _opset(job: Job) -> int:
    opset = job.request.opset or job.target.export_opset
    if opset > job.target.max_opset:
        hint = f"'{job.target.name}' takes up to {job.target.max_opset}"
        raise usage(f"opset {opset} is newer than the target's runtime", where="--opset", hint=hint)
    return opset


def _fallback_notes(taken: Attempt, opset: int, dims: Dims, failures: list[tuple[Attempt, str]]) -> list[str]:
    notes = []
    if taken.exporter == OLDER:
        why = next((reason for attempt, reason in failures if attempt.exporter == DYNAMO), "")
        why = why or f"the dynamo exporter writes opset {DYNAMO_OLDEST_OPSET} upward"
        notes.append(f"exported with torch's older exporter at opset {taken.opset}: {why}")
    if dims and not taken.dims:
        why = next(reason for attempt, reason in failures if attempt.dims)
        notes.append(f"exported with fixed shapes, because a dynamic batch did not work: {why}")
    if taken.opset != opset:
        notes.append(f"opset {opset} was asked for; the older exporter writes up to {OLDER_NEWEST_OPSET}")
    return notes


def _try(worker: UserWorker, job: Job, attempt: Attempt, path: Path, faults: list[Fault]) -> Exported | str:
    """The export, or why it cannot be used. A parity failure is also kept as the fault to raise in the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plan = {"exporter": attempt.exporter, "opset": attempt.opset, "dims": attempt.dims}
    told = _ask(worker, "export", path=str(path), **plan)
    if told["reason"]:
        return str(told["reason"])
    flags = {"fix_training": job.request.fix_training, "refuse_training": job.request.refuse_training}
    loaded = onnx_file.load(path, replace(job.target, max_ir=ANY_IR), caps=job.request.caps, **flags)
    model = loaded.model
    if model.opset != attempt.opset:
        return f"it wrote opset {model.opset} instead of {attempt.opset}"
    model.ir.ir_version = min(model.ir.ir_version, job.target.max_ir)
    strip(model)
    if fixed := _fixed(model, attempt.dims):
        return f"it fixed the dimension {fixed}"
    checked = _measure(worker, job, model, attempt)
    if checked is not None and not checked.ok:
        faults.append(checked.fault(job.spec.text))
        return checked.reason
    warnings = [*told["notes"], *loaded.warnings]
    if checked is None:
        warnings.append("parity with PyTorch was not measured: no runtime was given")
    return Exported(model, size_of(model), attempt.exporter, checked, tuple(warnings))


def _fixed(model: Model, dims: Dims) -> str:
    """A named dimension that the export does not carry, as ``x:0=batch``, or nothing."""
    ports = {port.name: port.dims or () for port in model.signature.inputs}
    wanted = ((name, axis, dim) for name, axes in dims.items() if name in ports for axis, dim in axes.items())
    return next((f"{n}:{axis}={dim}" for n, axis, dim in wanted if isinstance(ports[n][axis], int)), "")


def _measure(worker: UserWorker, job: Job, model: Model, attempt: Attempt) -> Parity | None:
    if job.run is None:
        return None
    told = _ask(worker, "cases", dims=attempt.dims)
    found = parity.measure(model, [Case(**case) for case in told["cases"]], job.run)
    if told["random"] and not found.ok:
        found = replace(found, reason=f"{found.reason} (the module gives other outputs at every run)")
    return found


# -- cleaning ----------------------------------------------------------------------------------------------------
def strip(model: Model) -> None:
    """Remove what exporters note for their own debugging, in place: stack traces with local paths, scopes, docs."""
    _clear(model.ir)
    for graph in model.graphs():
        _clear(graph)
        _strip_nodes(graph)
        for value in (*graph.inputs, *graph.initializers.values()):
            _clear(value)
    for function in model.ir.functions.values():
        _clear(function)
        _strip_nodes(function)
        for nested in function.subgraphs():
            _clear(nested)
            _strip_nodes(nested)
    model.forget_digest()  # loading asked for it while the notes, with their paths, were still there


def _strip_nodes(graph: ir.Graph | ir.Function) -> None:
    for node in graph:
        _clear(node)
        for attribute in node.attributes.values():
            attribute.doc_string = None
        for value in node.outputs:
            _clear(value)


def _clear(thing: Any) -> None:
    thing.metadata_props.clear()
    if hasattr(thing, "doc_string"):
        thing.doc_string = None


def size_of(model: Model) -> int:
    """Bytes of the model as a file, with its weights, wherever they would stand."""
    weights = model.weight_bytes()
    if weights <= LARGEST_PROTO_BYTES:
        return len(model.to_bytes())

    def elsewhere(tensor: ir.TensorProtocol, digest: str) -> ir.ExternalTensor:
        shape = ir.Shape(tensor.shape.numpy())
        return ir.ExternalTensor("weights", 0, tensor.nbytes, tensor.dtype, shape=shape, name="")

    return weights + len(model.to_proto(elsewhere).SerializeToString())
