"""Which output is fed back as which input."""

from __future__ import annotations

import pytest

from optimizer.faults import Fault
from optimizer.measure.carried import pairs_of
from passes.kit.model import Port, Signature


def signature(inputs: dict[str, list[int | str]], outputs: dict[str, list[int | str]]) -> Signature:
    into, out = (tuple(Port(n, "FLOAT", tuple(d)) for n, d in ports.items()) for ports in (inputs, outputs))
    return Signature(into, out)


@pytest.mark.parametrize(
    ("into", "out"),
    [
        ("state", "stateN"), ("state_in", "state_out"), ("h0", "hn"), ("hidden", "new_hidden"),
        ("past_key_values.3.key", "present.3.key"), ("prev_cache", "next_cache"), ("hIn", "hOut"),
    ],
)  # fmt: skip
def test_names_tell(into: str, out: str) -> None:
    found = pairs_of(signature({"x": ["b", 8], into: ["b", 4]}, {"y": ["b", 2], out: ["b", 4]}))
    assert found == ((into, out),)


def test_layers_are_told_apart() -> None:
    names = [(f"past.{i}.{k}", f"present.{i}.{k}") for i in range(12) for k in ("key", "value")]
    shape: list[int | str] = ["b", 4, "past", 16]
    found = pairs_of(signature({i: shape for i, _ in names}, {o: [*shape[:2], "all", 16] for _, o in reversed(names)}))
    assert set(found) == set(names) and len(found) == 24


@pytest.mark.parametrize(
    "outputs",
    [{"state_out": ["b", 5]}, {"state_out": ["b", 4], "next_state": ["b", 4]}, {"y": ["b", 4]}, {"state_out": ["b"]}],
    ids=["another size", "two of them", "another name", "another rank"],
)
def test_what_does_not_fit_or_is_not_sure_is_asked_for(outputs: dict[str, list[int | str]]) -> None:
    with pytest.raises(Fault, match="--state INPUT=OUTPUT") as caught:
        pairs_of(signature({"state": ["b", 4]}, outputs))
    assert caught.value.code == "no-state"


def test_named_pairs_are_checked() -> None:
    ports = signature({"a": ["b", 4], "x": ["b", 2]}, {"z": ["b", 4]})
    assert pairs_of(ports, ["a=z"]) == (("a", "z"),)
    for text, said in (
        ("a=q", "no output 'q'"),
        ("k=z", "no input 'k'"),
        ("x=z", "cannot be fed to x"),
        ("a", "output"),
    ):
        with pytest.raises(Fault, match=said):
            pairs_of(ports, [text])
