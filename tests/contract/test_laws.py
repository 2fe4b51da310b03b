"""The laws that every pass obeys, held against every pass of the catalogue over a small corpus of models."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from functools import cache

import numpy as np
import onnx
import pytest

from passes import catalogue
from passes.kit.contract import Exactness, Pass, PassResult
from passes.kit.model import Model
from passes.kit.options import check, describe
from passes.kit.recipe import Recipe, Step
from tests.support.corpus import CASES, Case
from tests.support.runtime import Array, LocalContext, run

HEADINGS = ("What it does", "When it applies", "When it refuses", "Exactness")
NOISE_FACTOR = 10
FLOOR = 1e-6
"""NUMERIC may move an output by ten times the runtime's own noise, at least by this share of the largest output."""


def _passes() -> list[str]:
    """Names of all passes whose module is there (a family may still be on its way)."""
    found = []
    for name in catalogue.names():
        where = catalogue._BUILT_IN.get(name, "")
        if not where or importlib.util.find_spec(where.partition(":")[0]) is not None:
            found.append(name)
    return found


PASSES = _passes()


@cache
def _source(case: Case) -> Model:
    return case.build()


@cache
def _applied(name: str, case: Case) -> tuple[str, PassResult]:
    """The digest of the input before the pass ran, and what came out."""
    subject = _source(case)
    before = Model.from_bytes(subject.to_bytes()).digest()
    return before, catalogue.find(name)()(subject, LocalContext(feeds=case.feeds))


@pytest.fixture(params=PASSES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=CASES, ids=lambda c: c.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param  # type: ignore[no-any-return]


def test_the_input_is_untouched(name: str, case: Case) -> None:
    before, _ = _applied(name, case)
    assert Model.from_bytes(_source(case).to_bytes()).digest() == before


def test_the_output_is_valid_and_keeps_its_signature(name: str, case: Case) -> None:
    _, result = _applied(name, case)
    onnx.checker.check_model(result.model.to_proto())
    assert result.model.signature == _source(case).signature


def test_changes_are_empty_if_and_only_if_nothing_changed(name: str, case: Case) -> None:
    before, result = _applied(name, case)
    after = Model.from_bytes(result.model.to_bytes()).digest()
    assert (after == before) == (not result.changes)
    assert result.changes or result.model is _source(case)


def test_a_second_run_changes_nothing(name: str, case: Case) -> None:
    cls = catalogue.find(name)
    if cls.exactness is Exactness.LOSSY:
        pytest.skip("a lossy pass may spend quality again")
    _, result = _applied(name, case)
    again = cls()(result.model, LocalContext(feeds=case.feeds))
    assert not again.changes


def test_it_is_deterministic(name: str, case: Case) -> None:
    _, first = _applied(name, case)
    second = catalogue.find(name)()(case.build(), LocalContext(feeds=case.feeds))
    assert second.model.to_bytes() == first.model.to_bytes()
    assert second.changes == first.changes
    assert second.skips == first.skips


def test_exactness_is_honoured(name: str, case: Case) -> None:
    cls = catalogue.find(name)
    _, result = _applied(name, case)
    for feeds in case.feeds:
        before, after = run(_source(case), feeds), run(result.model, feeds)
        assert list(before) == list(after)
        noise = run(_source(case), feeds, optimize=True) if cls.exactness is Exactness.NUMERIC else before
        for key, wanted in before.items():
            _hold(cls, wanted, after[key], noise[key])


def _hold(cls: type[Pass], wanted: Array, got: Array, noisy: Array) -> None:
    assert got.shape == wanted.shape
    assert got.dtype == wanted.dtype
    if cls.exactness is Exactness.LOSSY:
        assert np.isfinite(got).all() or not np.isfinite(wanted).all()
    elif cls.exactness is Exactness.EXACT or wanted.dtype.kind != "f":
        assert got.tobytes() == wanted.tobytes()
    else:
        noise = np.abs(noisy - wanted).max(initial=0)
        floor = FLOOR * np.abs(wanted).max(initial=0)
        assert np.abs(got - wanted).max(initial=0) <= max(NOISE_FACTOR * noise, floor)


def test_the_page_has_its_headings(name: str) -> None:
    page = catalogue.find(name).page()
    lines = [line.strip() for line in page.splitlines()]
    positions = [lines.index(heading) for heading in HEADINGS]
    assert positions == sorted(positions)
    assert lines[0].endswith(".")
    for here, following in zip(positions, [*positions[1:], len(lines)], strict=True):
        assert any(lines[here + 1 : following]), f"nothing under '{lines[here]}'"


def test_the_name_is_the_one_in_the_catalogue(name: str) -> None:
    cls = catalogue.find(name)
    assert cls.name == name
    assert name == name.lower()
    assert cls.exactness in Exactness


def test_options_have_help_and_ranges(name: str) -> None:
    for info in describe(catalogue.find(name)):
        assert info.help, info.name
        assert info.help[0].islower() or not info.help[0].isalpha(), "help is the rest of a sentence"
        if info.kind in ("int", "float"):
            assert info.low is not None, info.name
            assert info.high is not None, info.name


def _settings(cls: type[Pass]) -> Iterator[tuple[str, object]]:
    """For every option one value that fits and is not its default."""
    for info in describe(cls):
        if info.kind == "bool":
            yield info.name, not info.default
        elif info.choices:
            yield from ((info.name, c) for c in info.choices if c != info.default)
        elif info.kind in ("int", "float"):
            ends = [e for e in (info.low, info.high) if e is not None and e != info.default]
            yield info.name, int(ends[0]) if info.kind == "int" else float(ends[0])
        elif info.kind == "list":
            yield info.name, ("/a/*", "b, c")


def test_the_recipe_text_comes_back(name: str) -> None:
    cls = catalogue.find(name)
    for option, value in [("", None), *_settings(cls)]:
        wanted = cls(**check(cls, {option: value} if option else {}))
        recipe = Recipe((Step(name, tuple(wanted.options().items())),))
        assert Recipe.parse(recipe.text()) == recipe
        (built,) = catalogue.build(Recipe.parse(recipe.text()))
        assert built == wanted
