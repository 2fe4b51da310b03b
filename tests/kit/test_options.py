"""Options: declared once, checked everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from passes.kit.contract import Exactness, Pass
from passes.kit.options import Option, OptionError, check, closest, describe, option


@dataclass(frozen=True)
class Sample(Pass):
    """A pass with one option of each kind."""

    name: ClassVar[str] = "sample"
    exactness: ClassVar[Exactness] = Exactness.EXACT

    keep_it: bool = option(False, "keep it")
    bits: int = option(8, "how many", low=2, high=8)
    share: float = option(0.5, "which part", low=0, high=1)
    observer: str = option("min-max", "which one", choices=("min-max", "percentile"))
    exclude: tuple[str, ...] = option((), "which not")


def test_a_class_describes_its_options_in_order() -> None:
    assert describe(Sample) == (
        Option("keep-it", "bool", False, "keep it"),
        Option("bits", "int", 8, "how many", 2, 8),
        Option("share", "float", 0.5, "which part", 0, 1),
        Option("observer", "str", "min-max", "which one", None, None, ("min-max", "percentile")),
        Option("exclude", "list", (), "which not"),
    )


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"keep-it": True}, {"keep_it": True}),
        ({"keep_it": True}, {"keep_it": True}),
        ({"bits": 2}, {"bits": 2}),
        ({"share": 1}, {"share": 1.0}),
        ({"observer": "percentile"}, {"observer": "percentile"}),
        ({"exclude": "one"}, {"exclude": ("one",)}),
        ({"exclude": ["a", "b"]}, {"exclude": ("a", "b")}),
    ],
)
def test_values_that_fit(given: dict[str, Any], wanted: dict[str, Any]) -> None:
    found = check(Sample, given)
    assert found == wanted
    assert [type(v) for v in found.values()] == [type(v) for v in wanted.values()]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"bit": 4}, r"no option 'bit' \(did you mean 'bits'\?\); it has: keep-it, bits"),
        ({"bits": 1}, "below its lowest value 2"),
        ({"bits": 9}, "above its highest value 8"),
        ({"bits": 4.0}, "takes a int"),
        ({"bits": True}, "takes a int"),
        ({"keep-it": 1}, "takes a bool"),
        ({"share": "half"}, "takes a float"),
        ({"observer": "percentil"}, r"did you mean 'percentile'\?"),
        ({"exclude": [1]}, "takes a list of strings"),
        ({"share": float("nan")}, "share"),
    ],
)
def test_values_that_do_not(given: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        check(Sample, given)


def test_a_pass_built_in_code_is_checked_too() -> None:
    with pytest.raises(OptionError, match="above its highest"):
        Sample(bits=9)


def test_only_what_differs_from_the_defaults_is_an_option_of_the_instance() -> None:
    assert Sample().options() == {}
    assert Sample(keep_it=True, exclude=("a",)).options() == {"keep-it": True, "exclude": ("a",)}


def test_the_closest_word_is_offered_or_none() -> None:
    assert closest("tydi", ("tidy", "simplify")) == " (did you mean 'tidy'?)"
    assert closest("zzz", ("tidy", "simplify")) == ""
