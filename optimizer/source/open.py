"""Opening MODEL, whatever it is: a file, a factory, a sample, a folder, or something that is refused with a reason."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.faults import Fault, bad_input, usage
from optimizer.plan import SourceRequest
from optimizer.source import onnx_file
from optimizer.source.looks import FOREIGN, REFUSED, TRUSTED
from optimizer.source.parity import Parity, Run
from optimizer.source.user_code import Spec, is_code, parse
from passes.kit.model import Model
from passes.kit.target import Target

Arrays = Mapping[str, np.ndarray[Any, Any]]

SAMPLE = "sample:"
SHOWN = 100
"""Characters of a MODEL text that an error repeats."""

EXAMPLE_ROWS = 4
"""Rows of a sample's data that serve as example inputs."""

_PLAIN_FACTORIES = frozenset({"build", "factory", "model", "get_model", "make_model", "create_model", "load", "net"})


@dataclass(frozen=True)
class Source:
    """An opened model.

    ``name`` names the artifact, ``kind`` is ``onnx``, ``torch`` or ``sample``, ``where`` is what to call it in
    messages. ``size_bytes`` is the file as given with the external bytes it refers to, or the export without the
    exporter's notes. ``data`` is a sample's data. ``beyond`` says why the model must pass through untouched (newer
    than the runtime), empty when it need not. ``parity`` and ``exporter`` are known for PyTorch sources.
    """

    name: str
    kind: str
    where: str
    model: Model
    size_bytes: int
    digest: str
    data: Path | None = None
    warnings: tuple[str, ...] = ()
    parity: Parity | None = None
    exporter: str | None = None
    beyond: str = ""


def open_source(
    request: SourceRequest,
    *,
    target: Target,
    scratch: Path,
    example: Arrays | None = None,
    run: Run | None = None,
) -> Source:
    """Open ``request.model``.

    ``scratch`` is a folder for exports, which the model may stay mapped to: keep it as long as the model.
    ``example`` holds real data by the names of forward's parameters: a few rows, or one feed an entry; other names
    are ignored. ``run`` executes an export, so that its parity with PyTorch can be measured.

    Raises :class:`Fault`: exit 2 for a text that means nothing, exit 3 for what cannot or must not be opened, exit 4
    when a package is missing.
    """
    text = request.model
    if text.startswith(SAMPLE):
        return _open_sample(request, text.removeprefix(SAMPLE), target, scratch, example, run)
    path = (request.folder / text).expanduser() if not text.startswith("~") else Path(text).expanduser()
    try:
        exists, is_folder = path.exists(), path.is_dir()
    except OSError:  # a text too long for a name, a loop of links
        exists, is_folder = False, False
    if is_folder:
        return _open_folder(request, path, target)
    if is_code(text) and not exists:
        return _open_code(request, target, scratch, example, run)
    if request.trust_code and path.suffix.lower() in TRUSTED and exists:
        return _open_trusted(request, path, target, scratch, example, run)
    _refuse(path, text, exists)
    return _open_file(request, path, path.stem, target)


def _open_file(request: SourceRequest, path: Path, name: str, target: Target) -> Source:
    flags = {"fix_training": request.fix_training, "refuse_training": request.refuse_training}
    loaded = onnx_file.load(path, target, caps=request.caps, **flags)
    return Source(
        name=name,
        kind="onnx",
        where=str(path),
        model=loaded.model,
        size_bytes=loaded.size_bytes,
        digest=loaded.model.digest(),
        warnings=(*loaded.warnings, *unused(request)),
        beyond=loaded.beyond,
    )


def unused(request: SourceRequest) -> tuple[str, ...]:
    """A warning for options that only an export from PyTorch takes."""
    given = {
        "--example": request.example,
        "--dynamic": request.dynamic,
        "--shape": request.shapes,
        "--opset": request.opset,
        "--weights": request.weights,
    }
    named = [flag for flag, value in given.items() if value]
    return (f"{' and '.join(named)}: without effect, as the model is ONNX already",) if named else ()


def _open_folder(request: SourceRequest, path: Path, target: Target) -> Source:
    if (path / "model.onnx").is_file() and (path / "manifest.json").is_file():
        return _open_file(request, path / "model.onnx", path.resolve().name.removesuffix(".lathe"), target)
    where = str(path)
    if (path / "config.json").is_file():
        hint = "Export it to ONNX (optimum-cli export onnx), or name a function that returns the module"
        message = "Hugging Face folders are not opened yet"
        raise bad_input(message, where=where, hint=hint, code="not-supported")
    files = sorted(p.name for p in path.glob("*.onnx"))
    hint = f"Name one of its files: {', '.join(files[:6])}" if files else "It holds no .onnx file"
    raise bad_input("this folder is not an artifact of lathe", where=where, hint=hint, code="not-supported")


