"""Models that carry a state from step to step: which output is fed back as which input."""

from __future__ import annotations

import re
from collections.abc import Sequence

from optimizer.faults import usage
from passes.kit.model import Port, Signature
from passes.kit.options import closest

Pair = tuple[str, str]
"""(input, output)"""

_AFFIXES = {"in", "out", "input", "output", "new", "next", "prev", "previous", "past", "present", "old", "n", "t"}
"""Words of a name that say on which side of a step a state stands, and nothing about which state it is."""

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


def pairs_of(signature: Signature, given: Sequence[str] = ()) -> tuple[Pair, ...]:
    """The pairs that ``given`` names (texts ``input=output``), else those that names, types and shapes tell.

    An output belongs to an input of the same type, of a shape that fits, and of the same name apart from words such as
    ``in``, ``out``, ``past`` and ``next``. Raises a usage Fault for a pair that does not fit, and when nothing is given
    and nothing is found.
    """
    if given:
        return tuple(_named(signature, text) for text in given)
    found = _matching(signature)
    if not found:
        likely = [f"{i.name}={o.name}" for i in signature.inputs for o in signature.outputs if _fits(i, o)]
        hint = f"Name the pairs with --state INPUT=OUTPUT; of fitting shape: {', '.join(likely) or 'none'}"
        raise usage("no output is known to be the next state of an input", hint=hint, code="no-state")
    return found


def _named(signature: Signature, text: str) -> Pair:
    into, _, out = text.partition("=")
    ports = ({p.name: p for p in signature.inputs}, {p.name: p for p in signature.outputs})
    for name, known, kind in ((into, ports[0], "input"), (out, ports[1], "output")):
        if name not in known:
            hint = f"Known: {', '.join(known)}. Write --state INPUT=OUTPUT"
            raise usage(f"there is no {kind} '{name}'{closest(name, list(known))}", where=f"--state {text}", hint=hint)
    if not _fits(ports[0][into], ports[1][out]):
        message = f"{ports[1][out]} cannot be fed to {ports[0][into]}: another type or shape"
        raise usage(message, where=f"--state {text}", hint="A state keeps its type and shape")
    return into, out


def _matching(signature: Signature) -> tuple[Pair, ...]:
    """Every input whose stem one fitting output shares, and no other; the same for the output."""
    stems = {p.name: _stem(p.name) for p in (*signature.inputs, *signature.outputs)}
    wanted = [
        (i.name, o.name)
        for i in signature.inputs
        for o in signature.outputs
        if stems[i.name] and stems[i.name] == stems[o.name] and _fits(i, o)
    ]
    into, out = [i for i, _ in wanted], [o for _, o in wanted]
    return tuple(p for p in wanted if into.count(p[0]) == 1 and out.count(p[1]) == 1)


def _stem(name: str) -> tuple[str, ...]:
    """``past_key_values.3.key`` and ``present.3.key`` are one state to Hugging Face, ``h0`` and ``hn`` to torch."""
    plain = re.sub(r"^([hc])[0n]$", r"\1", name.replace("past_key_values", "past"))
    words = [w.lower() for w in _WORDS.findall(plain)]
    return tuple(w for w in words if w not in _AFFIXES)


def _fits(into: Port, out: Port) -> bool:
    """The same element type, and no two fixed sizes that differ: an open dimension may grow, as caches do."""
    if into.type != out.type or (into.dims is not None and out.dims is not None and len(into.dims) != len(out.dims)):
        return False
    dims = zip(into.dims or (), out.dims or (), strict=False)
    return all(not (isinstance(a, int) and isinstance(b, int)) or a == b for a, b in dims)
