"""The ``lathe`` command. Verbs are loaded when they are called, so that ``lathe --help`` loads click alone."""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any

import click

from optimizer import __version__
from optimizer.cli import boundary

VERBS: dict[str, str] = {
    "optimize": "Turn a model into a faster one that keeps its quality, with the evidence.",
    "benchmark": "Time models side by side, on one or several providers.",
    "gate": "Hold an artifact to a policy and a baseline: pass, fail or undecided, for CI.",
    "verify": "Check that an artifact is whole and gives the answers it was shipped with.",
    "check-data": "Hold new data against what an artifact remembers: ok, drift or undecided.",
    "report": "Make the report of an artifact again, from its evidence.",
    "package": "Hand an artifact over as MLflow, Triton, OpenVINO, Hugging Face, OCI, ORT or zip.",
    "sign": "Sign an artifact, with its provenance and bill of materials.",
    "replay": "Make an artifact again from its manifest and compare the digests.",
    "diff": "Show how two artifacts or models differ.",
    "inspect": "Show what a model is made of, and what each pass would do to it.",
    "explain": "Say what quantization costs a model layer by layer, and what to try next.",
    "export": "Turn a PyTorch model into ONNX and measure that both agree.",
    "passes": "List the passes, or show the page of one.",
    "debug": "Find where two models part, and the smallest part that shows it.",
    "doctor": "Say what this machine can run, and what to mend.",
    "cache": "List, prune or locate the cache.",
}
"""Every verb with its line in the help; the verb NAME is ``command`` in ``optimizer.cli.NAME``, dashes as ``_``."""


class Lathe(click.Group):
    """The group of verbs. Errors of any kind end in :mod:`optimizer.cli.boundary`."""

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> Any:
        argv = list(sys.argv[1:] if args is None else args)
        if "_LATHE_COMPLETE" in os.environ:
            return super().main(argv, prog_name or "lathe", **extra)
        scene = boundary.Scene.of(argv, VERBS)

        def go() -> None:
            with self.make_context("lathe", argv, obj=scene) as ctx:
                self.invoke(ctx)

        sys.exit(boundary.guard(scene, go))

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        found: click.Command = importlib.import_module(f"optimizer.cli.{cmd_name.replace('-', '_')}").command
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            raise click.UsageError(boundary.unknown("command", args[0], VERBS), ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.group(
    cls=Lathe,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 does not hold, 2 usage, 3 bad model or data, 4 undecided or not possible here, "
    "5 a fault of ours or of the machine, 130 interrupted.",
)
@click.version_option(__version__, prog_name="lathe", message="%(prog)s %(version)s")
def cli() -> None:
    """A model optimization compiler: PyTorch or ONNX in, a faster ONNX artifact with measured evidence out.

    \b
    lathe optimize model.onnx --data samples.npz
    lathe optimize my_package.models:build --data samples.npz --budget 'top1.drop<=0.5%'
    lathe benchmark model.onnx model.lathe/model.onnx
    """


def main() -> None:
    """Entry point of the ``lathe`` command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot spell a name must not end the work
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _stop)
    cli.main()


def _stop(number: int, _: object) -> None:
    """A polite kill unwinds like any exit, so that nothing half-written stays."""
    sys.exit(128 + number)
