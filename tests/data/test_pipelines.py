"""Endless batches: their rows, their order, and resuming."""

import json

import grain
import numpy as np
import pytest

from lstm_jax.data import bucketed, length_bounds, shuffled, sliding_windows, stream_windows


def counted(n: int) -> np.ndarray:
    """A text in which each token is its position."""
    return np.arange(n, dtype=np.int32)


@pytest.mark.parametrize(("n", "lanes", "window"), [(61, 3, 4), (60, 3, 4), (24, 2, 12), (9, 9, 1)])
def test_each_stream_row_continues_the_previous_batch(n, lanes, window):
    batches = stream_windows(counted(n), lanes, window, seed=3)
    epoch = n // lanes // window
    for k in range(3 * epoch):
        batch = batches[k]
        assert batch["inputs"].shape == batch["targets"].shape == (lanes, window)
        assert (batch["inputs"].dtype, batch["targets"].dtype) == (np.int32, np.int32)
        # Each token is its position, so the next one (in the ring) is one more.
        np.testing.assert_array_equal(batch["targets"], (batch["inputs"] + 1) % n)
        np.testing.assert_array_equal(batch["inputs"][:, 1:], batch["targets"][:, :-1])
        np.testing.assert_array_equal(batch["start"], [k % epoch == 0] * lanes)
        if k % epoch:
            before = batches[k - 1]["targets"][:, -1]
            np.testing.assert_array_equal(batch["inputs"][:, 0], before)


def test_stream_epoch_reads_nearly_all_positions_once():
    n, lanes, window = 103, 4, 6
    batches = stream_windows(counted(n), lanes, window, seed=0)
    epoch = n // lanes // window
    offsets = set()
    for e in range(6):
        rows = np.concatenate([batches[e * epoch + k]["inputs"] for k in range(epoch)], 1)
        assert len(np.unique(rows)) == rows.size == lanes * epoch * window
        # Row b starts b parts after row 0, in the ring.
        np.testing.assert_array_equal(
            (rows[:, 0] - rows[0, 0]) % n, np.arange(lanes) * (n // lanes)
        )
        offsets.add(int(rows[0, 0]))
    assert len(offsets) > 3, "epochs begin at different places"


def test_a_stream_is_a_function_of_its_seed():
    def first(seed: int) -> int:
        return int(stream_windows(counted(1000), 2, 5, seed)[0]["inputs"][0, 0])

    assert first(1) == first(1)
    assert len({first(seed) for seed in range(8)}) > 4


@pytest.mark.parametrize("n", [11, 1, 0])
def test_stream_needs_one_window_per_lane(n):
    with pytest.raises(ValueError, match=rf"at least lanes \* window = 12 tokens, got {n}"):
        stream_windows(counted(n), lanes=3, window=4, seed=0)


def test_sliding_windows_occur_once_per_epoch_in_new_order():
    series = np.stack([counted(20), 100 + counted(20)], 1).astype(np.float32)
    batches = sliding_windows(series, 5, 3, batch_size=1, seed=0)
    stretches = 20 - 5 - 3 + 1
    epochs = []
    for e in range(3):
        epoch = [batches[e * stretches + k] for k in range(stretches)]
        for batch in epoch:
            start = int(batch["past"][0, 0, 0])
            np.testing.assert_array_equal(batch["past"][0], series[start : start + 5])
            np.testing.assert_array_equal(batch["future"][0], series[start + 5 : start + 8])
        epochs.append([int(batch["past"][0, 0, 0]) for batch in epoch])
        assert sorted(epochs[-1]) == list(range(stretches))
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert epochs[0] != sorted(epochs[0])


def test_batched_sliding_windows_equal_single_ones():
    series = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32)
    single = sliding_windows(series, 4, 2, batch_size=1, seed=7)
    batches = sliding_windows(series, 4, 2, batch_size=10, seed=7)
    for k in range(4):  # 25 windows: the third batch reaches into the next epoch
        for name in ("past", "future"):
            rows = np.concatenate([single[10 * k + row][name] for row in range(10)])
            np.testing.assert_array_equal(batches[k][name], rows)


def test_sliding_windows_repeat_a_single_example():
    series = counted(6)[:, None]
    batch = sliding_windows(series, 4, 2, batch_size=3, seed=0)[5]
    np.testing.assert_array_equal(batch["past"][:, :, 0], [[0, 1, 2, 3]] * 3)


def test_sliding_windows_need_one_example():
    with pytest.raises(ValueError, match=r"at least window \+ horizon = 7 rows, got 6"):
        sliding_windows(np.zeros((6, 1)), 4, 3, batch_size=1, seed=0)


