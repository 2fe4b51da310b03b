"""What the verbs share: options in sections, parameter types, settings files, output."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from optimizer.cli import boundary, config
from optimizer.faults import usage
from optimizer.plan import PROVIDERS, Caps, ProviderText

if TYPE_CHECKING:
    from rich.console import RenderableType

    from optimizer.plan import SourceRequest

F = TypeVar("F", bound=Callable[..., Any])

HELP_FLAGS = frozenset({"-h", "--help"})
NOT_SETTINGS = frozenset({"help", "print-config", "json", "debug"})
CONFIG_KEY = "lathe.config"
OUTPUT = "Output and behaviour"
"""The last section of every help."""

DEFAULT_CAPS = Caps()
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


class Opt(click.Option):
    """An option that stands in a section of the help. With ``once`` it is an error to give it twice, where others take
    the last: what was left out would not be noticed."""

    def __init__(self, *args: Any, section: str = "Options", once: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section
        self.once = once


class Verb(click.Command):
    """A command whose options stand in sections, and may stand in a settings file."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        found = None if HELP_FLAGS & set(args) else config.load(Path.cwd())
        if found is not None and parent is not None:
            names = {key_of(p): str(p.name) for p in self.params}
            values = found.values(info_name or "", settings_of(self), {v: settings_of(c) for v, c in _verbs(parent)})
            extra["default_map"] = {names[k]: _fit(p, values[k]) for p in self.params if (k := key_of(p)) in values}
            parent.meta[CONFIG_KEY] = found.where
        return super().make_context(info_name, args, parent, **extra)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for param in self.params:
            names = param.opts if isinstance(param, Opt) and param.once else []
            if sum(arg.partition("=")[0] in names for arg in args) > 1:
                raise usage("this can be given only once", where=names[0])
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        ordered = sorted(self.get_params(ctx), key=lambda p: getattr(p, "section", OUTPUT) == OUTPUT)
        for param in ordered:
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is not None:
                sections.setdefault(getattr(param, "section", OUTPUT), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records, col_max=28)


class Word(click.ParamType[str]):
    """One of some words; the closest is offered when it is another."""

    name = "word"

    def __init__(self, kind: str, words: Sequence[str]) -> None:
        self.kind, self.words = kind, words

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return "|".join(self.words)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value not in self.words:
            said = boundary.unknown(self.kind, str(value), self.words)
            self.fail(f"{said}; known: {', '.join(self.words)}", param, ctx)
        return str(value)


class Provider(click.ParamType[str]):
    """A provider by its short or full name, with options of its own where some follow. Returns the text as given."""

    name = "provider"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            name = ProviderText.parse(str(value)).name
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if name.lower() not in PROVIDERS and not name.endswith("ExecutionProvider") and name not in PROVIDERS.values():
            known = (*PROVIDERS, *PROVIDERS.values())
            self.fail(f"{boundary.unknown('provider', name, known)}; known: {', '.join(PROVIDERS)}", param, ctx)
        return str(value)


class Bytes(click.ParamType[int]):
    """An amount like ``500MB`` or ``2 GB`` (powers of ten)."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value).strip().lower()
        number = text.rstrip("bkmgt ")
        scale = _UNITS.get(text[len(number) :].strip().removesuffix("b"))
        try:
            amount = float(number) * scale if scale else -1.0
        except ValueError:
            amount = -1.0
        if not 0 <= amount < float("inf"):
            self.fail(f"'{value}' is not a size: write it as 500MB or 2GB", param, ctx)
        return int(amount)


def option(*names: str, section: str, **kwargs: Any) -> Callable[[F], F]:
    """A ``click.option`` in a section of the help."""
    return click.option(*names, cls=Opt, section=section, **kwargs)


def verb(name: str, **kwargs: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a function the command of a verb, with ``--json`` and ``--debug``."""
    settings = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

    def wrap(function: Callable[..., Any]) -> click.Command:
        as_json = click.option(
            "--json", "as_json", is_flag=True, help="Print one JSON object on stdout, on failure too."
        )
        debug = click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
        return click.command(name, cls=Verb, context_settings=settings, **kwargs)(as_json(debug(function)))

    return wrap


_CAPS = (
    ("--max-model-bytes", Bytes(), DEFAULT_CAPS.model_bytes, "Refuse a model that takes more, external data included."),
    ("--max-nodes", click.IntRange(min=1), DEFAULT_CAPS.nodes, "Refuse a model of more nodes, functions expanded."),
    ("--max-depth", click.IntRange(min=1), DEFAULT_CAPS.depth, "Refuse bodies of If, Loop and Scan nested deeper."),
    ("--max-folded-bytes", Bytes(), DEFAULT_CAPS.folded_bytes, "Leave out a pass that adds more to the weights."),
)


