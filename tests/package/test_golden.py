"""Golden pairs: what goes into a file comes out, bytes depend on values only, and differences are noticed."""

from __future__ import annotations

import io
import zipfile

import ml_dtypes
import numpy as np
import pytest

from optimizer.package import golden
from optimizer.package.golden import GoldenPair, Tolerance

VALUES = {
    "/block/x:0": np.arange(6, dtype=np.float32).reshape(2, 3),
    "scalar": np.array(3, np.int64),
    "words": np.array(["a", "läßt"], dtype=object),
    "half": np.array([1.5, -2], ml_dtypes.bfloat16),
    "empty": np.zeros((0, 4), np.float16),
    "maps": [{0: 0.25, 1: 0.75}, {"x": np.array([1, 2], np.int32)}],
}


def written(values: dict[str, object]) -> bytes:
    stream = io.BytesIO()
    golden.write(stream, values)
    return stream.getvalue()


def test_what_goes_in_comes_out() -> None:
    back = golden.read(io.BytesIO(written(VALUES)))
    assert set(back) == set(VALUES)
    for name in set(VALUES) - {"maps"}:
        assert back[name].dtype == VALUES[name].dtype and back[name].shape == VALUES[name].shape
        assert golden.difference(VALUES[name], back[name], Tolerance(0, 0)) == ""
    assert list(back["maps"][0].items()) == [(0, 0.25), (1, 0.75)]
    assert back["maps"][1]["x"].dtype == np.int32


def test_the_bytes_know_no_date_and_no_order() -> None:
    first = written(VALUES)
    assert first == written(dict(reversed(VALUES.items())))
    with zipfile.ZipFile(io.BytesIO(first)) as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        # zip64 headers, which these files do not need, are written otherwise from Python 3.11.4 on
        assert {info.extract_version for info in archive.infolist()} == {20}
    plain = np.load(io.BytesIO(first), allow_pickle=False)
    assert plain["/block/x:0"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_pickles_and_damage_are_refused() -> None:
    stream = io.BytesIO()
    np.savez(stream, x=np.array([{}], dtype=object))
    for bad in (stream.getvalue(), written(VALUES)[:-30], b"PK"):
        with pytest.raises(ValueError):
            golden.read(io.BytesIO(bad))


@pytest.mark.parametrize(
    ("expected", "got", "why"),
    [
        (np.float32([1, 100]), np.float32([1, 100.005]), ""),
        (np.float32([1, 100]), np.float32([1, 100.02]), "off by"),
        (np.float32([1, np.nan]), np.float32([1, np.nan]), ""),
        (np.float32([1, np.inf]), np.float32([1, -np.inf]), "infinite"),
        (np.float32([1, 2]), np.float32([1, np.nan]), "infinite"),
        (np.float32([[1, 2]]), np.float32([1, 2]), "shape"),
        (np.int64([1, 2]), np.int64([1, 3]), "50.00% of the elements differ"),
        (np.array(["a"], object), np.array(["b"]), "100.00%"),
        ([{0: 1.0}], [{1: 1.0}], "built differently"),
        ([{0: 1.0}], [{0: 1.5}], "at [0][0]: off by 0.5"),
    ],
)
def test_differences(expected: object, got: object, why: str) -> None:
    found = golden.difference(expected, got, Tolerance(1e-4, 0.0))
    assert found == "" if not why else why in found


def test_a_quantized_model_may_round_to_the_next_step() -> None:
    pair = [GoldenPair({}, {"y": np.float32([1]), "label": np.int64([1])})]
    exact, loose = (golden.tolerances(pair, lossy=lossy) for lossy in (False, True))
    assert exact["y"].of_largest == 1e-4 and exact["label"] == Tolerance(0.0, 0.0)
    assert loose["y"].of_largest == 2e-2 and loose["label"].may_differ == 0.01
    with pytest.raises(ValueError):
        golden.pairs([{}], [])
