"""Building, running and exporting a PyTorch module, in the worker for user code.

Loaded there by path: imports the standard library, numpy and its neighbours in this folder, and torch only inside
functions. The worker keeps the module between calls: ``build``, then ``prepare``, then ``cases`` and ``export``.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import inspect
import itertools
import sys
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np


def _neighbour(name: str) -> types.ModuleType:
    """Another file of this folder, loaded by path under a private name."""
    key = f"_lathe_{name}"
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None and spec.loader is not None
        sys.modules[key] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[key])
    return sys.modules[key]


if TYPE_CHECKING:
    from optimizer.source import torch_modules as modules
    from optimizer.source import torch_shapes as shapes
    from optimizer.source import torch_trees as trees
    from optimizer.source import user_import as user
else:
    user, trees, shapes = _neighbour("user_import"), _neighbour("torch_trees"), _neighbour("torch_shapes")
    modules = _neighbour("torch_modules")

INLINE_LIMIT_BYTES = 1_500_000_000
"""Weights above this go to a file beside the model: one protobuf message cannot hold 2 GiB."""

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)
FAULT = 5
SEED = 0
REASON = 260


@dataclass
class Subject:
    """The module at hand. ``original`` is its own forward; ``example`` the arguments that its file brought."""

    module: Any
    original: Callable[..., Any]
    spec: str
    names: list[str] = field(default_factory=list)
    tensors: list[Any] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    data: list[list[Any]] = field(default_factory=list)
    example: Any = None


_AT_HAND: list[Subject] = []


def _subject() -> Subject:
    return _AT_HAND[-1]


# -- building ----------------------------------------------------------------------------------------------------
def build(factory: str, roots: Sequence[str], weights: str | None = None) -> dict[str, Any]:
    """Import ``module:factory``, make the module and put it into eval mode on the CPU.

    ``weights`` is a state dict to load into it. Returns ``type``, ``weight_bytes``, ``parameters`` (names of forward's
    parameters) and ``notes``.
    """
    _require_torch()
    thing = user.load(factory, roots)
    import torch

    torch.manual_seed(SEED)
    module = modules.as_module(thing, factory)
    notes = modules.load_weights(module, Path(weights)) if weights else []
    return _take(module, factory, notes)


def build_file(path: str, roots: Sequence[str]) -> dict[str, Any]:
    """Load the module in a PyTorch file, which runs whatever code the file holds; returns what :func:`build` does."""
    _require_torch()
    opened = modules.load_file(Path(path), roots)
    return _take(modules.as_module(opened.module, path), path, [opened.note], opened.example)


def _require_torch() -> None:
    if importlib.util.find_spec("torch") is None:
        raise user.missing_package("torch")


def _take(module: Any, spec: str, notes: list[str], example: Any = None) -> dict[str, Any]:
    notes = notes + modules.settle(module)
    _AT_HAND[:] = [Subject(module, module.forward, spec, example=example)]
    tensors = [*module.parameters(), *module.buffers()]
    return {
        "type": type(module).__name__,
        "weight_bytes": sum(t.numel() * t.element_size() for t in tensors),
        "parameters": list(inspect.signature(module.forward).parameters),
        "notes": notes,
    }


# -- example inputs ----------------------------------------------------------------------------------------------
def prepare(
    example: str | None, wanted_shapes: Sequence[str], arrays: Mapping[str, Any], roots: Sequence[str]
) -> dict[str, Any]:
    """Settle the example inputs: ``--example``, else ``--shape``, else data, else ``example_inputs`` by the factory.

    Returns ``origin``, ``inputs`` and ``outputs`` (``name``, ``dtype``, ``dims`` each), ``dynamic`` (what a
    ``dynamic_shapes`` function by the factory says, by input and axis) and ``notes``.
    """
    at = _subject()
    notes: list[str] = []
    origin, results = _settle_inputs(at, _candidates(at, example, wanted_shapes, arrays, roots), notes)
    if origin != "data":
        _add_data(at, arrays)
    notes += [f"the module's {skipped} is not a tensor and is left out" for skipped in results.skipped]
    return {
        "origin": origin,
        "inputs": [_describe(n, t) for n, t in zip(at.names, at.tensors, strict=True)],
        "outputs": [_describe(n, t) for n, t in zip(at.outputs, results.tensors, strict=True)],
        "dynamic": _declared_dynamic(at),
        "notes": notes,
    }


def _candidates(
    at: Subject, example: str | None, wanted: Sequence[str], arrays: Mapping[str, Any], roots: Sequence[str]
) -> list[tuple[str, trees.Arguments]]:
    """Example inputs with their origin, best first. What the user named is not replaced by anything else."""
    if example:
        return [(f"'{example}'", _call_example(user.load(example, roots), example, at))]
    if wanted:
        return [("shapes", trees.Arguments((), shapes.make(wanted, list(_forward_parameters(at)), SEED)))]
    found = [("data", arguments) for arguments in _from_data(at, arrays)]
    if at.example is not None:
        found.append(("the file's own", trees.Arguments(*at.example)))
    beside = getattr(sys.modules.get(at.spec.partition(":")[0]), "example_inputs", None)
    if beside is not None:
        name = f"{at.spec.partition(':')[0]}:example_inputs"
        found.append((f"'{name}'", _call_example(beside, name, at)))
    if not _required(at):
        found.append(("nothing", trees.Arguments((), {})))
    if found:
        return found
    takes = ", ".join(_required(at))
    hint = f"Give --example module:function, or --shape {_required(at)[0]}:1,3,224,224, or data with these names"
    raise user.Told("no-example", f"nothing says what forward({takes}) takes", at.spec, hint)


def _call_example(function: Any, name: str, at: Subject) -> trees.Arguments:
    import torch

    torch.manual_seed(SEED)
    with user.telling("example-failed", f"the example function '{name}'"):
        made = function() if callable(function) else function
    return trees.as_arguments(made, list(_forward_parameters(at)))


def _forward_parameters(at: Subject) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(at.original).parameters


def _required(at: Subject) -> list[str]:
    named = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = _forward_parameters(at).items()
    return [n for n, p in parameters if p.default is inspect.Parameter.empty and p.kind in named]


def _from_data(at: Subject, arrays: Mapping[str, Any]) -> list[trees.Arguments]:
    """Data as arguments: the arrays as they are (rows), then their first entries (one feed an entry)."""
    mine = {name: array for name, array in arrays.items() if name in _forward_parameters(at)}
    if not mine or not set(_required(at)) <= set(mine):
        return []
    rows = {name: trees.tensor(array) for name, array in mine.items()}
    entries = {name: trees.tensor(array[0]) if np.ndim(array) and len(array) else trees.tensor(array)
               for name, array in mine.items()}  # fmt: skip
    return [trees.Arguments((), rows), trees.Arguments((), entries)]


def _settle_inputs(
    at: Subject, candidates: list[tuple[str, trees.Arguments]], notes: list[str]
) -> tuple[str, trees.Results]:
    """Take the first candidate that the module runs on, and give the module a forward of plain tensors."""
    failures: list[user.Told] = []
    for origin, candidate in candidates:
        try:
            bound = _bind(at, candidate)
            tree, names, tensors = trees.flatten_arguments(bound)
            flat = _flat_forward(at, tree, names)
            with user.telling("example-failed", f"running the module on the example inputs ({origin})"):
                results = _run(flat, tensors)
        except user.Told as told:
            failures.append(told)
            continue
        if not results.tensors:
            raise user.Told("not-a-module", "forward returns no tensor", at.spec)
        at.names, at.tensors = names, tensors
        at.outputs = trees.free_of(results.names, names)
        at.module.forward = flat
        at.data.append(tensors)
        if built_in := trees.built_in(tree):
            notes.append(f"arguments that are not tensors are built into the model: {', '.join(built_in)}")
        if failures and origin != "data":
            notes.append(f"the data did not serve as example inputs: {failures[0].message}")
        return origin, results
    raise failures[0]


def _add_data(at: Subject, arrays: Mapping[str, Any]) -> None:
    """Real data as one more case, if it looks like the example and the module runs on it."""
    for given in _from_data(at, arrays):
        with contextlib.suppress(Exception):
            _, names, tensors = trees.flatten_arguments(_bind(at, given))
            like = [(t.dtype, t.ndim) for t in tensors] == [(t.dtype, t.ndim) for t in at.tensors]
            if names == at.names and like:
                _run(at.module.forward, tensors)
                at.data.append(tensors)
                return


def _bind(at: Subject, arguments: trees.Arguments) -> inspect.BoundArguments:
    signature = inspect.signature(at.original)
    try:
        return signature.bind(*arguments.args, **arguments.kwargs)
    except TypeError as error:
        raise user.Told(
            "example-failed", f"the example inputs do not fit forward{signature}: {error}", at.spec
        ) from error


def _flat_forward(at: Subject, tree: inspect.BoundArguments, names: list[str]) -> Callable[..., Any]:
    """A forward that takes the tensors alone and returns a flat tuple, which both exporters understand."""
    original = at.original

    def forward(*tensors: Any) -> tuple[Any, ...]:
        args, kwargs = trees.fill(tree, tensors)
        results = trees.flatten_results(original(*args, **kwargs))
        forward.last = results  # type: ignore[attr-defined]
        return tuple(results.tensors)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    forward.__signature__ = inspect.Signature([inspect.Parameter(n, kind) for n in names])  # type: ignore[attr-defined]
    return forward


def _run(flat: Callable[..., Any], tensors: Sequence[Any]) -> trees.Results:
    import torch

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flat(*tensors)
    last: trees.Results = flat.last  # type: ignore[attr-defined]
    return last


def _describe(name: str, tensor: Any) -> dict[str, Any]:
    return {"name": name, "dtype": str(tensor.dtype).removeprefix("torch."), "dims": list(tensor.shape)}


def _declared_dynamic(at: Subject) -> dict[str, dict[int, str]]:
    """What a function ``dynamic_shapes`` by the factory declares, if it is flat enough to be read."""
    beside = getattr(sys.modules.get(at.spec.partition(":")[0]), "dynamic_shapes", None)
    if not callable(beside):
        return {}
    with user.telling("example-failed", "the function 'dynamic_shapes'"):
        declared = beside()
    return shapes.declared(declared, at.names)


# -- running and exporting ---------------------------------------------------------------------------------------
def default_dynamic() -> dict[str, Any]:
    """Whether axis 0 acts as a batch: ``dims`` by input and axis, empty with the ``reason`` when it does not."""
    at = _subject()
    dims = shapes.batch_candidates(at.names, at.tensors)
    if not dims:
        return {"dims": {}, "reason": "the inputs share no first axis"}
    reason = shapes.not_a_batch(lambda ts: _run(at.module.forward, ts).tensors, at.names, at.tensors, dims)
    return {"dims": {} if reason else dims, "reason": reason}


def unmoved(dims: Mapping[str, Mapping[int, str]]) -> dict[str, str]:
    """Named dimensions at whose other sizes the module never runs, each with what it raised."""
    at = _subject()
    failures: dict[str, str] = {}
    moved: set[str] = set()
    for change in shapes.other_sizes(shapes.sizes_of(at.names, at.tensors, dims), dims):
        dim = next(iter(change))
        try:
            _run(at.module.forward, shapes.resized(at.names, at.tensors, dims, change))
            moved.add(dim)
        except Exception as error:
            failures.setdefault(dim, user.words(error))
    return {dim: why for dim, why in failures.items() if dim not in moved}


def cases(dims: Mapping[str, Mapping[int, str]]) -> dict[str, Any]:
    """Run the module at the example sizes and at others, each named dimension in turn.

    Returns ``cases`` (``label``, ``feeds``, ``outputs``, ``dtypes`` each) and ``random`` (two runs on the same inputs
    differ).
    """
    at = _subject()
    told: list[dict[str, Any]] = []
    for number, base in enumerate(at.data):
        if not shapes.differ_only_in(at.names, at.tensors, base, dims):
            continue
        sizes = shapes.sizes_of(at.names, base, dims)
        for change in [{}, *(shapes.other_sizes(sizes, dims) if number == 0 else [])]:
            tensors = shapes.resized(at.names, base, dims, change)
            try:
                results = _run(at.module.forward, tensors)
            except Exception:
                if not change:
                    raise
                continue
            told.append(_case(at, shapes.label({**sizes, **change}, number), tensors, results.tensors))
    return {"cases": told, "random": _is_random(at)}


def _case(at: Subject, label: str, tensors: Sequence[Any], results: Sequence[Any]) -> dict[str, Any]:
    return {
        "label": label,
        "feeds": {n: trees.array(t) for n, t in zip(at.names, tensors, strict=True)},
        "outputs": {n: trees.array(t) for n, t in zip(at.outputs, results, strict=True)},
        "dtypes": {n: str(t.dtype).removeprefix("torch.") for n, t in zip(at.outputs, results, strict=True)},
    }


def _is_random(at: Subject) -> bool:
    first = _run(at.module.forward, at.tensors).tensors
    second = _run(at.module.forward, at.tensors).tensors
    return any(not np.array_equal(trees.array(a), trees.array(b), equal_nan=a.is_floating_point())
               for a, b in zip(first, second, strict=True))  # fmt: skip


def export(path: str, exporter: str, opset: int, dims: Mapping[str, Mapping[int, str]]) -> dict[str, Any]:
    """Write the module to ``path`` as ONNX with the exporter ``dynamo`` or ``older``.

    Returns ``reason``, empty when it worked, and ``notes`` (what the tracer warned of).
    """
    import torch

    at = _subject()
    # At a size of 1 a tracer cannot tell broadcasting from agreement, and some versions take it for a constant.
    sizes = {d: 2 for d, size in shapes.sizes_of(at.names, at.tensors, dims).items() if size < 2}
    tensors = shapes.resized(at.names, at.tensors, dims, sizes)
    write = _export_dynamo if exporter == "dynamo" else _export_older
    with torch.no_grad(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            write(at, path, opset, tensors, dims)
        except MemoryError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                raise user.Told("disk", f"the export cannot be written: {error.strerror}", path, exit=FAULT) from error
            return {"reason": _root_cause(error), "notes": []}
    traced = [str(w.message).splitlines()[0] for w in caught if w.category.__name__ == "TracerWarning"]
    return {"reason": "", "notes": [f"the tracer warned: {text[:REASON]}" for text in dict.fromkeys(traced)][:3]}


def _export_dynamo(
    at: Subject, path: str, opset: int, tensors: Sequence[Any], dims: Mapping[str, Mapping[int, str]]
) -> None:
    import torch

    dynamic = tuple(dict(dims.get(name, {})) or None for name in at.names) if dims else None
    program = torch.onnx.export(
        at.module, tuple(tensors), dynamo=True, input_names=at.names, output_names=at.outputs,
        opset_version=opset, dynamic_shapes=dynamic, verbose=False,
    )  # fmt: skip
    assert program is not None
    _tell_apart(program.model.graph)
    program.save(path, external_data=_weight_bytes(at.module) > INLINE_LIMIT_BYTES)


def _tell_apart(graph: Any) -> None:
    """torch names inputs and outputs as it is told, though a value inside may be called so already; that one gives way.

    An output ``embedding`` beside the embedding's own result, say, would be one name for two values.
    """
    ports = (*graph.inputs, *graph.outputs)
    inner = [*(o for n in graph.all_nodes() for o in n.outputs), *graph.initializers.values()]
    taken, known = {p.name for p in ports}, {v.name for v in (*ports, *inner)}
    for value in inner:
        if value.name in taken and not any(value is p for p in ports):
            fresh = next(name for k in itertools.count(1) if (name := f"{value.name}_{k}") not in known)
            known.add(fresh)
            value.name = fresh


def _export_older(
    at: Subject, path: str, opset: int, tensors: Sequence[Any], dims: Mapping[str, Mapping[int, str]]
) -> None:
    import torch

    axes: dict[str, dict[int, str]] = {name: dict(found) for name, found in dims.items() if found}
    run = lambda ts: _run(at.module.forward, ts).tensors  # noqa: E731
    if dims:
        axes |= shapes.output_axes(run, at.names, tensors, at.outputs, dims)
    subject = getattr(at.module, "exports_as", at.module)
    torch.onnx.export(
        subject, tuple(tensors), path, dynamo=False, input_names=at.names, output_names=at.outputs,
        opset_version=opset, dynamic_axes=axes or None,
    )  # fmt: skip


def _weight_bytes(module: Any) -> int:
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))


def _root_cause(error: BaseException) -> str:
    """The shortest useful reason: the exporters wrap one another's errors, and the innermost says what it was."""
    found = error
    while (inner := found.__cause__ or (None if found.__suppress_context__ else found.__context__)) is not None:
        found = inner
    lines = [line.strip() for line in str(found).splitlines() if line.strip()] or [""]
    text = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    text = text.split(". Failure message:")[0]
    where = user.place(found)
    told = f"{type(found).__name__}: {text}" if text else type(found).__name__
    return told[:REASON] + (f" ({where})" if where and "site-packages" not in where else "")
