"""What exporters write beside the graph: stack traces, source locations, local paths."""

from __future__ import annotations

import re
from collections.abc import Iterator, MutableMapping
from typing import Any

import onnx_ir as ir

from passes.kit.contract import Edit
from passes.kit.model import Model

_KEYS = ("pkg.torch.", "pkg.onnxscript.")
"""Metadata keys that the PyTorch exporter writes for its own debugging."""

_TRACE = re.compile(
    r'File "[^"]+", line \d+|\.py[(:]\d+|(?:^|[\s"\'(=])(?:/(?:home|root|Users|tmp|opt|usr|mnt|workspace)/|[A-Za-z]:\\)'
)
"""A Python stack frame, a source location, or an absolute path."""


def strip(fork: Model, edit: Edit) -> None:
    """Drop metadata and doc strings that carry traces of where the model was made; a user's own notes stay."""
    if not edit.allows("metadata", "model"):
        return
    dropped = sum(_clean(thing) for thing in _things(fork))
    if dropped:
        edit.change("metadata", "model", f"{dropped} entries dropped")


def _clean(thing: Any) -> int:
    dropped = 0
    metadata: MutableMapping[str, str] = thing.metadata_props
    for key in [k for k, text in metadata.items() if k.startswith(_KEYS) or _TRACE.search(text)]:
        del metadata[key]
        dropped += 1
    if getattr(thing, "doc_string", None) and _TRACE.search(thing.doc_string):
        thing.doc_string = None
        dropped += 1
    return dropped


def _things(fork: Model) -> Iterator[Any]:
    """Everything that can carry metadata: the model, its graphs and functions, their nodes and values."""
    yield fork.ir
    holders: list[ir.Graph | ir.Function] = [*fork.graphs(), *fork.ir.functions.values()]
    for holder in holders:
        yield holder
        yield from holder.inputs
        if isinstance(holder, ir.Graph):
            yield from holder.initializers.values()
        node: ir.Node
        for node in holder:
            yield node
            yield from node.outputs
