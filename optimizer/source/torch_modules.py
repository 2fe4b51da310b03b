"""Getting a PyTorch module: from a factory, from a file that may run code, with weights from a state dict.

Loaded by path in the worker for user code, like its neighbours; torch is imported inside functions.
"""

from __future__ import annotations

import importlib.util
import inspect
import pickle
import sys
import types
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any


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
    from optimizer.source import user_import as user
else:
    user = _neighbour("user_import")

PICKLES = (".pkl", ".pickle")
NAMES_TOLD = 4


# -- from a factory ------------------------------------------------------------------------------------------------
def as_module(thing: Any, factory: str) -> Any:
    from torch import nn

    if isinstance(thing, nn.Module):
        return _unwrapped(thing)
    if not callable(thing):
        text = f"'{factory}' is {_a(thing)}, neither an nn.Module nor a function that returns one"
        raise user.Told("not-a-module", text, hint=_advice(thing) if isinstance(thing, Mapping) else "")
    _needs_no_arguments(thing, factory)
    with user.telling("factory-failed", f"the factory '{factory}'"):
        made = thing()
    if isinstance(made, nn.Module):
        return _unwrapped(made)
    raise user.Told("not-a-module", f"'{factory}' returned {_a(made)}, not an nn.Module", hint=_advice(made))


def _unwrapped(module: Any) -> Any:
    parallel = type(module).__name__ in ("DataParallel", "DistributedDataParallel")
    return module.module if parallel else module


