"""Grain pipelines: endless batches, each a pure function of its index and a seed.

The state of an iterator is the index of the next batch. It is therefore small enough for a
checkpoint, and restoring it is immediate.
"""

import functools
from collections.abc import Mapping, Sequence

import grain
import numpy as np

Batch = Mapping[str, np.ndarray]


def stream_windows(tokens: np.ndarray, lanes: int, window: int, seed: int) -> grain.MapDataset:
    """Windows of a token stream for truncated backpropagation through time.

    The text is divided into ``lanes`` equal parts. Batch k holds the k-th window of each part, so
    each row of a batch continues the same row of the previous batch. Each epoch treats the text as
    a ring and starts at a new random position, so that windows are not cut at the same characters
    again.

    Args:
      tokens: int32 ``[N]``.
      lanes: B, the rows of a batch.
      window: T, the length of a row.
      seed: determines where epochs start.

    Returns:
      An endless data set of batches: ``inputs`` and ``targets`` (the inputs one step later),
      int32 ``[B, T]``, and ``start``, bool ``[B]``, true in the first batch of an epoch,
      where no row continues a previous one.

    Raises:
      ValueError: the text is too short for one window per lane.

    >>> batches = stream_windows(np.arange(13), lanes=2, window=3, seed=0)
    >>> batches[0]["inputs"].shape, (batches[1]["inputs"][:, 0] == batches[0]["targets"][:, -1])
    ((2, 3), array([ True,  True]))
    """
    lane = len(tokens) // lanes
    windows = lane // window
    if windows < 1:
        raise ValueError(
            f"expected at least lanes * window = {lanes * window} tokens, got {len(tokens)}"
        )

    def batch(index: int, _: int) -> Batch:
        epoch, k = divmod(index, windows)
        begin = np.random.default_rng((seed, epoch)).integers(len(tokens))
        at = begin + np.arange(lanes)[:, None] * lane + k * window + np.arange(window + 1)
        rows = tokens[at % len(tokens)]
        return {
            "inputs": rows[:, :-1],
            "targets": rows[:, 1:],
            "start": np.full(lanes, k == 0),
        }

    return grain.MapDataset.range(windows).repeat().map_with_index(batch)


def sliding_windows(
    series: np.ndarray, window: int, horizon: int, batch_size: int, seed: int
) -> grain.MapDataset:
    """All windows of a series in random order, each split into past and future.

    Args:
      series: ``[rows, C]``.
      window: W, the number of past rows in an example.
      horizon: F, the number of future rows in an example.
      batch_size: B.
      seed: determines the order, which differs in each epoch.

    Returns:
      An endless data set of batches: ``past`` ``[B, W, C]`` and ``future`` ``[B, F, C]``.

    Raises:
      ValueError: the series is shorter than one example.

    >>> batches = sliding_windows(np.arange(9.0)[:, None], 4, 2, batch_size=3, seed=0)
    >>> batches[0]["past"].shape, batches[0]["future"].shape
    ((3, 4, 1), (3, 2, 1))
    """
    stretches = len(series) - window - horizon + 1
    if stretches < 1:
        raise ValueError(
            f"expected at least window + horizon = {window + horizon} rows, got {len(series)}"
        )

    def example(start: int) -> Batch:
        return {
            "past": series[start : start + window],
            "future": series[start + window : start + window + horizon],
        }

    order = grain.MapDataset.range(stretches).shuffle(seed=seed).repeat()
    return order.map(example).batch(batch_size)


def shuffled(arrays: Batch, batch_size: int, seed: int) -> grain.MapDataset:
    """The rows of some arrays in random order, which differs in each epoch.

    Args:
      arrays: arrays with one row per example, all with the same number of rows.
      batch_size: B.
      seed: determines the order.

    Returns:
      An endless data set of batches with the names of ``arrays``, ``[B, ...]`` each.

    >>> batches = shuffled({"x": np.arange(6)}, batch_size=3, seed=0)
    >>> sorted(np.concatenate([batches[0]["x"], batches[1]["x"]]).tolist())
    [0, 1, 2, 3, 4, 5]
    """
    (rows,) = {len(array) for array in arrays.values()}

    @functools.lru_cache(maxsize=2)
    def epoch(number: int) -> np.ndarray:
        return np.random.default_rng((seed, number)).permutation(rows)

    def batch(index: int, _: int) -> Batch:
        number, begin = divmod(index * batch_size, rows)
        epochs = range(
            number, number + -(-(begin + batch_size) // rows)
        )  # the epochs of this batch's rows
        chosen = np.concatenate([epoch(n) for n in epochs])[begin : begin + batch_size]
        return {name: array[chosen] for name, array in arrays.items()}

    return grain.MapDataset.range(rows).repeat().map_with_index(batch)


def length_bounds(longest: int) -> tuple[int, ...]:
    """The lengths to which sequences are padded: 4, 8, 16, ... up to ``longest``.

    Each length needs a separate program, which takes seconds to compile.

    >>> length_bounds(20)
    (4, 8, 16, 32)
    """
    bounds = [4]
    while bounds[-1] < longest:
        bounds.append(2 * bounds[-1])
    return tuple(bounds)


def bucketed(
    lengths: np.ndarray, bounds: Sequence[int], batch_size: int, seed: int
) -> grain.MapDataset:
    """Batches of sequences of similar length, in random order.

    Each epoch shuffles the sequences and divides each bucket, the sequences with lengths between
    two bounds, into batches. Sequences left over join the next longer bucket, and the last batch is
    filled with random others, so that every sequence occurs in every epoch. The order of the batch
    lengths is the same for every seed, so that batches of several runs can be stacked.

    Args:
      lengths: the lengths of the sequences, integers ``[N]``.
      bounds: increasing lengths to which sequences are padded; the last is at least the longest.
      batch_size: B, at most N.
      seed: determines which sequences form a batch.

    Returns:
      An endless data set of pairs: the sequences of a batch, positions ``[B]``, and the bound to
      which they are padded.

    Raises:
      ValueError: there are fewer sequences than ``batch_size``, or one is longer than the last
        bound.

    >>> rows, bound = bucketed(np.array([3, 9, 4, 12]), (4, 12), batch_size=2, seed=0)[0]
    >>> sorted(rows.tolist()), bound
    ([0, 2], 4)
    """
    if batch_size > len(lengths):
        raise ValueError(f"expected at least batch_size = {batch_size} rows, got {len(lengths)}")
    if max(lengths) > bounds[-1]:
        raise ValueError(f"expected lengths of at most {bounds[-1]}, got {max(lengths)}")
    bucket = np.searchsorted(bounds, lengths)
    count = -(-len(lengths) // batch_size)

    @functools.lru_cache(maxsize=2)
    def epoch(number: int) -> list[tuple[np.ndarray, int]]:
        order = np.random.default_rng((seed, number)).permutation(len(lengths))
        batches, left = [], order[:0]
        for n, bound in enumerate(bounds):
            rows = np.concatenate([left, order[bucket[order] == n]])
            end = len(rows) // batch_size * batch_size
            batches += [(batch, bound) for batch in rows[:end].reshape(-1, batch_size)]
            left = rows[end:]
        if len(left):
            others = order[~np.isin(order, left)]
            batches.append((np.concatenate([left, others])[:batch_size], bounds[-1]))
        return [batches[n] for n in np.random.default_rng(number).permutation(count)]

    def batch(index: int, _: int) -> tuple[np.ndarray, int]:
        number, k = divmod(index, count)
        return epoch(number)[k]

    return grain.MapDataset.range(count).repeat().map_with_index(batch)
