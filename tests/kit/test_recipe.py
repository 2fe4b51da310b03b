"""Recipe text: what is printed can be read back."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.kit.recipe import Recipe, RecipeError, Step

NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_.", min_size=1, max_size=12)
SCALARS = (
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8"))
)
VALUES = SCALARS | st.lists(st.text(st.characters(codec="utf-8"))).map(tuple)
KEYS = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=12).filter(lambda k: k.strip("-"))


@st.composite
def steps(draw: st.DrawFn) -> Step:
    options = draw(st.dictionaries(KEYS, VALUES, max_size=4))
    return Step(draw(NAMES), tuple(options.items()))


@settings(deadline=None)
@given(st.lists(steps(), max_size=4).map(lambda s: Recipe(tuple(s))))
def test_a_recipe_comes_back(recipe: Recipe) -> None:
    assert Recipe.parse(recipe.text()) == recipe


@settings(deadline=None)
@given(st.lists(steps(), max_size=3), st.lists(steps(), max_size=3))
def test_recipes_join_as_their_texts_do(left: list[Step], right: list[Step]) -> None:
    joined = Recipe(tuple(left)) + Recipe(tuple(right))
    texts = [t for t in (Recipe(tuple(left)).text(), Recipe(tuple(right)).text()) if t]
    assert joined.text() == ", ".join(texts)


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("tidy", "tidy", ()),
        ("q{bits=4}", "q", (("bits", 4),)),
        ("q{ on = true , r=0.5 }", "q", (("on", True), ("r", 0.5))),
        ("q{observer=percentile}", "q", (("observer", "percentile"),)),
        ('q{exclude=["/head/*", "a, b"]}', "q", (("exclude", ("/head/*", "a, b")),)),
        ("q{only=/layer.0/*}", "q", (("only", "/layer.0/*"),)),
        ('q{s="}, {"}', "q", (("s", "}, {"),)),
        ("q{s='it \\ is'}", "q", (("s", "it \\ is"),)),
    ],
)
def test_it_reads(text: str, name: str, options: tuple[tuple[str, Any], ...]) -> None:
    assert Recipe.parse(f" {text} , tidy").steps == (Step(name, options), Step("tidy"))


def test_a_toml_file_is_the_same_tree() -> None:
    tree = tomllib.loads('[[step]]\nname = "tidy"\n[[step]]\nname = "q"\nbits = 4\nexclude = ["a"]')
    assert Recipe.from_toml(tree) == Recipe.parse('tidy, q{bits=4, exclude=["a"]}')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q{bits=4", "unbalanced"),
        ("q}", "unbalanced|pass"),
        ("{bits=4}", "does not start with the name"),
        ("q{bits}", "is not option=value"),
        ("q{=4}", "is not option=value"),
        ("q{bits=4 5}", "is not a value"),
        ("q{bits=4}x", "closing brace"),
        ("two words", "does not start with the name"),
        ('q{s="open}', "unbalanced"),
    ],
)
def test_it_refuses_and_says_where(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.parse(text)


@pytest.mark.parametrize("tree", [{}, {"step": 1}, {"step": [{}]}, {"step": [{"name": 3}]}, {"step": [], "more": 1}])
def test_a_toml_file_of_another_kind_is_refused(tree: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        Recipe.from_toml(tree)
