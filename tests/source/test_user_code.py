"""User functions run in a worker of their own: results, call-backs, readers, and failures told in one line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimizer.faults import Exit, Fault
from optimizer.source.user_code import UserFunction, is_code, parse, python_callable
from optimizer.source.user_import import missing_package

HERE = Path(__file__).parent
OUTPUTS = {"y": np.array([[1.0, 2.0], [2.0, 1.0]], np.float32)}
LABELS = {"label": np.array([1, 1])}


@pytest.fixture(scope="module")
def shared() -> Iterator[UserFunction]:
    with python_callable("user_tools:accuracy", HERE, timeout=60) as function:
        yield function


def ask(shared: UserFunction, name: str, what: str = "call", *args: Any, **named: Any) -> Any:
    """Another function of the same file, in the same worker: a process a test would cost seconds."""
    other = UserFunction(f"user_tools:{name}", HERE, timeout=60)
    shared.call(OUTPUTS, LABELS)
    other._worker = shared._worker
    return getattr(other, what)(*args, **named)


def test_numbers_arrays_and_tensors_come_back_plain(shared: UserFunction) -> None:
    assert shared.call(OUTPUTS, LABELS) == 0.5
    told = ask(shared, "per_sample", "call", OUTPUTS, labels=LABELS)
    assert told["correct"].tolist() == [True, False] and told["note"] == "fine"
    tensor = ask(shared, "as_tensor", "call", OUTPUTS)
    assert tensor.dtype == np.float32 and tensor.tolist() == OUTPUTS["y"].tolist()


def test_the_worker_keeps_its_state_between_calls() -> None:
    with python_callable("user_tools:counts", HERE) as function:
        assert [function.call(), function.call()] == [1, 2]
        function.close()
        assert function.call() == 1


def test_an_evaluator_runs_the_model_of_the_parent(shared: UserFunction) -> None:
    seen = []

    def run(feeds: dict[str, Any]) -> dict[str, Any]:
        seen.append(feeds["x"])
        return {"y": feeds["x"] * 10}

    assert ask(shared, "evaluate", "evaluate", run) == {"total": 60.0}
    assert [x.tolist() for x in seen] == [[[0, 0]], [[1, 1]], [[2, 2]]]
    with pytest.raises(Fault, match=r"user_tools\.py:\d+: .* raised ValueError: cannot score this"):
        ask(shared, "evaluate_badly", "evaluate", run)


def test_an_evaluator_ends_when_the_model_fails() -> None:
    def run(feeds: dict[str, Any]) -> dict[str, Any]:
        raise KeyboardInterrupt

    with python_callable("user_tools:evaluate", HERE) as function:
        with pytest.raises(KeyboardInterrupt):
            function.evaluate(run)
        assert function.evaluate(lambda feeds: {"y": feeds["x"]}) == {"total": 6.0}


@pytest.mark.parametrize(
    ("name", "shape", "first"),
    [("Reader", (3, 2, 2), 2.0), ("instance", (3, 2, 2), 2.0), ("generator", (4, 2, 2), 0.0)],
)
def test_readers_are_stacked_one_feed_an_entry(
    shared: UserFunction, name: str, shape: tuple[int, ...], first: float
) -> None:
    found = ask(shared, name, "read")
    assert found.stacked and found.notes == ()
    assert found.arrays["x"].shape == shape and found.arrays["x"][0, 0, 0] == first
    if name == "generator":
        assert found.arrays["scale"].tolist() == [0, 1, 2, 3]


def test_readers_may_give_whole_arrays_or_a_short_tail_or_too_much(shared: UserFunction) -> None:
    whole = ask(shared, "whole", "read")
    assert not whole.stacked and whole.arrays["x"].shape == (10, 2) and whole.arrays["labels"].tolist()[-1] == 9
    tail = ask(shared, "short_tail", "read")
    assert tail.arrays["x"].shape == (2, 4, 2) and "last feed is smaller" in tail.notes[0]
    cut = ask(shared, "generator", "read", limit_bytes=80)
    assert cut.arrays["x"].shape == (2, 2, 2) and "stopped after 2 feeds: 80 bytes" in cut.notes[0]


@pytest.mark.parametrize(
    ("name", "what", "code", "text"),
    [
        ("fails", "call", "user-code-failed", r"user_tools\.py:\d+: 'user_tools:fails' raised KeyError: 'logits'"),
        ("greedy", "call", "user-code-failed", "^user_tools:accuracy: .* raised TypeError: .* missing 3"),
        ("leaves", "call", "user-code-failed", "raised SystemExit: enough"),
        ("odd", "call", "bad-result", "it returned a object. Return numbers or numpy arrays"),
        ("CALLS", "call", "not-a-function", "'user_tools:CALLS' is list, not a function"),
        ("acuracy", "call", "name-not-found", "Did you mean 'accuracy'"),
        ("ragged", "read", "bad-feed", r"'x' in feed 1 has shape \[1, 5\], the first one \[1, 3\]"),
        ("renamed", "read", "bad-feed", "feed 1 holds y instead of x"),
        ("tuples", "read", "not-a-reader", "feed 0 is a tuple, not a dict"),
        ("number", "read", "not-a-reader", "gave a int, which is no reader"),
        ("empty", "read", "no-data", "gave no feed"),
    ],
)
def test_failures_are_told(shared: UserFunction, name: str, what: str, code: str, text: str) -> None:
    with pytest.raises(Fault, match=text) as caught:
        ask(shared, name, what)
    assert caught.value.code == code and caught.value.exit is Exit.BAD_INPUT
    assert "\n" not in str(caught.value)


def test_a_dying_and_a_hanging_function_are_told() -> None:
    with python_callable("user_tools:dies", HERE) as dying, pytest.raises(Fault, match="exit code 9") as caught:
        dying.call()
    assert caught.value.code == "user-code-crashed" and caught.value.exit is Exit.BAD_INPUT
    with python_callable("user_tools:sleeps", HERE, 0.5) as hanging, pytest.raises(Fault, match="did not") as caught:
        hanging.call()
    assert caught.value.code == "user-code-timeout"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("import optimizer\ndef f(): return optimizer.MINE", None),
        ("from .sibling import value\ndef f(): return value", None),
        ("import not_there_at_all\n", "tools.py:1: it imports 'not_there_at_all', which is not installed"),
        ("def f(:\n", r"tools\.py:1: importing 'pkg\.tools' raised SyntaxError"),
        ("x = 1 / 0\n", r"tools\.py:1: importing 'pkg\.tools' raised ZeroDivisionError"),
    ],
)
def test_a_users_own_packages_come_first(tmp_path: Path, body: str, text: str | None) -> None:
    (tmp_path / "optimizer.py").write_text("MINE = 7\n")
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "__init__.py").touch()
    (tmp_path / "pkg" / "sibling.py").write_text("value = 7\n")
    (tmp_path / "pkg" / "tools.py").write_text(body)
    for spelling in ("pkg.tools:f", "pkg/tools.py:f"):
        with python_callable(spelling, tmp_path) as function:
            if text is None:
                assert function.call() == 7
            else:
                with pytest.raises(Fault, match=text):
                    function.call()


def test_missing_packages_say_what_to_install() -> None:
    for package in ("torch", "safetensors.torch"):
        told = missing_package(package)
        assert told.exit == Exit.UNDECIDED and 'pip install "lathe[torch]"' in told.hint
    assert "Install 'einops'" in missing_package("einops.layers").hint


def test_texts_are_read(tmp_path: Path) -> None:
    assert is_code("a.b:c.d") and is_code("some/where.py:f") and not is_code("a.b") and not is_code("C:\\m.onnx")
    assert parse("a.b:c", tmp_path).module == "a.b" and parse("a.b:c", tmp_path).name == "c"
    with pytest.raises(Fault, match="'nope' is not of the form") as caught:
        parse("nope", tmp_path, "--metric")
    assert caught.value.exit is Exit.USAGE
    (tmp_path / "other.py").touch()
    with pytest.raises(Fault, match=r"no such Python file. Python files there: other\.py") as caught:
        parse("mine.py:f", tmp_path)
    assert caught.value.exit is Exit.BAD_INPUT
