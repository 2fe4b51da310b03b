"""onnxruntime's providers whose inputs and outputs lie in the memory of the process."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimizer.faults import bad_input
from optimizer.plan import PROVIDERS, ProviderText
from optimizer.runtime import values, work
from optimizer.runtime.engines import Feeds
from optimizer.runtime.providers import open_session, plain_words, runtime

COPIES = frozenset({"MemcpyFromHost", "MemcpyToHost"})
"""Nodes that onnxruntime puts between providers: they are nobody's work."""


@dataclass(frozen=True)
class OnnxRuntime:
    """onnxruntime with a provider and its options."""

    provider: ProviderText

    def load(self) -> None:
        runtime()

    def open(self, path: str, threads: int, *, optimize: bool = True) -> InMemory:
        return InMemory(open_session(path, self.provider.text, threads, optimize=optimize))

    def profiled(self) -> ProviderText:
        """The provider with the options under which its nodes can be profiled."""
        return self.provider

    def coverage(self, path: str, feeds: Feeds, threads: int) -> list[dict[str, Any]]:
        found = _shares(profile(path, feeds, self.profiled().text, threads))
        made = [provider for provider, share in found.items() if share.compiled]
        if made:
            # What a provider compiled into one node of its own has no operators to count: it ran all that others did
            # not.
            whole = whole_work(path, feeds)
            others = sum(share.macs or 0 for provider, share in found.items() if provider not in made)
            for provider in made:
                left = None if whole is None or len(made) > 1 else max(0, whole - others)
                found[provider] = Share(found[provider].nodes, left, True)
        return [{"provider": provider, "nodes": len(s.nodes), "macs": s.macs} for provider, s in found.items()]


class InMemory:
    """A session whose inputs and outputs are arrays of this process."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.taken = {i.name for i in session.get_inputs()}
        self.names = [o.name for o in session.get_outputs()]

    def run(self, feeds: Feeds) -> dict[str, Any]:
        with in_plain_words():
            return dict(zip(self.names, values.run(self.session, self.fitting(feeds), None), strict=True))

    def bind(self, feeds: Feeds) -> Callable[[], Any]:
        return values.bind(self.session, self.fitting(feeds))

    def fitting(self, feeds: Feeds) -> dict[str, Any]:
        """The feeds that the model takes."""
        return {name: array for name, array in feeds.items() if name in self.taken}


@contextmanager
def in_plain_words() -> Iterator[None]:
    """Turn whatever onnxruntime raises while it runs a model into a Fault."""
    try:
        yield
    except Exception as error:
        text = f"onnxruntime failed while running the model: {plain_words(error)}"
        raise bad_input(text, code="runtime-failed") from error


# -- who ran what ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Share:
    """What one provider ran: names of its nodes, their multiply-accumulates, and whether some of the nodes are graphs
    that the provider compiled."""

    nodes: frozenset[str]
    macs: int | None
    compiled: bool


def profile(path: str, feeds: Feeds, provider: str, threads: int, *, optimize: bool = True) -> list[dict[str, Any]]:
    """The node events of one run, copies left out. Weights stay as they are in the graph, so that every event holds
    the shapes of all that its node reads."""
    with tempfile.TemporaryDirectory(prefix="lathe-") as folder:
        session = open_session(
            path, provider, threads, optimize=optimize, profile=str(Path(folder) / "profile"), prepack=False
        )
        InMemory(session).run(feeds)
        events = json.loads(Path(session.end_profiling()).read_text())
    return [e for e in events if e.get("cat") == "Node" and str(e.get("name", "")).endswith("_kernel_time")
            and e["args"].get("op_name") not in COPIES]  # fmt: skip


def whole_work(path: str, feeds: Feeds) -> int | None:
    """Multiply-accumulates of one run of the model as it stands; ``None`` where the CPU cannot run it."""
    from optimizer.faults import Fault

    try:
        found = _shares(profile(path, feeds, PROVIDERS["cpu"], 1, optimize=False))
    except Fault:
        return None
    return sum(share.macs or 0 for share in found.values())


def _shares(events: Iterable[Mapping[str, Any]]) -> dict[str, Share]:
    nodes: dict[str, set[str]] = defaultdict(set)
    macs: dict[str, int] = defaultdict(int)
    compiled: set[str] = set()
    for event in events:
        told = event["args"]
        provider, op = str(told.get("provider", "?")), str(told.get("op_name", "?"))
        nodes[provider].add(str(event["name"]).removesuffix("_kernel_time"))
        macs[provider] += work.macs(op, *(_shapes(told.get(key)) for key in ("input_type_shape", "output_type_shape")))
        if not op.isalnum():  # operators are words; compiled graphs are called things like TRTKernel_graph_0
            compiled.add(provider)
    return {name: Share(frozenset(found), macs[name], name in compiled) for name, found in nodes.items()}


def _shapes(told: Any) -> list[list[int]]:
    """``[{"float": [1, 3]}, ...]`` as the profile has it -> ``[[1, 3], ...]``."""
    return [list(shape) for entry in told or () for shape in entry.values()]