def _refuse(path: Path, text: str, exists: bool) -> None:
    """Raise for files that are never opened, and for texts that are no file's name."""
    suffix = path.suffix.lower()
    if suffix == ".py":
        raise usage(
            "this names a file of code, not what in it makes the model", where=text, hint=f"Write {text}:factory"
        )
    if suffix in REFUSED:
        code, why, hint = REFUSED[suffix]
        raise bad_input(f"{suffix} files are not opened: {why}", where=text, hint=hint, code=code)
    if suffix in FOREIGN:
        what, hint = FOREIGN[suffix]
        raise bad_input(f"this is {what}", where=text, hint=hint, code="not-supported")
    if suffix != ".onnx" and not exists:
        raise _meaningless(path, text)


def _meaningless(path: Path, text: str) -> Fault:
    from sample_models import SAMPLES

    folder = path.parent
    files = [p.name for p in folder.glob("*.onnx")] if folder.is_dir() else []
    wishes = [*files, *(f"{SAMPLE}{name}" for name in SAMPLES), *SAMPLES]
    close = difflib.get_close_matches(text, wishes, n=1, cutoff=0.5)
    forms = "MODEL is file.onnx, package.module:factory, path/to/file.py:factory or sample:NAME"
    shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
    if path.suffix == ".lathe":
        return bad_input("there is no such artifact", where=shown)
    if close:
        found = f"{SAMPLE}{close[0]}" if close[0] in SAMPLES else close[0]
        return usage("there is no such model", where=shown, hint=f"Did you mean '{found}'? {forms}")
    return usage("there is no such model", where=shown, hint=forms)


def _open_sample(
    request: SourceRequest, name: str, target: Target, scratch: Path, example: Arrays | None, run: Run | None
) -> Source:
    import sample_models

    sample = sample_models.SAMPLES.get(name)
    if sample is None:
        close = difflib.get_close_matches(name, sample_models.SAMPLES, n=1)
        hint = f"Did you mean '{SAMPLE}{close[0]}'?" if close else f"Samples: {', '.join(sample_models.SAMPLES)}"
        raise usage("there is no such sample", where=f"{SAMPLE}{name}", hint=hint)
    # Our folder stands first here: a user's own sample_models.py must not take the place of ours.
    spec = Spec(f"{SAMPLE}{name}", sample.factory, Path(sample_models.__file__).resolve().parents[1])
    return _open_torch(request, spec, name, "sample", target, scratch, example or _rows(sample.data), run, sample.data)


def _rows(data: Path) -> dict[str, np.ndarray[Any, Any]]:
    with np.load(data, allow_pickle=False) as arrays:
        return {name: arrays[name][:EXAMPLE_ROWS] for name in arrays.files}


def _open_code(
    request: SourceRequest, target: Target, scratch: Path, example: Arrays | None, run: Run | None
) -> Source:
    spec = parse(request.model, request.folder, "MODEL")
    return _open_torch(request, spec, _name(spec), "torch", target, scratch, example or {}, run, None)


def _open_trusted(
    request: SourceRequest, path: Path, target: Target, scratch: Path, example: Arrays | None, run: Run | None
) -> Source:
    """A PyTorch file that the user trusts: loaded and exported in the worker for user code, never here."""
    if not path.is_file():
        raise bad_input("this is not a plain file", where=request.model, code="unsafe-model")
    spec, file = Spec(request.model, "", request.folder.resolve()), path.resolve()
    return _open_torch(request, spec, path.stem, "torch", target, scratch, example or {}, run, None, file)


def _name(spec: Spec) -> str:
    module, factory = spec.module.rpartition(".")[2], spec.name.replace(".", "-")
    return module if factory.lower() in (*_PLAIN_FACTORIES, module.lower()) else f"{module}-{factory}"


def _open_torch(
    request: SourceRequest,
    spec: Spec,
    name: str,
    kind: str,
    target: Target,
    scratch: Path,
    example: Arrays,
    run: Run | None,
    data: Path | None,
    file: Path | None = None,
) -> Source:
    from optimizer.source.torch_source import Job, open_torch

    job = Job(spec, request, target, scratch, example, run, (str(request.folder.resolve()),), file)
    exported = open_torch(job)
    return Source(
        name=name,
        kind=kind,
        where=spec.text,
        model=exported.model,
        size_bytes=exported.size_bytes,
        digest=exported.model.digest(),
        data=data,
        warnings=exported.warnings,
        parity=exported.parity,
        exporter=exported.exporter,
    )
