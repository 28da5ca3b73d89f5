"""Grain pipelines: endless batches, each a pure function of its number and a seed.

A pipeline's place is the number of the next batch, so that an iterator's state is small,
is part of a checkpoint, and finds its place again at once.
"""

import functools
from collections.abc import Mapping, Sequence

import grain
import numpy as np

Batch = Mapping[str, np.ndarray]


def stream_windows(tokens: np.ndarray, lanes: int, window: int, seed: int) -> grain.MapDataset:
    """Windows of a text for truncated backpropagation through time.

    The text is laid out in ``lanes`` equal parts; batch k holds the k-th window of each, so
    that each row of a batch goes on where the same row of the batch before it stopped.  Each
    epoch begins at another, random place of the text, taken as a ring, so that windows are
    not cut at the same characters again.

    Args:
      tokens: int32 ``[N]``.
      lanes: B, the rows of a batch.
      window: T, the length of a row.
      seed: decides where epochs begin.

    Returns:
      An endless data set of batches: ``inputs`` and ``targets`` (the inputs one step later),
      int32 ``[B, T]``, and ``start``, bool ``[B]``, true in the first batch of an epoch,
      where no row goes on from the one before.

    Raises:
      ValueError: the text is too short for one window a lane.

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
    """Every stretch of a series in random order, cut into past and future.

    Args:
      series: ``[rows, C]``.
      window: W, how many rows of the past an example shows.
      horizon: F, how many rows after them it asks for.
      batch_size: B.
      seed: decides the order, another one each epoch.

    Returns:
      An endless data set of batches: ``past`` ``[B, W, C]`` and ``future`` ``[B, F, C]``.

    Raises:
      ValueError: the series is shorter than one stretch.

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
    """The rows of some arrays in random order, another one each epoch.

    Args:
      arrays: arrays with one row an example, as many rows each.
      batch_size: B.
      seed: decides the order.

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
        epochs = range(number, number + -(-(begin + batch_size) // rows))  # of this batch's rows
        chosen = np.concatenate([epoch(n) for n in epochs])[begin : begin + batch_size]
        return {name: array[chosen] for name, array in arrays.items()}

    return grain.MapDataset.range(rows).repeat().map_with_index(batch)


def length_bounds(longest: int) -> tuple[int, ...]:
    """The few lengths to which sequences are padded: 4, 8, 16, ... up to ``longest``.

    Each asks for a program of its own, which takes seconds to compile.

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
    """Which sequences of about the same length form a batch, in random order.

    Each epoch shuffles the sequences and divides those of each bucket, whose lengths lie between
    two bounds, into batches.  Those that are left over join the next longer bucket, and the last
    batch is filled with random others, so that every sequence occurs in every epoch.  The lengths
    of all batches in their order are the same for every seed: batches of several runs can be
    stacked.

    Args:
      lengths: of the sequences, integers ``[N]``.
      bounds: rising lengths to which sequences are padded; the last is at least the longest.
      batch_size: B, at most N.
      seed: decides which sequences are together.

    Returns:
      An endless data set of pairs: the sequences of a batch, positions ``[B]``, and the bound to
      which they are padded.

    Raises:
      ValueError: there are fewer sequences than a batch, or one is longer than the last bound.

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