def test_shuffled_gives_each_row_once_per_epoch_in_new_order():
    arrays = {"x": np.arange(12) ** 2, "y": np.stack([np.arange(12), -np.arange(12)], 1)}
    batches = shuffled(arrays, batch_size=4, seed=5)
    epochs = []
    for e in range(3):
        rows = [batches[3 * e + k] for k in range(3)]
        x = np.concatenate([batch["x"] for batch in rows])
        y = np.concatenate([batch["y"] for batch in rows])
        assert sorted(y[:, 0].tolist()) == list(range(12))
        np.testing.assert_array_equal(y[:, 1], -y[:, 0])
        np.testing.assert_array_equal(x, y[:, 0] ** 2)
        epochs.append(tuple(y[:, 0].tolist()))
    assert len(set(epochs)) == 3
    assert shuffled(arrays, 4, seed=6)[0]["x"].tolist() != batches[0]["x"].tolist()


def test_shuffled_rejects_arrays_of_different_lengths():
    with pytest.raises(ValueError):
        shuffled({"x": np.zeros(3), "y": np.zeros(4)}, batch_size=1, seed=0)


PIPELINES = {
    "stream_windows": lambda: stream_windows(counted(50), lanes=2, window=5, seed=1),
    "sliding_windows": lambda: sliding_windows(counted(20)[:, None], 4, 2, batch_size=4, seed=1),
    "shuffled": lambda: shuffled({"x": counted(10)}, batch_size=4, seed=1),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_iterator_resumes_from_its_json_state(name):
    """Also in a later epoch, and in a new pipeline, as after a restart."""
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    batches = PIPELINES[name]()
    iterator = iter(batches.to_iter_dataset(options))
    for _ in range(7):
        next(iterator)
    state = json.dumps(iterator.get_state())
    expected = [next(iterator) for _ in range(9)]
    again = iter(PIPELINES[name]().to_iter_dataset(options))
    again.set_state(json.loads(state))
    for k, batch in enumerate(expected):
        got, indexed = next(again), batches[7 + k]
        assert batch.keys() == got.keys() == indexed.keys()
        for key in batch:
            np.testing.assert_array_equal(got[key], batch[key])
            np.testing.assert_array_equal(indexed[key], batch[key])


def test_bounds_double_up_to_the_longest():
    assert length_bounds(1000) == (4, 8, 16, 32, 64, 128, 256, 512, 1024)
    assert length_bounds(1) == length_bounds(4) == (4,) and length_bounds(5) == (4, 8)


@pytest.mark.parametrize("batch_size", [1, 7, 50])
def test_bucketed_epoch_pads_every_sequence_to_its_shortest_bound(batch_size):
    lengths = np.random.default_rng(0).integers(1, 24, 50)
    bounds = length_bounds(23)
    batches = bucketed(lengths, bounds, batch_size, seed=3)
    count = -(-50 // batch_size)
    for epoch in range(2):
        made = [batches[epoch * count + k] for k in range(count)]
        assert all(len(rows) == len(set(rows.tolist())) == batch_size for rows, _ in made)
        assert all(lengths[rows].max() <= bound for rows, bound in made)
        times = np.bincount(np.concatenate([rows for rows, _ in made]), minlength=50)
        assert times.min() == 1 and times.sum() == count * batch_size
        # Only sequences left over from a shorter bucket, or added to fill the last batch, are
        # padded more.
        padded_more = [
            (np.searchsorted(bounds, lengths[rows]) < bounds.index(bound)).sum()
            for rows, bound in made
        ]
        assert sum(padded_more) <= (len(bounds) - 1) * (batch_size - 1) + batch_size


def test_bucketed_batch_lengths_do_not_depend_on_the_seed():
    lengths = np.random.default_rng(0).integers(1, 24, 60)
    one, other = (bucketed(lengths, length_bounds(23), 4, seed) for seed in (0, 1))
    shapes = [[batches[k][1] for k in range(30)] for batches in (one, other)]
    assert shapes[0] == shapes[1] and shapes[0][:15] != shapes[0][15:]
    assert any((one[k][0] != other[k][0]).any() for k in range(15))
    np.testing.assert_array_equal(one[20][0], bucketed(lengths, length_bounds(23), 4, 0)[20][0])


def test_bucketed_sequences_longer_than_the_last_bound_are_rejected():
    with pytest.raises(ValueError, match="expected at least batch_size = 4 rows, got 3"):
        bucketed(np.array([1, 2, 3]), (8,), 4, seed=0)
    with pytest.raises(ValueError, match="expected lengths of at most 8, got 9"):
        bucketed(np.array([1, 9]), (8,), 1, seed=0)