def source_options(function: F) -> F:
    """How to open MODEL: the fields of :class:`~optimizer.plan.SourceRequest`."""
    section = "Opening the model"
    for add in reversed(
        (
            option(
                "--example",
                section=section,
                metavar="MODULE:FUNCTION",
                help="Function that returns example inputs (PyTorch).",
            ),
            option(
                "--dynamic",
                section=section,
                metavar="INPUT:AXIS=NAME",
                multiple=True,
                help="Keep an axis open and name it, as in input:0=batch. Repeatable.",
            ),
            option(
                "--shape",
                "shapes",
                section=section,
                metavar="INPUT:DIMS",
                multiple=True,
                help="Shape of an input, as in input:1,3,224,224, to make example inputs of. Repeatable.",
            ),
            option(
                "--opset",
                section=section,
                type=click.IntRange(min=7),
                metavar="N",
                help="Opset to export to; default: what the target wants.",
            ),
            option(
                "--fix-training",
                section=section,
                is_flag=True,
                help="Rewrite a model that was exported in training mode to inference.",
            ),
            option(
                "--refuse-training",
                section=section,
                is_flag=True,
                help="Refuse a model that was exported in training mode.",
            ),
            option(
                "--weights",
                section=section,
                type=click.Path(path_type=Path),
                metavar="FILE",
                help="State dict for what the factory returns: .safetensors, or .pt without pickled objects.",
            ),
            option(
                "--trust-code",
                section=section,
                is_flag=True,
                help="Open .pt2, TorchScript and pickled modules, which run code inside them.",
            ),
            *(
                option(flag, section=section, type=kind, metavar="N", default=most, show_default=True, help=text)
                for flag, kind, most, text in _CAPS
            ),
        )
    ):
        function = add(function)
    return function


def source_request(model: str | None, given: dict[str, Any]) -> SourceRequest:
    """The request from the parameters of :func:`source_options`, which are taken out of ``given``."""
    from optimizer.plan import SourceRequest

    names = ("example", "dynamic", "shapes", "opset", "fix_training", "refuse_training", "weights", "trust_code")
    caps = Caps(**{field.name: given.pop(f"max_{field.name}") for field in dataclasses.fields(Caps)})
    ctx = click.get_current_context()
    if not model:
        raise click.UsageError("Missing argument 'MODEL'", ctx)
    if isinstance(ctx.obj, boundary.Scene):
        ctx.obj.source = model
    return SourceRequest(model=model, folder=Path.cwd(), caps=caps, **{n: given.pop(n) for n in names})


def key_of(param: click.Parameter) -> str:
    """The name of a setting: the long option without its dashes."""
    longest = max(param.opts, key=len, default=str(param.name))
    return longest.lstrip("-")


def settings_of(command: click.Command) -> set[str]:
    """The settings that a command takes from a file."""
    return {key_of(p) for p in command.params} - NOT_SETTINGS


def show(thing: RenderableType, *, to_stderr: bool = False) -> None:
    """Print a renderable: what was asked for on stdout, what accompanies it on stderr."""
    from rich.console import Console

    console = Console(stderr=to_stderr, highlight=False, markup=False, emoji=False)
    try:
        console.print(thing)
    except BrokenPipeError:
        boundary.close_stdout()


def api() -> Any:
    """The Python API, loaded when a verb really works."""
    return importlib.import_module("optimizer.api")


def _verbs(parent: click.Context) -> Iterable[tuple[str, click.Command]]:
    group = parent.command
    while parent.parent is not None:
        parent = parent.parent
        group = parent.command
    assert isinstance(group, click.Group)
    for name in group.list_commands(parent):
        found = group.get_command(parent, name)
        if found is not None:
            yield name, found


def _fit(param: click.Parameter, value: Any) -> Any:
    """A value from a file in the form that the parameter expects: one text where several may stand is a list."""
    if param.multiple or param.nargs == -1:
        return list(value) if isinstance(value, list) else [value]
    is_flag = isinstance(param, click.Option) and param.is_flag
    if isinstance(value, list) or is_flag != isinstance(value, bool):
        wanted = "true or false" if is_flag else "one value"
        raise usage(f"'{key_of(param)}' takes {wanted}, not {value!r}", code="bad-setting")
    return value