def _needs_no_arguments(factory: Callable[..., Any], spec: str) -> None:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return
    empty, free = inspect.Parameter.empty, (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    wanted = [p.name for p in parameters if p.default is empty and p.kind not in free]
    if wanted:
        message = f"'{spec}' needs arguments ({', '.join(wanted)})"
        raise user.Told("factory-failed", message, hint="Name a function without arguments that returns the module")


def _a(thing: Any) -> str:
    if thing is None:
        return "None"
    name = type(thing).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _advice(made: Any) -> str:
    if made is None:
        return "Does the function lack its return statement?"
    if isinstance(made, Mapping):
        return "Is it a state_dict? Name what builds the module, and give the weights with --weights"
    if isinstance(made, (tuple, list)):
        return "Return the module alone"
    if callable(made):
        return "Return the module itself, not something that makes it"
    return "Return an instance of torch.nn.Module"


def settle(module: Any) -> list[str]:
    """Eval mode everywhere, on the CPU, without gradients."""
    notes = []
    with user.telling("factory-failed", "putting the module into eval mode"):
        if any(m.training for m in module.modules()):
            notes.append("the module was in training mode and was put into eval mode")
        module.eval()
        for part in module.modules():
            part.training = False  # some modules override train() and stay as they were
        if any(t.device.type != "cpu" for t in (*module.parameters(), *module.buffers())):
            notes.append("the module was on another device and was moved to the CPU")
            module.cpu()
        for parameter in module.parameters():
            parameter.requires_grad_(False)
    return notes


# -- from a file ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Opened:
    """What a file held: the module, the arguments it brought as an example (args, kwargs), and what was done."""

    module: Any
    example: Any
    note: str


def load_file(path: Path, roots: Sequence[str]) -> Opened:
    """The module in a ``.pt2``, TorchScript or pickled file. The caller has the user's word that its code may run.

    What the file is decides how it is read, once: a loader that fails is not followed by another. Raises
    :class:`user.Told` ``load-failed``.
    """
    user.reach(roots)
    read, how = _reader(path)
    with user.telling("load-failed", f"loading the file with {how}"):
        module, example = read(path)
    return Opened(module, example, f"'{path.name}' was loaded with {how}, which may run code in it (--trust-code)")


def _reader(path: Path) -> tuple[Callable[[Path], tuple[Any, Any]], str]:
    """How the file is read, by the members of its archive, and that in words."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError):
        names = []
    if {"archive_format", "models/model.json", "serialized_exported_program.json"} & set(names):
        return _exported, "torch.export.load"
    if "constants.pkl" in names:
        return _scripted, "torch.jit.load"
    if not names and path.suffix.lower() in PICKLES:
        return _pickled, "pickle.load"
    return _saved, "torch.load"


def _exported(path: Path) -> tuple[Any, Any]:
    import torch

    program = torch.export.load(path)
    module = program.module()
    for name in ("train", "eval"):  # on this instance they only raise; the graph is in the mode that it was traced in
        vars(module).pop(name, None)
    return module, program.example_inputs


def _scripted(path: Path) -> tuple[Any, Any]:
    import torch

    script = torch.jit.load(str(path), map_location="cpu")

    class Scripted(torch.nn.Module):  # type: ignore[misc]
        """A script behind a forward that has a signature; ``exports_as`` is what the older exporter takes, which does
        not trace into a script."""

        def __init__(self) -> None:
            super().__init__()
            self.script = script

        @property
        def exports_as(self) -> Any:
            return self.script

        def forward(self, *args: Any, **named: Any) -> Any:
            return self.script(*args, **named)

    module: Any = Scripted()
    kind, parameters = inspect.Parameter.POSITIONAL_OR_KEYWORD, []
    for argument in script.forward.schema.arguments[1:]:
        default = argument.default_value if argument.has_default_value() else inspect.Parameter.empty
        parameters.append(inspect.Parameter(argument.name, kind, default=default))
    forward = module.forward

    def signed(*args: Any, **named: Any) -> Any:
        return forward(*args, **named)

    signed.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    module.forward = signed
    return module, None


def _saved(path: Path) -> tuple[Any, Any]:
    import torch

    return torch.load(path, map_location="cpu", weights_only=False), None


def _pickled(path: Path) -> tuple[Any, Any]:
    with path.open("rb") as file:
        return pickle.load(file), None


# -- weights ---------------------------------------------------------------------------------------------------------
def load_weights(module: Any, path: Path) -> list[str]:
    """Load a state dict into ``module``: safetensors, or torch's own format without pickled objects, whoever trusts it.

    Returns notes. Raises :class:`user.Told` ``bad-weights`` when the file is neither, or does not fit the module.
    """
    state = _state(path)
    notes = []
    inner = state.get("state_dict", state)
    if inner is not state and isinstance(inner, Mapping):
        state = inner
        notes.append(f"'{path.name}' is a checkpoint: its 'state_dict' was taken")
    if not all(hasattr(value, "dtype") for value in state.values()):
        raise user.Told("bad-weights", "the file is not a state dict of tensors alone", str(path))
    try:
        missing, unexpected = module.load_state_dict(dict(state), strict=False)
    except RuntimeError as error:  # shapes that differ
        raise user.Told("bad-weights", f"the weights do not fit the module: {user.words(error)}", str(path)) from error
    for what, names in (("lacks", missing), ("has no place for", unexpected)):
        if names:
            told = ", ".join(names[:NAMES_TOLD]) + (
                f" and {len(names) - NAMES_TOLD} more" if names[NAMES_TOLD:] else ""
            )
            side = "the file" if what == "lacks" else "the module"
            raise user.Told("bad-weights", f"{side} {what} {told}", str(path), "Are these the weights of this module?")
    return notes


def _state(path: Path) -> Mapping[str, Any]:
    try:
        if path.suffix.lower() == ".safetensors":
            from safetensors.torch import load_file as read

            state: Any = read(path)
        else:
            import torch

            state = torch.load(path, map_location="cpu", weights_only=True)
    except ModuleNotFoundError as error:
        raise user.missing_package(error.name or "torch") from error
    except Exception as error:
        hint = "Save the state dict with safetensors; pickled objects are never loaded as weights"
        message = f"the weights cannot be read without running code: {user.words(error)}"
        raise user.Told("bad-weights", message, str(path), hint) from error
    if not isinstance(state, Mapping):
        raise user.Told("bad-weights", f"the file holds {_a(state)}, not a state dict", str(path))
    return state
