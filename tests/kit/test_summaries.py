"""A row says what its sample is like, whatever the sample is made of and whoever it was batched with."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.kit.reducers import build
from passes.kit.summaries import Layout, SampleRows, layout_of, layout_of_answers, rows

SHAPES = ((), (1,), (7,), (40,), (3, 8, 8), (8, 8, 3), (1, 9, 9), (2, 64), (5, 6), (16, 5, 5), (1, 1, 3))
TYPES = (np.float32, np.float16, np.int64, np.uint8, bool)


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(SHAPES), st.sampled_from(TYPES), st.integers(0, 2**32 - 1), st.booleans(), st.booleans())
def test_rows_fit_their_names_and_no_sample_sees_another(
    shape: tuple[int, ...], kind: type, seed: int, broken: bool, answers: bool
) -> None:
    rng = np.random.default_rng(seed)
    batch = (rng.standard_normal((5, *shape)) * 40).astype(kind)
    if broken and batch.dtype.kind == "f":
        batch[rng.random(batch.shape) < 0.3] = rng.choice([np.nan, np.inf, -np.inf])
    layout = (layout_of_answers if answers else layout_of)(shape, batch.dtype)
    found = rows(layout, batch)
    assert found.shape == (5, len(layout.names())) and found.dtype == np.float32
    assert np.isfinite(found).all() and len(set(layout.names())) == len(layout.names())
    for i in range(5):
        assert rows(layout, batch[i : i + 1]).tobytes() == found[i].tobytes()
    assert Layout.of_plain(layout.plain()) == layout


def read(layout: Layout, sample: np.ndarray) -> dict[str, float]:
    return dict(zip(layout.names(), rows(layout, sample[None])[0].tolist(), strict=True))


def test_an_image_is_told_by_values_roughness_and_channels() -> None:
    image = np.zeros((3, 8, 8), np.float32)
    image[0], image[1, ::2], image[2, :, 4:] = 0.5, 1.0, -1.0
    told = read(layout_of(image.shape, image.dtype), image)
    assert told["mean"] == pytest.approx(0.5 / 3, abs=1e-3) and (told["low"], told["high"]) == (-1, 1)
    assert (told["mean-0"], told["mean-1"], told["mean-2"]) == (0.5, 0.5, -0.5)
    assert (told["mean-0-2"], told["deviation-0"], told["deviation-1"]) == (1.0, 0.0, 0.5)
    assert told["at-low"] == pytest.approx(1 / 6, abs=1e-3) and told["correlation-1-2"] == 0
    smooth = read(layout_of((1, 8, 8), image.dtype), np.add.outer(np.arange(8.0), np.arange(8.0))[None])
    assert smooth["grain"] == 0 and smooth["edges"] == 2


def test_a_row_of_a_table_is_told_column_by_column_and_what_is_not_finite_is_counted() -> None:
    row = np.array([3.0, np.nan, -1.0, 0.0], np.float32)
    told = read(layout_of(row.shape, row.dtype), row)
    assert (told["[0]"], told["[2]"], told["broken"], told["high"]) == (3.0, -1.0, 0.25, 3.0)
    assert told["mean"] == pytest.approx(2 / 3, abs=1e-3)


def test_scores_are_told_by_confidence_whether_they_are_probabilities_or_not() -> None:
    share = np.array([0.7, 0.2, 0.1], np.float32)
    layout = layout_of_answers(share.shape, share.dtype)
    for scores in (share, np.log(share) + 3):
        told = read(layout, scores)
        assert told["confidence"] == pytest.approx(0.7, abs=1e-3)
        assert told["margin"] == pytest.approx(0.5, abs=1e-3)
        assert told["entropy"] == pytest.approx(0.802, abs=1e-3)


def test_answers_that_differ_in_size_keep_one_layout() -> None:
    layout = layout_of_answers((1, 1), np.dtype(np.float32), sized=True)
    assert "size" in layout.names() and layout.columns == 0
    for shape in ((1, 1, 1), (1, 5, 3), (1, 0, 3)):
        for kind in (layout, layout_of_answers((4, 3), np.dtype(np.float32), sized=True)):
            assert rows(kind, np.ones(shape, np.float32)).shape == (1, len(kind.names()))


def test_clipping_counts_what_has_no_integer() -> None:
    values = np.array([-3.0, -1.0, 0.0, 1.5, 2.0], np.float32)
    assert read(Layout("clipped", floor=-2.0, ceiling=1.5), values) == {"clipped": pytest.approx(0.4), "reach": 1.5}
    relu = Layout("clipped", floor=float(np.finfo(np.float32).min), ceiling=2.0)
    assert read(relu, values) == {"clipped": 0.0, "reach": 1.0}


def test_other_samples_than_the_layout_says_are_refused() -> None:
    table, image = layout_of((4,), np.dtype(np.float32)), layout_of((3, 8, 8), np.dtype(np.float32))
    with pytest.raises(ValueError, match="5 values, where there were 4"):
        rows(table, np.zeros((2, 5), np.float32))
    with pytest.raises(ValueError, match="8 channels"):
        rows(image, np.zeros((2, 8, 8, 3), np.float32))


def test_the_reducer_keeps_one_row_a_sample_through_spec_and_merge() -> None:
    layout = layout_of_answers((4,), np.dtype(np.float32))
    batch = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    first, second = (build(SampleRows(layout.plain()).spec()) for _ in range(2))
    for i, sample in enumerate(batch):
        (first if i < 2 else second).fold(sample[None])
    first.merge(second)
    assert first.arrays["rows"].tobytes() == rows(layout, batch).tobytes()
    assert first.arrays["classes"].tolist() == batch.argmax(axis=1).tolist()
