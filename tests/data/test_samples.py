"""Slicing: no sample is lost, doubled or reordered, whatever the batch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.data.checks import from_arrays
from optimizer.data.samples import cut
from optimizer.data.synthetic import like, synthetic
from optimizer.faults import Exit, Fault
from passes.kit.model import Port

X = Port("x", "FLOAT", ("batch", 3))


def numbered(n: int) -> np.ndarray:
    return np.arange(n * 3, dtype=np.float32).reshape(n, 3)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 40), batch=st.integers(1, 17), fixed=st.sampled_from([None, 1, 4, 7]), data=st.data())
def test_every_sample_is_fed_once_in_order(n: int, batch: int, fixed: int | None, data: st.DataObject) -> None:
    port = Port("x", "FLOAT", (fixed, 3))
    samples = from_arrays({"x": numbered(n), "y": np.arange(n)}, (port,))
    chosen = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=n))
    view = samples.take(chosen)
    fed, seen, labels, start = view.fed(batch), [], [], 0
    assert fed == (fixed or batch)
    for feed, real in view.feeds(batch):
        assert feed["x"].shape == (fed, 3)
        assert feed["x"].flags.c_contiguous
        kept = cut({"x": feed["x"], "total": np.float32(1)}, real, fed)
        seen.append(kept["x"])
        labels.append(view.labels_of(start, real)["y"])
        start += real
    assert np.array_equal(np.concatenate(seen), numbered(n)[chosen])
    assert np.concatenate(labels).tolist() == chosen
    assert start == len(view)


def test_the_last_slice_is_padded_with_real_data_and_cut() -> None:
    samples = from_arrays({"x": numbered(6)}, (X,))
    *_, (feed, real) = samples.feeds(4)
    assert real == 2
    assert np.array_equal(feed["x"], numbered(6)[[4, 5, 5, 5]])
    assert cut({"a": feed["x"], "b": np.zeros((2, 4)), "c": [1, 2, 3, 4], "d": 7}, 1, 4)["a"].shape == (1, 3)
    trimmed = cut({"b": np.zeros((2, 4)), "c": [{"k": 1}] * 4}, 1, 4)
    assert trimmed["b"].shape == (2, 4)
    assert len(trimmed["c"]) == 1


def test_an_array_of_one_more_rank_holds_one_feed_per_entry() -> None:
    ports = (Port("state", "FLOAT", (2, 1, 4)), Port("x", "FLOAT", ("batch", 3)), Port("t", "FLOAT", ()))
    state = np.arange(3 * 8, dtype=np.float32).reshape(3, 2, 1, 4)
    samples = from_arrays({"state": state, "x": numbered(3), "t": np.float32([5, 6, 7]), "y": np.arange(3)}, ports)
    feeds = list(samples.feeds(8))
    assert samples.whole and len(samples) == 3 and samples.fed(8) == 1
    for k, (feed, real) in enumerate(feeds):
        assert real == 1
        assert np.array_equal(feed["state"], state[k])
        assert np.array_equal(feed["x"], numbered(3)[k : k + 1])
        assert feed["t"].shape == () and feed["t"] == 5 + k
        assert samples.labels_of(k, 1)["y"].tolist() == [k]


def test_inputs_with_different_fixed_first_axes_are_cut_each_by_its_own() -> None:
    ports = (Port("a", "FLOAT", (2, 3)), Port("b", "FLOAT", (3,)))
    samples = from_arrays({"a": numbered(8), "b": np.arange(12, dtype=np.float32)}, ports)
    assert len(samples) == 4
    fed = [feed for feed, _ in samples.take([2, 0]).feeds(1)]
    assert np.array_equal(fed[0]["a"], numbered(8)[4:6])
    assert fed[0]["b"].tolist() == [6, 7, 8]
    assert np.array_equal(fed[1]["a"], numbered(8)[:2])


def test_states_with_the_batch_behind_their_layers_are_not_cut_into_each_other() -> None:
    ports = (Port("frames", "FLOAT", ("batch", 9)), Port("state", "FLOAT", (2, "batch", 3)))
    frames, states = np.zeros((8, 9), np.float32), np.arange(48, dtype=np.float32).reshape(8, 2, 3)
    with pytest.raises(Fault, match=r"state.* is not its first axis") as caught:
        from_arrays({"frames": frames, "state": states}, ports)
    assert "'state' as [samples, 2, 1, 3]" in caught.value.hint and caught.value.exit is Exit.BAD_INPUT
    whole = from_arrays({"frames": frames[:, None], "state": states[:, :, None]}, ports)
    feeds = [feed for feed, _ in whole.feeds(1)]
    assert len(feeds) == 8 and (feeds[3]["state"] == states[3][:, None]).all()
    fixed = from_arrays({"frames": frames, "state": states}, (ports[0], Port("state", "FLOAT", (2, "other", 3))))
    assert fixed.batch == 2, "another name is another axis"


def test_whole_feeds_of_several_rows_take_their_rows_of_labels() -> None:
    port = Port("x", "FLOAT", (2, 3))
    flat = from_arrays({"x": numbered(6).reshape(3, 2, 3), "y": np.arange(6)}, (port,))
    assert flat.labels_of(1, 1)["y"].tolist() == [2, 3]
    tokens = from_arrays({"x": numbered(4).reshape(4, 1, 3), "y": np.zeros((4, 9), int)}, (Port("x", "FLOAT", (1, 3)),))
    assert tokens.labels_of(1, 1)["y"].shape == (1, 9)


def test_a_single_number_is_a_constant() -> None:
    ports = (X, Port("t", "FLOAT", ()), Port("scale", "FLOAT", ("batch", 1)))
    samples = from_arrays({"x": numbered(5), "t": np.float64(2.5), "scale": np.float32(3)}, ports)
    for feed, _ in samples.feeds(2):
        assert feed["t"].shape == () and feed["t"].dtype == np.float32 and feed["t"] == 2.5
        assert np.array_equal(feed["scale"], np.full((2, 1), 3, np.float32))


def test_digest_follows_content_names_and_order_but_not_where_it_lies() -> None:
    base = from_arrays({"x": numbered(6), "y": np.arange(6)}, (X,))
    again = from_arrays({"y": np.arange(6), "x": numbered(6).copy()}, (X,))
    assert base.digest() == again.digest()
    changed = numbered(6)
    changed[5, 2] += 1
    others = [
        from_arrays({"x": changed, "y": np.arange(6)}, (X,)),
        from_arrays({"x": numbered(6), "y": np.arange(6)[::-1]}, (X,)),
        from_arrays({"x": numbered(6), "z": np.arange(6)}, (X,)),
        base.take([0, 1, 2, 3, 5, 4]),
        base.take(range(5)),
    ]
    assert len({s.digest() for s in (base, *others)}) == 6
    assert base.take(range(6)).digest() == base.digest()


def test_take_checks_its_positions() -> None:
    with pytest.raises(IndexError):
        from_arrays({"x": numbered(3)}, (X,)).take([3])


def test_synthetic_inputs_are_seeded_and_of_the_right_form() -> None:
    ports = (
        Port("ids", "INT64", ("batch", "sequence")),
        Port("attention_mask", "INT64", ("batch", "sequence")),
        Port("image", "FLOAT16", ("batch", 3, None)),
        Port("flag", "BOOL", ("batch",)),
        Port("word", "STRING", ("batch", 1)),
        Port("t", "DOUBLE", ()),
    )
    first = synthetic(ports, 5, seed=1, bounds={"ids": (0, 100)}, dims={"sequence": 8})
    feed, real = next(iter(first.feeds(3)))
    assert real == 3 and len(first) == 5
    assert feed["ids"].shape == (3, 8) and feed["ids"].dtype == np.int64
    assert 1 < feed["ids"].max() < 100
    assert (feed["attention_mask"] == 1).all()
    assert feed["image"].shape == (3, 3, 16) and feed["image"].dtype == np.float16
    assert feed["flag"].dtype == bool and feed["word"].shape == (3, 1) and feed["t"].dtype == np.float64
    assert synthetic(ports, 5, 1, bounds={"ids": (0, 100)}, dims={"sequence": 8}).digest() == first.digest()
    assert synthetic(ports, 5, 2, bounds={"ids": (0, 100)}, dims={"sequence": 8}).digest() != first.digest()


def test_synthetic_inputs_without_a_common_batch_are_whole_feeds() -> None:
    matmul = (Port("a", "FLOAT", ("N", "K")), Port("b", "FLOAT", ("K", "M")))
    (feed, _), *_ = synthetic(matmul, 2, 0).feeds(1)
    assert feed["a"].shape == (1, 16) and feed["b"].shape == (16, 16)
    carried = (Port("x", "FLOAT", ("batch", 4)), Port("past", "FLOAT", (2, "batch", "past", 8)))
    (feed, _), *_ = synthetic(carried, 2, 0).feeds(4)
    assert feed["x"].shape == (1, 4) and feed["past"].shape == (2, 1, 16, 8)
    constants = synthetic((Port("t", "INT32", ()),), 3, 0)
    assert len(constants) == 3 and len(list(constants.feeds(1))) == 3


def test_made_up_samples_have_the_sizes_and_the_range_of_real_ones() -> None:
    ports = (
        Port("ids", "INT32", ("batch", "sequence")),
        Port("mask", "INT32", ("batch", "sequence")),
        Port("image", "FLOAT", ("batch", 3, None)),
        Port("rate", "INT64", ()),
    )
    rng = np.random.default_rng(0)
    image = rng.uniform(50, 60, (20, 3, 7)).astype(np.float32)
    image[0, 0, 0] = np.nan
    arrays = {"ids": rng.integers(90, 99, (20, 5)), "mask": np.zeros((20, 5), int), "image": image, "rate": 16000}
    made = like(from_arrays(arrays, ports, nan_ok=True), 6, seed=0)
    (feed, _), *_ = made.feeds(6)
    assert feed["ids"].shape == (6, 5) and 90 <= feed["ids"].min() < feed["ids"].max() <= 98
    assert (feed["mask"] == 1).all() and feed["rate"] == 16000
    assert feed["image"].shape == (6, 3, 7) and 50 <= feed["image"].min() < feed["image"].max() <= 60


def test_made_up_samples_of_whole_feeds_have_their_rows() -> None:
    port = Port("x", "FLOAT", ("batch", 3))
    whole = from_arrays({"x": np.ones((5, 4, 3), np.float32)}, (port,))
    (feed, _), *_ = like(whole, 2, seed=0).feeds(1)
    assert feed["x"].shape == (4, 3)
    assert len(like(whole.take([]), 2, seed=0)) == 2


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.float64])
def test_made_up_samples_do_without_a_range_that_cannot_be_drawn_from(dtype: type) -> None:
    info = np.finfo(dtype) if dtype is np.float64 else np.iinfo(dtype)
    port = Port("x", np.dtype(dtype).name.upper().replace("FLOAT64", "DOUBLE"), ("batch", 2))
    real = from_arrays({"x": np.array([[info.min, info.max]], dtype)}, (port,))
    assert len(like(real, 3, seed=0)) == 3
