"""What runs models, behind one small interface: onnxruntime on the CPU, onnxruntime on a device, the openvino package.

Lives in workers, except for :func:`engine_for`, which loads nothing heavy. Adding an engine is adding a file here and
a line to :func:`engine_for`. docs/adr/0019-engines.md says why it looks like this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from optimizer.plan import OPENVINO_RUNTIME
from optimizer.runtime import providers

Feeds = Mapping[str, Any]


class Program(Protocol):
    """A model that an engine has loaded."""

    def run(self, feeds: Feeds) -> dict[str, Any]:
        """Outputs by name, in the memory of the process. Feeds that the model does not take are left out."""

    def bind(self, feeds: Feeds) -> Callable[[], Any]:
        """A call that runs the model once on ``feeds`` and comes back when the device has finished.

        Inputs are moved to where the model runs beforehand and outputs stay there: the call holds the model alone.
        """


class Engine(Protocol):
    """One way to run models: a provider with its options."""

    def load(self) -> None:
        """Import what is needed, so that what follows can be timed and weighed. Raises a Fault when it is not here."""

    def open(self, path: str, threads: int, *, optimize: bool = True) -> Program:
        """Load a model. Without ``optimize`` every node is computed as it stands. Raises a Fault."""

    def coverage(self, path: str, feeds: Feeds, threads: int) -> Sequence[Mapping[str, Any]]:
        """Who ran what in one run, by the runtime's own profile: for each provider the number of its ``nodes`` and
        their multiply-accumulates, ``macs`` (``None`` where nobody can tell)."""


def engine_for(text: str) -> Engine:
    """The engine of a provider, given by its full name and options. Raises a usage Fault for an unknown one."""
    from optimizer.runtime.engines.devices import DEVICES, OnDevice
    from optimizer.runtime.engines.onnxruntime_ import OnnxRuntime
    from optimizer.runtime.engines.openvino_ import OpenVino

    told = providers.parse(text)
    if told.name == OPENVINO_RUNTIME:
        return OpenVino(told.options)
    return OnDevice(told) if told.name in DEVICES else OnnxRuntime(told)
