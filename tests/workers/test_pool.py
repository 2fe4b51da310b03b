"""Workers answer, carry arrays and faults both ways, and say how they ended."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from optimizer.faults import Fault
from optimizer.workers import wire
from optimizer.workers.pool import CallFailed, Worker, WorkerDied

ECHO = "optimizer.workers.probe:echo"

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(0, 9), inner),
    max_leaves=12,
)


@given(plain)
def test_messages_come_back_as_they_went(message: Any) -> None:
    stream = io.BytesIO()
    wire.send(stream, message)
    stream.seek(0)
    assert wire.receive(stream) == message


@given(npst.arrays(npst.scalar_dtypes(), npst.array_shapes(min_dims=0, min_side=0)))
def test_arrays_come_back_bit_for_bit(array: np.ndarray[Any, Any]) -> None:
    stream = io.BytesIO()
    wire.send(stream, {"a": array})
    stream.seek(0)
    back = wire.receive(stream)["a"]
    assert back.dtype == array.dtype and back.shape == array.shape and back.tobytes() == array.tobytes()


@pytest.mark.parametrize(
    "name", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "int4", "float4_e2m1fn"]
)
def test_types_that_numpy_lacks_come_back_too(name: str) -> None:
    stream = io.BytesIO()
    array = np.array([[1, 0], [-1, 2]]).astype(getattr(ml_dtypes, name))
    wire.send(stream, array)
    stream.seek(0)
    back = wire.receive(stream)
    assert back.dtype == array.dtype and back.tobytes() == array.tobytes()


@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_a_worker_answers_faults_and_dies_in_words(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATHE_WORKERS", how)
    with Worker.ours() as worker:
        assert worker.call(ECHO, thing={"x": np.arange(3)})["x"].tolist() == [0, 1, 2]
        with pytest.raises(Fault, match="told you"):
            worker.call("optimizer.workers.probe:fail", text="told you")
        with pytest.raises(CallFailed, match="not an operation of ours"):
            worker.call("os:system")
        with pytest.raises(WorkerDied, match="SIGSEGV"):
            worker.call("optimizer.workers.probe:crash")
        with pytest.raises(WorkerDied, match="already ended"):
            worker.call(ECHO, thing=1)


def test_a_hanging_worker_is_given_up() -> None:
    with Worker.ours() as worker, pytest.raises(WorkerDied, match=r"no answer within 0\.2 s"):
        worker.call("optimizer.workers.probe:sleep", timeout=0.2, seconds=60)


def test_user_code_sees_its_own_optimizer_first(tmp_path: Path) -> None:
    (tmp_path / "optimizer.py").write_text("NAME = 'mine'\n")
    job = tmp_path / "job.py"
    job.write_text("import sys\ndef look():\n    import optimizer\n    print('noise')\n    return optimizer.NAME\n")
    with Worker.users(tmp_path) as worker:
        assert worker.call(f"{job}:look") == "mine"
