"""Take away what a model carries without needing it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from passes.clean.litter import strip
from passes.clean.noop import stands_for
from passes.clean.twins import merge_twins, share_initializers
from passes.kit.context import Context, forbidden
from passes.kit.contract import Edit, Exactness, Pass, PassResult
from passes.kit.match import UNLISTED_INITIALIZERS_IR, discard, forward, is_free, rewrite
from passes.kit.model import Model
from passes.kit.options import option
from passes.kit.shapes import Shapes


@dataclass(frozen=True)
class Tidy(Pass):
    """Remove dead, doubled and idle parts of a graph, and what exporters leave in its metadata.

    What it does
        Removes nodes that no output needs, initializers and local functions that nobody uses, and nodes that hand
        their input on unchanged: Identity, Dropout in inference, Transpose, Reshape, Expand, Slice, Pad, Cast and
        Concat where they provably do nothing, multiplication by one. Joins two transpositions into one. Computes
        equal subexpressions once. Shares equal initializers of more than 1 KiB. Takes initializers off the list of
        graph inputs. Drops metadata that holds stack traces and local paths.

    When it applies
        To every graph, nested ones too. Old files (IR 3) list every initializer as an input, which a caller may then
        override, so that no runtime can fold anything; un-listed, they are constants, and the file becomes IR 4.

    When it refuses
        A graph output keeps its name: an Identity between a graph input, an initializer or another output and an
        output stays. Random operators, operators with bodies, local functions and operators of unknown domains are
        never merged. A Dropout whose mask is used stays, and so does one that may be training. Small equal
        initializers are left apart: sharing a bias saves nothing and ties convolutions together that quantizers
        scale one by one. ``keep-overridable-inputs`` leaves listed initializers alone.

    Exactness
        EXACT. Nothing is computed otherwise than before; equal nodes with equal inputs have equal outputs.
    """

    name: ClassVar[str] = "tidy"
    exactness: ClassVar[Exactness] = Exactness.EXACT

    keep_overridable_inputs: bool = option(
        False, "leave initializers on the list of graph inputs, where a caller can override them"
    )
    strip_metadata: bool = option(True, "drop metadata and doc strings that hold stack traces or local paths")

    def apply(self, model: Model, context: Context) -> PassResult:
        result = rewrite(model, self._tidy, context)
        fork = result.model if result.changes else model.fork()
        edit = Edit(fork, forbidden(context))
        if not self.keep_overridable_inputs:
            _unlist(fork, edit)
        _drop_functions(fork, edit)
        if self.strip_metadata:
            strip(fork, edit)
        if not edit.changes:
            return result
        changes = result.changes + tuple(edit.changes)
        again = rewrite(fork, self._tidy, context)  # what was un-listed may now be shared
        return PassResult(again.model, changes + again.changes, tuple(dict.fromkeys(result.skips + again.skips)))

    def _tidy(self, graph: ir.Graph, edit: Edit, shapes: Shapes) -> None:
        _bury(graph, edit)
        for node in list(graph):
            if node.graph is not None:
                _bypass(node, shapes, edit)
        merge_twins(graph, edit)
        share_initializers(graph, edit)


def _bury(graph: ir.Graph, edit: Edit) -> None:
    """Remove nodes and initializers that nobody needs."""
    for node in reversed(list(graph)):
        free = node.graph is not None and all(is_free(o) for o in node.outputs)
        if free and edit.allows("dead-node", node):
            edit.change("dead-node", node, node.op_type)
            discard(node)
    for name, value in list(graph.initializers.items()):
        if is_free(value) and not value.is_graph_input() and edit.allows("dead-initializer", value):
            edit.change("dead-initializer", value)
            graph.initializers.pop(name)


def _bypass(node: ir.Node, shapes: Shapes, edit: Edit) -> None:
    """Let the consumers of a node that does nothing read its input."""
    found = stands_for(node, shapes, edit)
    if found is None:
        return
    rule, source = found
    where, op_type = node.name or node.outputs[0].name or "?", node.op_type
    if not edit.allows(rule, where):
        return
    if forward(node.outputs[0], source):
        edit.change(rule, where, op_type)
    else:
        edit.skip(rule, where, "its output is a graph output whose name cannot move to its input")


def _unlist(fork: Model, edit: Edit) -> None:
    listed = [v for v in fork.graph.inputs if v.name in fork.graph.initializers and edit.allows("un-list", v)]
    for value in listed:
        edit.change("un-list", value, "initializer is no graph input any more")
        fork.graph.inputs.remove(value)
        if is_free(value) and value.name:
            fork.graph.initializers.pop(value.name)
    if listed:  # part of each of them, not a change that could be left out alone
        fork.ir.ir_version = max(fork.ir.ir_version, UNLISTED_INITIALIZERS_IR)


def _drop_functions(fork: Model, edit: Edit) -> None:
    """Remove local functions that neither the graphs nor a function in use calls."""
    used: set[ir.OperatorIdentifier] = set()
    todo = {n.op_identifier() for n in fork.nodes()} & set(fork.ir.functions)
    while todo:
        key = todo.pop()
        used.add(key)
        todo |= {n.op_identifier() for n in fork.ir.functions[key].all_nodes()} & set(fork.ir.functions) - used
    for key in [k for k in fork.ir.functions if k not in used]:
        where = "::".join(part for part in key if part)
        if edit.allows("dead-function", where):
            edit.change("dead-function", where)
            fork.ir.functions.pop(key)
